"""Readers of encoded deltas: any rows have the bits of the whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skillhub.codecs import EncodedPart, EncodedTensor, decode, exact, lowrank, residual, rows, sign, sparse
from skillhub.deltareaders import LayeredReader, reader_of
from skillhub.errors import IntegrityError
from skillhub.tensorreaders import MemoryReader
from tests.codec_examples import words

LAYERS = (lowrank.ID, residual.ID, rows.ID, sign.ID, sparse.ID)


def part_of(codec: str, shape: tuple[int, ...], seed: int) -> EncodedPart:
    random = np.random.default_rng(seed)
    delta = torch.from_numpy(random.normal(size=shape).astype(np.float32))
    if codec == lowrank.ID:
        height, width = lowrank.matrix_shape(shape)
        sides = [random.integers(-9, 10, (1, size)).astype(np.int16) for size in (height, width)]
        components = lowrank.choose_groups(*sides, np.array([0.37]))
        assert components is not None
        return lowrank.encode(components)
    if codec == residual.ID:
        exponents = random.integers(-5, 6, shape[0]).astype(np.int8)
        return residual.encode(delta, 0.7, row_exponents=exponents)
    if codec == rows.ID:
        return rows.encode(delta, sorted(random.choice(shape[0], size=1 + shape[0] // 3, replace=False).tolist()))
    if codec == sign.ID:
        return sign.encode(delta)
    return sparse.encode(delta.where(torch.from_numpy(random.random(shape) < 0.2), torch.tensor(0.0)))


@settings(max_examples=80)
@given(
    st.lists(st.sampled_from(LAYERS), min_size=1, max_size=4),
    st.tuples(st.integers(1, 9), st.integers(1, 6))
    | st.tuples(st.integers(1, 9), st.integers(1, 3), st.integers(1, 4)),
    st.integers(1, 10),
)
def test_parts_in_any_order_read_as_they_decode(codecs: list[str], shape: tuple[int, ...], size: int) -> None:
    encoded = EncodedTensor(shape, tuple(part_of(codec, shape, number) for number, codec in enumerate(codecs)))
    reader = reader_of(encoded)
    assert isinstance(reader, LayeredReader) and reader.shape == shape
    whole = decode(encoded)
    pieces = [reader.read(begin, begin + size) for begin in range(0, shape[0], size)]
    assert all(piece.is_contiguous() and piece.shape[1:] == whole.shape[1:] for piece in pieces)
    assert words(torch.cat(pieces)) == words(whole)
    assert words(reader.read(0, shape[0])) == words(whole)  # reading changed nothing of what it reads from


def test_vectors_are_read_by_elements() -> None:
    delta = torch.tensor([0.0, 3.0, 0.0, float("nan"), 1e-9])
    reader = reader_of(EncodedTensor((5,), (sparse.encode(delta),)))
    assert isinstance(reader, LayeredReader)
    assert words(torch.cat([reader.read(0, 2), reader.read(2, 5)])) == words(delta)


def test_other_parts_are_decoded_whole() -> None:
    for delta in (torch.ones(3, 2), torch.tensor(4.0)):
        reader = reader_of(exact.encode(delta))
        assert isinstance(reader, MemoryReader)
        assert torch.equal(reader.read(0, 3).reshape(delta.shape), delta)


@pytest.mark.parametrize("codec", LAYERS)
def test_parts_of_other_shapes_are_integrity_errors(codec: str) -> None:
    part = part_of(codec, (9, 6), 0)
    for shape in ((1, 1), (3,), (), (0, 6)):
        with pytest.raises(IntegrityError):
            reader_of(EncodedTensor(shape, (part,)))
    with pytest.raises(IntegrityError):
        reader_of(EncodedTensor((9, 6), ()))
