"""The codec `sparse`: few changed weights, every bit of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from skillhub.codecs import EncodedTensor, decode, exact, sparse
from skillhub.errors import IntegrityError
from tests.codec_examples import from_json, read_golden, words

SHAPES = npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9)
FEW = st.one_of(
    st.just(0), st.just(0), st.just(0), st.sampled_from([1, 0x3F80_0000, 0x8000_0000]), st.integers(0, 2**32 - 1)
)


@given(npst.arrays(np.uint32, SHAPES, elements=FEW))
def test_every_bit_of_few_changes_is_kept(bits: np.ndarray) -> None:
    delta = torch.from_numpy(bits.view(np.float32))
    decoded = decode(EncodedTensor(tuple(delta.shape), (sparse.encode(delta),)))
    assert decoded.dtype == torch.float32 and decoded.shape == delta.shape
    assert words(decoded) == np.where(bits == 0x8000_0000, 0, bits).astype("<u4").tobytes()


@given(
    st.lists(st.integers(0, 10**6 - 1), min_size=1, max_size=30, unique=True),
    st.sampled_from([1, 2, 30]),
)
def test_distant_changes_are_found_again(indices: list[int], different: int) -> None:
    delta = torch.zeros(1000, 1000)
    delta.view(-1)[sorted(indices)] = torch.arange(len(indices)).remainder(different).add(1.0)
    part = sparse.encode(delta)
    found, values = sparse.read_changes(part, (1000, 1000))
    assert found.tolist() == sorted(indices)
    assert torch.equal(values, delta.view(-1)[found])
    assert part.arrays["data"].size < 200 + 8 * len(indices)


def scattered(elements: int, share: float, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    changed = torch.rand(elements, generator=generator) < share
    exponents = torch.randint(-12, -8, (elements,), generator=generator)
    signs = torch.randint(0, 2, (elements,), generator=generator) * 2 - 1
    return torch.where(changed, signs * torch.exp2(exponents.float()), 0.0)


@pytest.mark.parametrize("share", [0.001, 0.02, 0.3])
def test_the_size_is_near_the_entropy_of_places_and_values(share: float) -> None:
    delta = scattered(400_000, share, 1).reshape(800, 500)
    part = sparse.encode(delta)
    assert torch.equal(decode(EncodedTensor((800, 500), (part,))), delta)
    entropy = 400_000 * -(share * np.log2(share) + (1 - share) * np.log2(1 - share)) / 8
    values = int((delta != 0).sum()) * 3 / 8  # four exponents, two signs
    assert part.arrays["data"].size < 1.05 * (entropy + values) + 200
    assert sparse.estimate_bits(delta) == pytest.approx(8 * part.arrays["data"].size, rel=0.1)


def test_changes_are_added_to_what_was_before_and_nothing_else_is_touched() -> None:
    before = torch.randn(40, 30, generator=torch.Generator().manual_seed(7))
    before[0, :5] = float("nan")
    delta = scattered(1200, 0.05, 2).reshape(40, 30)
    parts = (*exact.encode(before).parts, sparse.encode(delta))
    decoded = decode(EncodedTensor((40, 30), parts))
    assert words(decoded) == words(torch.where(delta != 0, before + delta, before))


@pytest.mark.parametrize(
    "delta", [torch.zeros(3, 4), torch.ones(6), torch.tensor(2.0), torch.empty(0, 3), torch.randn(50, 40)]
)
def test_any_delta_has_an_estimate(delta: torch.Tensor) -> None:
    size = sparse.encode(delta).arrays["data"].size
    assert size / 2 - 40 <= sparse.estimate_bits(delta) / 8 <= 2 * size + 60


def test_any_layout_is_taken() -> None:
    delta = scattered(240, 0.2, 3).reshape(20, 12)
    for view in (delta.T, delta[::3, 1::2], delta[:1].expand(4, 12)):
        assert torch.equal(decode(EncodedTensor(tuple(view.shape), (sparse.encode(view),))), view)


def test_what_it_cannot_store_is_refused() -> None:
    with pytest.raises(ValueError, match="bfloat16"):
        sparse.encode(torch.zeros(2, dtype=torch.bfloat16))


DELTA = scattered(30_000, 0.01, 4).reshape(150, 200)
PART = sparse.encode(DELTA)
COUNT = PART.config["count"]


def test_the_example_has_every_frame() -> None:
    assert all(PART.config["frames"]) and PART.config["shift"] > 0


@pytest.mark.parametrize("change", [
    {"count": 0}, {"count": COUNT - 1}, {"count": COUNT + 1}, {"count": 30_001}, {"count": -1}, {"count": True}, {"count": 1.0},
    {"shift": 1}, {"shift": 33}, {"shift": -1}, {"shift": None}, {"highs": 0}, {"highs": 10**12}, {"values": 0}, {"values": 10**12},
    {"values": PART.config["values"] - 1}, {"ranks": 0}, {"ranks": 10**12}, {"frames": [1, 2, 3]}, {"frames": 7},
    {"frames": [0, 0, 0, PART.arrays["data"].size]}, {"frames": [-1, 1, 0, PART.arrays["data"].size]}, {"extra": 0},
])  # fmt: skip
def test_contradicting_configs_are_integrity_errors(change: dict[str, object]) -> None:
    with pytest.raises(IntegrityError):
        decode(EncodedTensor((150, 200), (replace(PART, config=PART.config | change),)))


@pytest.mark.parametrize("shape", [(149, 200), (1,), (), (0, 5), (2, 2, 2)])
def test_smaller_shapes_are_integrity_errors(shape: tuple[int, ...]) -> None:
    with pytest.raises(IntegrityError):
        decode(EncodedTensor(shape, (PART,)))


def test_indices_that_would_overflow_are_integrity_errors() -> None:
    highs = np.array([255] * 7 + [0], np.uint8)
    frames = [sparse.compress(highs), sparse.compress(np.zeros(4, np.uint8)), sparse.compress_planes(np.ones(1, "<u4"))]
    config = {"count": 1, "shift": 32, "highs": 8, "values": 1, "ranks": 0, "frames": [*(f.size for f in frames), 0]}
    part = replace(PART, config=config, arrays={"data": np.concatenate(frames)})
    with pytest.raises(IntegrityError, match="beyond its last"):
        decode(EncodedTensor((2**20, 2**3), (part,)))


def test_golden_files_decode_to_the_same_bits() -> None:
    for case in read_golden("sparse"):
        assert words(decode(from_json(case["encoded"]))).hex() == case["decoded"], case["case"]
