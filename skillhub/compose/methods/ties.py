"""TIES merging: trim, elect a sign per element, average what agrees."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import torch

from skillhub.compose.methods.interface import Chunk, MergeInputs, MergeMethod
from skillhub.compose.methods.linear import linear, weighted

_LOW_BITS = 16


def ties(deltas: Sequence[torch.Tensor], weights: Sequence[float], thresholds: Sequence[float]) -> torch.Tensor:
    """Merge deltas by TIES (Yadav et al., arXiv 2306.01708, section 4 and algorithm 1).

    *Trim* keeps of each delta the elements of largest magnitude, ``density`` of the tensor's (at least one); of equal magnitudes at
    the threshold all stay, so the result does not depend on the order of elements. The paper trims over the whole model at once,
    here it is per tensor, as mergekit does. *Elect* takes the sign of the sum of the trimmed, weighted deltas. *Disjoint mean* sums
    the elements with that sign and divides by **how many** there are: weights scale the deltas (the paper's λ, per pack) and are not
    normalized away, so halving all of them halves the result.

    Args:
        deltas: at least one, fp32, of one shape; not modified. Rows of a tensor will do, with the thresholds of all of it.
        weights: one per delta.
        thresholds: one per delta: the magnitude from which on elements stay, from :func:`trim_threshold`.

    Returns:
        fp32, of the same shape; zero where nothing was kept or the elected sign is 0.
    """
    kept = [
        weighted(torch.where(delta.abs() >= threshold, delta, 0.0), weight)
        for delta, weight, threshold in zip(deltas, weights, thresholds, strict=True)
    ]
    return disjoint_mean(kept)


def disjoint_mean(deltas: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the mean, element by element, of the deltas whose sign is that of their sum; zero where there is none."""
    elected = linear(deltas, [1.0] * len(deltas)).sign()
    total, count = torch.zeros_like(elected), torch.zeros_like(elected)
    for delta in deltas:
        agrees = (delta.sign() == elected) & (elected != 0)
        total = total + torch.where(agrees, delta, 0.0)
        count = count + agrees
    return total / count.clamp_(min=1.0)


def trim_threshold(delta: torch.Tensor, density: float) -> float:
    """Return the magnitude from which on elements stay when all but the largest are trimmed.

    Args:
        delta: fp32, any shape.
        density: share of elements to keep, over 0 and at most 1; ``max(1, int(density * n))`` stay, and all that equal the smallest
            of these in magnitude.
    """
    return trim_threshold_of_chunks(lambda: iter([delta]), delta.numel(), density)


def trim_threshold_of_chunks(chunks: Callable[[], Iterable[torch.Tensor]], elements: int, density: float) -> float:
    """Return :func:`trim_threshold` of a tensor that is read in chunks.

    Args:
        chunks: gives the tensor's chunks, fp32; called at most twice.
        elements: of the whole tensor.
        density: as there.
    """
    kept = max(1, int(density * elements))
    if kept >= elements:
        return 0.0
    return kth_largest(lambda: (chunk.abs() for chunk in chunks()), kept)


def kth_largest(chunks: Callable[[], Iterator[torch.Tensor]], rank: int) -> float:
    """Return the ``rank``-th largest (from 1) of non-negative values that are read in chunks; 0 where there are not so many.

    Bits of non-negative floats are ordered as the floats are, so two counts, of their high and of their low halves, find it.

    Args:
        chunks: gives the values' chunks, fp32, none negative; called at most twice.
        rank: from 1 on.
    """
    high, rank = _ranked((_bits(chunk) >> _LOW_BITS for chunk in chunks()), rank)
    if high < 0:
        return 0.0
    low, _ = _ranked((_low_bits(chunk, high) for chunk in chunks()), rank)
    return float(torch.tensor(high << _LOW_BITS | low, dtype=torch.int32).view(torch.float32))


def _bits(chunk: torch.Tensor) -> torch.Tensor:
    return chunk.contiguous().view(torch.int32).flatten()


def _low_bits(chunk: torch.Tensor, high: int) -> torch.Tensor:
    bits = _bits(chunk)
    return bits[(bits >> _LOW_BITS) == high] & 0xFFFF


def _ranked(values: Iterable[torch.Tensor], rank: int) -> tuple[int, int]:
    """Return the ``rank``-th largest of integers below 2**16, or −1, and its rank among those that equal it."""
    counts = torch.zeros(1 << _LOW_BITS, dtype=torch.int64)
    for some in values:
        counts += torch.bincount(some, minlength=len(counts))
    above = counts.flip(0).cumsum(0)
    position = int(torch.searchsorted(above, rank))
    before = int(above[position - 1]) if position else 0
    return len(counts) - 1 - position, rank - before


def _measure(inputs: MergeInputs) -> list[float]:
    return [
        trim_threshold_of_chunks(partial(inputs.delta_chunks, index), inputs.elements, density)
        for index, density in enumerate(inputs.densities)
    ]


def _merge(inputs: MergeInputs, chunk: Chunk, thresholds: list[float]) -> torch.Tensor:
    return ties(chunk.deltas, inputs.weights, thresholds)


TIES = MergeMethod("ties", "arXiv 2306.01708, section 4", _merge, _measure, uses_density=True)
