"""Codes of ``lowrank`` as packs of before skillhub 0.1 hold them: several a byte (:mod:`skillhub.codecs.symbols`), in zstandard frames.

Layout of the array ``codes``: per component the scale (uint16, little endian), the packing of its left and of its right codes (a byte each); then the
frames whose sizes the config lists: one for each packing, holding the left codes of all its components, then the right ones; last the overflow.
Such packs are read; none are written any more.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from skillhub.codecs.arithmetic import Codes
from skillhub.codecs.encoding import damaged
from skillhub.codecs.streams import Bytes, decompress_frame, split_frames
from skillhub.codecs.symbols import PACKINGS, add_overflow, count_overflow, count_packed, unpack_symbols


def read(data: Bytes, sizes: object, rank: int, rows: int, columns: int) -> tuple[npt.NDArray[np.int64], Codes, Codes]:
    """Return the (rank,) scales, the (rank, rows) left codes and the (rank, columns) right ones.

    Raises:
        IntegrityError: sizes and bytes contradict each other.
    """
    if data.size < 4 * rank:
        raise damaged("has fewer bytes than its components have scales")
    frames = split_frames(data[4 * rank :], sizes, len(PACKINGS) + 1)
    head = data[: 4 * rank].reshape(rank, 4)
    scales = np.ascontiguousarray(head[:, :2]).view("<u2").reshape(rank).astype(np.int64)
    packings = head[:, 2:]
    if int(packings.max()) >= len(PACKINGS):
        raise damaged("has components with an unknown packing")
    left, right = np.empty((rank, rows), np.int16), np.empty((rank, columns), np.int16)
    _fill_codes(left, right, packings, frames)
    return scales, left, right


def _fill_codes(left: Codes, right: Codes, packings: Bytes, frames: list[Bytes]) -> None:
    """Decompress and unpack every packing's codes into ``left`` and ``right``."""
    pools = []
    for packing in range(len(PACKINGS)):
        count = sum(
            codes.shape[1] * int(np.count_nonzero(packings[:, side] == packing))
            for side, codes in enumerate((left, right))
        )
        packed = decompress_frame(frames[packing], count_packed(count, packing))
        pools.append(unpack_symbols(packed, count, packing))
    needed = [count_overflow(pool, packing) for packing, pool in enumerate(pools)]
    overflow = decompress_frame(frames[-1], sum(needed))
    for packing, (pool, extra) in enumerate(zip(pools, np.split(overflow, np.cumsum(needed)[:-1]), strict=True)):
        add_overflow(pool, extra, packing)
        of_left = packings[:, 0] == packing
        split = int(np.count_nonzero(of_left)) * left.shape[1]
        left[of_left] = pool[:split].reshape(-1, left.shape[1])
        right[packings[:, 1] == packing] = pool[split:].reshape(-1, right.shape[1])
