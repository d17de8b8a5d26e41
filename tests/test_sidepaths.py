"""Packs beside quantized layers: with torch's own quantization, and with each library that is installed."""

from __future__ import annotations

import copy
import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from skillhub.compose.grafts import disable, enable, graft, grafted, grafted_packs, set_weights, ungraft
from skillhub.compose.sidepaths import DELTA, LEFT, RIGHT
from skillhub.errors import IntegrityError, UsageError, WrongBaseError
from tests.support.lowrank_packs import build_lowrank_pack
from tests.support.tiny_models import build_pack, load_model, rewrite, save_model, tune, with_entry

TOKENS = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 10]])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a base and packs: of low rank, dense, and of one layer's norms and embeddings."""
    folder = tmp_path_factory.mktemp("models")
    base = save_model("llama", folder / "base", hidden_size=64, intermediate_size=128, dtype=torch.float32)
    build_lowrank_pack(base, folder / "low", name="low", size=0.05)
    build_pack(tune(base, folder / "tuned", size=0.02), base, folder / "dense", name="dense", lossy=True)
    build_pack(tune(base, folder / "norms", seed=2, size=0.1, only="norm"), base, folder / "part", name="part")
    return folder


def by_torch(base: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated in favour of torchao
        return torch.ao.quantization.quantize_dynamic(load_model(base), {torch.nn.Linear}, dtype=torch.qint8)


def by_torchao(base: Path) -> Any:
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import AutoModelForCausalLM, TorchAoConfig

    return AutoModelForCausalLM.from_pretrained(base, quantization_config=TorchAoConfig(Int8WeightOnlyConfig()))


def by_bitsandbytes(base: Path, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = BitsAndBytesConfig(**options or {"load_in_4bit": True})
    return AutoModelForCausalLM.from_pretrained(base, quantization_config=config, device_map="cpu")


def by_bitsandbytes_8_bits(base: Path) -> Any:
    return by_bitsandbytes(base, load_in_8bit=True)


def by_quanto(base: Path) -> Any:
    from transformers import AutoModelForCausalLM, QuantoConfig

    return AutoModelForCausalLM.from_pretrained(base, quantization_config=QuantoConfig(weights="int8"))


def needs(module: str, *values: Any) -> Any:
    found = importlib.util.find_spec(module.partition(".")[0]) is not None
    return pytest.param(*values, marks=pytest.mark.skipif(not found, reason=f"{module} is not installed"))


LIBRARIES = [
    pytest.param(by_torch, 0.1),
    needs("torchao", by_torchao, 0.1),
    needs("bitsandbytes", by_bitsandbytes, 0.5),
    needs("bitsandbytes", by_bitsandbytes_8_bits, 0.1),
    needs("optimum.quanto", by_quanto, 0.1),
]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(TOKENS).logits
    return result.float()


def plain_logits(place: Path, *packs: str, **options: Any) -> torch.Tensor:
    return logits(graft(load_model(place / "base"), [place / name for name in packs], **options))


def relative(error: torch.Tensor, of: torch.Tensor) -> float:
    return float(error.norm() / of.norm())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("quantize", "tolerance"), LIBRARIES)
def test_packs_move_a_quantized_model_as_they_move_the_base(
    place: Path, quantize: Callable[[Path], Any], tolerance: float
):
    model = quantize(place / "base")
    before = logits(model)
    base = logits(load_model(place / "base"))
    for packs in (["low"], ["dense"], ["low", "dense", "part"]):
        graft(model, [place / name for name in packs], trust_base=True)
        moved = plain_logits(place, *packs) - base
        assert relative(moved, base) > 0.05
        assert relative(logits(model) - before - moved, moved) < tolerance, packs
        ungraft(model)
        assert torch.equal(logits(model), before) and grafted_packs(model) == ()


@pytest.fixture
def model(place: Path) -> Any:
    return by_torch(place / "base")


def held(model: Any) -> dict[str, torch.Tensor]:
    return {name: buffer for name, buffer in model.named_buffers() if "_skillhub" in name}


def test_low_rank_packs_run_as_two_thin_products_and_others_dense(place: Path, model: Any):
    projection = model.model.layers[0].mlp.up_proj
    inputs = torch.randn(3, 64)
    before = projection(inputs)
    graft(model, [place / "low"], weights=[0.5], trust_base=True)
    assert {name.rpartition(".")[2] for name in held(model)} == {LEFT, RIGHT}
    expected = graft(load_model(place / "base"), [place / "low"], weights=[0.5])
    weight = expected.model.layers[0].mlp.up_proj.weight - load_model(place / "base").model.layers[0].mlp.up_proj.weight
    torch.testing.assert_close(projection(inputs) - before, functional.linear(inputs, weight), atol=1e-5, rtol=1e-4)
    graft(model, [place / "dense"], trust_base=True)
    assert {name.rpartition(".")[2] for name in held(model)} == {DELTA}
    ungraft(model, "dense")
    assert {name.rpartition(".")[2] for name in held(model)} == {LEFT, RIGHT}
    ungraft(model)
    assert held(model) == {} and torch.equal(projection(inputs), before)


def test_weights_switches_blocks_and_copies_work_beside_quantized_layers(place: Path, model: Any):
    before = logits(model)
    graft(model, [place / "low", place / "part"], trust_base=True)
    both = logits(model)
    set_weights(model, {"low": -1})
    assert not torch.equal(logits(model), both)
    set_weights(model, {"low": 1})
    assert torch.equal(logits(model), both)
    disable(model)
    assert torch.equal(logits(model), before) and held(model) == {}
    enable(model)
    twin = copy.deepcopy(model)
    with grafted(model, [place / "dense"], trust_base=True):
        assert not torch.equal(logits(model), both)
    assert torch.equal(logits(model), both)
    ungraft(model)
    assert torch.equal(logits(model), before) and torch.equal(logits(twin), both)
    ungraft(twin)
    assert torch.equal(logits(twin), before)


def test_other_methods_merge_what_runs_beside(place: Path, model: Any):
    base, before = logits(load_model(place / "base")), logits(model)
    options: dict[str, Any] = {"method": "ties", "densities": [0.5, 0.7]}
    graft(model, [place / "low", place / "dense"], trust_base=True, **options)
    moved = plain_logits(place, "low", "dense", **options) - base
    assert relative(logits(model) - before - moved, moved) < 0.1


@pytest.mark.parametrize("stop", ["damage", "interrupt"])
def test_a_graft_that_fails_leaves_no_side_path(place: Path, model: Any, tmp_path: Path, stop: str):
    pack = build_lowrank_pack(place / "base", tmp_path / "bad", name="bad", seed=3)
    names = sorted(pack.manifest.variants[0].codec.tensors)

    def interrupt(what: str, done: int, total: int) -> None:
        if done == total - 2:
            raise KeyboardInterrupt

    if stop == "damage":
        with_entry(pack, names[-2], digest="0" * 64)
    before = logits(model)
    for already in ([], [place / "low"]):
        if already:
            graft(model, already, trust_base=True)
            before = logits(model)
        kept = held(model)
        with pytest.raises(IntegrityError if stop == "damage" else KeyboardInterrupt):
            listen = interrupt if stop == "interrupt" else None
            graft(model, [tmp_path / "bad"], trust_base=True, verify="full", progress=listen)
        assert torch.equal(logits(model), before) and len(grafted_packs(model)) == len(already)
        assert all(held(model)[name] is buffer for name, buffer in kept.items()) and len(held(model)) == len(kept)


def test_a_quantized_model_with_packs_beside_it_is_not_saved_without_them(place: Path, model: Any, tmp_path: Path):
    graft(model, [place / "low"], trust_base=True)
    for save in (lambda: model.save_pretrained(tmp_path / "saved"), lambda: model.state_dict()):
        with pytest.raises(UsageError, match="a checkpoint of it would lack them") as caught:
            save()
        assert "skillhub fuse" in caught.value.hint
    assert not list((tmp_path).rglob("*.safetensors"))
    ungraft(model)
    assert model.state_dict()


def test_a_quantized_model_is_known_by_the_folder_it_came_from(place: Path, model: Any, tmp_path: Path):
    model.name_or_path = str(place / "base")
    graft(model, [place / "low"])
    graft(model, [place / "part"])
    ungraft(model)
    for folder in (place / "tuned", tmp_path / "gone"):
        other = by_torch(place / "base")
        other.name_or_path = str(folder)
        with pytest.raises(WrongBaseError, match="The model is quantized") as caught:
            graft(other, [place / "low"])
        assert "trust_base=True" in caught.value.hint and held(other) == {}


def test_what_cannot_run_beside_a_quantized_layer_is_refused_first(place: Path, model: Any, tmp_path: Path):
    before = logits(model)

    def set_values(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        name = "model.layers.1.mlp.up_proj.weight"
        return {n: torch.full_like(t, torch.inf) if n == name else t for n, t in tensors.items()}

    pack = build_pack(rewrite(place / "base", tmp_path / "set", set_values), place / "base", tmp_path / "pack")
    with pytest.raises(UsageError, match=r"sets layers\.1\.mlp\.up_proj\.weight, which is quantized") as caught:
        graft(model, [pack], trust_base=True)
    assert "then quantize the result" in caught.value.hint
    assert torch.equal(logits(model), before) and held(model) == {}


@pytest.mark.parametrize("method", ["slerp", "karcher", "arcee_fusion"])
def test_methods_that_look_at_the_base_are_refused(place: Path, model: Any, method: str):
    packs = [place / "low", place / "dense"][: 1 if method in ("slerp", "arcee_fusion") else 2]
    with pytest.raises(UsageError, match=f"'{method}' needs the base's weights"):
        graft(model, packs, method=method, trust_base=True)
    assert held(model) == {}


@pytest.mark.parametrize("method", ["dare_linear", "della", "sce", "passthrough"])
def test_methods_that_merge_differences_run_beside_the_layers(place: Path, model: Any, method: str):
    packs = [place / "dense", place / "low"][: 1 if method == "passthrough" else 2]
    base, before = logits(load_model(place / "base")), logits(model)
    graft(model, packs, method=method, trust_base=True)
    moved = logits(graft(load_model(place / "base"), packs, method=method)) - base
    assert relative(logits(model) - before - moved, moved) < 0.1


def test_a_bias_that_is_packed_into_a_quantized_layer_is_refused(tmp_path: Path):
    base = save_model("bert", tmp_path / "bert", dtype=torch.float32)
    pack = build_pack(tune(base, tmp_path / "tuned", size=0.02), base, tmp_path / "pack", lossy=True)
    model = by_torch(base)
    with pytest.raises(UsageError, match=r"bias is quantized in this model, and is not the weight of a linear layer"):
        graft(model, [pack], trust_base=True)
    assert held(model) == {}


def test_a_layer_that_keeps_its_weight_transposed_gets_a_side_path(tmp_path: Path):
    base = save_model("gpt2", tmp_path / "gpt2", dtype=torch.float32)
    pack = build_pack(tune(base, tmp_path / "tuned", size=0.02), base, tmp_path / "pack", lossy=True)
    plain, model = load_model(base), load_model(base)
    attention = model.transformer.h[0].attn.c_attn
    before = logits(plain)
    graft(plain, [pack])
    moved = logits(plain) - before
    model.transformer.h[0].attn.c_attn = Int8Conv(attention)
    start = logits(model)
    graft(model, [pack], trust_base=True)
    assert list(held(model)) == [f"transformer.h.0.attn.c_attn.{DELTA}"]
    assert relative(logits(model) - start - moved, moved) < 0.1


class Int8Conv(torch.nn.Module):
    """A quantized layer in the place of GPT-2's ``Conv1D``, as libraries make them."""

    __module__ = "torch.ao.nn.of_a_library"

    def __init__(self, plain: Any) -> None:
        super().__init__()
        self.scale = float(plain.weight.detach().abs().max()) / 127
        self.register_buffer("quantized", (plain.weight.detach() / self.scale).round().to(torch.int8))
        self.bias = plain.bias

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs @ (self.quantized.float() * self.scale) + self.bias


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_side_paths_are_compiled(place: Path, model: Any):
    torch._dynamo.reset()
    before = logits(model)
    compiled: Any = torch.compile(model, backend="aot_eager")
    assert torch.allclose(logits(compiled), before, atol=1e-5)
    for step in (
        lambda: graft(compiled, [place / "low"], trust_base=True),
        lambda: graft(compiled, [place / "dense"], trust_base=True),
        lambda: set_weights(compiled, {"low": 0.25}),
        lambda: ungraft(compiled),
    ):
        step()
        assert torch.allclose(logits(compiled), logits(model), atol=1e-4)
    assert torch.equal(logits(model), before)
    torch._dynamo.reset()
