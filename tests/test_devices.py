"""Which device is used."""

from __future__ import annotations

import pytest
import torch

from skillhub.compose.sums import put_back_nan
from skillhub.devices import available_bytes, device_for, device_with
from tests.support.tiny_models import make_model

BEST = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def test_a_gpu_is_used_where_it_has_room(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert device_with(0) == device_with(1 << 20) == BEST
    assert device_with(1 << 60) == torch.device("cpu")
    model = make_model("tied")
    assert device_for(model) == BEST
    assert device_for(model, room=1e15) == torch.device("cpu")


def test_the_memory_that_is_left_is_told_where_it_is_known():
    for device in {torch.device("cpu"), BEST}:
        left = available_bytes(device)
        assert left is not None and 1 << 20 < left < 1 << 50
    assert available_bytes(torch.device("meta")) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_what_is_no_number_in_the_base_keeps_its_bits(dtype: torch.dtype):
    base = torch.tensor([0x7FC12000, -0x3FA000, 0x3F800000, 0x7FE00000], dtype=torch.int32).view(torch.float32)
    expected = {
        torch.bfloat16: [0x7FC1, -0x40],
        torch.float16: [0x7E09, -0x1FD],
        torch.float32: [0x7FC12000, -0x3FA000],
    }
    result = torch.tensor([torch.nan, torch.nan, 2.0, 3.0]).to(dtype)
    put_back_nan(result, base)
    bits = {2: torch.int16, 4: torch.int32}[dtype.itemsize]
    assert result[:2].view(bits).tolist() == expected[dtype]
    assert result[2:].tolist() == [2.0, 3.0]
