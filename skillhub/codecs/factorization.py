"""Singular vectors of a delta: exact for matrices with a short side, randomized above.

Randomized: Halko, Martinsson, Tropp, "Finding structure with randomness" (arXiv 0909.4061), algorithm 4.4 with two power iterations. Its
generator is seeded by the tensor's name and local, so encoding neither depends on nor moves the global random state.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from skillhub.codecs.lowrank import LineExponents
from skillhub.codecs.metrics import Metrics

EXACT_SIDE = 1024
"""Up to this many rows or columns the eigendecomposition of the Gram matrix costs less than sketching."""

OVERSAMPLING = 16
POWER_ITERATIONS = 2


@dataclass(frozen=True, eq=False)
class Factors:
    """A truncated singular value decomposition: the matrix is about ``scale · Σ_k values[k] · left[k] ⊗ right[k]``.

    In metrics the vectors are of unit length in them, and then every entry is multiplied by the size of its line, so that an error of
    an entry costs about the same wherever it is: the matrix's lines are to be multiplied by powers of two that undo that.

    Attributes:
        left: (rank, rows) fp32, rows of unit length.
        right: (rank, columns) fp32, likewise.
        values: (rank,) fp64, falling, positive.
        left_root: the root of the metric in which the rows of ``left`` have unit length: (rows, rows) fp32, upper triangular; (rows,)
            where it is diagonal; None where there is none.
        right_root: likewise, of ``right``.
        lines: the powers of two of rows and columns; None without a metric.
        scale: what undoes the rest of the lines' sizes; 1 without a metric.
    """

    left: npt.NDArray[np.float32]
    right: npt.NDArray[np.float32]
    values: npt.NDArray[np.float64]
    left_root: npt.NDArray[np.float32] | None = None
    right_root: npt.NDArray[np.float32] | None = None
    lines: LineExponents | None = None
    scale: float = 1.0

    def select(self, which: slice) -> Factors:
        """Return some of the components; nothing is copied."""
        return replace(self, left=self.left[which], right=self.right[which], values=self.values[which])


def factorize_in_metrics(name: str, matrix: torch.Tensor, rank: int, metrics: Metrics) -> Factors:
    """Return the largest singular components of a matrix in the metrics of its rows and columns.

    Args:
        name: the tensor's name; seeds the randomized algorithm.
        matrix: fp32, (rows, columns), finite and not all zero.
        rank: how many components at most.
        metrics: of the matrix.
    """
    plain = factorize(name, metrics.whiten(matrix), rank)
    left, right = (
        (metric.unwhiten(torch.from_numpy(vectors)) * metric.sizes).numpy()
        for vectors, metric in ((plain.left, metrics.rows), (plain.right, metrics.columns))
    )
    rows, columns = ((metric.root / metric.sizes).numpy() for metric in (metrics.rows, metrics.columns))
    lines = LineExponents(-metrics.rows.exponents, -metrics.columns.exponents)
    return Factors(left, right, plain.values, rows, columns, lines, 1 / (metrics.rows.size * metrics.columns.size))


def factorize(name: str, matrix: torch.Tensor, rank: int) -> Factors:
    """Return the largest ``rank`` singular components (fewer where the matrix has fewer).

    Args:
        name: the tensor's name; seeds the randomized algorithm.
        matrix: fp32, (rows, columns), finite and not all zero.
        rank: how many components at most.
    """
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    rank = min(rank, tall.shape[1])
    if tall.shape[1] <= EXACT_SIDE or rank + OVERSAMPLING >= tall.shape[1]:
        long, short, values = _exact_components(tall, rank)
    else:
        long, short, values = _randomized_components(name, tall, rank)
    if tall is not matrix:
        long, short = short, long
    keep = values > values[0] * 1e-6
    left, right = long.T[keep].contiguous().numpy(), short.T[keep].contiguous().numpy()
    return Factors(left, right, values[keep].double().numpy())


def _exact_components(tall: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (left, right, singular values) as columns, by the eigenvectors of the Gram matrix."""
    _, vectors = torch.linalg.eigh(tall.T @ tall)
    right = vectors.flip(1)[:, :rank]
    return _normalize(tall @ right, right)


def _randomized_components(name: str, tall: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (left, right, singular values) as columns, from a sketch of the range."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") >> 1
    generator = torch.Generator().manual_seed(seed)
    size = (tall.shape[1], rank + OVERSAMPLING)
    sketch = tall @ torch.randn(size, generator=generator, dtype=torch.float32, device="cpu")
    for _ in range(POWER_ITERATIONS):
        sketch = tall @ torch.linalg.qr(tall.T @ torch.linalg.qr(sketch).Q).Q
    basis = torch.linalg.qr(sketch).Q
    small = tall.T @ basis
    _, vectors = torch.linalg.eigh(small.T @ small)
    right, left, values = _normalize(small @ vectors.flip(1)[:, :rank], basis @ vectors.flip(1)[:, :rank])
    return left, right, values


def _normalize(scaled: torch.Tensor, unit: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ``scaled`` with columns of unit length, ``unit``, and the lengths, in falling order of the lengths."""
    values, order = scaled.norm(dim=0).sort(descending=True, stable=True)
    return scaled[:, order] / values.clamp_min(torch.finfo(torch.float32).tiny), unit[:, order], values


def save_factors(folder: Path, name: str, factors: Factors) -> Path:
    """Write factors to a file in ``folder`` and return its path; tensors larger than memory in sum can then wait there."""
    path = folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.npz"
    arrays: dict[str, Any] = {"left": factors.left, "right": factors.right, "values": factors.values}
    if factors.lines is not None:
        arrays |= {"left_root": factors.left_root, "right_root": factors.right_root}
        arrays |= {"rows": factors.lines.rows, "columns": factors.lines.columns, "scale": factors.scale}
    np.savez(path, **arrays)
    return path


def load_factors(source: Factors | Path) -> Factors:
    """Return factors, from memory or from the file of :func:`save_factors`."""
    if isinstance(source, Factors):
        return source
    with np.load(source) as arrays:
        found: dict[str, Any] = dict(arrays.items())
    left, right = found["left"], found["right"]
    if "rows" not in found:
        return Factors(left, right, found["values"])
    lines = LineExponents(found["rows"], found["columns"])
    return Factors(left, right, found["values"], found["left_root"], found["right_root"], lines, float(found["scale"]))
