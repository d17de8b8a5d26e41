"""The codec `sign`: one bit a weight, one scale a row."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from skillhub.codecs import EncodedTensor, decode, exact, sign
from skillhub.codecs.streams import compress_planes
from skillhub.errors import IntegrityError
from tests.codec_examples import from_json, read_golden, words

SHAPES = npst.array_shapes(min_dims=2, max_dims=4, min_side=0, max_side=9)
DELTAS = npst.arrays(np.float32, SHAPES, elements=st.floats(-(2.0**100), 2.0**100, width=32))


@given(DELTAS)
def test_every_weight_becomes_plus_or_minus_its_rows_mean_magnitude(values: np.ndarray) -> None:
    delta = torch.from_numpy(values)
    decoded = decode(EncodedTensor(tuple(delta.shape), (sign.encode(delta),)))
    assert decoded.dtype == torch.float32 and decoded.shape == delta.shape
    for row, given_row in zip(decoded.numpy(), values, strict=True):
        scale = np.float32(np.abs(given_row).mean(dtype=np.float64)) if given_row.size else np.float32(0)
        assert np.array_equal(row, np.where(given_row < 0, -scale, scale))
    assert not bool(torch.signbit(decoded[decoded == 0]).any())


def test_no_other_scale_errs_less() -> None:
    delta = torch.randn(1, 64, generator=torch.Generator().manual_seed(2))
    decoded = decode(EncodedTensor((1, 64), (sign.encode(delta),)))
    error = float((decoded - delta).square().sum())
    for factor in (0.9, 0.99, 1.01, 1.1):
        assert float((decoded * factor - delta).square().sum()) > error


def test_it_takes_about_one_bit_a_weight() -> None:
    delta = torch.randn(64, 500, generator=torch.Generator().manual_seed(3))
    size = EncodedTensor((64, 500), (sign.encode(delta),)).nbytes
    assert 64 * 500 / 8 < size < 64 * 500 / 8 + 64 * 4 + 600 / 8 * 4


def test_any_layout_is_taken_and_parts_add_up() -> None:
    delta = torch.randn(12, 10, generator=torch.Generator().manual_seed(4))
    for view in (delta.T, delta[::2, 1::3], delta[:1].expand(5, 10)):
        shape = tuple(view.shape)
        part = sign.encode(view)
        assert words(part_only := decode(EncodedTensor(shape, (part,)))) == words(
            decode(EncodedTensor(shape, (sign.encode(view.contiguous()),)))
        )
        before = exact.encode(view)
        assert torch.equal(decode(EncodedTensor(shape, (*before.parts, part))), view + part_only)


def test_some_rows_are_read_as_in_the_whole() -> None:
    delta = torch.randn(13, 21, generator=torch.Generator().manual_seed(5))
    signs = sign.read_signs(sign.encode(delta), (13, 21))
    assert np.array_equal(np.concatenate([signs.expand(slice(0, 4)), signs.expand(slice(4, 13))]), signs.expand())


@pytest.mark.parametrize("delta", [
    torch.tensor([[1.0, float("nan")]]), torch.tensor([[float("inf")]]), torch.ones(3), torch.ones(2, 2, dtype=torch.bfloat16),
])  # fmt: skip
def test_what_has_no_signs_is_refused(delta: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="finite float32"):
        sign.encode(delta)


PART = sign.encode(torch.randn(30, 17, generator=torch.Generator().manual_seed(6)))


@pytest.mark.parametrize("shape", [(30, 16 + 9), (29, 17), (510,), (), (30, 0), (0, 17), (30, 17, 2)])
def test_other_shapes_are_integrity_errors(shape: tuple[int, ...]) -> None:
    with pytest.raises(IntegrityError):
        decode(EncodedTensor(shape, (PART,)))


@pytest.mark.parametrize("scale", [-1.0, float("nan"), float("inf")])
def test_scales_that_are_no_magnitudes_are_integrity_errors(scale: float) -> None:
    scales = compress_planes(np.array([scale] * 30, np.float32).view("u4"))
    with pytest.raises(IntegrityError, match="magnitude"):
        decode(EncodedTensor((30, 17), (replace(PART, arrays=PART.arrays | {"scales": scales}),)))


def test_foreign_keys_are_integrity_errors() -> None:
    for part in (replace(PART, config={"bits": 2}), replace(PART, arrays={"signs": PART.arrays["signs"]})):
        with pytest.raises(IntegrityError):
            decode(EncodedTensor((30, 17), (part,)))


def test_golden_files_decode_to_the_same_bits() -> None:
    for case in read_golden("sign"):
        assert words(decode(from_json(case["encoded"]))).hex() == case["decoded"], case["case"]
