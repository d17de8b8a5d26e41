"""A registry of one's own for as long as a ``with`` block lasts: what ``skillhub-registry serve`` is for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests

STOPPING_SECONDS = 20


@dataclass(frozen=True)
class RunningRegistry:
    """Where a registry listens and who may write to it."""

    endpoint: str
    user: str
    token: str

    @property
    def exports(self) -> dict[str, str]:
        """The environment variables that point skillhub, and every other Hub client, at this registry."""
        return {"HF_ENDPOINT": self.endpoint, "HF_TOKEN": self.token}


@contextmanager
def running_registry(folder: Path) -> Iterator[RunningRegistry]:
    """Serve the registry whose data lie in ``folder``; it is stopped when the block ends, however it ends.

    The token is shown only when a registry starts for the first time, so it is kept in ``folder``, readable by its owner.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "skillhub_registry"]
    data = ["--data", str(folder / "data")]
    account = folder / "account.json"
    known = json.loads(account.read_text(encoding="utf-8")) if account.exists() else {}
    _stop_left_over(known)
    with (folder / "registry.log").open("ab") as log:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "skillhub_registry",
                "serve",
                "--data",
                str(folder / "data"),
                "--port",
                "0",
                "--json",
            ],
            stdout=subprocess.PIPE,
            stderr=log,
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"The registry did not start:\n{(folder / 'registry.log').read_text(encoding='utf-8')}")
        known |= json.loads(line) | {"process": process.pid}
        if "token" not in known:  # interrupted at the first start, between its words and our note of them
            made = subprocess.run(
                [*command, "token", "create", known["user"], *data], stdout=subprocess.PIPE, check=True
            )
            known["token"] = made.stdout.decode().strip()
        _write_private(account, json.dumps(known))
        yield RunningRegistry(endpoint=known["endpoint"], user=known["user"], token=known["token"])
    finally:
        process.terminate()
        try:
            process.wait(STOPPING_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _write_private(path: Path, text: str) -> None:
    part = path.with_suffix(".part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    part.replace(path)


def _stop_left_over(known: dict[str, str | int]) -> None:
    """Stop the registry of an earlier run that was killed before it could; only one process may serve a folder.

    A process number alone could by now be anybody's: it must be a registry at the known address that knows our token.
    """
    if not _answers(known):
        return
    os.kill(int(known["process"]), signal.SIGTERM)
    deadline = time.monotonic() + STOPPING_SECONDS
    while _answers(known) and time.monotonic() < deadline:
        time.sleep(0.1)


def _answers(known: dict[str, str | int]) -> bool:
    if "process" not in known:
        return False
    try:
        reply = requests.get(
            f"{known['endpoint']}/api/whoami-v2", headers={"Authorization": f"Bearer {known['token']}"}, timeout=5
        )
    except requests.ConnectionError:
        return False
    return reply.ok
