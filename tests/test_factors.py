"""The codec `factors`: an adapter's factors, every bit of them, and a product within a known tolerance."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skillhub.codecs import EncodedTensor, content_digest, decode, decoded_digest, exact, factors
from skillhub.codecs.decoding import factors_digest
from skillhub.codecs.factors import AdapterFactors, rounding_bound
from skillhub.codecs.streams import compress_planes
from skillhub.errors import IntegrityError
from tests.codec_examples import from_json, read_golden, words

DTYPES = sorted(factors.DTYPES)
SCALES = st.floats(-1e6, 1e6, allow_nan=False)


def make(
    rank: int = 4, inputs: int = 7, outputs: int = 5, *, seed: int = 0, dtype: str = "float32", **more: Any
) -> AdapterFactors:
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(size, generator=generator) for size in ((rank, inputs), (outputs, rank)))
    return AdapterFactors(a.to(factors.DTYPES[dtype]), b.to(factors.DTYPES[dtype]), **{"scale": 1.5, **more})


def true_product(one: AdapterFactors) -> torch.Tensor:
    product = one.b.double() @ one.a.double() * one.scale
    return product.T if one.transposed else product


def encoded(one: AdapterFactors) -> EncodedTensor:
    return EncodedTensor(tuple(true_product(one).shape), (factors.encode(one),))


@given(
    rank=st.integers(1, 20),
    inputs=st.integers(0, 12),
    outputs=st.integers(0, 12),
    dtypes=st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)),
    scale=SCALES,
    transposed=st.booleans(),
    seed=st.integers(0, 99),
)
def test_factors_come_back_bit_for_bit_and_multiply_to_the_true_product_within_the_bound(
    rank: int, inputs: int, outputs: int, dtypes: tuple[str, str], scale: float, transposed: bool, seed: int
) -> None:
    drawn = make(rank, inputs, outputs, seed=seed, scale=scale, transposed=transposed)
    one = replace(drawn, a=drawn.a.to(factors.DTYPES[dtypes[0]]), b=drawn.b.to(factors.DTYPES[dtypes[1]]))
    tensor = encoded(one)
    found = factors.read_factors(tensor.parts[0], tensor.shape)
    assert (words(found.a), words(found.b)) == (words(one.a), words(one.b))
    assert (found.a.dtype, found.b.dtype) == (one.a.dtype, one.b.dtype)
    assert (found.scale, found.transposed, found.rank) == (scale, transposed, rank)
    decoded = decode(tensor)
    assert decoded.dtype == torch.float32 and decoded.shape == tensor.shape
    narrow = replace(one, a=one.a.float(), b=one.b.float())  # of fp64 the product is that of the nearest fp32 values
    if decoded.numel():
        error = float((decoded.double() - true_product(narrow)).abs().max())
        assert error <= rounding_bound(narrow) * 1.001 + 2.0**-149 * (rank + 2) * (1 + abs(scale))


def test_a_scale_of_rank_stabilized_adapters_is_kept_exactly() -> None:
    one = make(scale=16 / math.sqrt(7))
    assert factors.read_factors(factors.encode(one), (5, 7)).scale == 16 / math.sqrt(7)
    assert from_json(read_golden("factors")[0]["encoded"]).parts[0].config["scale"] == 16 / math.sqrt(7)


def test_any_layout_is_taken_and_a_convolution_is_the_matrix_of_its_rows() -> None:
    one = make()
    strided = replace(one, a=one.a.T.contiguous().T, b=one.b.repeat_interleave(2, dim=1)[:, ::2])
    assert words(decode(encoded(strided))) == words(decode(encoded(one)))
    convolution = make(inputs=2 * 3 * 3)
    found = decode(EncodedTensor((5, 2, 3, 3), (factors.encode(convolution),)))
    assert torch.equal(found, decode(encoded(convolution)).reshape(5, 2, 3, 3))


def test_it_is_added_to_what_parts_before_it_gave() -> None:
    one, dense = make(), torch.randn(5, 7, generator=torch.Generator().manual_seed(3))
    both = EncodedTensor((5, 7), (*exact.encode(dense).parts, factors.encode(one)))
    assert torch.equal(decode(both), dense + decode(encoded(one)))


def test_bf16_factors_take_no_more_than_their_bytes() -> None:
    one = make(16, 576, 1536, dtype="bfloat16")
    assert encoded(one).nbytes < 2 * (one.a.numel() + one.b.numel())


@pytest.mark.parametrize("changes", [
    {"a": torch.full((4, 7), math.nan)}, {"b": torch.full((5, 4), math.inf)}, {"scale": math.nan}, {"a": torch.zeros(3, 7)},
    {"a": torch.zeros(0, 7), "b": torch.zeros(5, 0)}, {"a": torch.zeros(4)}, {"a": torch.zeros(4, 7, dtype=torch.int8)},
    {"a": torch.zeros(4097, 1), "b": torch.zeros(1, 4097)},
])  # fmt: skip
def test_what_are_no_factors_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="factors"):
        factors.encode(replace(make(), **changes))


def test_the_digest_is_of_what_is_stored_and_not_of_the_product() -> None:
    one = make(dtype="bfloat16")
    tensor = encoded(one)
    config = '{"dtypes":["bfloat16","bfloat16"],"rank":4,"scale":1.5,"transposed":false}\n'
    expected = hashlib.sha256(config.encode() + words(one.a) + words(one.b)).hexdigest()
    assert content_digest(tensor, torch.zeros(5, 7)) == factors_digest(tensor) == expected
    assert content_digest(encoded(replace(one, scale=1.25)), decode(tensor)) != expected
    dense = exact.encode(torch.ones(5, 7))
    assert content_digest(dense, decode(dense)) == decoded_digest(torch.ones(5, 7)) and factors_digest(dense) is None
    both = EncodedTensor((5, 7), (*dense.parts, *tensor.parts))
    joined = words(torch.ones(5, 7)) + config.encode() + words(one.a) + words(one.b)
    assert factors_digest(both) == hashlib.sha256(joined).hexdigest()


PART = factors.encode(make(4, 30, 17))


@pytest.mark.parametrize("config", [
    {"rank": 0}, {"rank": 5}, {"rank": 4097}, {"rank": 4.0}, {"rank": True}, {"scale": 1}, {"scale": math.inf}, {"scale": "1.5"},
    {"dtypes": ["float32"]}, {"dtypes": ["float32", "int8"]}, {"dtypes": ["float32", "bfloat16"]}, {"dtypes": "ff"},
    {"dtypes": [["float32"], "float32"]}, {"transposed": 1}, {"transposed": True}, {"alpha": 3},
])  # fmt: skip
def test_contradictions_are_integrity_errors(config: dict[str, Any]) -> None:
    with pytest.raises(IntegrityError):
        decode(EncodedTensor((17, 30), (replace(PART, config=PART.config | config),)))


@pytest.mark.parametrize("shape", [(30, 17), (17, 31), (16, 30), (510,), (), (17, 0), (0, 30)])
def test_other_shapes_are_integrity_errors(shape: tuple[int, ...]) -> None:
    with pytest.raises(IntegrityError):
        decode(EncodedTensor(shape, (PART,)))


def test_stored_values_that_are_not_finite_are_integrity_errors() -> None:
    bad = compress_planes(np.full(4 * 30, np.nan, np.float32).view("u4"))
    with pytest.raises(IntegrityError, match="not finite"):
        decode(EncodedTensor((17, 30), (replace(PART, arrays=PART.arrays | {"a": bad}),)))


@settings(max_examples=300)
@given(st.sampled_from(["a", "b"]), st.integers(0, 10**6), st.integers(0, 10**6))
def test_flips_and_truncations_never_crash_and_never_pass_the_digest(name: str, bit: int, length: int) -> None:
    intact = factors_digest(EncodedTensor((17, 30), (PART,)))
    data = PART.arrays[name]
    flipped = data.copy()
    flipped[bit // 8 % data.size] ^= 1 << bit % 8
    for changed in (flipped, data[: length % data.size]):
        tensor = EncodedTensor((17, 30), (replace(PART, arrays=PART.arrays | {name: changed}),))
        try:
            decoded, digest = decode(tensor), factors_digest(tensor)
        except IntegrityError:
            continue
        stored = factors.read_factors(tensor.parts[0], (17, 30))
        known = factors.read_factors(PART, (17, 30))
        same = words(stored.a) == words(known.a) and words(stored.b) == words(known.b)
        assert decoded.shape == (17, 30) and (digest == intact) is same


def test_golden_files_hold_the_same_factors() -> None:
    for case in read_golden("factors"):
        tensor = from_json(case["encoded"])
        expected = torch.frombuffer(bytearray.fromhex(case["decoded"]), dtype=torch.float32).reshape(tensor.shape)
        torch.testing.assert_close(decode(tensor), expected, rtol=1e-5, atol=1e-6)
        assert factors_digest(tensor) == case["digest"], case["case"]
