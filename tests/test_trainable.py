"""Going on to train a pack, and packing it again."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import skillhub
from skillhub.authorfile import AuthorFile
from skillhub.compose.grafts import disable, graft, grafted, grafted_packs, set_weights, ungraft
from skillhub.compose.sidepaths import LEFT, RIGHT
from skillhub.errors import IntegrityError, UsageError, WrongBaseError
from tests.support.lowrank_packs import build_lowrank_pack
from tests.support.tiny_models import bits, build_pack, load_model, save_model, tune, with_entry

TOKENS = torch.tensor([[3, 4, 5, 6, 7], [9, 8, 7, 6, 5]])
AGAIN = AuthorFile(name="again", version="2.0.0", summary="Trained on.", license="apache-2.0")


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a base and the packs ``low`` (factors, norms exact) and ``dense``."""
    folder = tmp_path_factory.mktemp("models")
    sizes = {"llama": {"hidden_size": 32, "intermediate_size": 48}, "gpt2": {"n_embd": 32}}[request.param]
    base = save_model(request.param, folder / "base", **sizes)
    build_lowrank_pack(base, folder / "low", name="low", size=0.02, dense="norm|ln_")
    build_pack(tune(base, folder / "tuned", size=0.02), base, folder / "dense", name="dense", lossy=True)
    return folder


@pytest.fixture
def model(place: Path) -> Any:
    return load_model(place / "base")


def gradients(model: Any) -> dict[str, bool]:
    return {name: parameter.requires_grad for name, parameter in model.named_parameters()}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(TOKENS).logits
    return result.float()


def train(model: Any, steps: int = 30) -> list[float]:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=0.01)
    losses = []
    for _ in range(steps):
        loss = model(TOKENS, labels=TOKENS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def relative(error: torch.Tensor, of: torch.Tensor) -> float:
    return float(error.norm() / of.norm())


def test_only_the_factors_are_trained_and_the_model_computes_as_if_grafted(place: Path, model: Any):
    before = logits(model)
    graft(model, [place / "low"], trainable=True)
    moved = logits(graft(load_model(place / "base"), [place / "low"])) - before
    assert relative(logits(model) - before - moved, moved) < 0.05
    trained = {name for name, wanted in gradients(model).items() if wanted}
    assert {name.rpartition(".")[2] for name in trained} == {LEFT, RIGHT}
    assert {parameter.dtype for name, parameter in model.named_parameters() if name in trained} == {torch.float32}
    kept = {name: raw for name, raw in bits(model).items() if name not in trained}
    losses = train(model, steps=3)
    assert losses[-1] < losses[0]
    assert {name: raw for name, raw in bits(model).items() if name not in trained} == kept


def test_a_pack_is_trained_packed_again_and_grafted_onto_a_fresh_base(place: Path, model: Any, tmp_path: Path):
    original, flags, before = bits(model), gradients(model), logits(model)
    graft(model, [place / "low"], trainable=True)
    losses = train(model)
    assert losses[-1] < losses[0] - 0.3
    learned = logits(model)
    pack = skillhub.pack_grafted(model, tmp_path / "again", metadata=AGAIN, budget_bytes=200_000)
    assert str(pack) == "again 2.0.0" and torch.equal(logits(model), learned)
    fresh = graft(load_model(place / "base").float(), [pack])
    assert relative(logits(fresh) - learned, learned - before) < 0.05
    fresh = graft(load_model(place / "base"), [pack])
    assert relative(logits(fresh) - learned, learned - before) < 0.1
    ungraft(model)
    assert bits(model) == original and gradients(model) == flags and grafted_packs(model) == ()
    assert not list(tmp_path.glob(".*"))


def test_what_was_learned_is_not_dropped_unless_packed_or_forced(place: Path, model: Any, tmp_path: Path):
    original, flags = bits(model), gradients(model)
    graft(model, [place / "low"], trainable=True)
    twin = copy.deepcopy(model)
    train(model, steps=2)
    learned = bits(model)
    for attempt, message in (
        (lambda: ungraft(model), "changed since packs were grafted"),
        (lambda: set_weights(model, {"low": 0.5}), "is being trained"),
        (lambda: disable(model), "is being trained"),
        (lambda: graft(model, [place / "dense"]), "is being trained"),
    ):
        with pytest.raises(UsageError, match=message) as caught:
            attempt()
        assert "skillhub.pack_grafted" in caught.value.hint and bits(model) == learned
    ungraft(model, force=True)
    ungraft(twin, "low")
    assert bits(model) == bits(twin) == original and gradients(model) == gradients(twin) == flags


def test_packs_that_cannot_be_trained_are_refused_and_the_model_stays(place: Path, model: Any):
    original, flags = bits(model), gradients(model)
    attempts: list[tuple[str, Callable[[], Any]]] = [
        ("holds no low-rank factors", lambda: graft(model, [place / "dense"], trainable=True)),
        ("One pack is trained", lambda: graft(model, [place / "low", place / "dense"], trainable=True)),
        ("One pack is trained", lambda: graft(model, [place / "low"], method="ties", trainable=True)),
    ]
    for message, attempt in attempts:
        with pytest.raises(UsageError, match=message) as caught:
            attempt()
        assert caught.value.hint and bits(model) == original and gradients(model) == flags
    graft(model, [place / "dense"])
    with pytest.raises(UsageError, match="One pack is trained"):
        graft(model, [place / "low"], trainable=True)
    assert gradients(model) == flags


@pytest.mark.parametrize("stop", ["damage", "interrupt"])
def test_a_failure_leaves_no_parameters_and_no_frozen_ones(place: Path, model: Any, tmp_path: Path, stop: str):
    pack = build_lowrank_pack(place / "base", tmp_path / "bad", name="bad", seed=3)
    names = sorted(pack.manifest.variants[0].codec.tensors)

    def interrupt(what: str, done: int, total: int) -> None:
        if done == total - 1:
            raise KeyboardInterrupt

    if stop == "damage":
        with_entry(pack, names[-2], digest="0" * 64)
    original, flags = bits(model), gradients(model)
    with pytest.raises(IntegrityError if stop == "damage" else KeyboardInterrupt):
        listen = interrupt if stop == "interrupt" else None
        graft(model, [tmp_path / "bad"], trainable=True, verify="full", progress=listen)
    assert bits(model) == original and gradients(model) == flags and grafted_packs(model) == ()


def test_a_block_ends_without_a_trace_unless_something_was_learned(place: Path, model: Any, tmp_path: Path):
    original = bits(model)
    with grafted(model, [place / "low"], trainable=True):
        pass
    assert bits(model) == original
    with grafted(model, [place / "low"], trainable=True):
        train(model, steps=2)
        skillhub.pack_grafted(model, tmp_path / "again", metadata=AGAIN)
    assert bits(model) == original


def test_weights_that_were_trained_in_place_are_packed_as_they_are(place: Path, model: Any, tmp_path: Path):
    before = logits(model)
    graft(model, [place / "dense"])
    train(model.float(), steps=5)
    learned = logits(model)
    pack = skillhub.pack_grafted(model, tmp_path / "again", metadata=AGAIN, budget_bytes=300_000)
    fresh = graft(load_model(place / "base").float(), [pack])
    assert relative(logits(fresh) - learned, learned - before) < 0.05


def test_composed_packs_are_packed_as_one_without_rounding_noise(place: Path, model: Any, tmp_path: Path):
    exact = graft(load_model(place / "base").float(), [place / "low", place / "dense"], weights=[1.0, 0.5])
    graft(model, [place / "low", place / "dense"], weights=[1.0, 0.5])
    pack = skillhub.pack_grafted(model, tmp_path / "both", metadata=AGAIN, budget_bytes=300_000)
    fresh, before = graft(load_model(place / "base").float(), [pack]), logits(load_model(place / "base").float())
    assert relative(logits(fresh) - logits(exact), logits(exact) - before) < 0.02


def test_the_base_must_be_known_and_the_right_one(place: Path, model: Any, tmp_path: Path):
    with pytest.raises(UsageError, match="no grafted pack"):
        skillhub.pack_grafted(model, tmp_path / "again", metadata=AGAIN)
    graft(model, [place / "low"])
    with pytest.raises(WrongBaseError, match="is not the base"):
        skillhub.pack_grafted(model, tmp_path / "again", metadata=AGAIN, base=place / "tuned")
    model.config._name_or_path = model.name_or_path = ""
    with pytest.raises(UsageError, match="not known") as caught:
        skillhub.pack_grafted(model, tmp_path / "again", metadata=AGAIN)
    assert "base=" in caught.value.hint and not (tmp_path / "again").exists()
    nothing: Any
    for nothing in (None, {"name": "again"}):
        with pytest.raises(UsageError, match="metadata says name and version"):
            skillhub.pack_grafted(model, tmp_path / "again", metadata=nothing)
    skillhub.pack_grafted(model, tmp_path / "again", metadata=AGAIN, base=place / "base")
