"""Grafted models in what people put models into: torch.compile, the Trainer, FSDP, checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from skillhub.compose.grafts import disable, graft, grafted, grafted_packs, set_weights, ungraft
from skillhub.errors import UsageError, WrongBaseError
from tests.support.tiny_models import bits, build_pack, load_model, save_model, tune

TOKENS = torch.tensor([[3, 4, 5, 6]])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with ``base``, ``tuned`` and the packs ``one`` and ``two``."""
    folder = tmp_path_factory.mktemp("models")
    base = save_model("llama", folder / "base")
    build_pack(tune(base, folder / "tuned", size=0.1), base, folder / "one", name="one")
    build_pack(tune(base, folder / "more", seed=2, size=0.1), base, folder / "two", name="two", lossy=True)
    return folder


@pytest.fixture
def model(place: Path) -> Any:
    return load_model(place / "base")


@pytest.fixture
def compiling() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("compiling")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("grafts_first", [True, False])
def test_a_compiled_model_follows_its_packs_without_compiling_anew(place: Path, backend: str, grafts_first: bool):
    model, plain = load_model(place / "base"), load_model(place / "base")
    if grafts_first:
        graft(model, [place / "one"])
    compiled: Any = torch.compile(model, backend=backend)
    steps: list[Callable[[Any], Any]] = [
        lambda one: one,
        lambda one: graft(one, [place / "two"], weights=[0.5]),
        lambda one: set_weights(one, {"two": -1}),
        lambda one: disable(one, "one"),
        lambda one: ungraft(one),
    ]
    graft(plain, [place / "one"])
    if not grafts_first:
        compiled(TOKENS)
        assert graft(compiled, [place / "one"]) is compiled
    for step in steps:
        assert step(compiled) is compiled
        step(plain)
        assert bits(model) == bits(plain) and grafted_packs(compiled) == grafted_packs(plain)
        with torch.no_grad():
            assert torch.equal(compiled(TOKENS).logits, plain(TOKENS).logits)
    assert bits(model) == bits(load_model(place / "base"))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2  # one with gradients, one without


@pytest.mark.usefixtures("compiling")
def test_a_block_on_a_compiled_model_gives_it_back(place: Path, model: Any):
    before = bits(model)
    compiled: Any = torch.compile(model, backend="eager")
    with grafted(compiled, [place / "one"]) as inside:
        assert inside is compiled
        assert torch.equal(inside(TOKENS).logits, load_model(place / "tuned")(TOKENS).logits)
    assert bits(model) == before


def test_the_trainer_trains_the_grafted_weights_which_are_then_kept(place: Path, model: Any, tmp_path: Path):
    from transformers import Trainer, TrainingArguments

    graft(model, [place / "one"])
    before = bits(model)
    rows = [{"input_ids": TOKENS[0], "labels": TOKENS[0]}] * 2
    settings = TrainingArguments(
        tmp_path / "run",
        max_steps=1,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        seed=1,
    )
    Trainer(model, settings, train_dataset=rows).train()
    trained = bits(model)
    assert trained != before
    with pytest.raises(UsageError, match="the model was trained") as caught:
        ungraft(model)
    assert "force=True" in caught.value.hint and bits(model) == trained
    model.save_pretrained(tmp_path / "saved")
    assert bits(load_model(tmp_path / "saved")) == trained
    ungraft(model, force=True)
    assert bits(model) == bits(load_model(place / "base"))


def test_a_saved_model_has_the_grafted_weights_and_no_grafts(place: Path, model: Any, tmp_path: Path):
    graft(model, [place / "one"])
    model.save_pretrained(tmp_path / "saved")
    saved = load_model(tmp_path / "saved")
    assert bits(saved) == bits(load_model(place / "tuned")) and grafted_packs(saved) == ()
    with pytest.raises(WrongBaseError, match="21 of 21 tensors differ"):
        graft(saved, [place / "one"])
    ungraft(model)
    assert bits(model) == bits(load_model(place / "base"))


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_a_grafted_model_is_sharded_and_a_sharded_one_is_not_grafted(place: Path, model: Any):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (1,))
    graft(model, [place / "one"])
    for layer in (*model.model.layers, model):
        fully_shard(layer, mesh=mesh)
    assert torch.equal(model(TOKENS).logits, load_model(place / "tuned")(TOKENS).logits)
    for attempt in (
        lambda: ungraft(model),
        lambda: set_weights(model, {"one": 0.5}),
        lambda: graft(model, [place / "two"]),
        lambda: graft(fully_shard(load_model(place / "base"), mesh=mesh), [place / "two"]),
    ):
        with pytest.raises(UsageError, match="The model is sharded") as caught:
            attempt()
        assert "before the model is wrapped" in caught.value.hint
    assert torch.equal(model(TOKENS).logits, load_model(place / "tuned")(TOKENS).logits)


def test_a_wrapped_model_is_refused_with_the_remedy(place: Path, model: Any):
    with pytest.raises(UsageError, match="DataParallel is not a model of transformers") as caught:
        graft(torch.nn.DataParallel(model), [place / "one"])
    assert "not one that wraps it" in caught.value.hint
