"""How much CPU the command line burns before it answers, beside `hf` and `pip` in the same run.

    python benchmarks/command_line.py [--times 11]

Covers commands that need no network. Does not cover installing or packing.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from measuring import median_run, write_report

from skillhub.authorfile import AuthorFile
from skillhub.packs import write_manifest

COMMANDS = Path(sys.executable).parent


def main() -> None:
    """Measure and write ``reports/command_line.md``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=11)
    times = parser.parse_args().times
    with tempfile.TemporaryDirectory() as scratch:
        pack = Path(scratch) / "pack"
        write_manifest(pack, AuthorFile(name="example", version="1.0.0").to_manifest())
        environment = Path(scratch) / "environment"
        environment.mkdir()
        (environment / "skillhub.toml").touch()
        ours = [
            ["skillhub", "--help"],
            ["skillhub", "list", "--environment", str(environment)],
            ["skillhub", "show", str(pack)],
        ]
        rows = [_row(command, times, scratch) for command in [*ours, ["hf", "--help"], ["pip", "--version"]]]
    lines = [
        f"Medians of {times} runs after one that was not measured.",
        "",
        "| Command | CPU s | Wall s | Peak MB | torch, transformers or huggingface_hub imported |",
        "|---|---|---|---|---|",
        *rows,
        "",
        "Command: `python benchmarks/command_line.py`",
    ]
    write_report("command_line", "CPU before the command line answers", lines)


def _row(command: list[str], times: int, scratch: str) -> str:
    path = [str(COMMANDS / command[0]), *command[1:]]
    run = median_run(path, times, {"SKILLHUB_HOME": scratch, "HF_HOME": scratch})
    shown = " ".join(word for word in command if not word.startswith(("/", "--environment")))
    heavy = ", ".join(_heavy_imports(path)) or "none"
    failed = f" (exit {run.code})" if run.code else ""
    return f"| `{shown}`{failed} | {run.cpu:.3f} | {run.wall:.3f} | {run.peak / 1e6:.0f} | {heavy} |"


def _heavy_imports(command: list[str]) -> list[str]:
    traced = subprocess.run(
        [sys.executable, "-X", "importtime", *command], capture_output=True, text=True, check=False
    ).stderr
    imported = {line.rpartition("|")[2].strip() for line in traced.splitlines()}
    return [name for name in ("torch", "transformers", "huggingface_hub") if name in imported]


if __name__ == "__main__":
    main()
