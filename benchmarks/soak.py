"""Kill `skillhub install` and `skillhub publish` at random moments, then check that nothing is half-done.

    python benchmarks/soak.py [--kills 200] [--seed 0]

A real registry process, real commands, SIGKILL after a random part of the time that the command takes. After every
kill: the release index is whole or absent, every installed pack verifies, `list` works, and running the same command
again completes. Covers one machine and loopback; does not cover power loss (no fsync of folders is claimed).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from measuring import write_report

from tests.support.packs import make_pack
from tests.support.registry_process import RegistryProcess, running_registry

SKILLHUB = str(Path(sys.executable).parent / "skillhub")


def main() -> None:
    """Kill, check, rerun; write ``reports/soak.md`` and exit with 1 when anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    outcomes: Counter[str] = Counter()
    failures: list[str] = []
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch, running_registry(Path(scratch) / "registry") as registry:
        soak = Soak(Path(scratch), registry, chance)
        for number in range(arguments.kills):
            step = soak.kill_publish if number % 2 else soak.kill_install
            try:
                outcomes[step(number)] += 1
            except AssertionError as error:
                failures.append(f"{number}: {error}")
    lines = [
        f"{arguments.kills} kills, seed {arguments.seed}, {time.perf_counter() - started:.0f} s.",
        "",
        "| What was killed, and how far it had come | Times |",
        "|---|---|",
        *(f"| {outcome} | {count} |" for outcome, count in sorted(outcomes.items())),
        "",
        f"Failures: {len(failures)}.",
        *(f"- {failure}" for failure in failures),
        "",
        f"Command: `python benchmarks/soak.py --kills {arguments.kills} --seed {arguments.seed}`",
    ]
    write_report("soak", "SIGKILL at random moments of install and publish", lines)
    sys.exit(bool(failures))


class Soak:
    """One registry, one store, and packs to publish and install over and over."""

    def __init__(self, scratch: Path, registry: RegistryProcess, chance: random.Random) -> None:
        self.scratch, self.registry, self.chance = scratch, registry, chance
        self.repository = f"{registry.user}/soak-pack"
        self.variables = {
            **os.environ,
            "HF_ENDPOINT": registry.endpoint,
            "HF_TOKEN": registry.token,
            "HF_HOME": str(scratch / "hf"),
            **{f"SKILLHUB_{name}": str(scratch / name.lower()) for name in ("CACHE", "HOME", "STATE")},
        }
        self.pack = make_pack(scratch / "pack", "soak-pack", "1.0.0")
        self._finish(["publish", str(self.pack.folder), self.repository])
        shutil.rmtree(scratch / "state", ignore_errors=True)
        self.duration = {name: self._time(name) for name in ("install", "publish")}

    def _time(self, name: str) -> float:
        started = time.perf_counter()
        if name == "install":
            self._finish(["install", self.repository, "--environment", str(self.scratch / "timed")])
        else:
            timed = make_pack(self.scratch / "timed-pack", "timed-pack", "1.0.0")
            self._finish(["publish", str(timed.folder), f"{self.registry.user}/timed-pack"])
        return time.perf_counter() - started

    def kill_install(self, number: int) -> str:
        """Kill one install into a new environment with an empty store."""
        shutil.rmtree(self.scratch / "cache", ignore_errors=True)
        environment = self.scratch / f"environment-{number}"
        command = ["install", self.repository, "--environment", str(environment)]
        ended = self._kill(command, self.duration["install"])
        packs = self._installed(environment)
        self._finish(command)
        self._finish(["verify", "--environment", str(environment)])
        shutil.rmtree(environment)
        return f"install: {'ended first' if ended else 'installed' if packs else 'not installed'}"

    def _installed(self, environment: Path) -> list[object]:
        """Return what is listed, and verified, in an environment; one that was not begun (exit 4) holds nothing."""
        listed = self._run(["list", "--json", "--environment", str(environment)])
        if listed.returncode == 4:
            return []
        assert listed.returncode == 0, f"list exited {listed.returncode}: {listed.stderr}"
        self._finish(["verify", "--environment", str(environment)])
        packs: list[object] = json.loads(listed.stdout)["packs"]
        return packs

    def kill_publish(self, number: int) -> str:
        """Kill one publish of a new version."""
        version = f"1.0.{number}"
        pack = make_pack(self.scratch / f"pack-{number}", "soak-pack", version)
        command = ["publish", str(pack.folder), self.repository]
        ended = self._kill(command, self.duration["publish"])
        visible = self._is_installable(version, number)
        self._finish(command)
        assert self._is_installable(version, number), f"{version} is not installable after publishing again"
        shutil.rmtree(pack.folder)
        return f"publish: {'ended first' if ended else 'visible and whole' if visible else 'nothing visible'}"

    def _is_installable(self, version: str, number: int) -> bool:
        """Install the version: it must be there whole, or not be known at all (exit 3)."""
        environment = self.scratch / f"check-{number}"
        command = ["install", f"{self.repository}=={version}", "--environment", str(environment)]
        found = self._run(command)
        assert found.returncode in (0, 3), f"install =={version} exited {found.returncode}: {found.stderr}"
        shutil.rmtree(environment, ignore_errors=True)
        return found.returncode == 0

    def _kill(self, command: list[str], duration: float) -> bool:
        """Start a command and kill it after a random part of its usual time; say whether it had ended before."""
        child = subprocess.Popen(
            [SKILLHUB, *command], env=self.variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            child.wait(timeout=self.chance.uniform(0.05, 1.1) * duration)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
            child.wait()
            return False
        return True

    def _run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run([SKILLHUB, *command], env=self.variables, capture_output=True, text=True, check=False)

    def _finish(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        found = self._run(command)
        assert found.returncode == 0, f"{' '.join(command)} exited {found.returncode}: {found.stderr}"
        return found


if __name__ == "__main__":
    main()
