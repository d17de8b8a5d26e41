"""Small integers as bytes that zstandard's Huffman coder handles well.

One code a byte wastes up to a bit a code, because no Huffman symbol is shorter than one bit. So several codes share a byte, as digits
in base 3, 5, 7 or 15. A code beyond the outermost digit is stored as that digit, and how far beyond goes to an *overflow* stream of
plain bytes: rare outliers then do not force a larger base on everyone.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from skillhub.codecs.arithmetic import Codes
from skillhub.codecs.encoding import damaged
from skillhub.codecs.streams import Bytes

PACKINGS = ((3, 5), (5, 3), (7, 2), (15, 2), (255, 1))
"""(base, digits a byte) of every packing; a packing's index is what the format stores."""

ZEROS = (0.85, 0.55, 0.4, 0.12)
"""A packing serves codes of which more than this share is zero; the last serves the rest. Measured on three fine-tunes."""

MAX_CODE = 255
"""Largest magnitude of a code: the outermost digit 1 plus an overflow of at most 254."""


def choose_packing(codes: Codes) -> int:
    """Return the index of the packing that suits the codes: small bases where most codes are zero, or none is large."""
    if not codes.size:
        return 0
    zeros, peak = float(np.mean(codes == 0)), int(np.abs(codes).max())
    packing = sum(zeros <= least for least in ZEROS)
    while packing and peak <= PACKINGS[packing - 1][0] // 2:
        packing -= 1
    return packing


def pack_symbols(codes: Codes, packing: int) -> tuple[Bytes, Bytes]:
    """Return (packed bytes, overflow bytes) of one-dimensional ``codes`` with magnitudes up to :data:`MAX_CODE`."""
    base, digits = PACKINGS[packing]
    outermost = base // 2
    overflow = (np.abs(codes) - outermost)[np.abs(codes) >= outermost].astype(np.uint8)
    padded = np.zeros(-(-codes.size // digits) * digits, dtype=np.int16)
    padded[: codes.size] = np.clip(codes, -outermost, outermost)
    weights = base ** np.arange(digits, dtype=np.int16)
    packed = ((padded.reshape(-1, digits) + outermost) * weights).sum(axis=1, dtype=np.int16)
    return packed.astype(np.uint8), overflow


def count_packed(count: int, packing: int) -> int:
    """Return how many bytes ``count`` codes take when packed."""
    return -(-count // PACKINGS[packing][1])


def unpack_symbols(packed: Bytes, count: int, packing: int) -> Codes:
    """Return the ``count`` digits in ``packed``, centred on zero, without their overflow.

    Raises:
        IntegrityError: a byte is no combination of digits.
    """
    base, digits = PACKINGS[packing]
    if packed.size and int(packed.max()) >= base**digits:
        raise damaged("has packed codes outside their alphabet")
    # The digits of a byte are looked up as one opaque item: numpy copies those four times as fast as rows of a table.
    return np.take(_digit_table(packing), packed).view(np.int8)[:count].astype(np.int16)


def add_overflow(codes: Codes, overflow: Bytes, packing: int) -> Codes:
    """Return ``codes`` with ``overflow`` added to the outermost digits, away from zero."""
    if not overflow.any():
        return codes
    outermost = np.flatnonzero(np.abs(codes) == PACKINGS[packing][0] // 2)
    beyond = np.flatnonzero(overflow)  # few of them
    at = outermost[beyond]
    codes[at] += np.sign(codes[at]) * overflow[beyond]
    return codes


def count_overflow(codes: Codes, packing: int) -> int:
    """Return how many overflow bytes unpacked ``codes`` need."""
    return int(np.count_nonzero(np.abs(codes) == PACKINGS[packing][0] // 2))


@cache
def _digit_table(packing: int) -> npt.NDArray[Any]:
    """Return (256,): the centred digits of every byte, int8 side by side in one item."""
    base, digits = PACKINGS[packing]
    values = np.arange(256)[:, None] // base ** np.arange(digits)
    return (values % base - base // 2).astype(np.int8).view(f"V{digits}").reshape(-1)
