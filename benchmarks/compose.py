"""Fuse and route beside mergekit and PEFT: the same work, one thread, in turns, with peak memory.

    python benchmarks/compose.py [fuse] [route] [--device cpu] [--mergekit PYTHON] [--turns 3] [--work FOLDER]

**fuse**: a random bf16 Llama of 0.69 B parameters and three fine-tunes of it (every weight moved by noise of 0.002). The same
mergekit files are run by ``skillhub fuse FILE`` and by mergekit (``PYTHON`` is an interpreter that has it), one process each, in
turns; wall time includes starting Python. Then the same three fine-tunes as checkpoints and as packs, by ``skillhub fuse --pack``.

**route**: forwards of two random bf16 Llamas (0.69 B and SmolLM2's shape, 135 M) with three packs of rank 16 on all linear layers, in one
process, in turns: the plain base; batches that agree and batches that do not, with the router's pass; PEFT's mixed
``adapter_names`` with its weights in fp32 (its default) and in bf16, which does no routing.

With ``--device cuda`` fine-tunes are fused on the GPU beside all cores of the CPU, without mergekit, and forwards run on the GPU
(0.69 B, and Llama 3.1's shape of 8 B with adapters in place of packs), with the packs' factors in memory and not their weights.

Covers no more than one GPU, and routes with a stand-in for a card (its pass over an early layer is real).
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from measuring import Run, run_once, write_report

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
SKILLHUB = str(Path(sys.executable).parent / "skillhub")
WEIGHTS = (0.4, 0.3, 0.3)
DENSITY = 0.5
HIDDEN, MLP, LAYERS, HEADS, KEY_VALUE_HEADS, VOCABULARY = 1536, 4096, 24, 16, 4, 32000


def main() -> None:
    """Measure what was asked for and write ``reports/compose.md``, or the part of it that was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="fuse|route", help="both when none is named")
    parser.add_argument("--mergekit", metavar="PYTHON", help="an interpreter with mergekit; left out when not given")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--work", type=Path, help="where models are made and kept; a temporary folder when not given")
    arguments = parser.parse_args()
    parts = arguments.parts or ["fuse", "route"]
    with tempfile.TemporaryDirectory() as scratch:
        work = arguments.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        if arguments.device != "cpu":
            write_report("compose_gpu", "Fusing and routing on a GPU", gpu_tables(work, parts, arguments.turns))
            return
        if "fuse" in parts:
            lines = fuse_table(work, arguments.mergekit, arguments.turns)
            write_report("compose_fuse", "Fusing three fine-tunes of a 0.69 B model", lines)
        if "route" in parts:
            from routed_forwards import route_tables

            write_report("compose_route", "Forwards of batches whose rows want different packs", route_tables(work))


def gpu_tables(work: Path, parts: Sequence[str], turns: int) -> list[str]:
    """Return the tables of what runs on a GPU."""
    lines: list[str] = []
    if "fuse" in parts:
        lines += ["## Fusing three fine-tunes of a 0.69 B model", "", *gpu_fuse_table(work, turns), ""]
    if "route" in parts:
        from routed_forwards import route_tables

        lines += ["## Forwards of batches whose rows want different packs", "", *route_tables(work, "cuda")]
    return lines


def gpu_fuse_table(work: Path, turns: int) -> list[str]:
    """Return the table of fusing on a GPU and on all cores."""
    import torch

    models = work / "models"
    make_models(models, "cuda")
    lines = [
        f"{torch.cuda.get_device_name()}, and the CPU with all its cores; warm page cache, medians of {turns} turns; bf16, weights {WEIGHTS}, "
        f"densities {DENSITY}. Wall time includes starting Python.",
        "",
        "| | wall s | CPU s |",
        "|---|---|---|",
    ]
    fill_page_cache(models)
    for method in ("linear", "ties"):
        for device in ("cpu", "cuda"):
            command = [*fuse_command(models, "checkpoints", method), "--device", device]
            runs = []
            for _ in range(turns):
                shutil.rmtree(work / "out", ignore_errors=True)
                runs.append(run_once([str(work / "out") if word == "OUT" else word for word in command]))
            if any(run.code for run in runs):
                raise SystemExit(f"{' '.join(command)} failed")
            wall, cpu = (statistics.median(getattr(run, what) for run in runs) for what in ("wall", "cpu"))
            lines.append(f"| {method}: {device} | {wall:.1f} | {cpu:.1f} |")
            print(lines[-1], file=sys.stderr, flush=True)
    return [*lines, "", "Command: `python benchmarks/compose.py fuse --device cuda`"]


def fuse_table(work: Path, mergekit: str | None, turns: int) -> list[str]:
    """Return the table of fusing."""
    models = work / "models"
    make_models(models)
    make_packs(models)
    commands: dict[str, list[str]] = {}
    for method in ("linear", "ties"):
        file = work / f"{method}.yaml"
        file.write_text(mergekit_file(method, models))
        commands[f"{method}: skillhub fuse {file.name}"] = [SKILLHUB, "fuse", str(file), "-o", "OUT"]
        if mergekit:
            run = [str(Path(mergekit).parent / "mergekit-yaml"), str(file), "OUT", "--no-copy-tokenizer", "--quiet"]
            commands[f"{method}: mergekit-yaml {file.name}"] = run
        for kind in ("checkpoints", "packs"):
            commands[f"{method}: skillhub fuse, {kind}"] = fuse_command(models, kind, method)
    runs: dict[str, list[Run]] = {name: [] for name in commands}
    fill_page_cache(models)
    for _ in range(turns):
        for name, command in commands.items():
            shutil.rmtree(work / "out", ignore_errors=True)
            run = run_once([str(work / "out") if word == "OUT" else word for word in command], ONE_THREAD)
            if run.code:
                raise SystemExit(f"{' '.join(command)} exited with {run.code}")
            print(
                f"{name}: {run.wall:.1f} s, {run.cpu:.1f} CPU s, {run.peak / 1e6:.0f} MB", file=sys.stderr, flush=True
            )
            runs[name].append(run)
    return table(runs, turns, mergekit)


def fill_page_cache(folder: Path) -> None:
    """Read every file once, so that no command's first turn waits for the disk."""
    for path in sorted(folder.rglob("*.safetensors")):
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass


def table(runs: dict[str, list[Run]], turns: int, mergekit: str | None) -> list[str]:
    """Return medians, and ratios to mergekit's run of the same file."""
    lines = [
        f"One thread, warm page cache, medians of {turns} turns; bf16, weights {WEIGHTS}, TIES at density {DENSITY}.",
        "",
        "| | wall s | CPU s | peak MB | of mergekit's wall | of its peak |",
        "|---|---|---|---|---|---|",
    ]
    for name, some in runs.items():
        wall, cpu, peak = (statistics.median(getattr(run, what) for run in some) for what in ("wall", "cpu", "peak"))
        method = name.partition(":")[0]
        peer = runs.get(f"{method}: mergekit-yaml {method}.yaml")
        ratios = ["-", "-"]
        if peer:
            ratios = [
                f"{wall / statistics.median(run.wall for run in peer):.2f}",
                f"{peak / statistics.median(run.peak for run in peer):.2f}",
            ]
        lines.append(f"| {name} | {wall:.1f} | {cpu:.1f} | {peak / 1e6:.0f} | {' | '.join(ratios)} |")
    given = " --mergekit PYTHON" if mergekit else ""
    return [*lines, "", f"Command: `python benchmarks/compose.py fuse{given} --turns {turns}`"]


def mergekit_file(method: str, models: Path) -> str:
    """Return a mergekit file that merges the three fine-tunes."""
    density = f", density: {DENSITY}" if method == "ties" else ""
    lines = [f"merge_method: {method}", "dtype: bfloat16", "models:"]
    for number, weight in enumerate(WEIGHTS, start=1):
        lines += [f"  - model: {models / f'tuned{number}'}", f"    parameters: {{weight: {weight}{density}}}"]
    if method == "ties":
        lines.append(f"base_model: {models / 'base'}")
    return "\n".join(lines) + "\n"


def fuse_command(models: Path, kind: str, method: str) -> list[str]:
    """Return the command that fuses the fine-tunes as checkpoints or as packs."""
    command = [SKILLHUB, "fuse", "--base", str(models / "base"), "--method", method, "-o", "OUT"]
    for number, weight in enumerate(WEIGHTS, start=1):
        folder = models / f"tuned{number}" if kind == "checkpoints" else models / "packs" / f"tuned{number}"
        command += ["--pack", f"{folder}@{weight}"]
        if method != "linear":
            command += ["--density", str(DENSITY)]
    return command


def make_models(folder: Path, device: str = "cpu") -> None:
    """Write the base and its three fine-tunes, as far as they are not there."""
    import torch
    from safetensors.torch import save_file

    if device == "cpu":
        torch.set_num_threads(1)
    if (folder / "tuned3" / "model.safetensors").exists():
        return
    base = {}
    generator = torch.Generator(device).manual_seed(0)
    for name, shape in shapes().items():
        noise = torch.randn(shape, generator=generator, device=device) * 0.02
        base[name] = (noise if len(shape) > 1 else torch.ones(shape, device=device)).to(torch.bfloat16)
    for number in range(4):
        generator = torch.Generator(device).manual_seed(number)
        target = folder / (f"tuned{number}" if number else "base")
        target.mkdir(parents=True, exist_ok=True)
        (target / "config.json").write_text(json.dumps(CONFIG, indent=2))
        moved = {
            name: (tensor.float() + torch.randn(tensor.shape, generator=generator, device=device) * 0.002).bfloat16()
            for name, tensor in base.items()
        }
        save_file(moved if number else base, target / "model.safetensors", metadata={"format": "pt"})


def make_packs(folder: Path) -> None:
    """Pack the fine-tunes, as far as that was not done."""
    for number in range(1, 4):
        out = folder / "packs" / f"tuned{number}"
        if not out.exists():
            words = ["--name", f"tuned{number}", "--version", "1.0.0", "--license", "mit"]
            base = ["--base", str(folder / "base")]
            run_once([SKILLHUB, "pack", str(folder / f"tuned{number}"), *base, "-o", str(out), *words], ONE_THREAD)


CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": MLP,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KEY_VALUE_HEADS,
    "vocab_size": VOCABULARY,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
    "max_position_embeddings": 2048,
    "hidden_act": "silu",
}


def shapes() -> dict[str, Sequence[int]]:
    """Return the tensors of the model and their shapes."""
    narrow = HIDDEN // HEADS * KEY_VALUE_HEADS
    found: dict[str, Sequence[int]] = {
        "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
        "lm_head.weight": (VOCABULARY, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    for layer in range(LAYERS):
        start = f"model.layers.{layer}."
        for name, shape in {
            "self_attn.q_proj": (HIDDEN, HIDDEN),
            "self_attn.k_proj": (narrow, HIDDEN),
            "self_attn.v_proj": (narrow, HIDDEN),
            "self_attn.o_proj": (HIDDEN, HIDDEN),
            "mlp.gate_proj": (MLP, HIDDEN),
            "mlp.up_proj": (MLP, HIDDEN),
            "mlp.down_proj": (HIDDEN, MLP),
            "input_layernorm": (HIDDEN,),
            "post_attention_layernorm": (HIDDEN,),
        }.items():
            found[f"{start}{name}.weight"] = shape
    return found


if __name__ == "__main__":
    main()
