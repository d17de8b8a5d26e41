"""Merge methods: how the deltas of several packs become one delta, as pure functions over fp32 tensors.

A method sees one tensor at a time: the deltas of the packs that change it, each of the same shape. What it returns is added to the
base's tensor in fp32 and rounded once, so no method knows about the base, dtypes or rounding. A new method is a function and a row
of :data:`METHODS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from skillhub.errors import UsageError

Merge = Callable[[Sequence[torch.Tensor], Sequence[float], Sequence[float]], torch.Tensor]
"""(deltas, weights, densities) → merged delta."""

_CHUNK = 1 << 18
"""Elements that TIES works on at a time, so that what it needs besides its inputs stays in the processor's cache."""


@dataclass(frozen=True)
class MergeMethod:
    """One row of :data:`METHODS`.

    Attributes:
        name: what users write.
        merge: the function.
        uses_density: whether densities other than 1 mean anything to it.
        source: the paper and its section.
    """

    name: str
    merge: Merge
    uses_density: bool
    source: str


def linear(deltas: Sequence[torch.Tensor], weights: Sequence[float], densities: Sequence[float] = ()) -> torch.Tensor:
    """Task arithmetic: the weighted sum of the deltas (Ilharco et al., arXiv 2212.04089, section 2).

    A negative weight unlearns a skill (its section 3). One delta of weight 1 is returned as it is, bit for bit. Products and sums
    are separate operations in the given order, so that the result does not depend on fused multiply-add.

    Args:
        deltas: at least one, fp32, of one shape; not modified.
        weights: one per delta.
        densities: not used.

    Returns:
        fp32, of the same shape.
    """
    total = _weighted(deltas[0], weights[0])
    for delta, weight in zip(deltas[1:], weights[1:], strict=True):
        total = total + _weighted(delta, weight)
    return total


def ties(deltas: Sequence[torch.Tensor], weights: Sequence[float], densities: Sequence[float]) -> torch.Tensor:
    """TIES merging: trim, elect a sign per element, average what agrees (Yadav et al., arXiv 2306.01708, section 4 and algorithm 1).

    *Trim* keeps of each delta the elements of largest magnitude, ``density`` of the tensor's (at least one); of equal magnitudes at
    the threshold all stay, so the result does not depend on the order of elements. The paper trims over the whole model at once,
    here it is per tensor, as mergekit does. *Elect* takes the sign of the sum of the trimmed, weighted deltas. *Disjoint mean* sums
    the elements with that sign and divides by **how many** there are: weights scale the deltas (the paper's λ, per pack) and are not
    normalized away, so halving all of them halves the result.

    Args:
        deltas: at least one, fp32, of one shape; not modified.
        weights: one per delta.
        densities: one per delta, over 0 and at most 1.

    Returns:
        fp32, of the same shape; zero where nothing was kept or the elected sign is 0.
    """
    thresholds = [trim_threshold(delta, density) for delta, density in zip(deltas, densities, strict=True)]
    flats = [delta.reshape(-1) for delta in deltas]
    merged = torch.empty_like(flats[0])
    for begin in range(0, len(merged), _CHUNK):
        end = begin + _CHUNK
        kept = [
            _weighted(torch.where(flat[begin:end].abs() >= threshold, flat[begin:end], 0.0), weight)
            for flat, weight, threshold in zip(flats, weights, thresholds, strict=True)
        ]
        merged[begin:end] = _disjoint_mean(kept)
    return merged.reshape(deltas[0].shape)


def trim_threshold(delta: torch.Tensor, density: float) -> float:
    """Return the magnitude from which on elements stay when all but the largest are trimmed.

    Args:
        delta: fp32, any shape.
        density: share of elements to keep, over 0 and at most 1; ``max(1, int(density * n))`` stay, and all that equal the smallest
            of these in magnitude.
    """
    kept = max(1, int(density * delta.numel()))
    if kept >= int(torch.count_nonzero(delta)):
        return 0.0
    # Bits of non-negative floats are ordered as the floats are, so two counts, of their high and low halves, find the one wanted.
    bits = delta.abs().view(torch.int32).flatten()
    high, rank = _ranked(bits >> 16, kept)
    low, _ = _ranked(bits[(bits >> 16) == high] & 0xFFFF, rank)
    return float(torch.tensor(high << 16 | low, dtype=torch.int32).view(torch.float32))


def _ranked(values: torch.Tensor, rank: int) -> tuple[int, int]:
    """Return the ``rank``-th largest of some small integers, and its rank among those that equal it."""
    counts = torch.bincount(values).flip(0).cumsum(0)
    position = int(torch.searchsorted(counts, rank))
    before = int(counts[position - 1]) if position else 0
    return len(counts) - 1 - position, rank - before


def _disjoint_mean(deltas: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the mean, element by element, of the deltas whose sign is that of their sum; zero where there is none."""
    elected = linear(deltas, [1.0] * len(deltas)).sign()
    total, count = torch.zeros_like(elected), torch.zeros_like(elected)
    for delta in deltas:
        agrees = (delta.sign() == elected) & (elected != 0)
        total = total + torch.where(agrees, delta, 0.0)
        count = count + agrees
    return total / count.clamp_(min=1.0)


METHODS: dict[str, MergeMethod] = {
    method.name: method
    for method in (
        MergeMethod("linear", linear, uses_density=False, source="arXiv 2212.04089, section 2"),
        MergeMethod("ties", ties, uses_density=True, source="arXiv 2306.01708, section 4"),
    )
}


def find_method(name: str) -> MergeMethod:
    """Return the merge method called ``name``.

    Raises:
        UsageError: there is none.
    """
    if name not in METHODS:
        raise UsageError(f"There is no merge method {name!r}.", hint=f"Use one of: {', '.join(METHODS)}.")
    return METHODS[name]


def _weighted(delta: torch.Tensor, weight: float) -> torch.Tensor:
    return delta if weight == 1 else delta * weight
