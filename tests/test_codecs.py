"""The codecs `zero` and `exact`, the decoder around all of them, and what damage does to it."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given
from hypothesis.extra import numpy as npst

from skillhub.codecs import EncodedPart, EncodedTensor, decode, decoded_digest, exact, zero
from skillhub.codecs.encoding import MAX_ELEMENTS
from skillhub.errors import IntegrityError, NewerSchemaError
from tests.codec_examples import from_json, read_golden, to_json, words

SHAPES = npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=7)


@given(npst.arrays(np.uint32, SHAPES))
def test_exact_keeps_every_bit_of_a_delta(bits: np.ndarray) -> None:
    delta = torch.from_numpy(bits.view(np.float32))
    decoded = decode(exact.encode(delta))
    assert decoded.dtype == torch.float32 and decoded.shape == delta.shape
    assert words(decoded) == bits.astype("<u4").tobytes()


@pytest.mark.parametrize("name", sorted(exact.DTYPES))
def test_exact_sets_values_of_every_dtype(name: str) -> None:
    dtype = exact.DTYPES[name]
    raw = torch.arange(5 * 7 * dtype.itemsize, dtype=torch.uint8)
    values = (raw[: 5 * 7] % 2).bool() if name == "bool" else raw.view(dtype)
    encoded = exact.encode(values.reshape(5, 7), operation="set")
    decoded = decode(encoded)
    assert encoded.operation == "set" and decoded.dtype == dtype and decoded.shape == (5, 7)
    assert words(decoded) == words(values)


def test_exact_takes_any_layout() -> None:
    delta = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    for view in (delta.T, delta[::2, 1::3], delta[0].expand(4, 8)):
        assert words(decode(exact.encode(view))) == words(view.contiguous())


def test_exact_refuses_what_it_cannot_store() -> None:
    with pytest.raises(ValueError, match="bfloat16"):
        exact.encode(torch.zeros(2, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="subtract"):
        exact.encode(torch.zeros(2), operation="subtract")


@given(npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9))
def test_zero_decodes_to_zeros_and_stores_nothing(shape: tuple[int, ...]) -> None:
    encoded = zero.encode(shape)
    assert encoded.nbytes == 0 and encoded.operation == "add"
    assert torch.equal(decode(encoded), torch.zeros(shape))


def test_parts_are_summed_in_their_order() -> None:
    first, second = torch.tensor([1.0, 1e-8]), torch.tensor([1e-8, 1.0])
    encoded = EncodedTensor((2,), exact.encode(first).parts + zero.encode((2,)).parts + exact.encode(second).parts)
    assert words(decode(encoded)) == words(first + second)


def test_digest_is_of_the_little_endian_bytes() -> None:
    delta = torch.tensor([[1.0, -0.0], [float("nan"), 3.5]])
    expected = hashlib.sha256(delta.numpy().astype("<f4").tobytes()).hexdigest()
    assert decoded_digest(delta) == expected
    assert decoded_digest(delta.T) == hashlib.sha256(delta.numpy().T.astype("<f4").tobytes()).hexdigest()


def test_an_unknown_codec_asks_for_an_upgrade() -> None:
    with pytest.raises(NewerSchemaError, match="telepathy"):
        decode(EncodedTensor((2,), (EncodedPart("telepathy", {}, {}),)))


EXACT = exact.encode(torch.ones(3, 2))
PART = EXACT.parts[0]


@pytest.mark.parametrize(
    "encoded",
    [
        EncodedTensor((3, 2), ()),
        EncodedTensor((3, 3), EXACT.parts),
        EncodedTensor((MAX_ELEMENTS, 2), EXACT.parts),
        EncodedTensor((MAX_ELEMENTS + 1,), zero.encode(()).parts),
        EncodedTensor((-1, -6), EXACT.parts),
        EncodedTensor((True, 6), EXACT.parts),
        EncodedTensor((1,) * 17, zero.encode(()).parts),
        EncodedTensor((3, 2), (replace(PART, config={"operation": "add"}),)),
        EncodedTensor((3, 2), (replace(PART, config={"operation": "add", "dtype": "int32"}),)),
        EncodedTensor((3, 2), (replace(PART, config={"operation": "set", "dtype": "int33"}),)),
        EncodedTensor((3, 2), (replace(PART, config={"operation": "set", "dtype": ["int32"]}),)),
        EncodedTensor((3, 2), (replace(PART, config={"operation": "mix", "dtype": "float32"}),)),
        EncodedTensor((3, 2), (PART, replace(PART, config={"operation": "set", "dtype": "float32"}))),
        EncodedTensor((3, 2), (replace(PART, config={"operation": "set", "dtype": "float32"}), PART)),
        EncodedTensor((3, 2), (*exact.encode(torch.ones(3, 2, dtype=torch.int64), operation="set").parts, PART)),
        EncodedTensor((3, 2), (replace(PART, config={"operation": ["set"], "dtype": "float32"}),)),
        EncodedTensor((3, 2), (replace(PART, arrays={}),)),
        EncodedTensor((3, 2), (replace(PART, arrays={"data": PART.arrays["data"].view(np.int8)}),)),  # type: ignore[dict-item]
        EncodedTensor((3, 2), (EncodedPart("zero", {}, PART.arrays),)),
        EncodedTensor((4,), (EncodedPart("exact", {"operation": "set", "dtype": "bool"}, exact.encode(torch.ones(1)).parts[0].arrays),)),
    ],
)  # fmt: skip
def test_contradictions_are_integrity_errors(encoded: EncodedTensor) -> None:
    with pytest.raises(IntegrityError):
        decode(encoded)


def test_a_stream_that_states_no_size_or_has_a_tail_is_refused() -> None:
    data = np.zeros(24, np.uint8).tobytes()
    unsized = io.BytesIO()
    with zstandard.ZstdCompressor().stream_writer(unsized, closefd=False) as writer:
        writer.write(data)
    sized = zstandard.ZstdCompressor().compress(data)
    for frame in (unsized.getvalue(), sized + b"x", sized + sized, sized[:-1], b""):
        part = replace(PART, arrays={"data": np.frombuffer(frame, np.uint8)})
        with pytest.raises(IntegrityError):
            decode(EncodedTensor((3, 2), (part,)))


@pytest.mark.parametrize("name", ["exact", "zero"])
def test_golden_files_decode_to_the_same_bits(name: str) -> None:
    for case in read_golden(name):
        decoded = decode(from_json(case["encoded"]))
        assert str(decoded.dtype) == case["dtype"] and words(decoded).hex() == case["decoded"], case["case"]


def test_configs_are_json() -> None:
    assert from_json(json.loads(json.dumps(to_json(EXACT)))).parts[0].config == PART.config
