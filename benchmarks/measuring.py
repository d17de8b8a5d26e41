"""What every benchmark here shares: CPU time and peak memory of a child process, medians, and a report as Markdown."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

REPORTS = Path(__file__).parent / "reports"


@dataclass(frozen=True)
class Run:
    """One run of a command: seconds of wall and CPU time, peak resident bytes, exit code."""

    wall: float
    cpu: float
    peak: int
    code: int


def run_once(command: Sequence[str], environment: dict[str, str] | None = None) -> Run:
    """Run a command to its end and measure it alone (not its earlier siblings)."""
    variables = {**os.environ, **(environment or {})}
    variables.pop("PYTHONDONTWRITEBYTECODE", None)  # what users run is compiled
    started = time.perf_counter()
    child = subprocess.Popen(command, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    scale = 1 if sys.platform == "darwin" else 1024
    return Run(
        time.perf_counter() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * scale, child.returncode
    )


def median_run(command: Sequence[str], times: int, environment: dict[str, str] | None = None) -> Run:
    """Run a command several times after one unmeasured run, and return the medians."""
    run_once(command, environment)
    runs = [run_once(command, environment) for _ in range(times)]
    return Run(
        statistics.median(run.wall for run in runs),
        statistics.median(run.cpu for run in runs),
        int(statistics.median(run.peak for run in runs)),
        max(run.code for run in runs),
    )


def write_report(name: str, title: str, lines: Sequence[str]) -> Path:
    """Write ``reports/<name>.md`` with the machine's facts above the lines."""
    facts = f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"
    path = REPORTS / f"{name}.md"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join([f"# {title}", "", f"Machine: {facts}.", "", *lines, ""]), encoding="utf-8")
    print(path.read_text(encoding="utf-8"))
    return path
