"""Rounding: the bits against a plain-Python reference, unbiased, and independent of how the tensor is cut."""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from skillhub.errors import UsageError
from skillhub.rounding import CHUNK, round_to, rounding_key

NARROW = [torch.bfloat16, torch.float16]
MANTISSA = {torch.bfloat16: 16, torch.float16: 13}


def reference_word(key: int, index: int) -> int:
    key = (key + (index >> 32) * 0x9E3779B97F4A7C15) & (2**64 - 1)
    x = (index ^ key) & 0xFFFFFFFF
    x ^= x >> 16
    x = x * 0x21F0AAAD & 0xFFFFFFFF
    x ^= key >> 32
    x ^= x >> 15
    x = x * 0xD35A2D97 & 0xFFFFFFFF
    return x ^ x >> 15


def reference_half(key: int, index: int) -> int:
    return reference_word(key, index // 2) >> 16 * (index % 2) & 0xFFFF


def reference_round(value: float, word: int, dtype: torch.dtype) -> float:
    """Stochastic rounding in float64, by the definition: up when the random fraction exceeds what is missing to the next step."""
    if not math.isfinite(value) or abs(value) > torch.finfo(dtype).max:
        return float(torch.tensor(value, dtype=torch.float32).to(dtype))
    digits, minimum = (8, -126) if dtype == torch.bfloat16 else (11, -14)
    exponent = max(math.frexp(value)[1] - 1, minimum)
    step = 2.0 ** (exponent - digits + 1)
    steps = abs(value) / step
    fraction = (word & ((1 << MANTISSA[dtype]) - 1)) / (1 << MANTISSA[dtype])
    return math.copysign(math.floor(steps + fraction) * step, value)


@pytest.mark.parametrize("dtype", NARROW)
@given(values=npst.arrays(np.uint32, st.integers(0, 30)), key=st.integers(0, 2**64 - 1), offset=st.integers(0, 2**40))
def test_matches_the_reference(dtype: torch.dtype, values: np.ndarray, key: int, offset: int) -> None:
    floats = values.view(np.float32).copy()
    if dtype == torch.float16:  # values of which fp16's subnormal range keeps every bit, see the docstring of round_to
        small = np.abs(floats) < 2.0**-14
        floats[small] = np.round(floats[small] * np.float32(2**37)) / np.float32(2**37)
    rounded = round_to(dtype, torch.from_numpy(floats), key=key, offset=offset)
    for index, (value, result) in enumerate(zip(floats.tolist(), rounded.tolist(), strict=True)):
        expected = reference_round(value, reference_half(key, offset + index), dtype)
        assert result == expected or (math.isnan(result) and math.isnan(expected))
        assert math.isnan(value) or math.copysign(1, result) == math.copysign(1, value)


@pytest.mark.parametrize("dtype", NARROW)
def test_representable_values_stay(dtype: torch.dtype) -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    rounded = round_to(dtype, every.float(), key=1)
    assert torch.equal(rounded.nan_to_num(7.0), every.nan_to_num(7.0))
    assert torch.equal(rounded.isnan(), every.isnan())


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("value", [1.0001, -0.3337, 3e-6, 1e-3])
def test_is_unbiased(dtype: torch.dtype, value: float) -> None:
    count = 1 << 20
    values = torch.full((count,), value)
    rounded = round_to(dtype, values, key=rounding_key(["a"], "weight")).double()
    low, high = rounded.min().item(), rounded.max().item()
    assert low <= values[0].item() <= high and len(rounded.unique()) == 2
    # Five standard errors of a mean of `count` draws between two neighbours.
    assert abs(rounded.mean().item() - values[0].item()) < 5 * (high - low) / 2 / math.sqrt(count)


def test_neighbours_and_keys_are_uncorrelated() -> None:
    half = torch.full((1 << 18,), 1 + 2.0**-8)  # halfway between two bf16 values: a fair coin
    coins = [
        round_to(torch.bfloat16, half, key=rounding_key(["a"], name)).float().sub(1).ne(0).float() for name in "ab"
    ]
    a, b = (coin * 2 - 1 for coin in coins)
    limit = 5 / math.sqrt(a.numel())
    assert abs((a * b).mean()) < limit
    for lag in (1, 2, 3, 64, 576, 4096):
        assert abs((a[:-lag] * a[lag:]).mean()) < limit


@pytest.mark.parametrize("dtype", NARROW)
def test_never_infinite_where_nearest_is_not(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    step = largest - torch.nextafter(torch.tensor(largest, dtype=dtype), torch.tensor(0.0, dtype=dtype)).item()
    values = torch.tensor([largest + step * 0.49, -largest - step * 0.49, largest + step * 0.51]).repeat(100)
    rounded = round_to(dtype, values, key=3)
    assert torch.equal(rounded, values.to(dtype))


@pytest.mark.parametrize("dtype", NARROW)
@given(
    cut=st.integers(0, 3 * CHUNK),
    offset=st.sampled_from([0, 5, CHUNK - 1, 2**32 - CHUNK - 7, 2**33 - CHUNK - 7, 2**34]),
)
def test_chunking_does_not_matter(dtype: torch.dtype, cut: int, offset: int) -> None:
    values = torch.linspace(-3, 3, 3 * CHUNK)
    whole = round_to(dtype, values, key=9, offset=offset)
    parts = [
        round_to(dtype, values[:cut], key=9, offset=offset),
        round_to(dtype, values[cut:], key=9, offset=offset + cut),
    ]
    assert torch.equal(whole, torch.cat(parts))


def test_layout_does_not_matter() -> None:
    values = torch.randn(30, 50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(
        round_to(torch.bfloat16, values.T, key=4), round_to(torch.bfloat16, values.T.contiguous(), key=4)
    )
    assert round_to(torch.float16, torch.zeros(0, 3), key=4).shape == (0, 3)
    assert round_to(torch.bfloat16, torch.tensor(1.1), key=4).shape == ()


def test_nearest_is_torchs_own_conversion() -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    for dtype in NARROW:
        assert torch.equal(round_to(dtype, values, key=0, mode="nearest"), values.to(dtype))
    assert round_to(torch.float32, values, key=0) is values


def test_keys_are_length_framed_digests() -> None:
    framed = b"".join(len(text).to_bytes(8, "little") + text for text in (b"one", b"two", b"w"))
    key = int.from_bytes(hashlib.sha256(framed).digest()[:8], "little")
    assert rounding_key(["one", "two"], "w") == key
    assert rounding_key(["onet", "wo"], "w") != key != rounding_key(["two", "one"], "w")
    values = torch.linspace(0, 1, 100)
    assert torch.equal(
        round_to(torch.bfloat16, values, key=key), round_to(torch.bfloat16, values, key=key.to_bytes(8, "little"))
    )


def test_what_cannot_be_rounded_is_refused() -> None:
    with pytest.raises(UsageError):
        round_to(torch.int8, torch.zeros(1), key=0)
    with pytest.raises(UsageError):
        round_to(torch.bfloat16, torch.zeros(1), key=0, mode="up")
    with pytest.raises(ValueError, match="float32"):
        round_to(torch.bfloat16, torch.zeros(1, dtype=torch.float64), key=0)


PINNED = {
    torch.bfloat16: "0105a906a15440883de35fc0a7eaf239f55ef95c0fbc5f4391ebb51ca37f663d",
    torch.float16: "04b85c84dbe21ca13aff2bbb2efca71f2e292e7dd09a1379ae50ab9aaaa095c2",
}
"""Digests of the rounded input below: the format of fused checkpoints."""


def test_bits_are_pinned_for_one_and_two_threads() -> None:
    program = (
        "import sys, torch; torch.set_num_threads(int(sys.argv[1]));"
        "from skillhub.codecs import decoded_digest; from skillhub.rounding import round_to;"
        "values = (torch.arange(300000) * 7919 % 65537).float().div(65536).sub(0.5);"
        "print(*(decoded_digest(round_to(d, values, key=12345, offset=2**33 - 777)) for d in (torch.bfloat16, torch.float16)))"
    )
    expected = [PINNED[dtype] for dtype in NARROW]
    for threads in ("1", "2"):
        printed = subprocess.run([sys.executable, "-c", program, threads], capture_output=True, text=True, check=True)
        assert printed.stdout.split() == expected
