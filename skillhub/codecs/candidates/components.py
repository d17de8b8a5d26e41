"""Candidate: few singular components in integers, and the rows that they describe badly exactly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from skillhub.codecs import lowrank, rows
from skillhub.codecs.candidates.interface import Offer, Target
from skillhub.codecs.encoding import EncodedPart, EncodedTensor
from skillhub.codecs.quantization import Quantized, quantize, quantize_each
from skillhub.errors import UsageError

Floats = npt.NDArray[np.float64]

MAX_OUTLIERS = 0.01
"""Largest share of a matrix's rows that are stored exactly as outliers."""

ROW_SAMPLE = 16
"""Rows that are encoded to see what an exact row costs."""


@dataclass(frozen=True, eq=False)
class Components:
    """The singular components that are worth their bits.

    Attributes:
        target: the matrix.
    """

    target: Target

    kind = "lowrank"

    def offers(self, prices: Sequence[float]) -> Iterator[tuple[Offer, int]]:
        """Yield for each price what is offered, and of how many components that is."""
        for price, bought in zip(
            prices, quantize_each(self.target.factors, prices, coherence=self.target.coherence), strict=True
        ):
            yield self._offer(price, bought), len(bought.kept)

    def offer(self, price: float) -> Offer:
        """As :meth:`skillhub.codecs.candidates.interface.Candidate.offer`."""
        return next(self.offers([price]))[0]

    def _offer(self, price: float, bought: Quantized) -> Offer:
        target, outliers = self.target, np.zeros(0)
        if target.metrics is None:
            errors = np.maximum(target.row_energies - self._explained_by_row(bought), 0)
            outliers = errors[choose_outliers(errors, price, target.row_bits)]
        bits = bought.bits + self._bits_of_lines(bought) + len(outliers) * target.row_bits
        return Offer(bits, max(target.energy - bought.removed - float(outliers.sum()), 0.0))

    def encode(self, price: float) -> tuple[EncodedPart, ...]:
        """As :meth:`skillhub.codecs.candidates.interface.Candidate.encode`, without outlying rows.

        Raises:
            UsageError: fp32 cannot hold the scales of the components.
        """
        bought = quantize(self.target.factors, price, coherence=self.target.coherence)
        if not len(bought.scales):
            return ()
        components = lowrank.choose_groups(bought.left, bought.right, bought.scales, self.target.factors.lines)
        if components is None:  # not of a matrix whose largest weight is of sane magnitude
            raise UsageError(
                f"A change of {list(self.target.matrix.shape)} has components too small or large for scales in fp32.",
                hint="Pack the fine-tune bit for bit: --preset lossless.",
            )
        return (lowrank.encode(components),)

    def _bits_of_lines(self, bought: Quantized) -> float:
        """Return what the exponents of rows and columns take, where anything is bought."""
        lines = self.target.factors.lines
        if lines is None or not len(bought.kept):
            return 0.0
        exponents = np.concatenate([lines.rows, lines.columns])
        _, counts = np.unique(exponents, return_counts=True)
        return 200 - 1.2 * float((counts * np.log2(counts / counts.sum())).sum())  # what zstandard was seen to take

    def _explained_by_row(self, bought: Quantized) -> Floats:
        """Return how much of each row's square the components explain, by as much as they are orthogonal."""
        factors = self.target.factors
        left, right = factors.left[bought.kept], factors.right[bought.kept]
        approximate = bought.left * bought.scales[:, None]
        along = np.einsum("ij,ij->i", bought.right, right, dtype=np.float64) * factors.values[bought.kept]
        square = np.einsum("ij,ij->i", bought.right, bought.right, dtype=np.float64)
        explained: Floats = 2 * along @ (left * approximate) - square @ np.square(approximate)
        return explained


def measure_row_bits(matrix: torch.Tensor) -> float:
    """Return the bits of one exactly stored row: a measurement of the largest ones, which outliers are among."""
    largest = matrix.square().sum(dim=1).argsort(descending=True, stable=True)[:ROW_SAMPLE]
    sample = rows.encode(matrix, sorted(largest.tolist()))
    return 8 * EncodedTensor(tuple(matrix.shape), (sample,)).nbytes / len(largest)


def choose_outliers(errors: Floats, price: float, row_bits: float) -> npt.NDArray[np.int64]:
    """Return the rows whose remaining squared error is worth storing them exactly at ``price``, in increasing order."""
    worth = np.flatnonzero(errors > price * row_bits)
    worst = worth[np.argsort(-errors[worth], kind="stable")[: int(MAX_OUTLIERS * len(errors))]]
    return np.sort(worst)
