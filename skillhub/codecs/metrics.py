"""What an error in a weight matrix costs, measured by the rows and columns that it lies in.

A linear layer with an error ``E`` gives outputs that are off by ``E·x`` for an input ``x``, and what it is for changes by ``gᵀ·E·x``, where ``g``
is the gradient at its outputs. In the mean over positions the square of that is ``trace(G·E·C·Eᵀ)`` with the second moments ``G`` of the gradients
and ``C`` of the inputs, taken as independent: the Kronecker-factored Fisher information (Martens & Grosse 2015, arXiv 1503.05671). Half of it
is the divergence from the exact model. A matrix is therefore factorized *whitened*, as ``G^½·W·C^½``, where every error
counts alike (for the inputs alone: Hsu et al. 2022, arXiv 2207.00112; Yuan et al. 2023, arXiv 2312.05821).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from skillhub.codecs.lowrank import MAX_LINE_EXPONENT

RIDGE = 0.03
"""Share of each diagonal entry that is added to it: directions that no calibration prompt shows still cost something. On a real
fine-tune 0.1, 0.03 and 0.01 gave about the same divergence on held-out rows, 0.3 a fifth more and 1 twice as much."""

FLOOR = 1e-2
"""Share of the median diagonal entry that is added as well, for lines that no prompt touched. Not of the mean: a few outlying
channels would set it, which models keep, and drown the others."""

_ROWS = 4096
"""Rows that are looked at together, where each counts for itself."""


@dataclass(frozen=True, eq=False)
class Metric:
    """The metric ``M = SᵀS`` on vectors of one side of a matrix.

    Attributes:
        diagonal: (n,) fp32: that of ``M``, positive.
        size: the median of the square roots of the diagonal.
        exponents: (n,) int8: the powers of two nearest to those square roots over ``size``.
        vectors: (m, n) fp32 of which ``vectorsᵀ·vectors`` is ``M`` beside its diagonal; None where ``M`` has nothing else.
    """

    diagonal: torch.Tensor
    size: float
    exponents: npt.NDArray[np.int8]
    vectors: torch.Tensor | None = None

    @cached_property
    def root(self) -> torch.Tensor:
        """``S``: (n, n) fp32, upper triangular; or (n,) where it is diagonal."""
        if self.vectors is None:
            return self.diagonal.sqrt()
        moments = self.vectors.T @ self.vectors
        moments.diagonal().copy_(self.diagonal)
        root: torch.Tensor = torch.linalg.cholesky(moments, upper=True)
        return root

    @property
    def sizes(self) -> torch.Tensor:
        """(n,) fp32: about the square roots of ``M``'s diagonal, as ``size`` times powers of two."""
        return torch.from_numpy(np.exp2(self.exponents, dtype=np.float32)) * self.size

    def whiten(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return ``S·v`` for each row ``v`` of (k, n) ``vectors``: their lengths are those of the metric."""
        return vectors * self.root if self.root.dim() == 1 else vectors @ self.root.T

    def unwhiten(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return ``S⁻¹·v`` for each row ``v`` of (k, n) ``vectors``."""
        if self.root.dim() == 1:
            return vectors / self.root
        solved: torch.Tensor = torch.linalg.solve_triangular(self.root.T, vectors, upper=False, left=False)
        return solved


@dataclass(frozen=True, eq=False)
class Metrics:
    """The metrics of a matrix.

    Attributes:
        rows: on columns of the matrix, of length ``rows``: second moments of the gradients at a layer's outputs.
        columns: on its rows: second moments of the layer's inputs.
    """

    rows: Metric
    columns: Metric

    def whiten(self, matrix: torch.Tensor) -> torch.Tensor:
        """Return a matrix of which the sum of squares is what ``matrix`` costs as an error; both (rows, columns) fp32."""
        return self.rows.whiten(self.columns.whiten(matrix).T).T

    def energy(self, matrix: torch.Tensor) -> float:
        """Return what ``matrix``, (rows, columns) fp32, costs as an error."""
        if self.rows.vectors is not None:
            return float(self.whiten(matrix).square().sum(dtype=torch.float64))
        by_row = (
            self.columns.whiten(part).square().sum(1) for part in torch.split(matrix, _ROWS)
        )  # no copy of a vocabulary
        return float(torch.cat(list(by_row)).double() @ self.rows.diagonal.double())


def metric_of(vectors: torch.Tensor, *, ridge: float = RIDGE) -> Metric:
    """Return the metric of the second moments of vectors, with a ridge.

    Args:
        vectors: (m, n) fp32, whose moments are the sum of each one's outer product with itself. Not all zero.
        ridge: share of each diagonal entry that is added to it.

    Raises:
        ValueError: the moments are not finite, or all zero.
    """
    return replace(diagonal_metric(vectors.square().sum(0), ridge=ridge), vectors=vectors)


def diagonal_metric(diagonal: torch.Tensor, *, ridge: float = RIDGE) -> Metric:
    """Return the metric of second moments of which only the diagonal, (n,) fp32, is taken; otherwise as :func:`metric_of`."""
    mean = float(diagonal.mean())
    if not (mean > 0 and np.isfinite(mean)):
        raise ValueError("second moments must be finite and not all zero")
    raised = diagonal * (1 + ridge) + max(FLOOR * float(diagonal.median()), 1e-6 * mean)
    size, exponents = _nearest_exponents(raised)
    return Metric(raised, size, exponents)


def uniform_metric(size: int, weight: float) -> Metric:
    """Return the metric in which every entry of a vector of ``size`` weighs the same."""
    return Metric(torch.full((size,), weight), weight**0.5, np.zeros(size, np.int8))


def _nearest_exponents(diagonal: torch.Tensor) -> tuple[float, npt.NDArray[np.int8]]:
    roots = np.log2(diagonal.numpy().astype(np.float64)) / 2
    middle = float(np.median(roots))
    return 2.0**middle, np.clip(np.rint(roots - middle), -MAX_LINE_EXPONENT, MAX_LINE_EXPONENT).astype(np.int8)
