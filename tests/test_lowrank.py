"""The codec `lowrank`: exact integer sums, the same bits everywhere, and clear errors for damage."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from skillhub.codecs import EncodedTensor, arithmetic, decode, lowrank, symbols
from skillhub.codecs.lowrank import Components, LineExponents, choose_groups, read_components, reconstruct
from skillhub.errors import IntegrityError
from skillhub.interop.products import product_of
from tests.codec_examples import from_json, read_golden, to_json, words

MAX = arithmetic.MAX_CODE


@st.composite
def code_matrices(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rank, rows, columns = draw(st.integers(1, 6)), draw(st.integers(1, 12)), draw(st.integers(1, 12))
    rank = min(rank, rows, columns)
    limit = draw(st.sampled_from([1, 2, 7, 20, MAX]))
    codes = st.integers(-limit, limit)
    left = draw(npst.arrays(np.int16, (rank, rows), elements=codes))
    right = draw(npst.arrays(np.int16, (rank, columns), elements=codes))
    scales = draw(npst.arrays(np.float64, rank, elements=st.floats(2.0**-60, 2.0**40)))
    return left, right, scales


def brute_force(components: Components) -> np.ndarray:
    """Sum each group in int64; check that it is below 2**24; scale and add groups in fp32."""
    total, start = None, 0
    for count, exponent in components.groups:
        part = slice(start, start + count)
        integers = np.einsum(
            "k,ki,kj->ij",
            components.scales[part],
            components.left[part].astype(np.int64),
            components.right[part].astype(np.int64),
        )
        assert np.abs(integers).max() < 2**24
        scaled = np.ldexp(integers.astype(np.float64), exponent).astype(np.float32)
        total = scaled if total is None else total + scaled
        start += count
    assert total is not None
    return total


@given(code_matrices())
def test_stored_components_decode_to_the_brute_force_sum(matrices: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    left, right, scales = matrices
    components = choose_groups(left, right, scales)
    assert components is not None
    for k, (count, exponent) in enumerate((c, e) for c, e in components.groups for _ in range(c)):
        assert count >= 1 and components.scales[k] >= lowrank.MIN_SCALE
        assert components.scales[k] * 2.0**exponent == pytest.approx(scales[k], rel=0.008)
    rows, columns = left.shape[1], right.shape[1]
    part = lowrank.encode(components)
    stored = read_components(part, rows, columns)
    assert np.array_equal(stored.left, left) and np.array_equal(stored.right, right)
    assert np.array_equal(stored.scales, components.scales) and stored.groups == components.groups
    decoded = decode(EncodedTensor((rows, columns), (part,)))
    assert np.array_equal(decoded.numpy(), brute_force(components))


@given(code_matrices(), st.data())
def test_powers_of_two_of_rows_and_columns_multiply_the_sum_exactly(
    matrices: tuple[np.ndarray, np.ndarray, np.ndarray], data: st.DataObject
) -> None:
    left, right, scales = matrices
    rows, columns = left.shape[1], right.shape[1]
    limit = data.draw(st.sampled_from([0, 3, lowrank.MAX_LINE_EXPONENT]))
    of_rows = data.draw(npst.arrays(np.int8, rows, elements=st.integers(-limit, limit)))
    of_columns = data.draw(npst.arrays(np.int8, columns, elements=st.integers(-limit, limit)))
    components = choose_groups(left, right, scales, LineExponents(of_rows, of_columns))
    assert components is not None
    encoded = EncodedTensor((rows, columns), (lowrank.encode(components),))
    decoded = decode(encoded).numpy()
    without = brute_force(components).astype(np.float64)
    assert np.array_equal(decoded, without * np.exp2(of_rows[:, None] + of_columns[None].astype(np.float64)))
    product = product_of(encoded)
    assert product is not None
    size = np.abs(product.left.numpy()) @ np.abs(product.right.numpy())
    assert np.all(np.abs(product.multiply().numpy() - decoded) <= 1e-6 * size)


@given(
    npst.arrays(np.int16, st.integers(0, 100), elements=st.integers(-MAX, MAX)),
    st.sampled_from(range(len(symbols.PACKINGS))),
)
def test_every_code_survives_every_packing(codes: np.ndarray, packing: int) -> None:
    packed, overflow = symbols.pack_symbols(codes, packing)
    assert packed.size == symbols.count_packed(codes.size, packing)
    unpacked = symbols.unpack_symbols(packed, codes.size, packing)
    assert symbols.count_overflow(unpacked, packing) == overflow.size
    assert np.array_equal(symbols.add_overflow(unpacked, overflow, packing), codes)


def large_components() -> Components:
    random = np.random.default_rng(5)
    rank, rows, columns = 40, 700, 523
    deviation = np.geomspace(20, 0.6, rank)[:, None]
    left = np.clip(np.rint(random.normal(size=(rank, rows)) * deviation), -MAX, MAX).astype(np.int16)
    right = np.clip(np.rint(random.normal(size=(rank, columns)) * deviation), -MAX, MAX).astype(np.int16)
    components = choose_groups(left, right, np.geomspace(1e-4, 30, rank))
    assert components is not None and len(components.groups) > 1
    return components


def test_chunks_of_rows_have_the_bits_of_the_whole() -> None:
    components = large_components()
    whole = reconstruct(components)
    assert np.array_equal(whole, brute_force(components))
    for size in (1, 3, 64, 500):
        pieces = [reconstruct(components, slice(row, row + size)) for row in range(0, len(whole), size)]
        assert np.array_equal(np.concatenate(pieces), whole)


def test_autocast_and_defaults_of_the_caller_do_not_matter() -> None:
    case = read_golden("lowrank")[0]
    with torch.autocast("cpu", torch.bfloat16), torch.device("meta"), torch.inference_mode():
        decoded = decode(from_json(case["encoded"]))
    assert words(decoded).hex() == case["decoded"]


COMPONENTS = choose_groups(
    np.array([[3, -9, 0, 1], [1, 0, -1, 0]], np.int16),
    np.array([[1, 2, 0], [0, -40, 1]], np.int16),
    np.array([0.5, 0.25]),
)
assert COMPONENTS is not None
PART = lowrank.encode(COMPONENTS)


@pytest.mark.parametrize("change", [
    {"rank": 0}, {"rank": 3}, {"rank": 10**9}, {"rank": True}, {"rank": "2"},
    {"groups": [[1, -8]]}, {"groups": [[2, -127]]}, {"groups": [[2, 104]]}, {"groups": [[2]]}, {"groups": None}, {"groups": [[0, 0], [2, 0]]},
    {"frames": [0, 0, 0, 0, 0, PART.arrays["codes"].size - 8]}, {"extra": 1},
])  # fmt: skip
def test_contradicting_configs_are_integrity_errors(change: dict[str, object]) -> None:
    with pytest.raises(IntegrityError):
        decode(EncodedTensor((4, 3), (replace(PART, config=PART.config | change),)))


@pytest.mark.parametrize("change", [
    {"frames": [1, 2, 3]}, {"frames": 4}, {"frames": [0] * 6}, {"frames": [-1, 0, 0, 0, 0, 1]}, {"rank": 2}, {"rank": 4},
])  # fmt: skip
def test_contradicting_configs_of_earlier_packs_are_integrity_errors(change: dict[str, object]) -> None:
    encoded = from_json(read_golden("lowrank")[0]["encoded"])
    part = encoded.parts[0]
    decode(encoded)
    with pytest.raises(IntegrityError):
        decode(replace(encoded, parts=(replace(part, config=part.config | change),)))
    for array in (part.arrays["codes"][:-1], part.arrays["codes"][:7], np.append(part.arrays["codes"], np.uint8(0))):
        with pytest.raises(IntegrityError):
            decode(replace(encoded, parts=(replace(part, arrays={"codes": array}),)))


def test_a_config_that_is_none_is_an_integrity_error() -> None:
    with pytest.raises(IntegrityError):
        read_components(replace(PART, config=None), 4, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(4, 4), (12,), (), (4, 3, 2), (4, 0), (0, 3)])
def test_other_shapes_are_integrity_errors(shape: tuple[int, ...]) -> None:
    with pytest.raises(IntegrityError):
        decode(EncodedTensor(shape, (PART,)))


def test_sums_that_fp32_cannot_hold_are_refused() -> None:
    assert COMPONENTS is not None
    inexact = replace(COMPONENTS, scales=np.array([65535, 65535]), groups=((2, 0),))
    decode(EncodedTensor((4, 3), (lowrank.encode(inexact),)))
    beyond = replace(inexact, left=COMPONENTS.left * 10)
    with pytest.raises(IntegrityError, match="not exact"):
        decode(EncodedTensor((4, 3), (lowrank.encode(beyond),)))


def test_hostile_exponents_of_rows_and_columns_are_integrity_errors() -> None:
    assert COMPONENTS is not None
    zeros = LineExponents(np.zeros(4, np.int8), np.zeros(3, np.int8))
    for lines, groups in (
        (replace(zeros, rows=np.array([0, 25, 0, 0], np.int8)), COMPONENTS.groups),
        (replace(zeros, columns=np.array([0, -128, 0], np.int8)), COMPONENTS.groups),
        (replace(zeros, columns=np.array([0, -1, 0], np.int8)), ((2, -126),)),
        (replace(zeros, rows=np.array([0, 24, 0, 0], np.int8)), ((2, 80),)),
    ):
        part = lowrank.encode(replace(COMPONENTS, lines=lines, groups=groups))
        with pytest.raises(IntegrityError):
            decode(EncodedTensor((4, 3), (part,)))
    part = lowrank.encode(replace(COMPONENTS, lines=zeros))
    for frame in (part.arrays["exponents"][:-1], LARGE.arrays["codes"], np.zeros(0, np.uint8)):
        with pytest.raises(IntegrityError):
            decode(EncodedTensor((4, 3), (replace(part, arrays=part.arrays | {"exponents": frame}),)))


def test_scales_beyond_fp32_are_reported() -> None:
    assert COMPONENTS is not None
    assert choose_groups(COMPONENTS.left, COMPONENTS.right, np.array([1e-60, 1.0])) is None
    assert choose_groups(COMPONENTS.left, COMPONENTS.right, np.array([1.0, 1e60])) is None


LARGE = lowrank.encode(large_components())


@pytest.mark.parametrize("name", ["lowrank", "lowrank_lines", "lowrank_adaptive"])
def test_golden_files_decode_to_the_same_bits(name: str) -> None:
    for case in read_golden(name):
        assert words(decode(from_json(case["encoded"]))).hex() == case["decoded"], case["case"]


def test_what_earlier_packs_hold_is_stored_as_the_golden_file_has_it() -> None:
    earlier = [*read_golden("lowrank"), *read_golden("lowrank_lines")]
    for old, new in zip(earlier, read_golden("lowrank_adaptive"), strict=True):
        assert old["decoded"] == new["decoded"]
        encoded = from_json(old["encoded"])
        parts = tuple(
            lowrank.encode(read_components(part, *lowrank.matrix_shape(encoded.shape)))
            if part.codec == lowrank.ID
            else part
            for part in encoded.parts
        )
        assert to_json(replace(encoded, parts=parts)) == new["encoded"]
