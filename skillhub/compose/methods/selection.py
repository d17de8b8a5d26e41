"""The k-th largest of the magnitudes of a tensor that is read in chunks, exactly, by counting.

Bits of non-negative floats are ordered as the floats are. Values are therefore counted in bins of one float each, in a *window* of
floats around where the k-th largest is expected; those below and above the window are counted together. Where a sample of the tensor says what
to expect, one pass is enough as a rule. Otherwise, and where the sample misled, a pass that counts the high halves of all bits finds a
window for certain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

Chunks = Callable[[], Iterator[torch.Tensor]]
"""Gives a tensor's chunks from its start; called once a pass."""

_LOW_BITS = 16
_WINDOW = 1 << 19
"""Floats of an expected window: a sixteenth of an octave, 2 to 4 % to either side."""


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
    chunks: Chunks, ranks: Sequence[int], *, elements: int = 0, sample: Iterable[torch.Tensor] = ()
) -> list[Placed]:
    """Return the values of some ranks (1 is the largest) among non-negative values; 0 where there are not so many.

    Args:
        chunks: gives the values' chunks, fp32, none negative; called at most three times.
        ranks: from 1 on.
        elements: how many values there are; needed with a sample only.
        sample: some of the values, from all over the tensor. It decides how fast this is, never the result.
    """
    found: list[Placed | None] = [None] * len(ranks)
    some = [chunk.flatten() for chunk in sample]
    if some:
        expected = _bits(torch.cat(some)).sort(descending=True).values
        places = [min(len(expected) - 1, rank * len(expected) // elements) for rank in ranks]
        lowest = [max(0, int(expected[place]) - _WINDOW // 2) for place in places]
        found = _search(chunks, ranks, lowest, _WINDOW)
    missing = [rank for rank, placed in zip(ranks, found, strict=True) if placed is None]
    if missing:
        lowest = _high_halves(chunks, missing)
        again = iter(_search(chunks, missing, lowest, 1 << _LOW_BITS))
        found = [next(again) if placed is None else placed for placed in found]
    return [placed or Placed(0.0, elements, 0) for placed in found]


def _bits(chunk: torch.Tensor) -> torch.Tensor:
    return chunk.contiguous().view(torch.int32).flatten()


def _search(chunks: Chunks, ranks: Sequence[int], lowest: Sequence[int], width: int) -> list[Placed | None]:
    """Return the value of each rank where its bits are among the ``width`` from ``lowest`` on; None where not."""
    counts: list[torch.Tensor] = []
    ones = bins = torch.empty(0, dtype=torch.int32)
    for chunk in chunks():
        bits = _bits(chunk)
        if len(bits) == 0:
            continue
        if len(ones) != len(bits):
            ones, bins = torch.ones_like(bits, dtype=torch.int64), torch.empty_like(bits)
        counts = counts or [torch.zeros(width + 2, dtype=torch.int64, device=bits.device) for _ in ranks]
        for count, low in zip(counts, lowest, strict=True):
            torch.sub(bits, low - 1, out=bins).clamp_(0, width + 1)
            count.index_add_(0, bins, ones)
    if not counts:
        return [None] * len(ranks)
    return [_placed(*one) for one in zip(counts, ranks, lowest, strict=True)]


def _placed(counts: torch.Tensor, rank: int, lowest: int) -> Placed | None:
    place = _ranked(counts, rank)
    if not 0 < place < len(counts) - 1:
        return None
    value = torch.tensor(lowest - 1 + place, dtype=torch.int32).view(torch.float32)
    return Placed(float(value), int(counts[place + 1 :].sum()), int(counts[place]))


def _high_halves(chunks: Chunks, ranks: Sequence[int]) -> list[int]:
    """Return, for each rank, the least bits whose high half is that of its value; 0 where there is no such value."""
    counts: torch.Tensor | int = 0
    for chunk in chunks():
        counts = counts + torch.bincount(_bits(chunk) >> _LOW_BITS, minlength=1 << (31 - _LOW_BITS))
    if isinstance(counts, int):
        return [0] * len(ranks)
    return [max(0, _ranked(counts, rank)) << _LOW_BITS for rank in ranks]


def _ranked(counts: torch.Tensor, rank: int) -> int:
    """Return the bin of the ``rank``-th largest, or −1."""
    above = counts.flip(0).cumsum(0)
    return len(counts) - 1 - int(torch.searchsorted(above, rank))
