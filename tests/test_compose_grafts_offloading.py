"""Models that accelerate spreads over devices, CPU memory and disk."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch

from skillhub.compose.grafts import disable, enable, graft, grafted_packs, set_weights, ungraft
from skillhub.errors import IntegrityError, UsageError, WrongBaseError
from tests.support.tiny_models import bits, build_pack, load_model, save_model, tune, with_entry

TOKENS = torch.tensor([[3, 4, 5, 6]])
MIXED = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu", "lm_head": "cpu"}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Kind → folder with ``base`` and the packs ``one`` (exact) and ``two`` (lossy)."""
    root = tmp_path_factory.mktemp("models")

    @functools.cache
    def place(kind: str) -> Path:
        folder = root / kind
        base = save_model(kind, folder / "base")
        build_pack(tune(base, folder / "tuned", size=0.1), base, folder / "one", name="one")
        build_pack(tune(base, folder / "more", seed=2, size=0.1), base, folder / "two", name="two", lossy=True)
        return folder

    return place


def loaded(folder: Path, **options: Any) -> Any:
    import transformers

    kind = getattr(transformers, transformers.AutoConfig.from_pretrained(folder).architectures[0])
    return kind.from_pretrained(folder, **options)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(TOKENS).logits
    return result


def offloaded(folder: Path) -> Any:
    return accelerate.cpu_offload(load_model(folder), execution_device=torch.device("cpu"))


@pytest.mark.parametrize("kind", ["llama", "tied", "gpt2", "mixtral"])
def test_a_model_in_cpu_memory_is_grafted_there(places: Callable[[str], Path], kind: str):
    place = places(kind)
    model, plain = offloaded(place / "base"), load_model(place / "base")
    assert all(parameter.device.type == "meta" for parameter in model.parameters())
    before = logits(model)
    steps: list[Callable[[Any], Any]] = [
        lambda one: graft(one, [place / "one"]),
        lambda one: graft(one, [place / "two"], weights=[0.5]),
        lambda one: set_weights(one, {"one": -1}),
        lambda one: disable(one, "two"),
        lambda one: enable(one),
        lambda one: ungraft(one, "one"),
    ]
    for step in steps:
        step(model)
        step(plain)
        assert torch.equal(logits(model), logits(plain))
        assert all(parameter.device.type == "meta" for parameter in model.parameters())
    ungraft(model)
    assert torch.equal(logits(model), before) and grafted_packs(model) == ()
    accelerate.hooks.remove_hook_from_module(model, recurse=True)


def test_a_failing_graft_leaves_offloaded_weights_as_they_were(places: Callable[[str], Path], tmp_path: Path):
    place = places("llama")
    pack = build_pack(place / "tuned", place / "base", tmp_path / "bad", name="bad")
    with_entry(pack, "norm.weight", digest="0" * 64)
    model = offloaded(place / "base")
    before = logits(model)
    with pytest.raises(IntegrityError):
        graft(model, [tmp_path / "bad"], verify="full")
    assert torch.equal(logits(model), before)
    with pytest.raises(WrongBaseError, match="does not fit this model"):
        graft(offloaded(place / "tuned"), [place / "one"])


def test_a_device_map_of_one_device_changes_nothing(places: Callable[[str], Path]):
    place = places("llama")
    model = loaded(place / "base", device_map={"": "cpu"})
    before = bits(model)
    graft(model, [place / "one"])
    assert bits(model) == bits(load_model(place / "tuned"))
    ungraft(model)
    assert bits(model) == before


def test_a_model_of_which_a_part_is_in_cpu_memory_is_grafted(places: Callable[[str], Path]):
    place = places("llama")
    model = load_model(place / "base")
    accelerate.hooks.attach_align_device_hook(model.model.layers[1], execution_device=torch.device("cpu"), offload=True)
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu", "meta"}
    before = logits(model)
    graft(model, [place / "one"])
    assert torch.equal(logits(model), logits(load_model(place / "tuned")))
    ungraft(model)
    assert torch.equal(logits(model), before)


def test_a_model_that_is_offloaded_to_disk_is_refused_and_its_files_stay(places: Callable[[str], Path], tmp_path: Path):
    place = places("llama")
    content = (place / "base" / "model.safetensors").read_bytes()
    places_of = {**MIXED, "model.layers.0": "cpu", "model.layers.1": "disk"}
    for model in (
        loaded(place / "base", device_map=places_of, offload_folder=tmp_path / "one"),
        accelerate.disk_offload(
            load_model(place / "base"), str(tmp_path / "two"), execution_device=torch.device("cpu")
        ),
    ):
        before = logits(model)
        for trust in (False, True):
            with pytest.raises(UsageError, match="is offloaded to disk") as caught:
                graft(model, [place / "one"], trust_base=trust)
        assert "skillhub fuse" in caught.value.hint
        assert torch.equal(logits(model), before) and grafted_packs(model) == ()
    assert (place / "base" / "model.safetensors").read_bytes() == content
