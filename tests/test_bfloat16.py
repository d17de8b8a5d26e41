from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skillhub.bfloat16 import canonical_bfloat16, to_float32
from tests.checkpoint_examples import defined_bytes


def rounded(tensor: torch.Tensor, tag: str) -> bytes:
    return canonical_bfloat16(tensor.contiguous().flatten().view(torch.uint8).numpy(), tag).tobytes()


@pytest.mark.parametrize(("dtype", "tag"), [(torch.bfloat16, "BF16"), (torch.float16, "F16")])
def test_every_sixteen_bit_pattern_agrees_with_torch(dtype: torch.dtype, tag: str) -> None:
    every = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(dtype)
    assert rounded(every, tag) == defined_bytes(every)[1]


def test_float32_around_every_bfloat16_and_its_ties_agrees_with_torch() -> None:
    kept = torch.arange(65536, dtype=torch.int64).repeat_interleave(7) << 16
    lower = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF, 0x1234]).repeat(65536)
    bits = (kept | lower).to(torch.uint32)
    values = bits.view(torch.float32)
    assert rounded(values, "F32") == defined_bytes(values)[1]


@settings(max_examples=500)
@given(values=st.lists(st.floats(width=64) | st.floats(width=32), min_size=1, max_size=8))
def test_float64_is_rounded_once(values: list[float]) -> None:
    tensor = torch.tensor(values, dtype=torch.float64)
    assert rounded(tensor, "F64") == defined_bytes(tensor)[1]


def test_float64_just_beside_a_tie_does_not_round_twice() -> None:
    tie = np.float64(1 + 2**-8)
    above, below = np.nextafter(tie, 2), np.nextafter(tie, 0)
    bits = canonical_bfloat16(np.array([tie, above, below]).view(np.uint8), "F64")
    assert bits.tolist() == [0x3F80, 0x3F81, 0x3F80]


def test_float64_ties_of_every_bfloat16_agree_with_the_definition() -> None:
    every = torch.arange(0x7F80, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16).double()
    middle = (every[:-1] + every[1:]) / 2
    for values in (middle, torch.nextafter(middle, middle * 2), torch.nextafter(middle, middle * 0), -middle):
        assert rounded(values[::37], "F64") == defined_bytes(values[::37])[1]


def test_canonical_values_are_not_copied() -> None:
    raw = np.arange(64, dtype=np.uint8)
    assert np.shares_memory(canonical_bfloat16(raw, "BF16"), raw)


def test_values_come_back() -> None:
    bits = np.array([0x3F80, 0xC000, 0], np.uint16)
    assert to_float32(bits).tolist() == [1.0, -2.0, 0.0]
