"""Changing what is grafted: weights, on and off, for a block; what somebody else changed; failures in the middle."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import skillhub
from skillhub.compose.grafts import disable, enable, graft, grafted, grafted_packs, set_weights, ungraft
from skillhub.errors import IntegrityError, NotFoundError, SkillhubError, UsageError
from skillhub.layout import ViewSlot
from tests.support.tiny_models import bits, build_pack, load_model, save_model, tune


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with ``base``, ``tuned`` and the packs ``one`` (exact) and ``two`` (lossy, of layer 1 only)."""
    folder = tmp_path_factory.mktemp("models")
    base = save_model("llama", folder / "base")
    build_pack(tune(base, folder / "tuned"), base, folder / "one", name="one")
    build_pack(
        tune(base, folder / "more", seed=2, size=0.02, only="layers.1"), base, folder / "two", name="two", lossy=True
    )
    return folder


@pytest.fixture
def model(place: Path) -> Any:
    return load_model(place / "base")


def counting(seen: list[int]) -> Callable[[str, int, int], None]:
    return lambda what, done, total: seen.append(total)


def test_only_the_tensors_that_a_change_matters_to_are_computed_again(model: Any, place: Path):
    graft(model, [place / "one", place / "two"], rounding="nearest")
    every, part = len(model.state_dict()), len([name for name in model.state_dict() if "layers.1" in name])
    for change, expected in (
        (lambda progress: set_weights(model, {"two": 0.5}, progress=progress), part),
        (lambda progress: set_weights(model, {"two": 0.5}, progress=progress), 0),
        (lambda progress: disable(model, "two", progress=progress), part),
        (lambda progress: enable(model, progress=progress), part),
        (lambda progress: set_weights(model, {"one": {"embed": 0.0, "": 1.0}}, progress=progress), 1),
        (lambda progress: ungraft(model, "two", progress=progress), part),
        (lambda progress: ungraft(model, progress=progress), every - 1),
    ):
        seen: list[int] = []
        change(counting(seen))
        assert len(seen) == expected and set(seen) <= {expected}
    assert bits(model) == bits(load_model(place / "base"))


def test_weights_may_be_schedules_and_are_shown(model: Any, place: Path):
    graft(model, [place / "one", place / "two"], weights=[1.0, 0.5])
    skillhub.set_weights(model, {"one": {"mlp": [0.0, 1.0]}, place / "two": -1})
    skillhub.disable(model, "two")
    shown = {item.pack.manifest.name: (str(item.weight), item.enabled) for item in skillhub.grafted_packs(model)}
    assert shown == {"one": ("mlp: [0, 1]", True), "two": ("-1.0", False)}
    expected = graft(load_model(place / "base"), [place / "one"], weights=[{"mlp": [0.0, 1.0]}])
    assert bits(model) == bits(expected)
    skillhub.enable(model, "two")
    graft(expected, [place / "two"], weights=[-1])
    assert bits(model) == bits(expected)


def test_changes_that_make_no_sense_are_refused_and_the_model_stays(model: Any, place: Path):
    with pytest.raises(UsageError, match="no grafted pack"):
        set_weights(model, {"one": 1})
    graft(model, [place / "one"])
    before = bits(model)
    attempts: list[tuple[type[SkillhubError], str, Callable[[], Any]]] = [
        (NotFoundError, "two is not grafted", lambda: set_weights(model, {"one": 0.5, "two": 1})),
        (NotFoundError, "two is not grafted", lambda: disable(model, "two")),
        (NotFoundError, "two is not grafted", lambda: enable(model, place / "two")),
        (UsageError, "no number for weights", lambda: set_weights(model, {"one": "much"})),
        (UsageError, "which pack has which", lambda: set_weights(model, [0.5])),
        (UsageError, "is not a pack", lambda: disable(model, 3)),
        (UsageError, "too much for weights", lambda: set_weights(model, {"one": 1e9})),
    ]
    for kind, message, attempt in attempts:
        with pytest.raises(kind, match=message) as caught:
            attempt()
        assert caught.value.hint
        assert bits(model) == before and [item.weight for item in grafted_packs(model)] == [1.0]


def test_a_pack_that_was_damaged_meanwhile_cannot_be_weighed_anew_but_leaves_and_stays_off(place: Path, tmp_path: Path):
    pack = build_pack(place / "more", place / "base", tmp_path / "late", name="late", lossy=True)
    model = graft(load_model(place / "base"), [place / "one", pack])
    before = bits(model)
    for path in sorted(tmp_path.rglob("delta-*.safetensors")):
        path.write_bytes(path.read_bytes()[:-40] + b"\x01" * 40)
    with pytest.raises(IntegrityError):
        set_weights(model, {"late": 0.5})
    assert bits(model) == before and all(item.weight == 1.0 for item in grafted_packs(model))
    disable(model, "late")
    assert bits(model) == bits(graft(load_model(place / "base"), [place / "one"]))
    with pytest.raises(IntegrityError):
        enable(model, "late")
    ungraft(model, "late")
    assert bits(model) == bits(load_model(place / "tuned"))


def test_a_block_keeps_packs_that_were_there_and_their_weights(model: Any, place: Path):
    graft(model, [place / "one"], weights=[0.5])
    before = bits(model)
    with skillhub.grafted(model, [place / "two"], weights=[2.0]) as inside:
        assert inside is model and len(grafted_packs(model)) == 2
        disable(model, "one")
        set_weights(model, {"one": 3})
    assert bits(model) == before
    assert [(item.weight, item.enabled) for item in grafted_packs(model)] == [(0.5, True)]
    with pytest.raises(UsageError, match="there twice"), grafted(model, [place / "one"]):
        raise AssertionError("the block does not run")
    assert bits(model) == before


def test_a_block_that_takes_everything_out_ends_as_it_began(model: Any, place: Path):
    before = bits(model)
    with grafted(model, [place / "one"]):
        ungraft(model)
    assert bits(model) == before and grafted_packs(model) == ()
    graft(model, [place / "two"])
    before = bits(model)
    with grafted(model, [place / "one"]):
        ungraft(model)
    assert bits(model) == before and [str(item.pack.name) for item in grafted_packs(model)] == ["two"]


def train_a_step(model: Any) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    tokens = torch.tensor([[3, 4, 5, 6]])
    model(tokens, labels=tokens).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def nudge(model: Any) -> None:
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[2, 3] += 1


def nudge_data(model: Any) -> None:
    model.model.layers[0].mlp.up_proj.weight.data.mul_(1.5)


@pytest.mark.parametrize("change", [train_a_step, nudge, nudge_data])
def test_what_was_trained_is_not_dropped_unless_that_is_said(model: Any, place: Path, change: Callable[[Any], None]):
    graft(model, [place / "one", place / "two"])
    change(model)
    trained = bits(model)
    for attempt in (
        lambda: ungraft(model),
        lambda: ungraft(model, "two"),
        lambda: set_weights(model, {"one": 0.5}),
        lambda: disable(model),
        lambda: graft(model, [build_pack(place / "tuned", place / "base", place / change.__name__, name="three")]),
    ):
        with pytest.raises(SkillhubError) as caught:
            attempt()
        assert "changed since packs were grafted" in caught.value.message or "does not fit" in caught.value.message
        assert bits(model) == trained and len(grafted_packs(model)) == 2
    ungraft(model, "two", force=True)
    assert bits(model) == bits(load_model(place / "tuned"))
    ungraft(model)
    assert bits(model) == bits(load_model(place / "base"))


def test_training_inside_a_block_is_not_dropped(model: Any, place: Path):
    with pytest.raises(UsageError, match="changed since packs were grafted"), grafted(model, [place / "one"]):
        train_a_step(model)
    ungraft(model, force=True)
    assert bits(model) == bits(load_model(place / "base"))


def test_reading_copying_and_converting_is_no_change(model: Any, place: Path):
    graft(model, [place / "one", place / "two"])
    model(torch.tensor([[3, 4]]))
    twin = copy.deepcopy(model)
    nudge(twin)
    with pytest.raises(UsageError, match="changed since"):
        ungraft(twin)
    for convert in (torch.nn.Module.float, torch.nn.Module.half, torch.nn.Module.float, torch.nn.Module.bfloat16):
        convert(model)
        set_weights(model, {"two": 0.5})
        disable(model, "two")
        enable(model, "two")
    again = copy.deepcopy(model)
    ungraft(model)
    ungraft(again)
    base = dict(load_model(place / "base").named_parameters())
    for one in (model, again):
        assert all(torch.equal(parameter, base[name]) for name, parameter in one.named_parameters())


def test_parameters_of_inference_mode_take_packs_too(place: Path):
    with torch.inference_mode():
        model = load_model(place / "base")
        graft(model, [place / "one"])
        set_weights(model, {"one": 0.5})
        model.model.norm.weight.mul_(2)
        with pytest.raises(UsageError, match="changed since"):
            ungraft(model)
        ungraft(model, force=True)
    assert bits(model) == bits(load_model(place / "base"))


class Failing:
    """Lets the n-th write of a tensor fail, before it, half-way or after it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, how: str, error: type[BaseException]) -> None:
        self.writes, write = 0, ViewSlot._write

        def failing(slot: ViewSlot, tensor: torch.Tensor) -> None:
            self.writes += 1
            if self.writes != at:
                return write(slot, tensor)
            if how == "half":
                slot.read()[: len(tensor) // 2].copy_(tensor[: len(tensor) // 2])
            if how == "after":
                write(slot, tensor)
            raise error("no more")

        monkeypatch.setattr(ViewSlot, "_write", failing)


@pytest.mark.parametrize("how", ["before", "half", "after"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_write_that_fails_leaves_everything_as_it_was(
    place: Path, monkeypatch: pytest.MonkeyPatch, how: str, error: type[BaseException]
):
    steps: list[Callable[[Any], Any]] = [
        lambda model: graft(model, [place / "one"]),
        lambda model: graft(model, [place / "two"], weights=[0.5]),
        lambda model: set_weights(model, {"one": -1, "two": 2}),
        lambda model: disable(model, "one"),
        lambda model: enable(model),
        lambda model: ungraft(model, "two"),
        lambda model: ungraft(model),
    ]
    model = load_model(place / "base")
    for number, step in enumerate(steps):
        before, packs = bits(model), grafted_packs(model)
        for at in (1, 3, 9):
            with monkeypatch.context() as patch:
                Failing(patch, at, how, error)
                with pytest.raises(error, match="no more"):
                    step(model)
            assert bits(model) == before, (number, at)
            assert grafted_packs(model) == packs
        step(model)
    assert bits(model) == bits(load_model(place / "base"))


def test_a_second_interruption_waits_until_the_model_is_whole(model: Any, place: Path, monkeypatch: pytest.MonkeyPatch):
    before, write, writes = bits(model), ViewSlot._write, [0]

    def impatient(slot: ViewSlot, tensor: torch.Tensor) -> None:
        writes[0] += 1
        if writes[0] in (6, 7, 9):
            raise KeyboardInterrupt
        write(slot, tensor)

    monkeypatch.setattr(ViewSlot, "_write", impatient)
    with pytest.raises(KeyboardInterrupt):
        graft(model, [place / "one"])
    assert writes[0] > 9 and bits(model) == before and grafted_packs(model) == ()
