"""The adaptive coder of integer matrices: what it gives back, how short its streams are, and what it does with damage."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from skillhub.codecs import arithmetic
from skillhub.codecs.arithmetic import MAX_CODE
from skillhub.errors import IntegrityError

Codes = npt.NDArray[np.int16]


def draw_codes(count: int, length: int, spread: float, seed: int, unevenness: float = 0.0) -> Codes:
    """Return rounded normal numbers; with unevenness some columns are larger than others in every row."""
    generator = np.random.default_rng(seed)
    sizes = spread * np.exp(unevenness * generator.normal(size=length))
    return np.clip(np.rint(generator.normal(size=(count, length)) * sizes), -MAX_CODE, MAX_CODE).astype(np.int16)


def entropy(codes: Codes) -> float:
    """Return the bytes that rows take if the frequencies of each are known."""
    total = 0.0
    for row in codes:
        counts = np.unique(row, return_counts=True)[1]
        total -= float((counts * np.log2(counts / counts.sum())).sum()) / 8
    return total


@st.composite
def code_matrices(draw: st.DrawFn) -> Codes:
    limit = draw(st.sampled_from([0, 1, 2, 3, 9, 128, MAX_CODE]))
    shape = draw(st.integers(0, 9)), draw(st.integers(0, 40))
    return draw(npst.arrays(np.int16, shape, elements=st.integers(-limit, limit)))


@settings(deadline=None)
@given(code_matrices(), st.binary(max_size=9))
def test_codes_come_back_and_what_follows_them_is_left(codes: Codes, following: bytes) -> None:
    stream = arithmetic.encode(codes)
    data = np.concatenate([stream, np.frombuffer(following, np.uint8)])
    found, used = arithmetic.decode(data, *codes.shape)
    assert used == stream.size and np.array_equal(found, codes)
    assert arithmetic.measure(codes).sum() / 8 == pytest.approx(stream.size - 5, rel=0.01, abs=1)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.001, 0.1, 0.5, 2.0, 30.0, 1000.0]), st.floats(0, 3))
def test_long_streams_come_back_whatever_carries_they_took(seed: int, spread: float, unevenness: float) -> None:
    codes = draw_codes(40, 2000, spread, seed, unevenness)
    found, _ = arithmetic.decode(arithmetic.encode(codes), *codes.shape)
    assert np.array_equal(found, codes)


def test_any_layout_is_coded_alike() -> None:
    codes = draw_codes(12, 30, 3.0, seed=0)
    streams = [arithmetic.encode(one) for one in (codes, np.asfortranarray(codes), np.repeat(codes, 2, axis=1)[:, ::2])]
    assert all(np.array_equal(one, streams[0]) for one in streams)
    stored = streams[0].copy()
    stored.flags.writeable = False
    assert np.array_equal(arithmetic.decode(stored, 12, 30)[0], codes)


@pytest.mark.parametrize("spread", [0.2, 0.5, 2.0, 10.0, 60.0])
def test_without_structure_a_stream_takes_little_more_than_the_entropy(spread: float) -> None:
    codes = draw_codes(60, 3000, spread, seed=1)
    assert arithmetic.encode(codes).size < (1.06 if spread < 0.3 else 1.03) * entropy(codes)


def test_columns_that_are_larger_in_every_row_save_bytes() -> None:
    codes = draw_codes(60, 3000, 0.8, seed=1, unevenness=1.0)
    assert arithmetic.encode(codes).size < 0.85 * entropy(codes)


def test_every_truncation_ends_in_an_error() -> None:
    codes = draw_codes(5, 40, 3.0, seed=2)
    stream = arithmetic.encode(codes)
    for size in range(stream.size):
        with pytest.raises(IntegrityError):
            arithmetic.decode(stream[:size], *codes.shape)


def test_changed_bytes_and_other_shapes_end_in_an_error() -> None:
    codes = draw_codes(8, 60, 2.0, seed=3)
    stream, generator = arithmetic.encode(codes), np.random.default_rng(4)
    for _ in range(2000):
        changed = stream.copy()
        changed[generator.integers(stream.size)] ^= generator.integers(1, 256, dtype=np.uint8)
        with pytest.raises(IntegrityError):
            arithmetic.decode(changed, *codes.shape)
    for shape in [(8, 59), (8, 61), (7, 60), (9, 60), (60, 8), (1, 480)]:
        with pytest.raises(IntegrityError):
            arithmetic.decode(stream, *shape)
    for seed in range(200):
        noise = np.random.default_rng(seed).integers(0, 256, 300, dtype=np.uint8)
        with pytest.raises(IntegrityError):
            arithmetic.decode(noise, 20, 50)


def test_claims_of_more_codes_than_bytes_can_hold_allocate_nothing() -> None:
    zeros = np.zeros((400, 20_000), np.int16)
    stream = arithmetic.encode(zeros)
    assert zeros.size / stream.size < arithmetic.MAX_CODES_A_BYTE
    assert not arithmetic.decode(stream, *zeros.shape)[0].any()
    for claim in [(4096, 2**33), (2**20, 2**20)]:
        with pytest.raises(IntegrityError, match="bytes of codes"):
            arithmetic.decode(stream, *claim)


def test_codes_that_are_too_large_are_refused() -> None:
    for code in (MAX_CODE + 1, -MAX_CODE - 1, -32768):
        for function in (arithmetic.encode, arithmetic.measure):
            with pytest.raises(ValueError, match="magnitudes"):
                function(np.array([[0, code]], np.int16))
