"""What packing and grafting cost on one thread: CPU seconds, memory, and weights decoded and applied a second.

    python benchmarks/pack_costs.py --models DIR

DIR holds the fine-tunes ``math`` and ``math-dpo`` of SmolLM2-135M-Instruct. Each case runs in a process of its own. *Own memory* is the
largest that was neither of mapped files nor shared; *resident* counts the pages of both checkpoints too, which the system may take back at any time.
Grafting checks the base's fingerprint and the pack's files; it is measured three times, the median counts.

Does not cover GPUs, more threads, larger models, nor the first reading of files from a disk.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

from codec_deltas import calibration_prompts, find_fine_tune
from measuring import write_report

PROMPTS = 96

CASES = (
    ("math", "small, data-free", {"preset": "small"}, False),
    ("math", "near, data-free", {"preset": "near"}, False),
    ("math-dpo", "near, data-free", {"preset": "near"}, False),
    ("math", f"near, calibrated by {PROMPTS} prompts", {"preset": "near"}, True),
)


def main() -> None:
    """Measure and write ``reports/pack_costs.md``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, required=True, help="folder of the fine-tunes of SmolLM2")
    parser.add_argument("--case", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case is not None:
        print(json.dumps(measure(options.case, options.models, options.out)))
        return
    lines = [
        "| fine-tune | pack | MB | packing, CPU s | seconds | own memory, GB | resident, GB | components, mean | grafting, CPU s | GB of bf16 a second |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for number, (name, how, *_) in enumerate(CASES):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, "--models", options.models, "--case", str(number), "--out", folder]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
            found = json.loads(subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout)
        lines.append(
            f"| {name} | {how} | {found['bytes'] / 1e6:.2f} | {found['cpu']:.0f} | {found['wall']:.0f} | {found['own'] / 1e9:.2f} | "
            f"{found['resident'] / 1e9:.2f} | {found['components']:.0f} | {found['graft']:.2f} | {found['rate'] / 1e9:.2f} |"
        )
    write_report(
        "pack_costs",
        "What packing and grafting cost",
        [*lines, "", f"Command: `python benchmarks/{Path(__file__).name} --models DIR`"],
    )


def measure(number: int, models: Path, folder: Path) -> dict[str, Any]:
    """Pack one fine-tune, then graft the pack, and return what both took."""
    import skillhub
    from skillhub.authorfile import AuthorFile

    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # grafting uses every processor that it may
    name, _, how, calibrated = CASES[number]
    fine_tune = find_fine_tune(name, models)
    prompts = calibration_prompts(fine_tune)[:PROMPTS] if calibrated else None
    peak = _watch_own_memory()
    started, wall = time.process_time(), time.perf_counter()
    author = AuthorFile(name="bench", version="1.0")
    pack = skillhub.pack(fine_tune.tuned, fine_tune.base, folder / "pack", metadata=author, prompts=prompts, **how)
    found = {"cpu": time.process_time() - started, "wall": time.perf_counter() - wall, "own": peak[0]}
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        **found,
        "bytes": sum(path.stat().st_size for path in pack.folder.rglob("*") if path.is_file()),
        "resident": resident,
        "components": _mean_components(pack),
        **_graft(pack, fine_tune.base),
    }


def _watch_own_memory() -> list[int]:
    """Return a list of one number that follows the largest anonymous memory of this process, in bytes."""
    peak = [0]

    def watch() -> None:
        while True:
            status = Path("/proc/self/status").read_text(encoding="ascii")
            now = next(line for line in status.splitlines() if line.startswith("RssAnon"))
            peak[0] = max(peak[0], int(now.split()[1]) * 1024)
            time.sleep(0.02)

    threading.Thread(target=watch, daemon=True).start()
    return peak


def _mean_components(pack: Any) -> float:
    """Return how many components a weight of the pack's low-rank tensors has on average."""
    from skillhub.codecs import lowrank
    from skillhub.packdeltas import open_delta

    opened, components, weights = open_delta(pack), 0.0, 0
    for name in opened.tensors:
        for part in opened.encoded(name).parts:
            if part.codec == lowrank.ID:
                size = math.prod(opened.entry(name).shape)
                components, weights = components + size * part.config["rank"], weights + size
    return components / max(weights, 1)


def _graft(pack: Any, base: Path) -> dict[str, float]:
    """Return the CPU seconds of grafting a pack, and how many bytes of the base's weights that makes a second."""
    import torch
    from transformers import AutoModelForCausalLM

    import skillhub

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16, local_files_only=True)
    seconds = []
    for _ in range(3):
        started = time.process_time()
        skillhub.graft(model, [pack])
        seconds.append(time.process_time() - started)
        skillhub.ungraft(model)
    size = sum(2 * parameter.numel() for parameter in model.parameters())
    return {"graft": median(seconds), "rate": size / median(seconds)}


if __name__ == "__main__":
    main()
