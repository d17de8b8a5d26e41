"""How fast `skillhub install` downloads, beside plain `hf download` of the same files from the same registry process.

    python benchmarks/install.py [--times 5] [--files 4] [--megabytes 128]

Both are whole processes that begin with nothing: no store, no cache, no remembered index. They take turns, so what else
the machine does meets both. `hf download` checks no digest; `skillhub install` hashes every byte, writes lock and
environment. Then what costs nothing over the network: an environment with everything installed. Covers loopback, where
the processors are the limit; does not cover a slow line, where both are as fast as it is, or Xet.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from measuring import Run, median_run, run_once, write_report

from skillhub.packs import open_pack
from tests.support.packs import make_pack
from tests.support.registry_process import RegistryProcess, running_registry

COMMANDS = Path(sys.executable).parent
NAME = "large-pack"
TARGET = 0.9


def main() -> None:
    """Measure and write ``reports/install.md``; exit with 1 when installing is slower than the target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--files", type=int, default=4)
    parser.add_argument("--megabytes", type=int, default=128)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, running_registry(Path(scratch) / "registry") as registry:
        bench = Bench(Path(scratch), registry)
        total = bench.publish(options.files, options.megabytes * 10**6)
        pairs = [(bench.install(), bench.download()) for _ in range(options.times + 1)][1:]
        idle = bench.idle(options.times)
    ours, theirs = (list(runs) for runs in zip(*pairs, strict=True))
    ratio = statistics.median(their.wall / our.wall for our, their in pairs)
    lines = [
        f"{options.files} files of {options.megabytes} MB; medians of {options.times} turns after one that was not "
        "measured. Downloading begins with nothing.",
        "",
        "| Command | MB/s | Wall s | CPU s | Peak MB |",
        "|---|---|---|---|---|",
        _row("skillhub install", ours, total),
        _row("hf download", theirs, total),
        "",
        f"Rate of `skillhub install` to that of `hf download`, median of the turns: {ratio:.2f} (at least {TARGET}).",
        "",
        "With everything installed, and no request:",
        "",
        "| Command | Wall s | CPU s | Peak MB |",
        "|---|---|---|---|",
        *(f"| `{name}` | {run.wall:.3f} | {run.cpu:.3f} | {run.peak / 1e6:.0f} |" for name, run in idle.items()),
        "",
        f"Command: `{' '.join(['python benchmarks/install.py', *sys.argv[1:]])}`",
    ]
    write_report("install", "Installing beside plain downloading", lines)
    sys.exit(ratio < TARGET)


def _row(name: str, runs: list[Run], total: int) -> str:
    wall, cpu = (statistics.median(getattr(run, what) for run in runs) for what in ("wall", "cpu"))
    peak = statistics.median(run.peak for run in runs)
    return f"| `{name}` | {total / wall / 1e6:.0f} | {wall:.2f} | {cpu:.2f} | {peak / 1e6:.0f} |"


@dataclass
class Bench:
    """A registry with one large pack, and a user who installs it over and over."""

    scratch: Path
    registry: RegistryProcess

    @property
    def variables(self) -> dict[str, str]:
        """What the commands are run with."""
        homes = {f"SKILLHUB_{name}": str(self.scratch / "user" / name) for name in ("CACHE", "HOME", "STATE")}
        return {
            **homes,
            "HF_ENDPOINT": self.registry.endpoint,
            "HF_TOKEN": self.registry.token,
            "HF_HOME": str(self.scratch / "user" / "hf"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "OMP_NUM_THREADS": "1",
        }

    @property
    def environment(self) -> str:
        """Where the pack is installed."""
        return str(self.scratch / "user" / "environment")

    def publish(self, files: int, size: int) -> int:
        """Publish the pack, and return the bytes of its files."""
        folder = self.scratch / "pack"
        # in a process of its own: what a process has ever held counts as its children's, too
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            pool.submit(make_pack, folder, NAME, files=files, size=size).result()
        pack = open_pack(folder)
        self._run("skillhub", "publish", str(folder), f"{self.registry.user}/{NAME}")
        shutil.rmtree(folder)
        return sum(entry.size for entry in pack.manifest.variants[0].files)

    def install(self) -> Run:
        """Install the pack from nothing."""
        self._forget()
        return self._run("skillhub", "install", f"{self.registry.user}/{NAME}", "--environment", self.environment)

    def download(self) -> Run:
        """Download the same files from nothing, as people do without us."""
        self._forget()
        return self._run("hf", "download", f"{self.registry.user}/{NAME}", "--include", "releases/1.0.0/*")

    def idle(self, times: int) -> dict[str, Run]:
        """Measure what finds everything installed."""
        self.install()
        commands = [["sync"], ["list"], ["show", f"{self.registry.user}/{NAME}"], ["tree"]]
        return {
            f"skillhub {command[0]}": median_run(
                [str(COMMANDS / "skillhub"), *command, "--environment", self.environment], times, self.variables
            )
            for command in commands
        }

    def _forget(self) -> None:
        shutil.rmtree(self.scratch / "user", ignore_errors=True)

    def _run(self, program: str, *arguments: str) -> Run:
        run = run_once([str(COMMANDS / program), *arguments], self.variables)
        if run.code:
            raise SystemExit(f"{program} {' '.join(arguments)} exited {run.code}")
        return run


if __name__ == "__main__":
    os.environ.pop("HF_HUB_OFFLINE", None)
    main()
