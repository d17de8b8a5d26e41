"""When a routed model decides, and what keeps a decision: caches, encoders' outputs, blocks and generations."""

from __future__ import annotations

import asyncio
import copy
import functools
import gc
import pickle
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, GenerationConfig, StaticCache
from transformers.modeling_outputs import BaseModelOutput

from skillhub.compose.grafts import graft
from skillhub.compose.routed import choose, decide, decisions, graft_routed, last_decision, ungraft_routed
from skillhub.errors import UsageError
from skillhub.routing.decisions import Decision, Prefill, early_states
from tests.support.lowrank_packs import build_lowrank_pack
from tests.support.tiny_models import build_pack, load_model, make_model, save_model, tune

PAD = 2
LABELS = ("low", "dense", None)


class ByLastToken:
    """Routes by the last token of a row that is not padding, and counts what it was asked."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.saw_padding = False

    def route(self, prefill: Prefill) -> Decision:
        self.asked.append(prefill.rows)
        assert prefill.input_ids is not None
        ids, mask = prefill.input_ids, prefill.attention_mask
        self.saw_padding |= mask is not None
        mask = torch.ones_like(ids) if mask is None else mask
        last = [int(row[real.bool()][-1]) for row, real in zip(ids, mask, strict=True)]
        choices = [LABELS[token % 3] for token in last]
        packs = ("dense", "low")
        return Decision(packs, tuple(None if one is None else packs.index(one) for one in choices))


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("decisions")

    @functools.cache
    def place(kind: str) -> Path:
        base = save_model(kind, root / kind / "base", dtype=torch.float32)
        build_lowrank_pack(base, root / kind / "low", seed=1, size=0.2)
        build_pack(tune(base, root / kind / "tuned", size=0.1), base, root / kind / "dense", name="dense")
        return root / kind

    return place


def routed(folder: Path) -> tuple[Any, ByLastToken]:
    router = ByLastToken()
    model = load_model(folder / "base")
    packs = [folder / "low", folder / "dense"]
    return graft_routed(
        model, packs, router=router, executor="factored", trust_base=True, notice=lambda _: None
    ), router


@functools.cache
def fused(folder: Path, name: str | None) -> Any:
    model = load_model(folder / "base")
    return graft(model, [folder / name], trust_base=True) if name else model


def prompts(rows: int = 4, length: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, list[str | None]]:
    """Return ids with padding on the left of some rows, their mask, and the labels that they are routed to."""
    ids = torch.randint(3, 24, (rows, length), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    for row in range(0, rows, 2):
        ids[row, : row + 1], mask[row, : row + 1] = PAD, 0
    ids[:, -1] = torch.tensor([3 + (row % 3) for row in range(rows)])
    return ids, mask, [LABELS[row % 3] for row in range(rows)]


def generated(model: Any, ids: torch.Tensor, mask: torch.Tensor, **options: Any) -> list[list[int]]:
    """Return the tokens of each row, as far as the first end."""
    options = {"max_new_tokens": 6, "do_sample": False, **options}
    rows = model.generate(input_ids=ids, attention_mask=mask, **options).tolist()
    start = 1 if model.config.is_encoder_decoder else ids.shape[1]
    end = model.generation_config.eos_token_id
    return [row[: row.index(end, start) + 1] if end in row[start:] else row for row in rows]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 3},
        {"num_beams": 3, "num_return_sequences": 2},
        {"use_cache": False},
        {"use_cache": False, "num_beams": 2},
        {"cache_implementation": "static"},
        {"prefill_chunk_size": 2},
        {"do_sample": True, "num_return_sequences": 2, "top_k": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral", "t5"])
def test_generating_keeps_what_was_decided_for_the_prompt(
    places: Callable[[str], Path], kind: str, options: dict[str, Any]
):
    if kind == "t5" and "prefill_chunk_size" in options:
        pytest.skip("an encoder reads its prompt at once")
    folder = places(kind)
    model, router = routed(folder)
    ids, mask, labels = prompts()
    found = generated(model, ids, mask, **options)
    answers = len(found) // len(labels)
    for row, name in enumerate(labels):
        expected = generated(fused(folder, name), ids, mask, **options)
        own = slice(row * answers, (row + 1) * answers)
        ends = [min(len(one), len(other)) for one, other in zip(found[own], expected[own], strict=True)]
        assert [one[:end] for one, end in zip(found[own], ends, strict=True)] == [
            other[:end] for other, end in zip(expected[own], ends, strict=True)
        ]
    assert router.asked == [len(labels)]  # by the whole prompt, and never again
    assert router.saw_padding
    decision = last_decision(model)
    assert decision is not None and set(decision.labels) <= set(LABELS)


def test_a_cache_that_the_caller_made_changes_nothing(places: Callable[[str], Path]):
    folder = places("llama")
    ids, mask, labels = prompts()
    for options in ({}, {"prefill_chunk_size": 2}):
        for make in (DynamicCache, functools.partial(StaticCache, max_cache_len=16)):
            model, router = routed(folder)
            found = generated(model, ids, mask, past_key_values=make(config=model.config), **options)
            for row, name in enumerate(labels):
                expected = generated(fused(folder, name), ids, mask)[row]
                end = min(len(found[row]), len(expected))
                assert found[row][:end] == expected[:end]
            assert router.asked == [4] and router.saw_padding


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}])
def test_labels_by_the_number_of_a_row_are_for_prompts(places: Callable[[str], Path], options: dict[str, Any]):
    folder = places("llama")
    model = load_model(folder / "base")
    packs = [folder / "low", folder / "dense"]
    graft_routed(model, packs, router={1: "low", 3: "dense"}, trust_base=True, notice=lambda _: None)
    ids, mask, _ = prompts()
    model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=2, **options)
    decision, answers = last_decision(model), max(options.values())
    assert decision is not None
    assert list(decision.labels) == [name for name in (None, "low", None, "dense") for _ in range(answers)]


def test_padding_is_known_without_a_mask_where_generate_knows_it(places: Callable[[str], Path]):
    model, _ = routed(places("llama"))
    ids = torch.tensor([[7, 8, 9, 3], [PAD, PAD, 7, 4], [7, 5, PAD, PAD]])
    for config in (None, GenerationConfig(pad_token_id=PAD, eos_token_id=[1])):
        model.generate(ids, config, max_new_tokens=2)
        decision = last_decision(model)
        assert decision is not None and decision.labels == ("low", "dense", None)


def test_a_router_may_generate_with_the_base(places: Callable[[str], Path]):
    folder = places("llama")
    model = load_model(folder / "base")
    ids = torch.tensor([[7, 8, 9]])
    plain = model.generate(ids, max_new_tokens=3, do_sample=False)
    answers = []

    def route(prefill: Prefill) -> list[str]:
        answers.append(model.generate(prefill.input_ids, max_new_tokens=3, do_sample=False))
        return ["low"]

    graft_routed(model, [folder / "low"], router=route, trust_base=True, notice=lambda _: None)
    model.generate(ids, max_new_tokens=3)
    assert [one.tolist() for one in answers] == [plain.tolist()]


def test_the_packs_of_these_tests_generate_different_tokens(places: Callable[[str], Path]):
    for kind in ("llama", "gpt2", "mixtral", "t5"):
        ids, mask, _ = prompts()
        answers = [generated(fused(places(kind), name), ids, mask) for name in LABELS]
        assert all(one != other for one, other in ((answers[0], answers[1]), (answers[1], answers[2])))


def test_assisted_decoding_gives_the_tokens_of_the_pack(places: Callable[[str], Path]):
    folder = places("llama")
    model, router = routed(folder)
    assistant = make_model("llama", dtype=torch.float32, num_hidden_layers=1, seed=5)
    for last, name in ((3, "low"), (4, "dense"), (5, None)):
        ids = torch.tensor([[7, 8, 9, last]])
        for helper in (assistant, routed(folder)[0]):
            expected = generated(fused(folder, name), ids, torch.ones_like(ids))
            assert generated(model, ids, torch.ones_like(ids), assistant_model=helper) == expected
    assert router.asked == [1] * 6


def stepwise(model: Any, ids: torch.Tensor, cache: Any, **options: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=ids, past_key_values=cache, use_cache=True, **options).logits
    return logits


def test_a_cache_keeps_its_decision_through_reordering_and_selecting(places: Callable[[str], Path]):
    folder = places("llama")
    model, router = routed(folder)
    ids, _, labels = prompts(rows=3)
    cache = DynamicCache(config=model.config)
    stepwise(model, ids, cache)
    assert type(cache).__name__ == "DynamicCache" and isinstance(cache, DynamicCache)
    order = [2, 0, 0, 1]
    cache.reorder_cache(torch.tensor(order))
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([0, 1, 2, 7]))
    rows = [order[place // 2] for place in (0, 1, 2, 7)]
    found_decision = decisions(cache)
    assert found_decision is not None and list(found_decision.labels) == [labels[row] for row in rows]
    following = torch.tensor([[5], [6], [7], [8]])
    found = stepwise(model, following, cache)
    for place, row in enumerate(rows):
        single = DynamicCache(config=model.config)
        stepwise(fused(folder, labels[row]), ids[row : row + 1], single)
        expected = stepwise(fused(folder, labels[row]), following[place : place + 1], single)
        assert (found[place] - expected[0]).abs().max() < 1e-4
    assert router.asked == [3]


@settings(max_examples=20, deadline=None)
@given(
    operations=st.lists(
        st.one_of(
            st.tuples(st.just("reorder"), st.lists(st.integers(0, 99), min_size=1, max_size=5)),
            st.tuples(st.just("select"), st.lists(st.integers(0, 99), min_size=1, max_size=5)),
            st.tuples(st.just("repeat"), st.integers(1, 2)),
            st.tuples(st.just("crop"), st.just(1)),
        ),
        max_size=4,
    )
)
def test_a_decision_follows_its_rows_through_any_operations(
    places: Callable[[str], Path], operations: list[tuple[str, Any]]
):
    model, _ = cached_routed(places("llama"))
    ids, _, labels = prompts(rows=3)
    cache = DynamicCache(config=model.config)
    stepwise(model, ids, cache)
    rows = [0, 1, 2]
    for operation, argument in operations:
        if operation == "crop":
            cache.crop(-argument)
        elif operation == "repeat" and len(rows) < 16:
            cache.batch_repeat_interleave(argument)
            rows = [row for row in rows for _ in range(argument)]
        elif operation in ("reorder", "select"):
            index = [place % len(rows) for place in argument]
            method = cache.reorder_cache if operation == "reorder" else cache.batch_select_indices
            method(torch.tensor(index))
            rows = [rows[place] for place in index]
    found = decisions(cache)
    assert found is not None and list(found.labels) == [labels[row] for row in rows]
    stepwise(model, torch.full((len(rows), 1), 9), cache)


@functools.cache
def cached_routed(folder: Path) -> tuple[Any, ByLastToken]:
    return routed(folder)


def test_a_reset_or_copied_cache(places: Callable[[str], Path]):
    model, router = routed(places("llama"))
    ids, _, labels = prompts(rows=2)
    cache = StaticCache(config=model.config, max_cache_len=16)
    stepwise(model, ids, cache)
    copied = copy.deepcopy(cache)
    cache.reset()
    assert decisions(cache) is None
    stepwise(model, ids.flip(0), cache)
    found, kept = decisions(cache), decisions(copied)
    assert found is not None and list(found.labels) == labels[::-1]
    assert kept is not None and list(kept.labels) == labels
    assert router.asked == [2, 2]


def test_a_cache_is_pickled_with_its_decision_which_another_process_may_pass_on(places: Callable[[str], Path]):
    model, _ = routed(places("llama"))
    ids, _, labels = prompts(rows=2)
    cache = DynamicCache(config=model.config)
    stepwise(model, ids, cache)
    loaded = pickle.loads(pickle.dumps(cache))
    found = decisions(loaded)
    assert isinstance(loaded, DynamicCache) and found is not None and list(found.labels) == labels
    with pytest.raises(UsageError, match="did not make"):
        stepwise(model, ids[:, :1], loaded)
    following = stepwise(model, ids[:, :1], loaded, pack_choices=found)
    assert torch.equal(following, stepwise(model, ids[:, :1], cache))
    loaded.reorder_cache(torch.tensor([1, 0]))
    turned = decisions(loaded)
    assert turned is not None and list(turned.labels) == labels[::-1]


def test_a_cache_keeps_no_packs_alive(places: Callable[[str], Path]):
    model, _ = routed(places("llama"))
    cache = DynamicCache(config=model.config)
    stepwise(model, prompts(rows=3)[0], cache)
    kept = weakref.ref(model._skillhub_routing.weights)
    ungraft_routed(model)
    gc.collect()
    assert kept() is None and decisions(cache) is not None


def test_what_the_caller_changes_afterwards_changes_nothing(places: Callable[[str], Path]):
    folder = places("llama")
    model, labels = load_model(folder / "base"), ["low", "dense"]
    packs = [folder / "low", folder / "dense"]
    graft_routed(model, packs, router=labels, trust_base=True, notice=lambda _: None)
    ids, _, _ = prompts(rows=2)
    labels.reverse()
    model(input_ids=ids)
    decision = last_decision(model)
    assert decision is not None and decision.labels == ("low", "dense")
    mixture = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    mixed = Decision(("low", "dense"), (0, 0), None, mixture)
    cache, other = DynamicCache(config=model.config), DynamicCache(config=model.config)
    for one in (cache, other):
        stepwise(model, ids, one, pack_choices=mixed)
    expected = stepwise(model, ids[:, :1], other)
    mixture.zero_()
    assert torch.equal(stepwise(model, ids[:, :1], cache), expected)


def test_a_block_in_an_async_generator_may_be_given_up(places: Callable[[str], Path]):
    model, _ = routed(places("llama"))
    failures: list[Any] = []

    async def tokens() -> AsyncIterator[int]:
        with choose(model, ["low"]):
            for number in range(3):
                yield number

    async def work() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
        async for _ in tokens():
            break

    asyncio.run(work())
    assert failures == []


def test_a_cache_that_the_model_made_carries_the_decision(places: Callable[[str], Path]):
    model, router = routed(places("llama"))
    ids, mask, labels = prompts()
    for as_tuple in (False, True):
        outputs = model(input_ids=ids, attention_mask=mask, use_cache=True, return_dict=not as_tuple)
        found = decisions(outputs[1] if as_tuple else outputs.past_key_values)
        assert found is not None and list(found.labels) == labels
    assert router.asked == [4, 4]


def test_a_cache_of_unknown_origin_needs_choices(places: Callable[[str], Path]):
    folder = places("llama")
    model, router = routed(folder)
    ids, _, _ = prompts(rows=2)
    cache = DynamicCache(config=model.config)
    stepwise(load_model(folder / "base"), ids, cache)
    with pytest.raises(UsageError, match="a cache of 6 tokens that the routed model did not make"):
        stepwise(model, ids[:, :1], cache)
    stepwise(model, ids[:, :1], cache, pack_choices=["low", None])
    stepwise(model, ids[:, :1], cache)
    found = decisions(cache)
    assert found is not None and found.labels == ("low", None) and router.asked == []
    with pytest.raises(UsageError, match="for 2 rows, and this batch has 3"):
        stepwise(model, torch.ones(3, 1, dtype=torch.long), cache)
    other, _ = routed(folder)
    with pytest.raises(UsageError, match="did not make"):
        stepwise(other, ids[:, :1], cache)


def test_a_conversation_goes_on_with_its_pack(places: Callable[[str], Path]):
    folder = places("llama")
    model, router = routed(folder)
    ids = torch.tensor([[7, 8, 3]])
    cache = DynamicCache(config=model.config)
    first = model.generate(ids, past_key_values=cache, max_new_tokens=3, do_sample=False, eos_token_id=None)
    longer = torch.cat([first, torch.tensor([[10, 5]])], dim=1)  # a new prompt of these would get the base
    options: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None}
    found = model.generate(longer, past_key_values=cache, **options)
    assert found.tolist() == fused(folder, "low").generate(longer, **options).tolist()
    assert router.asked == [1]
    model.generate(found, past_key_values=cache, pack_choices=["dense"], **options)
    decision = decisions(cache)
    assert decision is not None and decision.labels == ("dense",)


def test_the_encoder_alone_decides_for_the_decoder(places: Callable[[str], Path]):
    folder = places("t5")
    model, router = routed(folder)
    ids, mask, labels = prompts()
    start = torch.tensor([[PAD, 5]] * 4)
    with torch.no_grad():
        encoded = model.get_encoder()(input_ids=ids, attention_mask=mask)
        found = model(encoder_outputs=encoded, attention_mask=mask, decoder_input_ids=start).logits
        plain = model(encoder_outputs=(encoded[0],), attention_mask=mask, decoder_input_ids=start).logits
        twice = model(
            encoder_outputs=encoded,
            attention_mask=mask,
            decoder_input_ids=start,
        ).logits
        for row, name in enumerate(labels):
            expected = fused(folder, name)(input_ids=ids, attention_mask=mask, decoder_input_ids=start).logits
            assert (found[row] - expected[row]).abs().max() < 1e-4
        assert torch.equal(found, plain) and torch.equal(found, twice) and router.asked == [4]
        foreign = BaseModelOutput(last_hidden_state=encoded[0].clone())
        with pytest.raises(UsageError, match="outputs of an encoder that the routed model did not make"):
            model(encoder_outputs=foreign, attention_mask=mask, decoder_input_ids=start)
        model(encoder_outputs=foreign, attention_mask=mask, decoder_input_ids=start, pack_choices=labels)


def test_models_without_a_cache_decide_at_every_call(places: Callable[[str], Path]):
    model, router = routed(places("bert"))
    ids, mask, labels = prompts()
    for _ in range(2):
        outputs = model(input_ids=ids, attention_mask=mask)
    decision = last_decision(model)
    assert router.asked == [4, 4] and decision is not None and list(decision.labels) == labels
    assert outputs[0].shape[0] == 4


def test_without_a_cache_every_forward_decides_but_for_those_of_one_generation(places: Callable[[str], Path]):
    model, router = routed(places("llama"))
    ids, mask, _ = prompts()
    for _ in range(3):
        model(input_ids=ids, attention_mask=mask, use_cache=False)
    assert router.asked == [4, 4, 4]
    model.generate(input_ids=ids, attention_mask=mask, use_cache=False, max_new_tokens=3)
    assert router.asked == [4, 4, 4, 4]


def test_chunks_are_decided_by_the_first_that_has_tokens_of_a_row(places: Callable[[str], Path]):
    folder = places("llama")
    model, router = routed(folder)
    ids = torch.tensor([[PAD, PAD, 9, 3], [7, 5, 9, 8]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    positions = (mask.cumsum(-1) - 1).clamp_(min=0)
    cache = DynamicCache(config=model.config)
    for end in (2, 4):
        part = slice(end - 2, end)
        found = stepwise(model, ids[:, part], cache, attention_mask=mask[:, :end], position_ids=positions[:, part])
        decision = decisions(cache)
        assert decision is not None and decision.labels == ((None, None) if end == 2 else ("low", None))
    assert router.asked == [1, 1]
    with torch.no_grad():
        expected = fused(folder, "low")(input_ids=ids, attention_mask=mask, position_ids=positions).logits[0, 2:]
    assert (found[0] - expected).abs().max() < 1e-4


def test_choices_of_the_caller_come_first(places: Callable[[str], Path]):
    model, router = routed(places("llama"))
    ids, mask, labels = prompts(rows=2)
    fixed = [None, "low"]

    def decided() -> list[str | None]:
        found = last_decision(model)
        assert found is not None
        return list(found.labels)

    model(input_ids=ids, pack_choices=fixed)
    assert decided() == fixed
    with choose(model, fixed):
        model(input_ids=ids)
        assert decided() == fixed
        model(input_ids=ids, pack_choices=["dense", "dense"])
        assert decided() == ["dense", "dense"]
        model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=2, num_beams=2)
        assert decided() == [None, None, "low", "low"]
        with choose(model, ["dense"]):
            model(input_ids=ids)
            assert decided() == ["dense", "dense"]
    model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=2, pack_choices=fixed)
    assert decided() == fixed and router.asked == []
    found = decide(model, input_ids=ids, attention_mask=mask)
    assert list(found.labels) == labels and router.asked == [2]
    model(input_ids=ids, pack_choices=found)
    assert decided() == labels and router.asked == [2]


def test_every_model_has_its_own_choices_and_decision(places: Callable[[str], Path]):
    folder = places("llama")
    (model, asked), (assistant, also_asked) = routed(folder), routed(folder)
    ids = torch.tensor([[7, 8, 9, 5]])
    with choose(model, ["low"]), choose(assistant, ["dense"]):
        found = generated(model, ids, torch.ones_like(ids), assistant_model=assistant)
    assert found == generated(fused(folder, "low"), ids, torch.ones_like(ids))
    assert asked.asked == also_asked.asked == []
    for one, name in ((model, "low"), (assistant, "dense")):
        decision = last_decision(one)
        assert decision is not None and decision.labels == (name,)


def test_what_is_no_choice_is_refused(places: Callable[[str], Path]):
    model, _ = routed(places("llama"))
    ids, _, _ = prompts(rows=2)
    wrong: list[tuple[Any, str]] = [
        (["low"] * 3, "for 3 rows, and this batch has 2"),
        (["lowest", None], "'lowest' is not routed"),
        ([3, None], "3 is no choice"),
        (7, "are no choices"),
        (Decision(("low",), (0, 1)), "chooses pack 1 of 1"),
        (Decision(("low",), ("low", None)), "chooses pack 'low' of 1"),  # type: ignore[arg-type]
        (Decision(("low",), (0, 0), None, torch.ones(2, 3)), "does not fit 2 rows and 1 packs"),
        (Decision(("low",), (0, 0), None, [[1.0], [1.0]]), "is no mixture"),  # type: ignore[arg-type]
        (Decision(("low", "low"), (0, 1), None, torch.ones(2, 2)), "names a pack twice"),
    ]
    for choices, message in wrong:
        with pytest.raises(UsageError, match=message):
            model(input_ids=ids, pack_choices=choices)
    with pytest.raises(UsageError, match="no input to route by"):
        model()
    with pytest.raises(UsageError, match="several sequences"):
        model(input_ids=ids, cu_seq_lens_q=torch.tensor([0, 3, 6]))


@pytest.mark.parametrize(
    ("router", "labels"),
    [
        (lambda prefill: ["low", None], ["low", None]),
        (lambda prefill: Decision(("dense",), (None, 0)), [None, "dense"]),
        (["dense", "low"], ["dense", "low"]),
        ({1: "low"}, [None, "low"]),
    ],
)
def test_anything_that_decides_will_do_for_a_router(
    places: Callable[[str], Path], router: Any, labels: list[str | None]
):
    folder = places("llama")
    model = load_model(folder / "base")
    graft_routed(model, [folder / "low", folder / "dense"], router=router, trust_base=True, notice=lambda _: None)
    model(input_ids=prompts(rows=2)[0])
    found = last_decision(model)
    assert found is not None and list(found.labels) == labels


def test_a_router_sees_the_base_and_may_run_it_early(places: Callable[[str], Path]):
    folder = places("llama")
    base = load_model(folder / "base")
    seen: list[torch.Tensor] = []

    def route(prefill: Prefill) -> list[str | None]:
        seen.append(early_states(prefill, 1))
        seen.append(prefill.model(input_ids=prefill.input_ids, use_cache=False).logits)
        return ["low", "dense"]

    model = load_model(folder / "base")
    graft_routed(model, [folder / "low", folder / "dense"], router=route, trust_base=True, notice=lambda _: None)
    ids, mask, _ = prompts(rows=2)
    with torch.no_grad():
        model(input_ids=ids, attention_mask=mask)
        plain = base(input_ids=ids, use_cache=False).logits
        positions = (mask.cumsum(-1) - 1).clamp_(min=0)
        states = base(input_ids=ids, attention_mask=mask, position_ids=positions, output_hidden_states=True)
    assert torch.equal(seen[1], plain)
    assert (seen[0] - states.hidden_states[1])[mask.bool()].abs().max() < 1e-6
    with pytest.raises(UsageError, match="no layer 2 among 2"):
        early_states(Prefill(model, ids), 2)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "t5", "mixtral", "gemma"])
def test_early_states_are_those_of_the_whole_base(places: Callable[[str], Path], kind: str):
    model = load_model(places(kind) / "base")
    ids, mask, _ = prompts()
    mask[:] = 1
    inner = model.get_encoder() if kind == "t5" else model.base_model
    with torch.no_grad():
        states = inner(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    for layer in (0, 1):
        assert (early_states(Prefill(model, ids, mask), layer) - states[layer]).abs().max() < 1e-6


def test_threads_do_not_disturb_each_other(places: Callable[[str], Path]):
    folder = places("llama")
    model, _ = routed(folder)
    wrong: list[str] = []
    expected = {}
    ids, _, _ = prompts(rows=2)
    for name in LABELS:
        expected[name] = fused(folder, name)(input_ids=ids).logits

    def work(number: int) -> None:
        for turn in range(12):
            one, other = LABELS[(number + turn) % 3], LABELS[(number + 2 * turn + 1) % 3]
            with torch.no_grad():
                found = model(input_ids=ids, pack_choices=[one, other]).logits
                if turn % 4 == 0:
                    early_states(Prefill(model, ids), 1)
            for row, name in enumerate((one, other)):
                if (found[row] - expected[name][row]).abs().max() > 1e-4:
                    wrong.append(f"{number} {turn} {name}")
            decision = last_decision(model)
            if decision is None or decision.labels != (one, other):
                wrong.append(f"{number} {turn} saw another's decision")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_forward_that_fails_leaves_no_decision_behind(places: Callable[[str], Path]):
    model, router = routed(places("llama"))
    ids, _, _ = prompts(rows=2)
    cache = DynamicCache(config=model.config)
    with pytest.raises(IndexError):
        stepwise(model, torch.full((2, 3), 999), cache)
    assert decisions(cache) is None
    stepwise(model, ids, DynamicCache(config=model.config))
    assert router.asked == [2, 2]


def test_a_pack_that_left_cannot_go_on(places: Callable[[str], Path]):
    model, _ = routed(places("llama"))
    ids, _, _ = prompts(rows=2)
    cache = DynamicCache(config=model.config)
    stepwise(model, ids, cache)  # low and dense
    ungraft_routed(model, "dense")
    with pytest.raises(UsageError, match="'dense' is not routed"):
        stepwise(model, ids[:, :1], cache)
