"""Packing beside a GPU: calibration runs there and finds what it finds on the CPU; quantized layers take packs beside them there."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from skillhub.authorfile import AuthorFile
from skillhub.calibration import calibrate
from skillhub.compose.grafts import graft, ungraft
from skillhub.packer import pack
from tests.routing_examples import save_base, sums, tuned
from tests.support.gpu import needs_gpu
from tests.support.lowrank_packs import build_lowrank_pack
from tests.support.tiny_models import bits, build_pack, load_model, save_model, tune

pytestmark = [needs_gpu, pytest.mark.filterwarnings("ignore:.*TensorFloat32:UserWarning")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with ``base`` and ``tuned``, which have a tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    tuned(save_base(folder / "base"), folder / "tuned", seed=3)
    return folder


def test_calibration_runs_on_the_gpu_and_finds_what_the_cpu_finds(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    found = {}
    for device in ("cuda", "cpu"):
        (tmp_path / device).mkdir()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.max_memory_allocated()
        if device == "cpu":
            monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        found[device] = calibrate(place / "tuned", place / "base", sums(32), tmp_path / device)
        monkeypatch.undo()
        assert (torch.cuda.max_memory_allocated() > before) == (device == "cuda")
    gpu, cpu = found["cuda"], found["cpu"]
    assert gpu.predictions == pytest.approx(cpu.predictions, rel=0.2)  # an answer may end elsewhere
    for name, layer in gpu.layers.items():
        assert layer.trace / gpu.predictions == pytest.approx(cpu.layers[name].trace / cpu.predictions, rel=0.5), name


def test_a_calibrated_pack_made_beside_a_gpu_grafts_on_it(place: Path, tmp_path: Path):
    made = pack(
        place / "tuned",
        place / "base",
        tmp_path / "pack",
        metadata=AuthorFile(name="made", version="1"),
        prompts=sums(32),
    )
    model = graft(load_model(place / "base").to("cuda"), [made])
    assert bits(model) == bits(graft(load_model(place / "base"), [made]))
    assert bits(ungraft(model)) == bits(load_model(place / "base"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_lossless_pack_gives_the_fine_tune_on_the_gpu(tmp_path: Path, dtype: torch.dtype):
    base = save_model("llama", tmp_path / "base", dtype=dtype)
    tuned = tune(base, tmp_path / "tuned", size=0.1)
    made = pack(tuned, base, tmp_path / "pack", metadata=AuthorFile(name="made", version="1"), preset="lossless")
    model = graft(load_model(base).to("cuda"), [made])
    assert bits(model) == bits(load_model(tuned))
    assert bits(ungraft(model)) == bits(load_model(base))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed")
def test_packs_run_beside_quantized_layers_on_the_gpu(tmp_path: Path):
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import AutoModelForCausalLM, TorchAoConfig

    base = save_model("llama", tmp_path / "base", hidden_size=64, intermediate_size=128, dtype=torch.bfloat16)
    build_lowrank_pack(base, tmp_path / "low", name="low", size=0.05)
    build_pack(tune(base, tmp_path / "more", size=0.02), base, tmp_path / "dense", name="dense", lossy=True)
    ids = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 10]], device="cuda")

    def logits(model: Any) -> torch.Tensor:
        with torch.no_grad():
            result: torch.Tensor = model(ids).logits
        return result.float()

    config = TorchAoConfig(Int8WeightOnlyConfig())
    model = AutoModelForCausalLM.from_pretrained(base, quantization_config=config, device_map="cuda")
    before, plain = logits(model), logits(load_model(base).to("cuda"))
    for packs in (["low"], ["dense"], ["low", "dense"]):
        folders = [tmp_path / name for name in packs]
        moved = logits(graft(load_model(base).to("cuda"), folders)) - plain
        graft(model, folders, trust_base=True)
        assert (logits(model) - before - moved).norm() < 0.3 * moved.norm(), packs
        ungraft(model)
        assert torch.equal(logits(model), before)
