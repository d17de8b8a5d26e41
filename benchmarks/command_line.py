"""How much CPU the command line burns before it answers, beside `hf` and `pip` in the same run.

    python benchmarks/command_line.py [--times 11]

Covers commands that need no network, in an environment of 20 packs that require each other. Does not cover installing
or packing.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from measuring import median_run, run_once, write_report

from tests.support.packs import BASE, make_pack

PACKS = 20
COMMANDS = Path(sys.executable).parent


def main() -> None:
    """Measure and write ``reports/command_line.md``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=11)
    times = parser.parse_args().times
    with tempfile.TemporaryDirectory() as scratch:
        place = _make_environment(Path(scratch))
        verbs = ["list", "show pack-1", "tree", "why pack-1", "freeze", "check", "sync", "sync --locked", "verify"]
        ours = [["skillhub", "--help"], *(["skillhub", *verb.split(), f"--environment={place}"] for verb in verbs)]
        rows = [_row(command, times, scratch) for command in [*ours, ["hf", "--help"], ["pip", "--version"]]]
    lines = [
        f"Medians of {times} runs after one that was not measured.",
        "",
        "| Command | CPU s | Wall s | Peak MB | torch, transformers, numpy or huggingface_hub imported |",
        "|---|---|---|---|---|",
        *rows,
        "",
        "Command: `python benchmarks/command_line.py`",
    ]
    write_report("command_line", "CPU before the command line answers", lines)


def _make_environment(scratch: Path) -> Path:
    place = scratch / "environment"
    folders = [scratch / f"pack-{number}" for number in range(PACKS)]
    for number, folder in enumerate(folders):
        make_pack(folder, folder.name, requires=[f"acme/pack-{other}" for other in range(max(0, number - 3), number)])
    install = ["skillhub", "install", *map(str, folders), f"--environment={place}", f"--base={BASE}"]
    assert run_once([str(COMMANDS / install[0]), *install[1:]], _variables(str(scratch))).code == 0
    return place


def _variables(scratch: str) -> dict[str, str]:
    """Return the variables of a user of its own: no registry, and Python's compiled files kept as for who installed it."""
    homes = dict.fromkeys(("SKILLHUB_HOME", "SKILLHUB_CACHE", "SKILLHUB_STATE", "SKILLHUB_CONFIG", "HF_HOME"), scratch)
    compiled = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": f"{scratch}/compiled"}
    return {**homes, **compiled, "HF_ENDPOINT": "http://127.0.0.1:9"}


def _row(command: list[str], times: int, scratch: str) -> str:
    path = [str(COMMANDS / command[0]), *command[1:]]
    run = median_run(path, times, _variables(scratch))
    shown = " ".join(word for word in command if not word.startswith(("/", "--environment")))
    heavy = ", ".join(_heavy_imports(path)) or "none"
    failed = f" (exit {run.code})" if run.code else ""
    return f"| `{shown}`{failed} | {run.cpu:.3f} | {run.wall:.3f} | {run.peak / 1e6:.0f} | {heavy} |"


def _heavy_imports(command: list[str]) -> list[str]:
    traced = subprocess.run(
        [sys.executable, "-X", "importtime", *command], capture_output=True, text=True, check=False
    ).stderr
    imported = {line.rpartition("|")[2].strip() for line in traced.splitlines()}
    return [name for name in ("torch", "transformers", "numpy", "huggingface_hub") if name in imported]


if __name__ == "__main__":
    main()
