"""Singular vectors of a delta: exact for matrices with a short side, randomized above.

Randomized: Halko, Martinsson, Tropp, "Finding structure with randomness" (arXiv 0909.4061), algorithm 4.4 with two power iterations. Its
generator is seeded by the tensor's name and local, so encoding neither depends on nor moves the global random state.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

EXACT_SIDE = 1024
"""Up to this many rows or columns the eigendecomposition of the Gram matrix costs less than sketching."""

OVERSAMPLING = 16
POWER_ITERATIONS = 2


@dataclass(frozen=True, eq=False)
class Factors:
    """A truncated singular value decomposition: the matrix is about ``Σ_k values[k] · left[k] ⊗ right[k]``.

    Attributes:
        left: (rank, rows) fp32, rows of unit length.
        right: (rank, columns) fp32, likewise.
        values: (rank,) fp64, falling, positive.
    """

    left: npt.NDArray[np.float32]
    right: npt.NDArray[np.float32]
    values: npt.NDArray[np.float64]


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
    return Factors(long.T[keep].contiguous().numpy(), short.T[keep].contiguous().numpy(), values[keep].double().numpy())


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
    np.savez(path, left=factors.left, right=factors.right, values=factors.values)
    return path


def load_factors(source: Factors | Path) -> Factors:
    """Return factors, from memory or from the file of :func:`save_factors`."""
    if isinstance(source, Factors):
        return source
    with np.load(source) as arrays:
        loaded: dict[str, Any] = {name: arrays[name] for name in ("left", "right", "values")}
    return Factors(**loaded)
