"""Changing what is routed: weights, on and off, and what that means for decisions that caches hold already."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache

import skillhub
from skillhub.compose.grafts import disable, enable, graft, grafted, grafted_packs, set_weights, ungraft
from skillhub.compose.routed import choose, decide, decisions, graft_routed, last_decision, routed_packs
from skillhub.compose.routed.choices import merged, narrowed, without
from skillhub.compose.routed.factors import Stack
from skillhub.compose.routed.siblings import Stacks
from skillhub.compose.routed.states import present_routing
from skillhub.errors import IntegrityError, NotFoundError, SkillhubError, UsageError
from skillhub.routing.decisions import Decision, Prefill
from tests.support.lowrank_packs import build_lowrank_pack
from tests.support.tiny_models import bits, build_pack, load_model, save_model, tune

NAMES = ("low", "mixed", "dense")
CHOICES = ["low", None, "dense", "mixed", "low"]
PAD = 2


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Kind → folder with ``base`` and the packs ``low``, ``mixed`` and ``dense``."""
    root = tmp_path_factory.mktemp("changes")

    @functools.cache
    def place(kind: str) -> Path:
        base = save_model(kind, root / kind / "base", dtype=torch.float32)
        build_lowrank_pack(base, root / kind / "low", seed=1, size=0.2)
        build_lowrank_pack(base, root / kind / "mixed", seed=2, size=0.2, rank=3, dense="norm|embed|wte|shared")
        build_pack(tune(base, root / kind / "tuned", seed=3, size=0.1), base, root / kind / "dense", name="dense")
        return root / kind

    return place


@pytest.fixture
def llama(places: Callable[[str], Path]) -> Path:
    return places("llama")


def routed(folder: Path, router: Any = None, packs: Collection[str] = NAMES, **options: Any) -> Any:
    """Return the model of a place with packs routed."""
    model, options = load_model(folder / "base"), {"notice": lambda _: None, "trust_base": True, **options}
    return graft_routed(model, [folder / name for name in packs], router=router or [], **options)


def logits(model: Any, ids: torch.Tensor, **options: Any) -> torch.Tensor:
    if getattr(model.config, "is_encoder_decoder", False):
        options["decoder_input_ids"] = ids
    with torch.no_grad():
        output: torch.Tensor = model(input_ids=ids, **options).logits
    return output


def some_ids(rows: int, length: int = 6) -> torch.Tensor:
    return torch.randint(3, 24, (rows, length), generator=torch.Generator().manual_seed(0))


def shown(model: Any) -> dict[str, tuple[Any, bool]]:
    return {str(item.pack.name): (item.weight, item.enabled) for item in grafted_packs(model)}


# Weights


@pytest.mark.parametrize("memory", ["weights", "factors", "codes", 20_000])
@pytest.mark.parametrize(("kind", "executor"), [("tied", "grouped"), ("llama", "factored"), ("gpt2", "factored")])
def test_other_weights_give_the_bits_of_grafting_with_them(
    places: Callable[[str], Path], kind: str, executor: str, memory: str | int
):
    folder, ids = places(kind), some_ids(5)
    options: dict[str, Any] = {"executor": executor, "memory": memory}
    model = routed(folder, **options)
    logits(model, ids, pack_choices=CHOICES)
    for low, dense in ((-0.5, 1.0), (2.0, 0.25), (0.0, {"mlp|h.0": [0.1, 0.7]}), (1.0, 1.0)):
        set_weights(model, {"low": low, folder / "dense": dense})
        fresh = routed(folder, weights=[low, 1.0, dense], **options)
        assert shown(model) == shown(fresh)
        for choices in (CHOICES, *([name] * 5 for name in NAMES)):
            found, expected = (logits(one, ids, pack_choices=choices) for one in (model, fresh))
            assert torch.equal(found, expected)


def test_weights_that_look_the_same_when_written_short_are_told_apart(llama: Path):
    ids, model = some_ids(1), routed(llama, executor="grouped")
    results = []
    for weight in (10_000.01, 10_000.04):
        set_weights(model, {"dense": {"mlp": weight}})
        results.append(logits(model, ids, pack_choices=["dense"]))
        fresh = routed(llama, executor="grouped", weights=[1.0, 1.0, {"mlp": weight}])
        assert torch.equal(results[-1], logits(fresh, ids, pack_choices=["dense"]))
    assert not torch.equal(*results)


def test_what_keeps_its_weight_is_used_again(llama: Path):
    model = routed(llama, executor="factored", memory="weights")
    before = present_routing(model)
    labels = before.rules.labels
    seen: list[tuple[int, int]] = []
    set_weights(model, {"dense": 0.5}, progress=lambda what, done, total: seen.append((done, total)))
    after = present_routing(model)
    changed = sum(before.weights.changes(labels.index("dense"), name) for name in before.weights.families)
    assert seen == [(done, changed) for done in range(1, changed + 1)]
    for name in before.weights.families:
        if before.weights.changes(labels.index("low"), name):
            mine, theirs = (one.weights.get(labels.index("low"), name) for one in (before, after))
            assert mine is theirs
    assert before.factors.keys() == after.factors.keys()
    assert all(after.factors[key] is found for key, found in before.factors.items())
    assert after.rules.router is before.rules.router
    seen.clear()
    set_weights(model, {"dense": 0.5}, progress=lambda what, done, total: seen.append((done, total)))
    assert seen == []


def test_changes_that_fail_leave_the_model_as_it_was(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model, ids = routed(llama, packs=["low", "dense"]), some_ids(3)
    late = build_pack(tune(llama / "base", tmp_path / "tuned", seed=9), llama / "base", tmp_path / "late", name="late")
    graft_routed(model, [late], router=[], trust_base=True, notice=lambda _: None)
    choices = ["low", "late", "dense"]
    before, expected = shown(model), logits(model, ids, pack_choices=choices)
    for path in sorted((tmp_path / "late").rglob("delta-*.safetensors")):
        path.write_bytes(path.read_bytes()[:-40] + b"\x01" * 40)
    attempts: list[tuple[type[SkillhubError], str, Callable[[], Any]]] = [
        (NotFoundError, "mixed is not grafted", lambda: set_weights(model, {"low": 0.5, "mixed": 1})),
        (NotFoundError, "mixed is not grafted", lambda: disable(model, "mixed")),
        (NotFoundError, "mixed is not grafted", lambda: enable(model, llama / "mixed")),
        (UsageError, "no number for weights", lambda: set_weights(model, {"low": "much"})),
        (UsageError, "which pack has which", lambda: set_weights(model, [0.5])),
        (UsageError, "is not a pack", lambda: disable(model, 3)),
        (UsageError, "too much for weights", lambda: set_weights(model, {"low": 1e9})),
        (IntegrityError, "late", lambda: set_weights(model, {"low": 0.5, "late": 0.5})),
    ]
    for kind, message, attempt in attempts:
        with pytest.raises(kind, match=message) as caught:
            attempt()
        assert caught.value.hint
        assert shown(model) == before and torch.equal(logits(model, ids, pack_choices=choices), expected)
    with monkeypatch.context() as patch:
        patch.setattr("skillhub.compose.routed.weights.available_bytes", lambda device: 10)
        with pytest.raises(UsageError, match="10 bytes left"):
            set_weights(model, {"dense": 0.5})
    assert shown(model) == before and torch.equal(logits(model, ids, pack_choices=choices), expected)
    set_weights(model, {"dense": 0.5})  # the damaged pack keeps its weight, so it is not read
    ungraft(model, "late")
    assert shown(model) == {"low": (1.0, True), "dense": (0.5, True)}


def test_a_cache_goes_on_with_its_decision_when_weights_change(llama: Path):
    model, ids = routed(llama, ["low", None]), some_ids(2)
    cache = DynamicCache(config=model.config)
    logits(model, ids, past_key_values=cache)
    set_weights(model, {"low": 2.0})
    kept = copy.deepcopy(cache)
    found = logits(model, ids[:, :1], past_key_values=cache)
    decision = decisions(cache)
    assert decision is not None and decision.labels == ("low", None)
    double = graft(load_model(llama / "base"), [llama / "low"], weights=[2.0], trust_base=True)
    expected = logits(double, ids[:, :1], past_key_values=kept)  # the old tokens as they were
    assert (found[0] - expected[0]).abs().max() < 1e-4


# On and off


@dataclass(frozen=True)
class Ranking:
    """Prefers packs in an order, all of which it can leave out; rows that are like the last one get the base."""

    packs: tuple[str, ...]

    def route(self, prefill: Prefill) -> Decision:
        assert prefill.input_ids is not None
        last = prefill.input_ids[-1]
        return Decision(self.packs, tuple(None if bool((row == last).all()) else 0 for row in prefill.input_ids))

    def among(self, packs: Collection[str]) -> Ranking:
        return Ranking(tuple(name for name in self.packs if name in packs))


def decided(model: Any, ids: torch.Tensor) -> list[str | None]:
    return list(decide(model, input_ids=ids).labels)


def test_a_router_that_can_chooses_the_next_best_of_the_packs_that_are_on(llama: Path):
    model, ids = routed(llama, Ranking(("dense", "low", "mixed"))), some_ids(2)
    assert decided(model, ids) == ["dense", None]
    for off, best in (("dense", "low"), ("mixed", "low"), ("low", None)):
        assert disable(model, off) is model
        assert decided(model, ids) == [best, None]
    enable(model, "mixed")
    assert decided(model, ids) == ["mixed", None]
    enable(model)
    assert decided(model, ids) == ["dense", None]


def test_what_any_other_router_chooses_of_a_pack_that_is_off_is_the_base(llama: Path):
    ids = some_ids(3)
    mixture = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    routers: list[tuple[Any, list[str | None]]] = [
        (["low", "dense", None], [None, "dense", None]),
        (lambda prefill: ["dense", "low", "mixed"], ["dense", None, "mixed"]),
        (lambda prefill: Decision(("low", "mixed", "dense"), (0, 0, None), None, mixture), ["mixed", None, None]),
    ]
    for router, expected in routers:
        model = routed(llama, router)
        disable(model, "low")
        assert decided(model, ids) == expected
        found = logits(model, ids)
        plain = routed(llama, [], packs=["mixed", "dense"])
        choices: Any = expected
        if expected[0] == "mixed":
            choices = Decision(("mixed",), (0, None, None), None, torch.tensor([[0.5], [0.0], [0.0]]))
        assert torch.equal(found, logits(plain, ids, pack_choices=choices))


def test_with_all_packs_off_nobody_is_asked_and_the_model_is_the_base(llama: Path):
    def never(prefill: Prefill) -> list[str | None]:
        raise AssertionError("nothing is left to decide")

    ids = some_ids(3)
    for router in (never, Ranking(NAMES)):
        model = routed(llama, router)
        skillhub.disable(model)
        assert shown(model) == dict.fromkeys(NAMES, (1.0, False))
        assert torch.equal(logits(model, ids), logits(load_model(llama / "base"), ids))
        assert decided(model, ids) == [None] * 3
    skillhub.enable(model, "low")
    assert decided(model, ids) == ["low", "low", None] and routed_packs(model) == grafted_packs(model)


def test_naming_a_pack_that_is_off_is_an_error(llama: Path):
    model, ids = routed(llama, ["dense", None]), some_ids(2)
    with choose(model, ["low", None]):
        disable(model, "low")
        with pytest.raises(UsageError, match="low is switched off, and rows of the choices have it"):
            logits(model, ids)
    halves = Decision(("low", "dense"), (1, None), None, torch.tensor([[0.5, 0.5], [0.0, 0.0]]))
    for choices in (["low", None], halves):
        with pytest.raises(UsageError, match="low is switched off") as caught:
            logits(model, ids, pack_choices=choices)
        assert "skillhub.enable" in str(caught.value.hint)
        with pytest.raises(UsageError, match="low is switched off"):
            model.generate(ids, pack_choices=choices, max_new_tokens=1)
        with pytest.raises(UsageError, match="low is switched off"), choose(model, choices):
            raise AssertionError("the block does not run")
    unused = Decision(("low", "dense"), (1, None), None, torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
    logits(model, ids, pack_choices=unused)
    decision = last_decision(model)
    assert decision is not None and decision.labels == ("dense", None)
    with pytest.raises(UsageError, match="'lowest' is not routed"):
        logits(model, ids, pack_choices=["lowest", None])


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_cache_goes_on_while_none_of_its_rows_has_the_pack_that_is_off(places: Callable[[str], Path], kind: str):
    folder, ids = places(kind), some_ids(2)
    model = routed(folder, ["dense", None])
    cache = DynamicCache(config=model.config)
    logits(model, ids, past_key_values=cache)
    twin = copy.deepcopy(cache)
    expected = logits(model, ids[:, :1], past_key_values=twin)
    disable(model, "low")
    assert torch.equal(logits(model, ids[:, :1], past_key_values=copy.deepcopy(cache)), expected)
    disable(model, "dense")
    with pytest.raises(UsageError, match="dense is switched off, and rows of this batch have it"):
        logits(model, ids[:, :1], past_key_values=cache)
    assert cache.get_seq_length() == ids.shape[1]
    found = logits(model, ids[:, :1], past_key_values=copy.deepcopy(cache), pack_choices=["mixed", None])
    assert not torch.equal(found, expected)
    enable(model, "dense")
    assert torch.equal(logits(model, ids[:, :1], past_key_values=cache), expected)


def test_an_encoders_output_keeps_to_the_same_rule(places: Callable[[str], Path]):
    model, ids = routed(places("t5"), ["low", None]), some_ids(2)
    with torch.no_grad():
        encoded = model.get_encoder()(input_ids=ids)
        expected = model(encoder_outputs=encoded, decoder_input_ids=ids[:, :2]).logits
        disable(model, "low")
        with pytest.raises(UsageError, match="low is switched off"):
            model(encoder_outputs=encoded, decoder_input_ids=ids[:, :2])
        enable(model, "low")
        assert torch.equal(model(encoder_outputs=encoded, decoder_input_ids=ids[:, :2]).logits, expected)


def test_generating_goes_on_with_the_next_best_and_without_the_pack(llama: Path):
    model, ids = routed(llama, Ranking(("dense", "low"))), some_ids(2)
    options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    disable(model, "dense")
    for more in ({}, {"use_cache": False}, {"num_beams": 2}, {"prefill_chunk_size": 2}):
        found = model.generate(ids, **options, **more)
        expected = [
            one.generate(ids, **options, **more)
            for one in (graft(load_model(llama / "base"), [llama / "low"]), load_model(llama / "base"))
        ]
        assert found.tolist() == [expected[0][0].tolist(), expected[1][1].tolist()]


def test_rows_that_were_undecided_are_decided_by_what_is_on_then(llama: Path):
    model = routed(llama, lambda prefill: ["dense"] * prefill.rows)
    ids = torch.tensor([[PAD, PAD, 9, 3], [7, 5, 9, 8]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    cache = DynamicCache(config=model.config)
    logits(model, ids[:, :2], attention_mask=mask[:, :2], past_key_values=cache, pack_choices=None)
    ungraft(model, "mixed")  # the packs' numbers are others now
    logits(model, ids[:, 2:], attention_mask=mask, past_key_values=cache)
    found = decisions(cache)
    assert found is not None and found.labels == ("dense", "dense")


def test_packs_come_and_leave_while_one_is_off(llama: Path):
    model, ids = routed(llama, Ranking(("low", "dense")), packs=["low", "dense"]), some_ids(2)
    disable(model, "low")
    set_weights(model, {"low": 0.5})
    router = Ranking(("low", "mixed", "dense"))
    graft(model, [llama / "mixed"], mode="routed", router=router, trust_base=True, notice=lambda _: None)
    assert shown(model) == {"low": (0.5, False), "dense": (1.0, True), "mixed": (1.0, True)}
    assert decided(model, ids) == ["mixed", None]
    twin = copy.deepcopy(model)
    with grafted_block(model):
        assert decided(model, ids) == ["low", None]
    assert decided(model, ids) == decided(twin, ids) == ["mixed", None] and shown(twin) == shown(model)
    enable(twin)
    assert decided(twin, ids) == ["low", None] and decided(model, ids) == ["mixed", None]
    ungraft(model, "low")
    assert decided(twin, ids) == ["low", None]
    enable(model)
    assert shown(model) == {"dense": (1.0, True), "mixed": (1.0, True)}
    ungraft(model)
    assert grafted_packs(model) == () and bits(model) == bits(load_model(llama / "base"))


@pytest.mark.parametrize("memory", ["weights", "codes"])
@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_a_copy_does_not_read_the_model_that_it_was_copied_from(places: Callable[[str], Path], kind: str, memory: str):
    model, ids = routed(places(kind), memory=memory), some_ids(5)
    expected = logits(model, ids, pack_choices=CHOICES)
    twin = copy.deepcopy(model)
    ungraft(model)
    for parameter in model.parameters():
        parameter.data.zero_()
    assert torch.equal(logits(twin, ids, pack_choices=CHOICES), expected)
    set_weights(twin, {"dense": 0.5})
    fresh = routed(places(kind), memory=memory, weights=[1.0, 1.0, 0.5])
    assert torch.equal(*(logits(one, ids, pack_choices=CHOICES) for one in (twin, fresh)))


def grafted_block(model: Any) -> Any:
    """Return a block in which a further pack is routed and all are on."""
    folder = Path(str(grafted_packs(model)[0].pack.folder)).parent
    if not (folder / "more").exists():
        build_lowrank_pack(folder / "base", folder / "more", seed=7)
    router = Ranking(("low", "mixed", "dense", "more"))

    class Block:
        def __enter__(self) -> None:
            self.inner = grafted(
                model, [folder / "more"], mode="routed", router=router, trust_base=True, notice=lambda _: None
            )
            self.inner.__enter__()
            enable(model)

        def __exit__(self, *error: Any) -> None:
            self.inner.__exit__(*error)

    return Block()


def test_a_model_without_packs_has_none_to_change(llama: Path):
    model = load_model(llama / "base")
    for change in (disable, enable, ungraft):
        with pytest.raises(UsageError, match="no grafted pack"):
            change(model)
    assert grafted_packs(model) == ()


# Memory


def test_stacks_of_factors_take_no_more_than_so_much_memory(llama: Path):
    model, ids = routed(llama, executor="factored", memory="factors"), some_ids(4)
    sites = [site for site in present_routing(model).sites if site.factors]
    stacks = sites[0].siblings.stacks  # type: ignore[union-attr]
    assert all(site.siblings is not None and site.siblings.stacks is stacks for site in sites)
    factors = sum(4 * one.elements for site in sites for one in site.factors.values())
    assert stacks.limit == factors
    sets = [set(names) for count in (1, 2, 3) for names in itertools.combinations((*NAMES, None), count)]
    for names in [*sets, *sets]:
        chosen = [*names, *names, *names, *names][:4]
        found = logits(model, ids, pack_choices=chosen)
        kept = [stack for places in stacks._sets.values() for stack in places.values()]
        assert sum(stack.nbytes for stack in kept) == stacks._bytes <= stacks.limit
        assert len({stack.right.data_ptr() for stack in kept}) == len(kept)
        fresh = routed(llama, executor="factored", memory="factors")
        assert torch.equal(found, logits(fresh, ids, pack_choices=chosen))


def test_a_set_of_packs_that_alone_is_too_large_is_kept_while_it_is_used():
    made: list[Any] = []

    def stack() -> Stack:
        made.append(1)
        return Stack(torch.zeros(4, 4), None, [torch.zeros(4, 4)], [(0, 4)], ((0, 4),))

    stacks = Stacks(limit=100)  # each takes 128 bytes
    for packs, places, count in (((0, 1), "ab", 2), ((0, 1), "ab", 2), ((1,), "a", 3), ((0, 1), "ab", 5)):
        for place in places:
            stacks.get(packs, place, stack)
        assert len(made) == count and list(stacks._sets) == [packs]
    assert stacks._bytes == 256


# Parts


def test_decisions_about_different_packs_are_merged_by_name():
    first = Decision(("a", "b"), (1, None, 0), torch.tensor([[1.0, 2], [3, 4], [5, 6]]))
    found = merged(first, Decision(("c", "b"), (0,), torch.tensor([[7.0, 8]])), [1])
    assert found.labels == ("b", "c", "a")
    assert found.packs == ("c", "b", "a") and found.scores is not None
    assert found.scores.tolist() == [[0, 2, 1], [7, 8, 0], [0, 6, 5]]
    soft = merged(Decision((), (None, None)), Decision(("a",), (0,), None, torch.tensor([[0.25]])), [1])
    assert soft.mixture is not None and soft.mixture.tolist() == [[0], [0.25]]


def test_a_decision_is_narrowed_to_the_packs_that_rows_have():
    mixture = torch.tensor([[0.0, 0.5, 0, 0], [0, 0, 0, 0]])
    found = narrowed(Decision(("a", "b", "c", "d"), (3, None), torch.ones(2, 4), mixture))
    assert found.packs == ("b", "d") and found.labels == ("d", None)
    assert found.mixture is not None and found.mixture.tolist() == [[0.5, 0], [0, 0]]
    assert narrowed(Decision(("a", "b"), (None, None))).packs == ()


def test_packs_that_are_off_count_for_nothing():
    decision = Decision(("a", "b"), (0, 1), None, torch.tensor([[0.6, 0.4], [0.3, 0.7]]))
    found = without(decision, {"a"})
    assert found.labels == ("b", "b") and found.mixture is not None
    assert torch.equal(found.mixture, torch.tensor([[0.0, 0.4], [0.0, 0.7]]))
    assert without(decision, {"c"}) is decision and without(decision, {"a", "b"}).labels == (None, None)
