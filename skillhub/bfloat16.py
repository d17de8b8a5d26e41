"""Canonical bfloat16 of stored floats with integer arithmetic only: the same bits on every machine and in every mode.

Rounding is to nearest, ties to even; −0 becomes +0 and every NaN becomes 0x7FC0, so equal values have equal bytes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
"""Dtype tags whose values can be rounded to bfloat16."""

NAN = 0x7FC0
INFINITY = 0x7F80
_SIGN = 0x8000

Bits = NDArray[np.uint16]


def canonical_bfloat16(raw: NDArray[np.uint8], dtype: str) -> Bits:
    """Round little-endian floats to canonical bfloat16.

    Args:
        raw: the values' bytes, one-dimensional.
        dtype: their tag, one of :data:`FLOATS`.

    Returns:
        The bit patterns as U16, one-dimensional. For values that are canonical already this is a view of ``raw``.
    """
    if dtype == "BF16":
        return _canonical(raw.view("<u2"))
    if dtype == "F16":  # every half is a float32, so this widens without rounding
        raw = raw.view("<f2").astype("<f4").view(np.uint8)
    return _from_float64(raw.view("<u8")) if dtype == "F64" else _from_float32(raw.view("<u4"))


def to_float32(bits: Bits) -> NDArray[np.float32]:
    """Return the values of bfloat16 bit patterns."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _canonical(bits: Bits) -> Bits:
    """Replace −0 and NaNs; without any, the very same array comes back."""
    if not _has_special(bits):
        return bits
    bits = bits.copy()
    bits[(bits & 0x7FFF) > INFINITY] = NAN
    bits[bits == _SIGN] = 0
    return bits


def _has_special(bits: Bits) -> bool:
    """Say whether there is a −0 or a NaN, by extremes alone: they need no memory, and are found at the speed of reading."""
    if not bits.size:
        return False
    signed = bits.view("<i2")
    positive_nan, negative_nan = int(signed.max()) > INFINITY, int(bits.max()) > (_SIGN | INFINITY)
    return positive_nan or negative_nan or int(signed.min()) == -_SIGN


def _from_float32(bits: NDArray[np.uint32]) -> Bits:
    # Adding just under half a step, and one more where the kept part is odd, carries exactly when it should round up.
    rounded = bits >> np.uint32(16)
    rounded &= np.uint32(1)
    rounded += np.uint32(0x7FFF)
    rounded += bits  # only NaNs can overflow, and they are replaced
    rounded >>= np.uint32(16)
    result = rounded.astype(np.uint16)
    result[(bits & np.uint32(0x7FFF_FFFF)) > np.uint32(0x7F80_0000)] = NAN
    return _canonical(result)


def _from_float64(bits: NDArray[np.uint64]) -> Bits:
    """Round once from 53 significant bits; going through float32 would round twice."""
    stored_exponent = ((bits >> np.uint64(52)) & np.uint64(0x7FF)).astype(np.int64)
    significand = bits & np.uint64((1 << 52) - 1)
    nan = (stored_exponent == 0x7FF) & (significand != 0)
    significand |= (stored_exponent > 0).astype(np.uint64) << np.uint64(52)
    exponent = stored_exponent - 1023 + 127  # below 1: subnormal in bfloat16, with fewer bits left
    shift = np.clip(45 + 1 - exponent, 45, 63).astype(np.uint64)
    half = np.uint64(1) << (shift - np.uint64(1))
    odd = (significand >> shift) & np.uint64(1)
    kept = ((significand + half - np.uint64(1) + odd) >> shift).astype(np.int64)
    # A normal significand brings the implicit bit, worth one exponent step.
    magnitude = np.minimum(kept + (np.maximum(exponent - 1, 0) << 7), INFINITY)
    magnitude[exponent >= 0xFF] = INFINITY
    result = (magnitude | ((bits >> np.uint64(63)).astype(np.int64) << 15)).astype(np.uint16)
    result[nan] = NAN
    return _canonical(result)
