"""Quantizing singular components under one price of a bit.

Reverse water-filling (Cover & Thomas, "Elements of Information Theory", §10.3) over all entries of all components: with ``λ`` the squared
error that one bit must remove to be worth it, an entry of a vector that is multiplied by the singular value ``s`` gets the step ``t`` with
``s²·t²/12 = λ/(2·ln 2)``. So strong components are quantized finely and weak ones coarsely, and a component is kept only
while it removes more error than ``λ`` times its bits. Rounding has a dead zone: a code that moves to zero saves more bits
than the error costs (as in rate–distortion optimized quantization of video codecs). In a metric that is not diagonal entries make good what others
are off by (:mod:`skillhub.codecs.feedback`), and steps are longer by as much.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from skillhub.codecs.arithmetic import MAX_CODE, Codes, measure
from skillhub.codecs.factorization import Factors
from skillhub.codecs.feedback import Floats, round_half_dead, round_with_feedback

DEAD_ZONE = 0.57
"""Codes are rounded up from this fraction on (one half would be to nearest)."""

COMPONENT_BITS = 16
"""Bits that a component costs beside its codes: those of its scale."""

BLOCK = 1 << 20
"""Entries that are quantized together."""

MATRIX_BITS = 80
"""Bits that a matrix costs beside its components: the ends of its two streams."""


@dataclass(frozen=True, eq=False)
class Quantized:
    """What is kept of a matrix at one price.

    Attributes:
        left: (rank, rows) codes.
        right: (rank, columns) codes.
        scales: (rank,) reals; the matrix is about ``Σ_k scales[k] · left[k] ⊗ right[k]``.
        bits: size, to a fraction of a percent: measured beside components that are left out.
        removed: squared error that the components remove.
        kept: (rank,) which of the factors' components they are.
    """

    left: Codes
    right: Codes
    scales: npt.NDArray[np.float64]
    bits: float
    removed: float
    kept: npt.NDArray[np.int64]


def quantize(factors: Factors, price: float, *, coherence: float = 1.0) -> Quantized:
    """Quantize the components that are worth their bits at ``price`` (squared error a bit), as :func:`quantize_each` does."""
    return next(quantize_each(factors, [price], coherence=coherence))


def quantize_each(factors: Factors, prices: Sequence[float], *, coherence: float = 1.0) -> Iterator[Quantized]:
    """Quantize the components that are worth their bits at each of some prices, in less time than one after the other takes.

    Args:
        factors: the components.
        prices: squared error a bit.
        coherence: how many times its own squared error a component costs that is left out: what is left out of many tensors pulls
            the same way, towards the base, while rounding errors do not.
    """
    # No component of real deltas that took less than a bit per sixteen codes was worth keeping.
    length = factors.left.shape[1] + factors.right.shape[1]
    worth = coherence * factors.values**2
    counts = [np.count_nonzero(worth > price * (COMPONENT_BITS + length / 16)) for price in prices]  # the values fall
    steps = [
        math.sqrt(6 * price / math.log(2)) / factors.values[:count] for price, count in zip(prices, counts, strict=True)
    ]
    sides = ((factors.left, factors.left_root), (factors.right, factors.right_root))
    lefts, rights = (_round_vectors(vectors, root, steps) for vectors, root in sides)
    for price, left, right in zip(prices, lefts, rights, strict=True):
        yield _chosen(factors, price, left, right, coherence)


def _chosen(factors: Factors, price: float, left: _Rounded, right: _Rounded, coherence: float) -> Quantized:
    """Return those of the first components that are worth their bits."""
    values = factors.values[: len(left.codes)]
    bits = COMPONENT_BITS + measure(left.codes) + measure(right.codes)
    scales = factors.scale * values * left.factors * right.factors
    removed = values**2 * left.shares * right.shares
    keep = (coherence * removed > price * bits) & (scales > 0)
    total = float(bits[keep].sum()) + MATRIX_BITS if keep.any() else 0.0
    removal = float(removed[keep].sum())
    return Quantized(left.codes[keep], right.codes[keep], scales[keep], total, removal, np.flatnonzero(keep))


@dataclass(frozen=True, eq=False)
class _Rounded:
    """Vectors in integers.

    Attributes:
        codes: (count, n).
        factors: (count,): what the codes are to be multiplied by to be nearest to the vector.
        shares: (count,): how much of the vector's square they then explain.
    """

    codes: Codes
    factors: npt.NDArray[np.float64]
    shares: npt.NDArray[np.float64]

    def select(self, which: slice) -> _Rounded:
        return _Rounded(self.codes[which], self.factors[which], self.shares[which])


def _round_vectors(
    vectors: Floats, root: Floats | None, steps: Sequence[npt.NDArray[np.float64]]
) -> Iterator[_Rounded]:
    """Round the first vectors to multiples of steps, which are for errors that count alike; yield what comes of each list of steps."""
    if root is None or root.ndim == 1:
        for some in steps:
            yield _round_in_pieces(vectors[: len(some)], root, some)
        return
    all_steps = np.concatenate(steps)
    chosen = np.concatenate([np.arange(len(some)) for some in steps])
    whole = _round_together(vectors, root, all_steps, chosen)
    start = 0
    for some in steps:
        yield whole.select(slice(start, start + len(some)))
        start += len(some)


def _round_together(
    vectors: Floats, root: Floats, steps: npt.NDArray[np.float64], chosen: npt.NDArray[np.int64]
) -> _Rounded:
    """Round chosen vectors of unit length in a metric that is not diagonal."""
    new = float(np.square(root.diagonal(), dtype=np.float64).mean())  # of an error, after what others make good
    peaks = np.abs(vectors).max(axis=1, initial=0)[chosen]
    steps = np.maximum(steps / math.sqrt(new), peaks / MAX_CODE)
    scaled = np.divide(vectors[chosen], steps[:, None], dtype=np.float32, casting="same_kind")
    codes, rests = round_with_feedback(scaled, root, threshold=DEAD_ZONE, most=MAX_CODE)
    units = (torch.from_numpy(vectors) @ torch.from_numpy(root).T).numpy()[chosen]
    found = units / steps[:, None].astype(np.float32) - rests
    return _fitted(codes, np.einsum("ij,ij->i", found, units, dtype=np.float64), _squares(found))


def _round_in_pieces(vectors: Floats, root: Floats | None, steps: npt.NDArray[np.float64]) -> _Rounded:
    """Round vectors of unit length where each entry counts for itself, few at a time: what that needs is several times their size."""
    count = max(1, BLOCK // max(vectors.shape[1], 1))
    cuts = [slice(start, start + count) for start in range(0, max(len(vectors), 1), count)]
    found = [_round_plainly(vectors[cut], root, steps[cut]) for cut in cuts]
    parts = ([getattr(one, name) for one in found] for name in ("codes", "factors", "shares"))
    return _Rounded(*map(np.concatenate, parts))


def _round_plainly(vectors: Floats, root: Floats | None, steps: npt.NDArray[np.float64]) -> _Rounded:
    if not vectors.size:
        none = np.zeros(len(vectors))
        return _Rounded(np.zeros(vectors.shape, np.int16), none, none)
    steps = np.maximum(steps, np.abs(vectors).max(axis=1) / MAX_CODE)
    scaled = np.divide(vectors, steps[:, None], dtype=np.float32, casting="same_kind")
    codes = round_half_dead(scaled, threshold=DEAD_ZONE, most=MAX_CODE)
    weighed: Floats = vectors if root is None else vectors * np.square(root)
    along = np.einsum("ij,ij->i", codes, weighed, dtype=np.float64)
    return _fitted(codes.astype(np.int16), along, _squares(codes if root is None else codes * root))


def _fitted(codes: Codes, along: npt.NDArray[np.float64], energy: npt.NDArray[np.float64]) -> _Rounded:
    """Return codes with the factors that fit them best, by their products with the vectors and with themselves."""
    safe = np.maximum(energy, np.finfo(np.float64).tiny)
    return _Rounded(codes, along / safe, along**2 / safe)


def _squares(vectors: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    squares: npt.NDArray[np.float64] = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
    return squares
