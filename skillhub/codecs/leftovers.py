"""Integers of known, different widths as bits: what a symbol leaves open of a large number, which is as good as random.

The highest one to seven bits of each, as many as its width is above whole bytes, stand side by side, the highest first; the last byte is
filled up with zeros. Then come the lowest byte of all that have one, the second of all that have two, and the third.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from skillhub.codecs.streams import Bytes

Integers = npt.NDArray[np.int64]

BYTES = (0, 8, 16)
"""Where the whole bytes of an integer begin; widths are below 32."""


def pack(values: Integers, widths: Integers) -> Bytes:
    """Return ``values``, each of which fits its width in bits, as bytes."""
    tops = ((values >> (widths & ~7)) << (8 - (widths & 7)) & 255).astype(np.uint8)
    bits = np.unpackbits(tops[:, None], axis=1)[_places(widths)]
    lows = [((values >> place) & 255)[widths >= place + 8].astype(np.uint8) for place in BYTES]
    return np.concatenate([np.packbits(bits), *lows])


def count_packed(widths: Integers) -> int:
    """Return how many bytes integers of these widths take."""
    return -(-int((widths & 7).sum()) // 8) + int((widths >> 3).sum())


def unpack(packed: Bytes, widths: Integers) -> Integers:
    """Undo :func:`pack`, for ``packed`` of :func:`count_packed` bytes."""
    places = _places(widths)
    total = int((widths & 7).sum())
    grid = np.zeros(places.shape, dtype=np.uint8)
    grid[places] = np.unpackbits(packed[: -(-total // 8)], count=total)
    tops = np.packbits(grid, axis=1).reshape(-1).astype(np.int64)
    values = tops >> (8 - (widths & 7)) << (widths & ~7)
    used = -(-total // 8)
    for place in BYTES:
        at = np.flatnonzero(widths >= place + 8)
        values[at] |= packed[used : used + at.size].astype(np.int64) << place
        used += at.size
    return values


def _places(widths: Integers) -> npt.NDArray[np.bool_]:
    """Say which of eight places the highest bits of each integer take."""
    return np.arange(8) < (widths & 7)[:, None]
