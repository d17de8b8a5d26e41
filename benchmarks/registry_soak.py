"""Put a registry under load, then kill it again and again, and check all that it ever acknowledged.

    python benchmarks/registry_soak.py [--minutes 10] [--clients 200] [--kills 200] [--seed 0]

Half of the clients read and half write, as ``registry_load.py`` says: commits of small files, LFS uploads, branches, pull
requests that are merged, releases. First for ``--minutes`` without a break. Then SIGKILL after a random 0.2 to 2 s of the same load,
``--kills`` times; after each, the registry starts again on the same data, and before anybody goes on:

- every acknowledged commit is there, in its branch's history, with every byte of its files;
- the main branch has, at every path, what was last acknowledged there;
- what was interrupted is there whole, or not at all: commits, pull requests, merges.

``skillhub-registry fsck`` looks at the data every 20 kills, and reads all of it at the end of both parts. One process plays all clients and shares
the cores with the registry. One machine and SQLite; power loss is not simulated.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from measuring import write_report
from registry_checks import check_everything
from registry_load import Reader, Record, Stage, Writer

from tests.support.registry_process import RegistryProcess, running_registry

FSCK_EVERY = 20
LOAD_SECONDS = 0.2, 2.0
"""Between a start of the registry and the kill."""

FLAT = 1.15
"""By how much the memory may have grown, from the second quarter of the load to the last."""


@dataclass
class Soak:
    """A registry on a data folder, killed and started again, and the clients that it has.

    Attributes:
        memory: the registry's resident bytes, every second of the load without kills.
        checked: how often everything was checked after a kill.
    """

    data: Path
    clients: int
    seed: int
    stage: Stage = field(init=False)
    registry: RegistryProcess = field(init=False)
    memory: list[int] = field(default_factory=list)
    checked: int = 0
    _running: ExitStack = field(default_factory=ExitStack)

    @property
    def record(self) -> Record:
        """What the clients know."""
        return self.stage.record

    def start(self) -> None:
        """Start the registry, for the first time or again."""
        token = self.stage.token if hasattr(self, "stage") else ""
        self.registry = self._running.enter_context(running_registry(self.data, token=token))
        if not token:
            self.stage = Stage(self.registry.endpoint, self.registry.token, self.registry.user, [])
        self.stage.endpoint = self.registry.endpoint

    def stop(self) -> None:
        """Let the process end, or see that it has ended."""
        self._running.close()

    async def run(self, seconds: float, kills: int) -> Record:
        """Load, kill and check; return what clients know."""
        await asyncio.to_thread(self.start)
        try:
            await self.make_repositories()
            players = [
                (Writer if number % 2 else Reader)(self.stage, number, self.seed) for number in range(self.clients)
            ]
            tasks = [asyncio.create_task(player.run()) for player in players]
            try:
                if seconds:
                    await self._load(seconds)
                for number in range(kills):
                    await self._kill(random.Random(f"{self.seed} kill {number}"), number)
                await self._fsck()
            finally:
                self.stage.over = True
                self.stage.open.set()
                await asyncio.gather(*tasks)
        finally:
            await asyncio.to_thread(self.stop)
        return self.record

    async def make_repositories(self) -> None:
        """Make what all clients share."""
        client = Writer(self.stage, -1, self.seed)
        for number in range(max(2, self.clients // 10)):
            await client.ask("create_repo", "POST", "/api/repos/create", f'{{"name": "shared-{number}"}}'.encode())
            self.stage.repositories.append(f"{self.stage.user}/shared-{number}")
        client.wire.close()

    async def _load(self, seconds: float) -> None:
        self.stage.open.set()
        end = time.perf_counter() + seconds
        while (left := end - time.perf_counter()) > 0:
            await asyncio.sleep(min(1, left))
            self.memory.append(_resident_bytes(self.registry.process.pid))
        await self._pause()
        await check_everything(self.stage)
        await self._fsck()
        quarter = len(self.memory) // 4
        if quarter > 30:
            early, late = (
                statistics.median(part) for part in (self.memory[quarter : 2 * quarter], self.memory[-quarter:])
            )
            if late > FLAT * early:
                self.record.wrong.append(f"memory grew from {early / 1e6:.0f} to {late / 1e6:.0f} MB")

    async def _kill(self, chance: random.Random, number: int) -> None:
        self.stage.open.set()
        await asyncio.sleep(chance.uniform(*LOAD_SECONDS))
        self.stage.open.clear()
        self.registry.process.kill()
        await self._pause()
        await asyncio.to_thread(self.stop)
        await asyncio.to_thread(self.start)
        await check_everything(self.stage)
        self.checked += 1
        if number % FSCK_EVERY == FSCK_EVERY - 1:
            await self._fsck("--quick")

    async def _pause(self) -> None:
        """Let clients end what they are doing, and begin nothing."""
        self.stage.open.clear()
        while self.stage.active:
            await asyncio.sleep(0.01)

    async def _fsck(self, *options: str) -> None:
        await self._pause()
        try:
            await asyncio.to_thread(self.registry.run, "fsck", *options)
        except RuntimeError as error:
            self.record.wrong.append(f"fsck: {error}")


def _resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Run both parts, write ``reports/registry_soak.md``, and exit with 1 when anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    parts = []
    for seconds, kills in ((60 * arguments.minutes, 0), (0, arguments.kills)):
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as scratch:
            soak = Soak(Path(scratch) / "data", arguments.clients, arguments.seed)
            if seconds or kills:
                parts.append((soak, asyncio.run(soak.run(seconds, kills)), time.perf_counter() - began, seconds))
    lines = [f"{arguments.clients} clients, seed {arguments.seed}.", ""]
    for soak, record, took, seconds in parts:
        lines += _load_lines(soak, record, seconds) if seconds else _kill_lines(soak, record)
        lines += [f"Wrong: {len(record.wrong)}.", *(f"- {one}" for one in record.wrong[:50])]
        lines += ["", f"With all checks and fsck it took {took:.0f} s.", ""]
    options = f"--minutes {arguments.minutes:g} --clients {arguments.clients} --kills {arguments.kills} --seed {arguments.seed}"
    write_report(
        "registry_soak",
        "The registry under load, and killed",
        [*lines, f"Command: `python benchmarks/registry_soak.py {options}`"],
    )
    sys.exit(any(record.wrong for _, record, _, _ in parts))


def _load_lines(soak: Soak, record: Record, seconds: float) -> list[str]:
    return [
        f"## {seconds / 60:g} minutes of load",
        "",
        *_call_lines(record, seconds),
        "",
        "Every acknowledged commit was read back, was in its branch's history, and main had what was written last.",
        "",
        "Memory of the registry, MB, at the end of each tenth of the time: "
        + ", ".join(f"{soak.memory[len(soak.memory) * part // 10 - 1] / 1e6:.0f}" for part in range(1, 11))
        + ".",
        "",
    ]


def _kill_lines(soak: Soak, record: Record) -> list[str]:
    made = sum(record.done[kind] for kind in COMMITS)
    return [
        f"## {soak.checked} kills",
        "",
        f"{made} commits were acknowledged and checked, {sum(record.done.values())} calls answered. Of what was interrupted, "
        f"{record.found['there']} commits and merges were there, whole, and {record.found['not there']} were not there at all.",
        "",
        *_refusal_lines(record),
        "",
    ]


COMMITS = ("commit", "LFS commit", "commit to a branch", "pull request", "merge", "release")


def _call_lines(record: Record, seconds: float) -> list[str]:
    rows = ["| Call | Answered | A second | Median, ms | p99, ms |", "|---|---|---|---|---|"]
    for kind, values in sorted(record.seconds.items()):
        median, p99 = (1000 * _quantile(values, part) for part in (0.5, 0.99))
        rows.append(f"| {kind} | {record.done[kind]} | {record.done[kind] / seconds:.1f} | {median:.0f} | {p99:.0f} |")
    return [*rows, "", *_refusal_lines(record)]


def _refusal_lines(record: Record) -> list[str]:
    refused = ", ".join(f"{count} times {what}" for what, count in sorted(record.refused.items()))
    return [f"Answers that were errors: {refused or 'none'}."]


def _quantile(values: Sequence[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * part), len(ordered) - 1)]


if __name__ == "__main__":
    main()
