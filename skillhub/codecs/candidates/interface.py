"""What candidates compete for, and what each of them offers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

from skillhub.codecs.encoding import EncodedPart
from skillhub.codecs.factorization import Factors, load_factors
from skillhub.codecs.metrics import Metrics

COHERENCE = 4.0
"""How many times its own error a component costs that is left out of a calibrated tensor; between 1 and 16 the divergence of a real
fine-tune changed by a tenth, and was least here."""


class Values(NamedTuple):
    """The tensors whose difference a matrix is, in their own dtypes and of its tensor's shape."""

    tuned: torch.Tensor
    base: torch.Tensor


@dataclass(frozen=True, eq=False)
class Target:
    """A matrix that candidates compete to store.

    Attributes:
        matrix: (rows, columns) fp32, finite; rows that the base lacks are zero.
        source: its singular components, or the file that holds them.
        metrics: what errors in its rows and columns cost, to tell what is offered; None counts all alike.
        row_bits: what storing one row exactly costs.
        values: what it is the difference of, where it may be stored as that.
    """

    matrix: torch.Tensor
    source: Factors | Path
    metrics: Metrics | None = None
    row_bits: float = 0.0
    values: Values | None = None

    @cached_property
    def factors(self) -> Factors:
        """Its singular components."""
        return load_factors(self.source)

    @cached_property
    def energy(self) -> float:
        """What storing nothing costs."""
        if self.metrics is not None:
            return self.metrics.energy(self.matrix)
        return float(self.row_energies.sum())

    @cached_property
    def row_energies(self) -> npt.NDArray[np.float64]:
        """(rows,) the sums of squares."""
        energies: npt.NDArray[np.float64] = self.matrix.square().sum(dim=1, dtype=torch.float64).numpy()
        return energies

    @property
    def coherence(self) -> float:
        """How many times its own squared error a component costs that is left out."""
        return 1.0 if self.factors.left_root is None else COHERENCE

    def sample(self, size: int) -> slice:
        """Return evenly spaced rows of about ``size`` weights: neighbouring ones (heads, experts) resemble each other."""
        return slice(None, None, max(1, self.matrix.numel() // size))


@dataclass(frozen=True)
class Offer:
    """What a candidate would store of a matrix at some price.

    Attributes:
        bits: estimated size.
        error: estimated squared error that remains, in the metrics.
    """

    bits: float
    error: float


class Candidate(Protocol):
    """A way of storing a matrix."""

    @property
    def kind(self) -> str:
        """Its name, which tells it from the others: that of its first codec."""

    def offer(self, price: float) -> Offer | None:
        """Say what it would store at a price (squared error a bit); None if it does not suit the matrix."""

    def encode(self, price: float) -> tuple[EncodedPart, ...]:
        """Return the parts that store the matrix at a price; none where nothing is worth its bits."""
