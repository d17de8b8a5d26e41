from __future__ import annotations

import itertools
import math
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from skillhub.compose.methods import METHODS, find_method, merge_tensors
from skillhub.compose.methods.linear import linear
from skillhub.compose.methods.masks import uniforms
from skillhub.compose.methods.trimming import TILE, cut_to_density, trim
from skillhub.errors import UsageError
from skillhub.rounding import rounding_key

exact = st.integers(-512, 512).map(lambda value: value / 64)  # sums and products with the weights do not round


@st.composite
def mixtures(draw: st.DrawFn) -> tuple[list[torch.Tensor], list[float], list[float]]:
    count = draw(st.integers(1, 4))
    shape = draw(arrays.array_shapes(min_dims=0, max_dims=2, min_side=1, max_side=5))
    deltas = [torch.from_numpy(draw(arrays.arrays("float32", shape, elements=exact))) for _ in range(count)]
    weights = draw(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0]), min_size=count, max_size=count))
    densities = draw(st.lists(st.sampled_from([0.05, 0.3, 0.5, 0.99, 1.0]), min_size=count, max_size=count))
    return deltas, weights, densities


def float32(value: float) -> float:
    rounded: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return rounded


def trimmed_by_sorting(values: list[float], density: float, index: int = 0) -> list[float]:
    """Keep the largest, and of those that equal the smallest of these each with the chance that makes it so many on average."""
    kept = max(1, int(density * len(values)))
    threshold = sorted((abs(value) for value in values), reverse=True)[kept - 1]
    above = sum(abs(value) > threshold for value in values)
    chance = (kept - above) / sum(abs(value) == threshold for value in values)
    random = uniforms(0, len(values), rounding_key(["0", str(index)], "")).tolist()
    stays = [
        abs(value) > threshold or (abs(value) == threshold and number < chance)
        for value, number in zip(values, random, strict=True)
    ]
    return [value if stay else 0.0 for value, stay in zip(values, stays, strict=True)]


def ties_of_element(values: list[float]) -> float:
    mass = math.fsum(values)
    agreeing = [value for value in values if value * mass > 0]
    return math.fsum(agreeing) / len(agreeing) if agreeing else 0.0


@given(mixtures())
def test_ties_is_the_papers_algorithm_element_by_element(mixture: tuple[list[torch.Tensor], list[float], list[float]]):
    deltas, weights, densities = mixture
    columns = [
        [weight * value for value in trimmed_by_sorting(delta.flatten().tolist(), density, index)]
        for index, (delta, weight, density) in enumerate(zip(deltas, weights, densities, strict=True))
    ]
    expected = [float32(ties_of_element(list(row))) for row in zip(*columns, strict=True)]
    merged = merge_tensors("ties", deltas, weights=weights, densities=densities)
    assert merged.dtype == torch.float32 and merged.shape == deltas[0].shape
    assert merged.flatten().tolist() == pytest.approx(expected, rel=1e-6, abs=0)


@given(mixtures())
def test_linear_is_the_weighted_sum_and_leaves_its_inputs_alone(
    mixture: tuple[list[torch.Tensor], list[float], list[float]],
):
    deltas, weights, _ = mixture
    before = [delta.clone() for delta in deltas]
    merged = linear(deltas, weights)
    expected = sum(delta.double() * weight for delta, weight in zip(deltas, weights, strict=True))
    assert merged.dtype == torch.float32
    assert torch.equal(merged.double(), expected)
    assert all(torch.equal(one, other) for one, other in zip(deltas, before, strict=True))


def test_one_delta_of_weight_one_comes_back_bit_for_bit():
    bits = torch.tensor([0x7FC00001, -0x80000000, 0x7F800000, 1, 0x3F800000], dtype=torch.int64).to(torch.int32)
    delta = bits.view(torch.float32)
    assert torch.equal(linear([delta], [1.0]).view(torch.int32), bits)


@given(arrays.arrays("float32", st.integers(1, 40), elements=exact), st.sampled_from([0.1, 0.25, 0.5, 1.0]))
def test_ties_of_one_delta_keeps_the_largest_magnitudes(values: object, density: float):
    delta = torch.from_numpy(values)
    assert merge_tensors("ties", [delta], densities=[density]).tolist() == trimmed_by_sorting(delta.tolist(), density)
    assert delta.tolist() == torch.from_numpy(values).tolist()


@pytest.mark.parametrize("density", [0.1, 0.3, 0.5, 0.9])
def test_a_delta_of_few_magnitudes_is_cut_to_the_density_all_over(density: float):
    generator = torch.Generator().manual_seed(2)
    delta = torch.randint(-3, 4, (600, 1000), generator=generator).float() + 0.5
    kept = trim(delta, cut_to_density(delta, density, key=7)).ne(0).float()
    assert float(kept.mean()) == pytest.approx(density, abs=0.004)
    assert kept.mean(0).sub(density).abs().max() < 0.1  # no column is favoured, nor a part of the rows
    assert kept.view(6, -1).mean(1).sub(density).abs().max() < 0.01


def test_the_choice_among_equals_does_not_depend_on_where_reading_starts():
    delta = torch.ones(TILE * 2 + 100)
    cut = cut_to_density(delta, 0.4, key=5)
    whole = trim(delta, cut)
    parts = [trim(delta[begin : begin + 40_000], cut, begin) for begin in range(0, len(delta), 40_000)]
    assert torch.equal(torch.cat(parts), whole)


def test_a_cut_keeps_what_a_deeper_cut_keeps():
    delta = torch.randint(-3, 4, (5000,), generator=torch.Generator().manual_seed(4)).float()
    kept = [trim(delta, cut_to_density(delta, density, key=9)) for density in (0.0, 0.01, 0.2, 0.5, 0.7, 1.0)]
    for less, more in itertools.pairwise(kept):
        assert torch.equal(torch.where(less != 0, more, 0.0), less)


def test_ties_over_several_chunks_is_ties_of_each(monkeypatch: pytest.MonkeyPatch):
    generator = torch.Generator().manual_seed(1)
    deltas = [torch.randn(37, 5, generator=generator) for _ in range(3)]
    weights, densities = [1.0, 0.5, 2.0], [0.5, 0.3, 1.0]
    whole = merge_tensors("ties", deltas, weights=weights, densities=densities)
    monkeypatch.setattr("skillhub.compose.methods.interface.CHUNK", 7)
    assert torch.equal(merge_tensors("ties", deltas, weights=weights, densities=densities), whole)


def test_ties_lets_opposite_signs_cancel_and_ignores_the_minority():
    deltas = [torch.tensor([3.0, 1.0, -2.0]), torch.tensor([-1.0, 1.0, 2.0]), torch.tensor([1.0, 4.0, 0.0])]
    assert merge_tensors("ties", deltas).tolist() == [2.0, 2.0, 0.0]


def test_halving_every_weight_halves_the_result():
    generator = torch.Generator().manual_seed(1)
    deltas = [torch.randn(6, 5, generator=generator) for _ in range(3)]
    for method in ("linear", "ties"):
        whole = merge_tensors(method, deltas, densities=[0.5] * 3)
        half = merge_tensors(method, deltas, weights=[0.5] * 3, densities=[0.5] * 3)
        assert torch.equal(half * 2, whole)


def test_empty_tensors_pass_through():
    for method in METHODS.values():
        count = method.members[1] or 2
        for shape in ((0, 4), (4, 0), (0,)):
            empty = [torch.empty(shape)] * count
            assert merge_tensors(method.name, empty, base=empty[0], densities=[0.5] * count).shape == shape


def test_an_unknown_method_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match="no merge method 'magic'") as caught:
        find_method("magic")
    assert "linear, ties" in caught.value.hint


def test_the_page_on_merging_has_every_method_and_option():
    page = (Path(__file__).parents[1] / "docs" / "merging.md").read_text()
    for method in METHODS.values():
        assert f"`{method.name}`" in page
        assert all(f"`{option}`" in page for option in method.options)
