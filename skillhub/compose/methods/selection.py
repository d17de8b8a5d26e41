"""The k-th largest of the magnitudes of tensors that are read in chunks, exactly, by counting.

Bits of non-negative floats are ordered as the floats are. Values are therefore counted in bins of one float each, in a *window* of
floats around where the k-th largest is expected; those below and above the window are counted together. Where a sample of the tensor says what
to expect, one pass is enough as a rule. Otherwise, and where the sample misled, a pass that counts the high halves of all bits finds a
window for certain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

Chunks = Callable[[], Iterator[Sequence[torch.Tensor]]]
"""Gives the chunks of one or several tensors, side by side, from their start; called once a pass."""

Rank: TypeAlias = tuple[int, int]
"""Which of the tensors, and which of its values: 1 is the largest."""

_LOW_BITS = 16
_WINDOW = 1 << 18
"""Floats of an expected window: a thirty-second of an octave, 1 to 2 % to either side."""


@dataclass(frozen=True)
class Placed:
    """The value of some rank.

    Attributes:
        value: the value.
        above: how many values are larger.
        equal: how many equal it.
    """

    value: float
    above: int
    equal: int


def kth_largest(
    chunks: Chunks, ranks: Sequence[Rank], *, elements: int, sample: Iterable[Sequence[torch.Tensor]] = ()
) -> list[Placed]:
    """Return the values of some ranks among the non-negative values of tensors; 0 where there are not so many.

    Args:
        chunks: gives the tensors' chunks, fp32, nothing negative; called at most three times.
        ranks: which values of which tensors.
        elements: how many values a tensor has.
        sample: some chunks of the tensors, from all over them. It decides how fast this is, never the result.
    """
    found: list[Placed | None] = [None] * len(ranks)
    some = [torch.cat(list(map(torch.flatten, parts))) for parts in zip(*sample, strict=True)]
    if some:
        expected = [_bits(values).sort(descending=True).values for values in some]
        lowest = [_lowest(expected[tensor], rank, elements) for tensor, rank in ranks]
        found = _search(chunks, ranks, lowest, _WINDOW, elements)
    missing = [rank for rank, placed in zip(ranks, found, strict=True) if placed is None]
    if missing:
        lowest = _high_halves(chunks, missing)
        again = iter(_search(chunks, missing, lowest, 1 << _LOW_BITS, elements))
        found = [next(again) if placed is None else placed for placed in found]
    return [placed or Placed(0.0, elements, 0) for placed in found]


def _bits(chunk: torch.Tensor) -> torch.Tensor:
    return chunk.contiguous().view(torch.int32).flatten()


def _lowest(expected: torch.Tensor, rank: int, elements: int) -> int:
    """Return where a window for a rank begins, in a tensor of so many elements of which a sample was sorted."""
    place = min(len(expected) - 1, rank * len(expected) // elements)
    return max(0, int(expected[place]) - _WINDOW // 2)


def _search(
    chunks: Chunks, ranks: Sequence[Rank], lowest: Sequence[int], width: int, elements: int
) -> list[Placed | None]:
    """Return the value of each rank where its bits are among the ``width`` from ``lowest`` on; None where not."""
    counts: list[torch.Tensor] = []
    counter = torch.int32 if elements < 1 << 31 else torch.int64
    ones = bins = torch.empty(0, dtype=torch.int32)
    for parts in chunks():
        if parts[0].numel() == 0:
            continue
        if len(ones) != parts[0].numel():
            ones = torch.ones(parts[0].numel(), dtype=counter, device=parts[0].device)
            bins = torch.empty_like(ones, dtype=torch.int32)
        counts = counts or [torch.zeros(width + 2, dtype=counter, device=ones.device) for _ in ranks]
        for count, (tensor, _), low in zip(counts, ranks, lowest, strict=True):
            torch.sub(_bits(parts[tensor]), low - 1, out=bins)
            _add_counts(count, bins, ones)
    if not counts:
        return [None] * len(ranks)
    return [_placed(count, rank, low) for count, (_, rank), low in zip(counts, ranks, lowest, strict=True)]


def _add_counts(counts: torch.Tensor, bins: torch.Tensor, ones: torch.Tensor) -> None:
    """Count values by bin; those below the window are in the first, those above it in the last."""
    last = len(counts) - 1
    if bins.device.type == "cpu":
        counts.index_add_(0, bins.clamp_(0, last), ones)
        return
    # On a GPU the additions to one bin wait for each other, and most values are in the first and the last.
    below, above = bins < 1, bins >= last
    inside = bins[~(below | above)]
    counts.index_add_(0, inside, ones[: len(inside)])
    counts[0] += below.sum()
    counts[last] += above.sum()


def _placed(counts: torch.Tensor, rank: int, lowest: int) -> Placed | None:
    place = _ranked(counts, rank)
    if not 0 < place < len(counts) - 1:
        return None
    value = torch.tensor(lowest - 1 + place, dtype=torch.int32).view(torch.float32)
    return Placed(float(value), int(counts[place + 1 :].sum()), int(counts[place]))


def _high_halves(chunks: Chunks, ranks: Sequence[Rank]) -> list[int]:
    """Return, for each rank, the least bits whose high half is that of its value; 0 where there is no such value."""
    counts: dict[int, torch.Tensor] = {}
    for parts in chunks():
        for tensor in {tensor for tensor, _ in ranks}:
            some = torch.bincount(_bits(parts[tensor]) >> _LOW_BITS, minlength=1 << (31 - _LOW_BITS))
            counts[tensor] = counts[tensor].add_(some) if tensor in counts else some
    return [max(0, _ranked(counts[tensor], rank)) << _LOW_BITS if counts else 0 for tensor, rank in ranks]


def _ranked(counts: torch.Tensor, rank: int) -> int:
    """Return the bin of the ``rank``-th largest, or −1."""
    above = counts.flip(0).cumsum(0)
    return len(counts) - 1 - int(torch.searchsorted(above, rank))
