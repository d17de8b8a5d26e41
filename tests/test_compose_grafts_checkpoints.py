"""Whole fine-tuned checkpoints on a model in memory: the bits that fusing them writes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from safetensors.torch import load_file

from skillhub.compose.fusion import fuse
from skillhub.compose.grafts import disable, enable, graft, grafted_packs, set_weights, ungraft
from skillhub.compose.modelbases import ModelBase
from skillhub.compose.routed import graft_routed
from skillhub.compose.tunedcheckpoints import open_tuned
from skillhub.errors import NotFoundError, SkillhubError, UsageError, WrongBaseError
from skillhub.layout import layout_of
from skillhub.tensorfiles import read_header
from tests.support.peft_adapters import make_adapter
from tests.support.tiny_models import bits, build_pack, load_model, make_model, rewrite, save_model, tune

KINDS = ("llama", "tied", "gpt2", "bert", "t5", "t5_untied", "mixtral", "qwen2_moe", "gemma")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Kind → folder with ``base``, the fine-tunes ``one`` and ``two``, and a lossy pack of another."""
    root = tmp_path_factory.mktemp("checkpoints")

    @functools.cache
    def place(kind: str) -> Path:
        base = save_model(kind, root / kind / "base")
        tune(base, root / kind / "one", seed=1, size=0.02)
        tune(base, root / kind / "two", seed=2, size=0.02)
        tuned = tune(base, root / kind / "three", seed=3, size=0.02)
        build_pack(tuned, base, root / kind / "pack", name="pack", lossy=True)
        return root / kind

    return place


@pytest.fixture
def llama(places: Callable[[str], Path]) -> Path:
    return places("llama")


def logits(model: Any, **options: Any) -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = model(torch.tensor([[3, 4, 5, 6], [7, 8, 9, 10]]), **options).logits
    return output


@pytest.mark.parametrize("kind", KINDS)
def test_grafting_checkpoints_gives_the_bits_of_fusing_them(places: Callable[[str], Path], tmp_path: Path, kind: str):
    folder = places(kind)
    sources = [folder / "one", folder / "two"]
    for number, options in enumerate(
        ({"weights": [0.5, -0.25]}, {"method": "ties", "densities": [0.5, 0.3]}, {"method": "dare_linear", "seed": 4})
    ):
        expected = load_model(fuse(folder / "base", sources, tmp_path / str(number), **options))
        model = graft(load_model(folder / "base"), sources, **options)
        assert bits(model) == bits(expected)
        ungraft(model)
        assert bits(model) == bits(load_model(folder / "base"))


def test_a_single_checkpoint_of_weight_1_gives_itself(llama: Path):
    assert bits(graft(load_model(llama / "base"), [llama / "one"])) == bits(load_model(llama / "one"))


def test_packs_adapters_and_checkpoints_share_a_model(llama: Path, tmp_path: Path):
    lora = make_adapter(llama / "base", tmp_path / "lora", target_modules=["q_proj", "up_proj"])
    sources = [llama / "pack", llama / "one", lora]
    for number, method in enumerate(("linear", "ties")):
        fused = fuse(llama / "base", sources, tmp_path / str(number), method=method)
        model = graft(load_model(llama / "base"), sources, method=method, notice=lambda _: None)
        assert bits(model) == bits(load_model(fused))


def test_every_change_is_computed_from_the_originals(llama: Path, tmp_path: Path):
    def expected(**weights: float) -> dict[str, bytes]:
        sources = [llama / name for name in weights]
        out = tmp_path / "-".join(f"{name}{weight}" for name, weight in weights.items())
        return bits(load_model(fuse(llama / "base", sources, out, weights=list(weights.values()))))

    model = graft(load_model(llama / "base"), [llama / "one"])
    graft(model, [llama / "two", llama / "pack"], weights=[0.5, 1.0])
    assert bits(model) == expected(one=1.0, two=0.5, pack=1.0)
    set_weights(model, {"one": -1.0, open_tuned(llama / "two"): 2.0})
    assert bits(model) == expected(one=-1.0, two=2.0, pack=1.0)
    disable(model, llama / "one")
    assert bits(model) == expected(two=2.0, pack=1.0)
    ungraft(model, f"checkpoint:{llama / 'two'}")
    assert bits(model) == expected(pack=1.0)
    enable(model)
    assert bits(model) == expected(one=-1.0, pack=1.0)
    assert [str(item.pack.name) for item in grafted_packs(model)] in (["one", "pack"], ["pack", "one"])
    ungraft(model, "pack")
    ungraft(model, "one")
    assert bits(model) == bits(load_model(llama / "base"))
    with pytest.raises(UsageError, match="no grafted pack"):
        ungraft(model, "one")


def test_an_untied_copy_of_a_tensor_takes_what_the_tensor_takes_from_before_it_changed(llama: Path, tmp_path: Path):
    def copied(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {**values, "lm_head.weight": values["model.embed_tokens.weight"].clone()}

    base = rewrite(llama / "base", tmp_path / "base", copied)
    sources = [rewrite(llama / name, tmp_path / name, copied) for name in ("one", "two")]
    model = graft(load_model(base), sources, weights=[0.5, 0.25])
    fused = load_model(fuse(base, sources, tmp_path / "fused", weights=[0.5, 0.25]))
    assert bits(model) == bits(fused)
    own_head = rewrite(llama / "one", tmp_path / "own", dict)
    fused = load_model(fuse(base, [own_head], tmp_path / "fused-own"))
    assert bits(graft(load_model(base), [own_head])) == bits(fused) == bits(load_model(own_head))


def test_the_difference_is_taken_to_what_the_model_holds(llama: Path):
    model = graft(load_model(llama / "base").float(), [llama / "one"], weights=[0.5])
    base, tuned = (load_file(llama / name / "model.safetensors") for name in ("base", "one"))
    for name, value in model.state_dict().items():
        assert torch.equal(value, base[name].float() + (tuned[name].float() - base[name].float()) * 0.5)
    half = load_model(llama / "base").half()
    graft(half, [llama / "one"])
    assert all(torch.equal(value, tuned[name].half()) for name, value in half.state_dict().items())


def test_a_model_in_cpu_memory_that_a_device_reads_from_takes_checkpoints(llama: Path):
    model = accelerate.cpu_offload(load_model(llama / "base"), execution_device=torch.device("cpu"))
    plain, before = load_model(llama / "base"), logits(model)
    for one in (model, plain):
        graft(one, [llama / "one", llama / "two"], weights=[0.5, 0.5])
    assert torch.equal(logits(model), logits(plain)) and not torch.equal(logits(model), before)
    ungraft(model)
    assert torch.equal(logits(model), before)


def test_what_has_no_difference_to_the_model_is_refused_and_the_model_stays(llama: Path, tmp_path: Path):
    name = "model.layers.0.mlp.up_proj.weight"

    def longer(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        rows = len(values["lm_head.weight"])
        return {key: torch.cat([value, value[:2]]) if len(value) == rows else value for key, value in values.items()}

    broken: list[tuple[type[SkillhubError], str, Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]]] = [
        (UsageError, "resizes", longer),
        (UsageError, "lacks", lambda values: {key: value for key, value in values.items() if key != name}),
        (UsageError, "adds", lambda values: {**values, "score.weight": torch.zeros(2, 16)}),
        (WrongBaseError, "in this model", lambda values: {**values, name: values[name].T.contiguous()}),
        (WrongBaseError, "None of the 22 tensors", lambda values: {"other.weight": torch.zeros(2, 2)}),
        (UsageError, "set it to different values", lambda values: {**values, name: values[name].to(torch.int8)}),
    ]
    model = graft(load_model(llama / "base"), [llama / "two"], weights=[0.5])
    before = bits(model)
    for number, (kind, message, change) in enumerate(broken):
        source = rewrite(llama / "one", tmp_path / str(number), change)
        with pytest.raises(kind, match=message) as caught:
            graft(model, [source])
        assert caught.value.hint and bits(model) == before and len(grafted_packs(model)) == 1
    with pytest.raises(UsageError, match="there twice"):
        graft(model, [llama / "two"])
    with pytest.raises(UsageError, match="no low-rank factors"):
        graft(load_model(llama / "base"), [llama / "one"], trainable=True)
    with pytest.raises(NotFoundError, match="one is not grafted"):
        ungraft(model, "one")


@pytest.mark.filterwarnings("ignore")  # torch's own quantization is deprecated in favour of torchao
def test_a_quantized_model_lacks_the_weights_that_a_difference_is_to(llama: Path):
    model = torch.ao.quantization.quantize_dynamic(load_model(llama / "base").float(), {torch.nn.Linear})
    before = logits(model)
    with pytest.raises(UsageError, match="the model is quantized") as caught:
        graft(model, [llama / "one"])
    assert "skillhub pack" in str(caught.value.hint) and torch.equal(logits(model), before)


@pytest.mark.parametrize("memory", ["weights", "codes"])
@pytest.mark.parametrize("kind", ["llama", "tied", "mixtral"])
def test_checkpoints_are_routed_too(places: Callable[[str], Path], kind: str, memory: str):
    folder, model = places(kind), load_model(places(kind) / "base")
    sources = [folder / "one", folder / "pack"]
    graft_routed(model, sources, router=["one", "pack"], memory=memory, weights=[0.5, 1.0], notice=lambda _: None)
    found = logits(model)
    alone = {
        "one": graft(load_model(folder / "base"), [folder / "one"], weights=[0.5]),
        "pack": graft(load_model(folder / "base"), [folder / "pack"]),
    }
    for name, expected in alone.items():
        assert torch.equal(logits(model, pack_choices=[name] * 2), logits(expected))
    for row, name in enumerate(("one", "pack")):  # of other batches bf16 rounds other sums
        assert (found[row] - logits(alone[name])[row]).abs().max() < 0.05
    set_weights(model, {"one": 1.0})
    assert torch.equal(logits(model, pack_choices=["one"] * 2), logits(load_model(folder / "one")))
    ungraft(model)
    assert bits(model) == bits(load_model(folder / "base"))


def test_a_tensor_equals_one_in_a_file_by_its_bits(tmp_path: Path):
    model = make_model("llama")
    model.save_pretrained(tmp_path / "same")
    layout = layout_of(model)
    base = ModelBase(layout, {}, {})
    infos = read_header(tmp_path / "same" / "model.safetensors").tensors
    tuned = open_tuned(tmp_path / "same")
    for name, info in tuned.checkpoint.tensors.items():
        assert base.equals(name, info) and base.shapes[name] == info.shape and base.dtypes[name] == info.dtype
    model.model.norm.weight.data[3] += 1
    assert not base.equals("norm.weight", infos["model.norm.weight"])
    wide = ModelBase(layout_of(make_model("llama", dtype=torch.float32)), {}, {})
    assert not wide.equals("norm.weight", infos["model.norm.weight"])
