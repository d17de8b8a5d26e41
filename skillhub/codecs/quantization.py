"""Quantizing singular components under one price of a bit.

Reverse water-filling (Cover & Thomas, "Elements of Information Theory", §10.3) over all entries of all components: with ``λ`` the squared
error that one bit must remove to be worth it, an entry of a vector that is multiplied by the singular value ``s`` gets the step ``t`` with
``s²·t²/12 = λ/(2·ln 2)``. So strong components are quantized finely and weak ones coarsely, and a component is kept only
while it removes more error than ``λ`` times its bits. Rounding has a dead zone: a code that moves to zero saves more bits
than the error costs (as in rate–distortion optimized quantization of video codecs).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

from skillhub.codecs.factorization import Factors
from skillhub.codecs.metrics import Metric, Metrics
from skillhub.codecs.symbols import MAX_CODE, Codes

DEAD_ZONE = 0.57
"""Codes are rounded up from this fraction on (one half would be to nearest)."""

COMPONENT_BITS = 40
"""Bits that a component costs beside its codes."""

BLOCK = 1 << 20
"""Entries that are quantized together."""

PACKING_LOSS = 1.06
"""Stored bits over the entropy of each component, as measured on real deltas (beside :data:`MATRIX_BITS`)."""

MATRIX_BITS = 1000
"""Bits that a matrix costs beside its components: the headers and code tables of its frames."""


@dataclass(frozen=True, eq=False)
class Quantized:
    """What is kept of a matrix at one price.

    Attributes:
        left: (rank, rows) codes.
        right: (rank, columns) codes.
        scales: (rank,) reals; the matrix is about ``Σ_k scales[k] · left[k] ⊗ right[k]``.
        bits: estimated size.
        removed: squared error that the components remove.
        kept: (rank,) which of the factors' components they are.
    """

    left: Codes
    right: Codes
    scales: npt.NDArray[np.float64]
    bits: float
    removed: float
    kept: npt.NDArray[np.int64]


def quantize(factors: Factors, price: float, *, metrics: Metrics | None = None, coherence: float = 1.0) -> Quantized:
    """Quantize the components that are worth their bits at ``price`` (squared error a bit).

    Args:
        factors: the components.
        price: squared error a bit.
        metrics: those that the factors are in; None where they are in none.
        coherence: how many times its own squared error a component costs that is left out: what is left out of many tensors pulls
            the same way, towards the base, while rounding errors do not.
    """
    # One bit per sixteen codes is less than any component that was ever worth keeping.
    length = factors.left.shape[1] + factors.right.shape[1]
    plausible = coherence * factors.values**2 > price * (COMPONENT_BITS + length / 16)
    some = factors.select(slice(np.count_nonzero(plausible)))  # the values fall
    step = math.sqrt(6 * price / math.log(2)) / some.values
    of_rows, of_columns = (None, None) if metrics is None else (metrics.rows, metrics.columns)
    left_codes, left_fit, left_bits = _quantize_rows(some.left, some.left_dual, step, of_rows)
    right_codes, right_fit, right_bits = _quantize_rows(some.right, some.right_dual, step, of_columns)
    bits = COMPONENT_BITS + PACKING_LOSS * (left_bits + right_bits)
    scales = factors.scale * some.values * left_fit[0] * right_fit[0]
    removed = some.values**2 * left_fit[1] * right_fit[1]
    keep = (coherence * removed > price * bits) & (scales > 0)
    return Quantized(
        left_codes[keep],
        right_codes[keep],
        scales[keep],
        _total(bits[keep]),
        float(removed[keep].sum()),
        np.flatnonzero(keep),
    )


def _total(bits: npt.NDArray[np.float64]) -> float:
    """Return the size of a matrix whose components have these sizes."""
    return float(bits.sum()) + MATRIX_BITS if len(bits) else 0.0


def _quantize_rows(
    vectors: npt.NDArray[np.float32],
    duals: npt.NDArray[np.float32],
    step: npt.NDArray[np.float64],
    metric: Metric | None,
) -> tuple[Codes, tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]], npt.NDArray[np.float64]]:
    """Do what :func:`_quantize_block` does for many rows, few at a time: what it needs beside them is several times their size."""
    count = max(1, BLOCK // max(vectors.shape[1], 1))
    starts = range(0, max(len(vectors), 1), count)
    cuts = [slice(start, start + count) for start in starts]
    codes, fits, bits = zip(
        *(_quantize_block(vectors[cut], duals[cut], step[cut], metric) for cut in cuts), strict=True
    )
    factors, shares = zip(*fits, strict=True)
    return np.concatenate(codes), (np.concatenate(factors), np.concatenate(shares)), np.concatenate(bits)


def _quantize_block(
    vectors: npt.NDArray[np.float32],
    duals: npt.NDArray[np.float32],
    step: npt.NDArray[np.float64],
    metric: Metric | None,
) -> tuple[Codes, tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]], npt.NDArray[np.float64]]:
    """Quantize rows of unit length, whose products with the duals are 1.

    Returns:
        The codes; for each row the factor that fits the codes to the vector best and the share of its square that they then
        explain; the entropy of each row's codes in bits.
    """
    if vectors.size == 0:
        empty = np.zeros(len(vectors))
        return np.zeros(vectors.shape, np.int16), (empty, empty), empty
    peaks = np.abs(vectors).max(axis=1)
    step = np.maximum(step, peaks / MAX_CODE)
    scaled = vectors / step[:, None].astype(np.float32)
    magnitudes = np.minimum(np.floor(np.abs(scaled) + np.float32(1 - DEAD_ZONE)), MAX_CODE)
    floats = np.copysign(magnitudes, scaled)
    along = np.einsum("ij,ij->i", floats, duals, dtype=np.float64)
    energy = _squares(floats, metric)
    safe = np.maximum(energy, np.finfo(np.float64).tiny)
    codes = floats.astype(np.int16)
    return codes, (along / safe, along**2 / safe), _entropies(codes)


def _squares(codes: npt.NDArray[np.float32], metric: Metric | None) -> npt.NDArray[np.float64]:
    """Return the square of the length of each row of codes."""
    if metric is not None:
        return metric.squares(torch.from_numpy(codes) / metric.sizes)
    squares: npt.NDArray[np.float64] = np.einsum("ij,ij->i", codes, codes, dtype=np.float64)
    return squares


def _entropies(codes: Codes) -> npt.NDArray[np.float64]:
    """Return the empirical entropy of each row's codes, in bits for the whole row."""
    length, peak = codes.shape[1], int(np.abs(codes).max())
    width = 2 * peak + 1
    index = codes + (np.arange(len(codes), dtype=np.intp) * width + peak)[:, None]
    counts = np.bincount(index.reshape(-1), minlength=len(codes) * width).reshape(-1, width)
    entropies: npt.NDArray[np.float64] = length * math.log2(length) - _surprise(length)[counts].sum(axis=1)
    return entropies


@lru_cache(maxsize=16)
def _surprise(most: int) -> npt.NDArray[np.float64]:
    """Return n·log2 n of every n up to ``most``; looking it up is faster than computing it for the many counts of a matrix."""
    numbers = np.arange(most + 1, dtype=np.float64)
    surprise: npt.NDArray[np.float64] = numbers * np.log2(np.maximum(numbers, 1))
    return surprise
