"""Fusing on a GPU: the bits of the CPU where elements are merged one by one, and next to nothing else elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from skillhub.compose.fusion import fuse
from skillhub.compose.grafts import graft
from skillhub.compose.mergefiles import fuse_file
from skillhub.compose.methods import METHODS, interface, merge_tensors
from skillhub.compose.methods.selection import kth_largest
from skillhub.errors import UsageError
from tests.support.commands import Shell
from tests.support.gpu import needs_gpu
from tests.support.lowrank_packs import build_lowrank_pack
from tests.support.merge_models import write_models
from tests.support.peft_adapters import make_adapter
from tests.support.tiny_models import bits, build_pack, load_model, raw, save_model, tune

pytestmark = needs_gpu

ELEMENTWISE = (
    "linear", "ties", "dare_linear", "dare_ties", "della", "della_linear", "breadcrumbs", "breadcrumbs_ties",
    "ram", "ram_plus", "nearswap", "passthrough", "sce",
)  # fmt: skip
DEVICES = {"gpu": "cuda", "cpu": "cpu"}
TOKENS = 300_000
"""So many that the embeddings are merged in several chunks, on a GPU too."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a base, three fine-tunes of it, packs of two of them and of low rank, and an adapter."""
    folder = tmp_path_factory.mktemp("fusing")
    base = save_model("tied", folder / "base", vocab_size=TOKENS)
    for number in (1, 2, 3):
        tune(base, folder / f"tuned{number}", seed=number, size=0.01 * number)
    build_pack(folder / "tuned1", base, folder / "exact", name="exact")
    build_pack(folder / "tuned2", base, folder / "lossy", name="lossy", lossy=True)
    build_lowrank_pack(base, folder / "low", name="low", dense="norm")
    make_adapter(base, folder / "lora", target_modules=["q_proj", "down_proj"])
    return folder


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def fuse_both(place: Path, sources: list[Path], out: Path, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what is fused on the GPU and on the CPU."""
    gpu, cpu = (
        stored(fuse(place / "base", sources, out / name, device=device, **options)) for name, device in DEVICES.items()
    )
    assert gpu.keys() == cpu.keys()
    return gpu, cpu


def sources_for(place: Path, method: str) -> list[Path]:
    sources = [place / "tuned1", place / "lossy", place / "tuned3"]
    return sources[: METHODS[method].members[1]]


@pytest.mark.parametrize("method", METHODS)
def test_a_method_gives_on_a_gpu_what_it_gives_on_the_cpu(place: Path, tmp_path: Path, method: str):
    found = METHODS[method]
    sources = sources_for(place, method)
    options: dict[str, Any] = {"method": method, "seed": 3}
    if found.uses_weights:
        options["weights"] = [0.7, 1.3, -0.4][: len(sources)]
    if found.uses_density:
        options["densities"] = [0.3, 0.7, 0.9][: len(sources)]
    gpu, cpu = fuse_both(place, sources, tmp_path, **options)
    for name, expected in cpu.items():
        if method in ELEMENTWISE:
            assert raw(gpu[name]) == raw(expected), name
        else:  # a step of bfloat16 where a number lies between two, and now and then an element at the brink of being dropped
            one, other = gpu[name].float(), expected.float()
            assert (one != other).float().mean() < 1e-3, name
            assert ((one - other).abs() > 2**-7 * other.abs() + 2**-12).float().mean() < 1e-5, name


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_rounding_gives_the_same_bits(place: Path, tmp_path: Path, rounding: str, dtype: str):
    sources = [place / "low", place / "exact", place / "tuned2"]
    gpu, cpu = fuse_both(place, sources, tmp_path, weights=[1, 0.3, -2], rounding=rounding, dtype=dtype)
    assert all(raw(gpu[name]) == raw(expected) for name, expected in cpu.items())


def test_options_of_thinning_and_election_give_the_same_bits(place: Path, tmp_path: Path):
    cases: list[tuple[str, dict[str, float]]] = [
        ("ties", {"normalize": 1, "lambda": 1.7}),
        ("ties", {"mean": 0, "keep_norm": 0}),
        ("dare_ties", {"rescale": 0, "normalize": 1}),
        ("della", {"epsilon": 0.05}),
        ("breadcrumbs", {"gamma": 0.1, "normalize": 1}),
        ("sce", {"select_topk": 0.2}),
    ]
    for number, (method, options) in enumerate(cases):
        densities = [0.2, 0.6, 0.61] if METHODS[method].uses_density else None
        gpu, cpu = fuse_both(
            place,
            sources_for(place, method),
            tmp_path / str(number),
            method=method,
            densities=densities,
            options=options,
        )
        assert all(raw(gpu[name]) == raw(expected) for name, expected in cpu.items()), (method, options)


def test_fused_on_a_gpu_and_grafted_are_the_same_bits(place: Path, tmp_path: Path):
    sources = [place / "exact", place / "lossy", place / "low", place / "lora"]
    model = load_model(place / "base").to("cuda")
    graft(model, sources, weights=[0.5, -1, 2, 0.25])
    fused = fuse(place / "base", sources, tmp_path / "fused", weights=[0.5, -1, 2, 0.25], device="auto")
    assert bits(load_model(fused)) == bits(model.cpu())


def test_more_rows_and_numbers_that_are_too_large(place: Path, tmp_path: Path):
    base = save_model("llama", tmp_path / "base")
    longer = save_model("llama", tmp_path / "longer", vocab_size=30, seed=1)
    gpu, cpu = (stored(fuse(base, [longer], tmp_path / name, device=device)) for name, device in DEVICES.items())
    assert len(gpu["lm_head.weight"]) == 30
    assert {name: raw(one) for name, one in gpu.items()} == {name: raw(one) for name, one in cpu.items()}
    with pytest.raises(UsageError, match="cannot hold"):
        fuse(place / "base", [place / "tuned3"], tmp_path / "large", weights=[1e6], dtype="float16", device="cuda")
    assert not (tmp_path / "large").exists()


MERGES = [
    "merge_method: linear\nparameters: {weight: 0.5}",
    "merge_method: ties\nbase_model: BASE\nparameters: {weight: 0.5, density: 0.4}",
    "merge_method: dare_linear\nbase_model: BASE\nparameters: {weight: 0.5, density: 0.4}",
    "merge_method: della\nbase_model: BASE\nparameters: {weight: 0.5, density: 0.4, epsilon: 0.1}",
    "merge_method: nuslerp\nparameters: {weight: 0.5}",
    "merge_method: model_stock\nbase_model: BASE",
]


@pytest.mark.parametrize("merge", MERGES, ids=lambda text: text.split()[1])
def test_a_file_of_mergekit_gives_on_a_gpu_what_it_gives_on_the_cpu(tmp_path: Path, merge: str):
    write_models(tmp_path)
    models = [f"  - model: {tmp_path / 'llama' / name}" for name in ("one", "two")]
    text = merge.replace("BASE", str(tmp_path / "llama" / "base"))
    (tmp_path / "merge.yaml").write_text("\n".join([text, "dtype: float32", "models:", *models]))
    gpu, cpu = (
        stored(fuse_file(tmp_path / "merge.yaml", tmp_path / name, device=device)) for name, device in DEVICES.items()
    )
    for name, expected in cpu.items():
        torch.testing.assert_close(gpu[name], expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("scale", [1.0, 2.0**-8])
def test_the_kth_largest_is_counted_alike(monkeypatch: pytest.MonkeyPatch, scale: float):
    monkeypatch.setattr("skillhub.compose.methods.selection._WINDOW", 1 << 10)
    values = (torch.randn(50_000, generator=torch.Generator().manual_seed(1)) * scale).bfloat16().float().abs()
    for sample in ((), [[values[:3000]]]):
        ranks = [(0, 1), (0, 777), (0, 25_000), (0, 50_000), (0, 50_001)]
        for chunk in (50_000, 999):
            found = {}
            for device in ("cpu", "cuda"):
                parts = values.to(device).split(chunk)
                some = [[one.to(device) for one in few] for few in sample]
                found[device] = kth_largest(
                    lambda parts=parts: ([part] for part in parts), ranks, elements=50_000, sample=some
                )
            assert found["cuda"] == found["cpu"]


def test_chunks_on_a_gpu_do_not_change_the_bits(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    options: dict[str, Any] = {"method": "ties", "densities": [0.3] * 4, "device": "cuda"}
    sources = [place / name for name in ("tuned1", "lossy", "low", "lora")]
    expected = stored(fuse(place / "base", sources, tmp_path / "whole", **options))
    monkeypatch.setattr(interface, "ACCELERATOR_CHUNK", 70_000)
    found = stored(fuse(place / "base", sources, tmp_path / "pieces", **options))
    assert all(raw(found[name]) == raw(value) for name, value in expected.items())


def test_the_command_takes_a_device_and_refuses_one_that_is_not_there(place: Path, tmp_path: Path):
    shell = Shell(tmp_path)
    words = ["fuse", "--base", place / "base", "--pack", place / "exact", "--pack", f"{place / 'lossy'}@0.5"]
    devices = ("auto", "cuda", "cuda:0", "cpu")
    for number, device in enumerate(devices):
        shell.succeed(*words, "-o", str(number), "--device", device)
    results = [stored(tmp_path / str(number)) for number in range(len(devices))]
    assert len({tuple(sorted((name, raw(one)) for name, one in result.items())) for result in results}) == 1
    done = shell.run(*words, "-o", "nowhere", "--device", "cuda:99")
    assert done.returncode == 2 and "There is no device 'cuda:99' here." in done.stderr
    assert not (tmp_path / "nowhere").exists()


@pytest.fixture
def torchrun(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    worker = tmp_path / "worker.py"
    worker.write_text(
        "import sys\nfrom torch import distributed\nfrom skillhub.compose.fusion import fuse\n"
        "backend, base, out, *sources = sys.argv[1:]\n"
        "if backend != 'none':\n    distributed.init_process_group(backend)\n"
        "fuse(base, sources, out, shard_bytes=4000, device='auto')\n"
        "if backend != 'none':\n    distributed.destroy_process_group()\n"
    )

    def run(processes: int, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), str(worker)]
        paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
        command = [sys.executable, *start, *map(str, arguments)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    return run


@pytest.mark.parametrize(("processes", "backend"), [(2, "none"), (1, "nccl")])
def test_processes_share_the_files_and_a_gpu(
    place: Path, tmp_path: Path, processes: int, backend: str, torchrun: Callable[..., subprocess.CompletedProcess[str]]
):
    alone = stored(fuse(place / "base", [place / "exact"], tmp_path / "alone", device="cpu"))
    done = torchrun(processes, backend, place / "base", tmp_path / "together", place / "exact")
    assert done.returncode == 0, done.stderr
    together = stored(tmp_path / "together")
    assert {name: raw(one) for name, one in together.items()} == {name: raw(one) for name, one in alone.items()}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(), (7,), (300, 40), (4, 6, 5)])
def test_tensors_on_a_gpu_are_merged_there(method: str, shape: tuple[int, ...]):
    generator = torch.Generator().manual_seed(2)
    count = METHODS[method].members[1] or 3
    base, *deltas = (torch.randn(shape, generator=generator).bfloat16().float() for _ in range(count + 1))
    densities = [0.5] * count if METHODS[method].uses_density else None
    options: dict[str, Any] = {"densities": densities, "seed": 1}
    expected = merge_tensors(method, deltas, base=base, **options)
    found = merge_tensors(method, [delta.cuda() for delta in deltas], base=base.cuda(), **options)
    assert found.is_cuda
    if method in ELEMENTWISE:
        assert torch.equal(found.cpu(), expected)
    else:
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-5)
