"""What must hold for merge methods whatever they compute: symmetry, neutral elements, the same bits however it is run, no NaN."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skillhub.compose.grafts import graft
from skillhub.compose.methods import METHODS, MergeInputs, MergeMethod, interface, merge_tensors
from skillhub.compose.methods.masks import uniforms
from skillhub.compose.methods.selection import kth_largest
from skillhub.compose.methods.sums import folded_sum, inner_products
from skillhub.errors import UsageError
from skillhub.rounding import random_words
from skillhub.tensorreaders import MemoryReader
from tests.support.tiny_models import build_pack, load_model, save_model, tune

SYMMETRIC = [name for name, method in METHODS.items() if method.members != (1, 1)]
OF_ONE_PACK = [name for name, method in METHODS.items() if method.members[0] == 1]
CHANCE = {"dare_linear", "dare_ties", "della", "della_linear"}
KEEPS_ONE = {name: {} for name in OF_ONE_PACK if name != "arcee_fusion"} | {
    "slerp": {"t": 1.0},
    "ram": {"epsilon": 0.0},
    "ram_plus": {"epsilon": 0.0},
    "nearswap": {"t": 100.0},
}


def make(
    method: str, shape: tuple[int, ...], *, seed: int = 0, density: float = 0.5, scale: float = 0.5
) -> MergeInputs:
    """Return a base and as many deltas as a method takes, three at most."""
    found = METHODS[method]
    count = min(3, found.members[1] or 3)
    generator = torch.Generator().manual_seed(seed)
    base, *deltas = (torch.randn(shape, generator=generator) for _ in range(count + 1))
    return MergeInputs(
        "x",
        MemoryReader(base),
        [MemoryReader(delta * scale) for delta in deltas],
        [1.0, 0.5, 2.0][:count] if found.uses_weights else [1.0] * count,
        [density if found.uses_density else 1.0] * count,
        {name: option.default for name, option in found.options.items()},
        [index * 12345678901234567 for index in range(count)],
    )


def run(method: str, inputs: MergeInputs) -> torch.Tensor:
    found = METHODS[method]
    measured = found.begin(inputs)
    return torch.cat([found.merge(inputs, chunk, measured) for chunk in inputs.chunks()])


@pytest.mark.parametrize("method", SYMMETRIC)
def test_the_order_of_packs_does_not_matter(method: str):
    inputs = make(method, (12, 30))
    expected = run(method, inputs)
    for order in itertools.permutations(range(len(inputs.deltas))):
        reordered = replace(
            inputs,
            deltas=[inputs.deltas[index] for index in order],
            weights=[inputs.weights[index] for index in order],
            densities=[inputs.densities[index] for index in order],
            keys=[inputs.keys[index] for index in order],
        )
        torch.testing.assert_close(run(method, reordered), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", KEEPS_ONE)
@pytest.mark.parametrize("shape", [(), (1,), (5,), (4, 6), (2, 3, 4), (1, 1)])
def test_one_pack_of_weight_and_density_one_is_that_pack(method: str, shape: tuple[int, ...]):
    generator = torch.Generator().manual_seed(3)
    base, delta = (torch.randn(shape, generator=generator) for _ in range(2))
    merged = merge_tensors(method, [delta], base=base, options=KEEPS_ONE[method])
    torch.testing.assert_close(merged, delta, rtol=2e-7, atol=2e-7)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(), (1,), (5,), (4, 6), (2, 3, 4)])
def test_deltas_of_zeros_give_the_base(method: str, shape: tuple[int, ...]):
    base = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    count = METHODS[method].members[1] or 3
    for density in (1.0, 0.4):
        merged = merge_tensors(method, [torch.zeros(shape)] * count, base=base, densities=[density] * count)
        assert torch.equal(base + merged, base)


@pytest.mark.parametrize("method", METHODS)
def test_without_a_base_deltas_are_merged_as_over_zeros(method: str):
    inputs = make(method, (6, 8))
    expected = run(method, replace(inputs, base=MemoryReader(torch.zeros(6, 8))))
    assert torch.equal(run(method, replace(inputs, base=None)), expected)


def directions() -> Iterator[list[torch.Tensor]]:
    one = torch.tensor([[1.0, 2.0, -3.0], [0.5, 0.0, 1.0]])
    yield from ([one, one, one], [one, -one, one], [one, -one, 0 * one], [0 * one, 0 * one, one])
    yield from ([one, 2 * one, -3 * one], [one, -one, -one], [1e-30 * one, one, -1e-30 * one], [1e15 * one, one, -one])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("base", [1.0, -1.0, 0.0])
def test_parallel_opposite_and_missing_directions_give_finite_results(method: str, base: float):
    count = METHODS[method].members[1] or 3
    switches = [name for name, option in METHODS[method].options.items() if (option.low, option.high) == (0, 1)]
    for deltas in directions():
        for options in ({}, *({name: 1.0} for name in switches)):
            for rest in ((), *([(slice(0, 1), slice(0, 1))] if deltas else [])):
                chosen = [delta[rest] if rest else delta for delta in deltas[:count]]
                merged = merge_tensors(
                    method, chosen, base=base * deltas[0][rest] if rest else base * deltas[0], options=options
                )
                assert merged.isfinite().all()
                assert merged.shape == chosen[0].shape


@pytest.mark.parametrize("method", METHODS)
def test_inputs_are_left_alone(method: str):
    inputs = make(method, (12, 30))
    readers = [inputs.base, *inputs.deltas]
    before = [reader.read(0, 12).clone() for reader in readers if reader]
    run(method, inputs)
    after = [reader.read(0, 12) for reader in readers if reader]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_the_size_of_chunks_does_not_matter(method: str, monkeypatch: pytest.MonkeyPatch):
    for shape in ((37, 21), (200,), (9, 5, 4)):
        inputs = make(method, shape)
        whole = run(method, inputs)
        monkeypatch.setattr(interface, "CHUNK", 50)
        assert len(list(inputs.spans())) > 1 or len(shape) == 1
        torch.testing.assert_close(run(method, inputs), whole, rtol=1e-6, atol=1e-7)
        monkeypatch.undo()


@pytest.mark.parametrize("method", METHODS)
def test_a_look_at_a_sample_first_does_not_change_a_bit(method: str, monkeypatch: pytest.MonkeyPatch):
    inputs = make(method, (400, 50))
    whole = run(method, inputs)
    monkeypatch.setattr(interface, "_SAMPLED", 1)
    monkeypatch.setattr(interface, "_SAMPLE", 1000)
    assert 0 < sum(end - begin for begin, end in inputs.sample_spans()) <= 20
    assert torch.equal(run(method, inputs), whole)


@pytest.mark.parametrize("method", METHODS)
def test_the_number_of_threads_does_not_change_a_bit(method: str):
    inputs = make(method, (300, 1000))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = run(method, inputs)
        torch.set_num_threads(4)
        together = run(method, inputs)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(alone, together)


@pytest.mark.parametrize("method", sorted(CHANCE))
def test_masks_follow_the_seed(method: str):
    deltas = [torch.ones(50, 60), torch.ones(50, 60)]
    first, again, other = (
        merge_tensors(method, deltas, densities=[0.3, 0.3], seed=seed, options={"rescale": 0}) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_uniform_numbers_are_the_same_wherever_reading_starts_and_evenly_spread():
    key = 0xFEDCBA9876543210
    whole = uniforms(0, 100_000, key)
    parts = [uniforms(first, 10_000, key) for first in range(0, 100_000, 10_000)]
    assert torch.equal(torch.cat(parts), whole)
    assert float(whole.min()) >= 0
    assert float(whole.max()) < 1
    counts = torch.histc(whole, 16, 0, 1)
    assert float(((counts - 6250) ** 2 / 6250).sum()) < 37.7  # chi squared of 15 degrees of freedom, 99.9 %
    assert len(torch.unique(whole)) > 99_000


def test_random_words_go_on_over_four_billion_elements():
    start = (1 << 32) - 5
    whole = random_words(start, 12, 7)
    assert whole.tolist() == [int(random_words(start + index, 1, 7)) for index in range(12)]
    assert len(set(whole.tolist())) == 12


@pytest.mark.parametrize("method", ["linear", "ties", "dare_linear", "della", "breadcrumbs_ties", "pcb"])
def test_halving_the_weights_halves_what_is_not_normalized(method: str):
    inputs = make(method, (12, 30))
    halved = replace(inputs, weights=[weight / 2 for weight in inputs.weights])
    assert torch.equal(run(method, halved) * 2, run(method, inputs))


@given(
    st.lists(st.floats(0, 2.0**100, width=32, allow_subnormal=True), min_size=1, max_size=60),
    st.data(),
)
def test_ranks_are_found_as_sorting_finds_them(values: list[float], data: st.DataObject):
    ranks = data.draw(st.lists(st.integers(1, len(values) + 2), min_size=1, max_size=4))
    cut = data.draw(st.integers(0, len(values)))
    sample = data.draw(st.lists(st.sampled_from(values), max_size=5))
    parts = [torch.tensor(part, dtype=torch.float32) for part in (values[:cut], values[cut:])]
    placed = kth_largest(
        lambda: ([part, part * 0] for part in parts),
        [(0, rank) for rank in ranks],
        elements=len(values),
        sample=[[torch.tensor(sample, dtype=torch.float32)] * 2] if sample else [],
    )
    ordered = sorted(values, reverse=True)
    assert [one.value for one in placed] == [ordered[rank - 1] if rank <= len(values) else 0.0 for rank in ranks]
    for one, rank in zip(placed, ranks, strict=True):
        if rank <= len(values):
            assert one.above == sum(value > one.value for value in values)
            assert one.equal == values.count(one.value)


@given(st.lists(st.integers(-(2**20), 2**20), max_size=70))
def test_folded_sums_are_sums(values: list[int]):
    tensor = torch.tensor(values, dtype=torch.float64)
    assert float(folded_sum(tensor)) == math.fsum(values)
    both = torch.stack([tensor, tensor * 2], 1)
    assert folded_sum(both).tolist() == [math.fsum(values), 2 * math.fsum(values)]


def test_inner_products_are_those_of_all_pairs():
    tensors = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, -1.0]), torch.tensor([0.0, 0.5])]
    assert [[float(product) for product in row] for row in inner_products(tensors)] == [
        [5.0, 1.0, 1.0],
        [1.0, 10.0, -0.5],
        [1.0, -0.5, 0.25],
    ]


@pytest.mark.parametrize(
    "method", [method for method in METHODS.values() if method.members != (1, None)], ids=lambda one: one.name
)
def test_a_number_of_packs_that_a_method_does_not_take_is_refused(method: MergeMethod):
    with pytest.raises(UsageError, match=f"'{method.name}' takes"):
        merge_tensors(method.name, [torch.ones(3)] * ((method.members[1] or 0) + 1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with ``whole``, a fine-tune of all of it, and ``part``, of which only the second layer changed."""
    folder = tmp_path_factory.mktemp("models")
    base = save_model("llama", folder / "base")
    build_pack(tune(base, folder / "tuned", size=0.1), base, folder / "whole", name="whole")
    build_pack(tune(base, folder / "tuned2", seed=2, size=0.1, only="1"), base, folder / "part", name="part")
    return folder


AVERAGES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "linear": lambda delta: delta / 2,
    "dare_linear": lambda delta: delta / 2,
    "model_stock": lambda delta: delta * 0,
    "multislerp": lambda delta: delta / 2,
    "nuslerp": lambda delta: delta / 2,
}


@pytest.mark.parametrize("method", AVERAGES)
def test_averages_count_packs_that_leave_a_tensor_as_it_is(method: str, folder: Path):
    model, base, tuned = (load_model(folder / name) for name in ("base", "base", "tuned"))
    options = {"normalize": 1} if method.endswith("linear") else {}
    graft(model, [folder / "whole", folder / "part"], method=method, options=options, rounding="nearest")
    name = "model.layers.0.mlp.up_proj.weight"
    before, after = (each.get_parameter(name).detach() for each in (base, tuned))
    merged = model.get_parameter(name).detach() - before
    torch.testing.assert_close(merged, AVERAGES[method](after - before), rtol=0.02, atol=2e-3)
