"""Keeping the elements of largest magnitude of a delta.

The differences of two bf16 checkpoints have few distinct magnitudes (some thousand in a matrix of a million elements), so a third of a
delta may have just the magnitude at which it is to be cut. Keeping all of these would keep half of a delta that was to be cut to 0.3;
keeping the first of them would favour the first rows. So a random part of them stays, of which the seed and the element's index decide.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from skillhub.compose.methods.interface import MergeInputs
from skillhub.compose.methods.masks import uniforms
from skillhub.compose.methods.selection import Placed, Rank, kth_largest

TILE = 65537
"""Elements after which the random choice among equals repeats; a prime, so that rows do not begin alike."""

_NEARLY_ALL = 0.999


@dataclass(frozen=True, eq=False)
class Cut:
    """Which elements of a delta stay.

    Attributes:
        magnitude: elements of larger magnitude stay.
        equals: which elements of just this magnitude stay: fp32 of 0 and 1, for the elements 0, 1, … and again from ``TILE`` on; None
            where all do.
    """

    magnitude: float
    equals: torch.Tensor | None = None


def trim(delta: torch.Tensor, cut: Cut, first: int = 0) -> torch.Tensor:
    """Return a delta with zeros for what is cut; the delta itself where nothing is.

    Args:
        delta: fp32; not modified. Rows of a tensor will do.
        cut: what stays.
        first: index, in the whole tensor (row-major), of the first element.
    """
    if cut.magnitude <= 0:
        return delta
    below = torch.nextafter(torch.tensor(cut.magnitude, dtype=torch.float32), torch.tensor(0.0))
    # Hardshrink keeps what is over a limit, and is several times faster than a mask of booleans.
    kept = torch.nn.functional.hardshrink(delta.contiguous(), float(below))
    if cut.equals is not None:
        above = torch.nn.functional.hardshrink(delta.contiguous(), cut.magnitude)
        _choose(kept.view(-1), above.view(-1), cut.equals, first)
    return kept


def _choose(ones: torch.Tensor, zeros: torch.Tensor, tile: torch.Tensor, first: int) -> None:
    """Replace ``ones`` by ``zeros`` where a tile of 0 and 1, laid over the whole tensor again and again, is 0."""
    start = 0
    while start < len(ones):
        place = (first + start) % len(tile)
        end = min(len(ones), start + len(tile) - place)
        piece = ones[start:end]
        torch.lerp(zeros[start:end], piece, tile[place : place + end - start], out=piece)
        start = end


def kept_elements(elements: int, density: float) -> int:
    """Return how many of a tensor's elements stay: at least one, unless the density is 0."""
    return max(1, int(density * elements)) if density > 0 else 0


def cut_at(placed: Placed, rank: int, key: int, device: torch.device | None = None) -> Cut:
    """Return the cut that keeps ``rank`` elements, up to chance among those of equal magnitude.

    Cuts of one key keep more the larger the rank is, and nothing that a cut of a smaller rank does not drop.

    Args:
        placed: the magnitude of that rank.
        rank: from 1 on.
        key: of the random choice.
        device: of the deltas; the CPU by default.
    """
    share = (rank - placed.above) / max(1, placed.equal)
    if share >= _NEARLY_ALL or (placed.equal - rank + placed.above) <= (1 - _NEARLY_ALL) * rank:
        return Cut(placed.value)
    return Cut(placed.value, (uniforms(0, TILE, key, device) < share).to(torch.float32))


def cuts_at(inputs: MergeInputs, ranks: Sequence[Rank]) -> list[Cut]:
    """Return the cuts of deltas that keep so many elements.

    Args:
        inputs: the tensor.
        ranks: which delta, and how many of its elements stay. All are measured in one reading, so that a base that deltas are
            taken from is read once.
    """
    indices = sorted({index for index, _ in ranks})

    def magnitudes(*, sample: bool = False) -> Iterator[list[torch.Tensor]]:
        return ([delta.abs() for delta in deltas] for deltas in inputs.delta_chunks(indices, sample=sample))

    places = [(indices.index(index), rank) for index, rank in ranks]
    found = kth_largest(magnitudes, places, elements=inputs.elements, sample=magnitudes(sample=True)) if ranks else []
    return [
        cut_at(placed, rank, inputs.key(index), inputs.device)
        for placed, (index, rank) in zip(found, ranks, strict=True)
    ]


def cut_to_density(delta: torch.Tensor, density: float, key: int = 0) -> Cut:
    """Return the cut of a delta that is in memory.

    Args:
        delta: fp32, any shape.
        density: share of elements to keep, from 0 to 1: ``max(1, int(density * n))``, none of density 0.
        key: of the random choice among elements of equal magnitude.
    """
    kept = kept_elements(delta.numel(), density)
    if not 0 < kept < delta.numel():
        return Cut(float("inf") if kept == 0 else 0.0)
    placed = kth_largest(lambda: iter([[delta.abs()]]), [(0, kept)], elements=delta.numel())[0]
    return cut_at(placed, kept, key, delta.device)
