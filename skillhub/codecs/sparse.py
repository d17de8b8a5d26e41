"""The codec ``sparse``: the few weights of a tensor that changed, added exactly; all others are left as they are.

Preference and reinforcement tuning leave 70–95 % of the weights untouched, and what they do change is nearly of full rank (Mukherjee et al.
2025, arXiv 2505.11711). The places are stored as gaps between increasing flat indices. A gap is split as in Golomb–Rice coding (Rice & Plaunt
1971): its lowest bits, which are nearly random, are packed as they are; the rest is a small number that compresses well. The
values of a fine-tune saved in bfloat16 repeat, so where that is shorter they are stored as ranks in a list of the
different ones, the most frequent first.

Small numbers are bytes, in which 255 means 255 and what follows. Layout of the array ``data``: frames whose sizes the config
lists: the gaps' high parts; their low bits, the highest first; the different values (fp32 byte planes, of all where
ranks would be longer); the ranks.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

from skillhub.codecs.encoding import EncodedPart, check_keys, count_elements, damaged, read_integer
from skillhub.codecs.streams import (
    Bytes,
    compress,
    compress_frame,
    compress_planes,
    decompress_frame,
    decompress_planes,
    split_frames,
    tensor_bytes,
)

ID = "sparse"

Integers = npt.NDArray[np.int64]

MAX_VALUES = 4096
"""Most different values of which ranks are stored."""

MAX_SHIFT = 32
"""Low bits of a gap."""

SAMPLE = 1 << 18
"""Weights whose values an estimate looks at."""

FRAME_BITS = 8 * 40
"""Bits beside places and values."""

LISTED_BITS = 24
"""About what one of the different values takes in their list."""

SMALL_BITS = 4
"""Gaps are split so that the high part of an average one is of about this many bits: lower ones are not yet random."""


def encode(delta: torch.Tensor) -> EncodedPart:
    """Return the part that adds the values of ``delta`` that are not zero.

    Args:
        delta: fp32, any shape and layout. Every bit is kept, of NaN and infinities too, but -0.0 counts as 0.

    Raises:
        ValueError: ``delta`` is something else.
    """
    if delta.dtype != torch.float32:
        raise ValueError(f"expected a float32 delta, got {delta.dtype}")
    values = tensor_bytes(delta).view(np.float32)
    indices = np.flatnonzero(values)
    gaps = np.diff(indices, prepend=-1) - 1
    shift = _choose_shift(gaps)
    highs = _to_bytes(gaps >> shift)
    different, ranks = _list_values(values[indices].view("u4"))
    frames = [
        compress_frame(highs),
        compress_frame(_pack_low_bits(gaps, shift)),
        compress_planes(different) if different.size else different.view(np.uint8),
        compress_frame(ranks),
    ]
    config = {
        "count": len(indices),
        "shift": shift,
        "highs": highs.size,
        "values": different.size,
        "ranks": ranks.size,
        "frames": [frame.size for frame in frames],
    }
    return EncodedPart(ID, config, {"data": np.concatenate(frames)})


def estimate_bits(delta: torch.Tensor, factor: float = 1.0) -> float:
    """Estimate the bits that :func:`encode` would take: the entropies of places and, in a sample, of values.

    Args:
        delta: fp32, or some rows of it.
        factor: how many times as large the whole is.
    """
    count, elements = int(delta.count_nonzero()), delta.numel()
    if count in (0, elements):
        places = 0.0
    else:
        share = count / elements
        places = -elements * (share * math.log2(share) + (1 - share) * math.log2(1 - share))
    some = tensor_bytes(delta[:: max(1, elements // SAMPLE)] if delta.dim() else delta).view(np.float32)
    different, counts = np.unique(some[some != 0], return_counts=True)
    if not counts.size:
        return FRAME_BITS + factor * (places + 32.0 * count)
    entropy = -float(counts / counts.sum() @ np.log2(counts / counts.sum()))
    # Where values hardly repeat, a sample's entropy says how large it is, not what a value costs.
    bits = entropy if different.size <= MAX_VALUES else 32.0
    return FRAME_BITS + factor * (places + count * bits) + LISTED_BITS * different.size


def decode(part: EncodedPart, shape: tuple[int, ...], delta: torch.Tensor | None) -> torch.Tensor:
    """Return ``delta`` (or fp32 zeros of ``shape``) with the stored values added at their places.

    Raises:
        IntegrityError: config, frames and shape contradict each other.
    """
    return apply_changes(delta, shape, *read_changes(part, shape))


def apply_changes(
    delta: torch.Tensor | None, shape: tuple[int, ...], indices: torch.Tensor, values: torch.Tensor
) -> torch.Tensor:
    """Return ``delta`` (contiguous, changed in place; or zeros of ``shape``) with ``values`` added at flat ``indices``."""
    if delta is None:
        result = torch.zeros(shape, dtype=torch.float32, device="cpu")
        result.view(-1)[indices] = values  # set, not added: a sum may change the payload of NaN
        return result
    flat = delta.view(-1)
    flat[indices] += values
    return delta


def read_changes(part: EncodedPart, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the flat indices (I64, increasing) of the changed weights of a tensor of ``shape``, and what is added to them (fp32).

    Raises:
        IntegrityError: as :func:`decode`.
    """
    check_keys(part, {"count", "shift", "highs", "values", "ranks", "frames"}, {"data"})
    elements = count_elements(shape)
    count = read_integer(part.config["count"], "count", 0, elements)
    shift = read_integer(part.config["shift"], "shift", 0, MAX_SHIFT)
    # Each byte of 255 stands for as many places.
    size = read_integer(part.config["highs"], "size of high parts", count, count + elements // 255)
    highs, low, values, ranks = split_frames(part.arrays["data"], part.config["frames"], 4)
    gaps = _from_bytes(decompress_frame(highs, size), count)
    if count and (int(gaps.max()) << shift) > elements:
        raise damaged("changes weights beyond its last")
    gaps = (gaps << shift) | _unpack_low_bits(decompress_frame(low, -(-count * shift // 8)), count, shift)
    if float(gaps.sum(dtype=np.float64)) > elements - count:
        raise damaged("changes weights beyond its last")
    return torch.from_numpy(np.cumsum(gaps + 1) - 1), torch.from_numpy(_read_values(part, values, ranks, count))


def _choose_shift(gaps: Integers) -> int:
    """Return how many low bits of the gaps are packed as they are."""
    mean = float(gaps.mean()) if gaps.size else 0.0
    return min(max(math.floor(math.log2(max(mean, 1.0))) - SMALL_BITS, 0), MAX_SHIFT)


def _pack_low_bits(gaps: Integers, shift: int) -> Bytes:
    """Return the lowest ``shift`` bits of each gap, the highest of them first."""
    bits = (gaps[:, None] >> np.arange(shift - 1, -1, -1)) & 1
    return np.packbits(bits.astype(np.uint8))


def _unpack_low_bits(packed: Bytes, count: int, shift: int) -> Integers:
    """Undo :func:`_pack_low_bits`."""
    bits = np.unpackbits(packed, count=count * shift).reshape(count, shift)
    low = np.zeros(count, dtype=np.int64)
    for place in range(shift):
        low = (low << 1) | bits[:, place]
    return low


def _to_bytes(numbers: Integers) -> Bytes:
    """Return small numbers as bytes: as often 255 as it fits into a number, then what is left of it."""
    ends = np.cumsum(numbers // 255 + 1) - 1
    result = np.full(int(ends[-1]) + 1 if ends.size else 0, 255, dtype=np.uint8)
    result[ends] = numbers % 255
    return result


def _from_bytes(data: Bytes, count: int) -> Integers:
    """Undo :func:`_to_bytes` for ``count`` numbers.

    Raises:
        IntegrityError: there are not as many.
    """
    ends = np.flatnonzero(data != 255)
    if ends.size != count or (data.size and int(data[-1]) == 255):
        raise damaged(f"does not have the {count} small numbers that its config implies")
    return np.diff(np.cumsum(data, dtype=np.int64)[ends], prepend=0)


def _list_values(words: npt.NDArray[np.uint32]) -> tuple[npt.NDArray[np.uint32], Bytes]:
    """Return the different values and each one's rank as bytes; or all values and no ranks, where that is shorter."""
    different, inverse, counts = np.unique(words, return_inverse=True, return_counts=True)
    nothing = np.empty(0, dtype=np.uint8)
    if not 0 < different.size <= MAX_VALUES:
        return words, nothing
    order = np.argsort(-counts, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(order.size)
    ranks = _to_bytes(rank[inverse])
    if compress_planes(different).size + compress(ranks).size < compress_planes(words).size:
        return different[order], ranks
    return words, nothing


def _read_values(part: EncodedPart, values: Bytes, ranks: Bytes, count: int) -> npt.NDArray[np.float32]:
    """Return the ``count`` fp32 values of a part."""
    different = read_integer(part.config["values"], "number of values", min(count, 1), count)
    size = read_integer(part.config["ranks"], "size of ranks", 0, count * (1 + MAX_VALUES // 255))
    if not (different or values.size or ranks.size):
        return np.empty(0, dtype=np.float32)
    listed = decompress_planes(values, different, 4).view("<f4").astype(np.float32, copy=False)
    if not size:
        if different != count or ranks.size:
            raise damaged(f"has {different} values for {count} weights")
        return listed
    at = _from_bytes(decompress_frame(ranks, size), count)
    if int(at.max()) >= different:
        raise damaged("has ranks beyond its values")
    return listed[at]
