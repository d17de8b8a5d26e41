"""Kill commands at random moments, then check that nothing is half-done and that running them again completes.

    python benchmarks/soak.py [--kills 200] [--seed 0]

A real registry process, real commands, SIGKILL after a random part of the time that the command takes: ``install``,
``upgrade``, ``sync``, ``cache prune`` or ``clean``, and ``publish`` in turn, and, in every sixth turn, the registry itself while a
command installs from it. After every kill: each pack that an environment lists is whole, byte for byte; the store holds
only what its names say; a release is whole or not there at all. Then the same command runs again without any repair by
hand, and ``verify`` finds nothing. Covers one machine and loopback; does not cover power loss (no fsync of folders is
claimed).
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from measuring import write_report

from skillhub.environments import Environment, damaged_packs, installed_packs
from skillhub.files import sha256_of_file
from tests.support.packs import BASE, make_pack
from tests.support.registry_process import RegistryProcess, running_registry

SKILLHUB = str(Path(sys.executable).parent / "skillhub")
LARGE: dict[str, Any] = {"files": 24, "size": 400_000}
"""What takes so long to move that a kill meets it on its way."""

WARM_UP = 12_000
"""Number of the first turns, in which each command runs once to its end and tells how long it takes."""

OLD, NEW = {"soak-pack": "1.0", "shared": "1.0"}, {"soak-pack": "1.1", "shared": "1.1"}


def main() -> None:
    """Kill, check, rerun; write ``reports/soak.md`` and exit with 1 when anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    outcomes: Counter[str] = Counter()
    failures: list[str] = []
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch, running_registry(Path(scratch) / "registry") as registry:
        soak = Soak(Path(scratch), registry, random.Random(arguments.seed))
        for number in range(WARM_UP, WARM_UP + 2 * len(soak.turns)):
            soak.turns[number % len(soak.turns)](number)
        for number in range(arguments.kills):
            kill = soak.turns[number % len(soak.turns)]
            try:
                outcomes[kill(number)] += 1
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
    write_report("soak", "SIGKILL at random moments", lines)
    sys.exit(bool(failures))


class Soak:
    """One registry with packs, and users who begin each turn with what it needs."""

    def __init__(self, scratch: Path, registry: RegistryProcess, chance: random.Random) -> None:
        self.scratch, self.registry, self.chance = scratch, registry, chance
        self.turns: list[Callable[[int], str]] = [
            self.kill_install,
            self.kill_publish,
            self.kill_upgrade,
            self.kill_sync,
            self.kill_prune,
            self.kill_registry,
        ]
        self.variables = {
            **os.environ,
            "HF_ENDPOINT": registry.endpoint,
            "HF_TOKEN": registry.token,
            "HF_HOME": str(scratch / "hf"),
            **{f"SKILLHUB_{name}": str(scratch / name.lower()) for name in ("CACHE", "HOME", "STATE", "CONFIG")},
        }
        self.template = scratch / "template"
        self._make_template()
        self.durations: dict[str, float] = {}

    def _make_template(self) -> None:
        """Publish two packs, lock and install them, and publish newer releases of both."""
        owner = self.registry.user
        for version in ("1.0", "1.1"):
            shared = make_pack(self.scratch / f"shared-{version}", "shared", version, **LARGE)
            pack = make_pack(
                self.scratch / f"pack-{version}", "soak-pack", version, requires=[f"{owner}/shared>={version}"], **LARGE
            )
            for one in (shared, pack):
                self._finish("publish", str(one.folder), f"{owner}/{one.manifest.name}")
            if version == "1.0":
                self._finish("install", f"{owner}/soak-pack", "--base", BASE, "--environment", str(self.template))

    def kill_install(self, number: int) -> str:
        """Kill one install into a new environment with an empty store."""
        shutil.rmtree(self.scratch / "cache", ignore_errors=True)
        command = ("install", f"{self.registry.user}/soak-pack", "--base", BASE)
        return self._kill_in("install", self.scratch / f"environment-{number}", command, {}, NEW)

    def kill_upgrade(self, number: int) -> str:
        """Kill one upgrade of two packs that belong together."""
        environment = self.scratch / f"environment-{number}"
        shutil.copytree(self.template, environment)
        return self._kill_in("upgrade", environment, ("upgrade",), OLD, NEW)

    def kill_sync(self, number: int) -> str:
        """Kill one sync of a lock that came from elsewhere."""
        environment = self._locked_only(number)
        return self._kill_in("sync", environment, ("sync", "--locked"), {}, OLD)

    def kill_prune(self, number: int) -> str:
        """Kill the removal of what no environment shares, or of everything; environments stay whole, installing goes on."""
        environment = self._locked_only(number)
        self._finish("sync", "--environment", str(environment))
        choices = [(["prune", "--max-size", "0"], "prune"), (["clean", "--yes"], "clean")]
        command, name = choices[number // len(self.turns) % 2]
        if name == "prune":
            shutil.rmtree(environment / ".skillhub")
        ended = self._kill(["cache", *command], name)
        self._check_store()
        assert self._whole_packs(environment) == ({} if name == "prune" else OLD)
        left = len(self._blobs())
        self._finish("cache", *command)
        self._finish("sync", "--reinstall", "--locked", "--environment", str(environment))
        self._finish("verify", "--environment", str(environment))
        shutil.rmtree(environment)
        return f"{name}: {'ended first' if ended else 'blobs were left' if left else 'nothing was left'}"

    def kill_publish(self, number: int) -> str:
        """Kill one publish of a new version."""
        version, repository = f"0.1.{number}", f"{self.registry.user}/shared"
        pack = make_pack(self.scratch / f"pack-{number}", "shared", version, **LARGE)
        ended = self._kill(["publish", str(pack.folder), repository], "publish")
        visible = self._is_installable(version, number)
        self._finish("publish", str(pack.folder), repository)
        assert self._is_installable(version, number), f"{version} is not installable after publishing again"
        shutil.rmtree(pack.folder)
        return f"publish: {'ended first' if ended else 'visible and whole' if visible else 'nothing visible'}"

    def kill_registry(self, number: int) -> str:
        """Kill a registry of its own while a command installs from it; when it is back, the command completes."""
        data, environment = self.scratch / f"registry-{number}", self.scratch / f"environment-{number}"
        command = ["install", "owner/mortal", "--base", BASE, "--environment", str(environment)]
        with running_registry(data) as first:
            token = first.add_user("owner")
            pack = make_pack(self.scratch / f"mortal-{number}", "mortal", size=4_000_000)
            own = {**self.variables, "HF_ENDPOINT": first.endpoint, "HF_TOKEN": token}
            own |= {f"SKILLHUB_{name}": str(data / name.lower()) for name in ("CACHE", "STATE")}
            self._finish("publish", str(pack.folder), "owner/mortal", variables=own)
            child = subprocess.Popen(
                [SKILLHUB, *command], env=own, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            time.sleep(self.chance.uniform(0.2, 1.1) * self.durations.get("install", 2.0))
            first.process.send_signal(signal.SIGKILL)
            code = child.wait()
        assert code in (0, 8), f"install from a registry that died exited {code}"
        found = self._whole_packs(environment)
        assert found in ({}, {"mortal": "1.0.0"}), found
        with running_registry(data, token=token) as second:
            self._finish(*command, variables={**own, "HF_ENDPOINT": second.endpoint})
        self._finish("verify", "--environment", str(environment), variables=own)
        for folder in (environment, pack.folder, data):
            shutil.rmtree(folder)
        return f"registry: {'too late' if code == 0 else 'install exited 8'}"

    def _locked_only(self, number: int) -> Path:
        environment = self.scratch / f"environment-{number}"
        environment.mkdir()
        for name in ("skillhub.toml", "skillhub.lock"):
            shutil.copy(self.template / name, environment / name)
        return environment

    def _kill_in(
        self, name: str, environment: Path, command: tuple[str, ...], before: dict[str, str], after: dict[str, str]
    ) -> str:
        """Kill a command that changes an environment, check what is left, and run it again."""
        arguments = [*command, "--environment", str(environment)]
        ended = self._kill(arguments, name)
        self._check_store()
        found = self._whole_packs(environment)
        for pack, version in found.items():
            assert version in (before.get(pack), after[pack]), f"{name} left {pack} {version}"
        self._finish(*arguments)
        self._finish("verify", "--environment", str(environment))
        assert self._whole_packs(environment) == after
        shutil.rmtree(environment)
        reached = (
            "ended first" if ended else "done" if found == after else "as before" if found == before else "between"
        )
        return f"{name}: {reached}"

    def _whole_packs(self, environment: Path) -> dict[str, str]:
        """Return the versions of the listed packs after reading every byte of them."""
        assert damaged_packs(Environment(environment)) == []
        packs = installed_packs(Environment(environment))
        for one in packs:
            assert one.verify() == [], f"{one} is not whole"
        return {one.name.name: one.version for one in packs}

    def _blobs(self) -> list[Path]:
        return [path for path in (self.scratch / "cache" / "store" / "sha256").rglob("*") if path.is_file()]

    def _check_store(self) -> None:
        for path in self._blobs():
            assert sha256_of_file(path) == path.name, f"{path.name} is in the store with other bytes"

    def _is_installable(self, version: str, number: int) -> bool:
        """Install the version: it must be there whole, or not be known at all (exit 3)."""
        environment = self.scratch / f"check-{number}"
        wanted = f"{self.registry.user}/shared=={version}"
        found = self._run(["install", wanted, "--environment", str(environment)], self.variables)
        assert found.returncode in (0, 3), f"install =={version} exited {found.returncode}: {found.stderr}"
        shutil.rmtree(environment, ignore_errors=True)
        return found.returncode == 0

    def _kill(self, command: list[str], name: str) -> bool:
        """Start a command and kill it after a random part of its usual time; say whether it had ended before.

        The first of its kind is left alone, and tells the usual time.
        """
        started = time.perf_counter()
        child = subprocess.Popen(
            [SKILLHUB, *command], env=self.variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            usual = self.durations.get(name)
            child.wait(timeout=self.chance.uniform(0.3, 1.05) * usual if usual else None)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
            child.wait()
            return False
        self.durations[name] = time.perf_counter() - started
        return True

    def _run(self, command: list[str], variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run([SKILLHUB, *command], env=variables, capture_output=True, text=True, check=False)

    def _finish(self, *command: str, variables: dict[str, str] | None = None) -> None:
        found = self._run(list(command), variables or self.variables)
        assert found.returncode == 0, f"{' '.join(command)} exited {found.returncode}: {found.stderr}"


if __name__ == "__main__":
    main()
