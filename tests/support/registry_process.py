"""A real registry, as a process of its own: what the tests and the demo talk to."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skillhub_registry.database import Database

LOCK_NAME = "lock"
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class RegistryProcess:
    """A registry that is listening: its address, its first user with a write token, and its data folder.

    ``place`` are the options that say where its data is, ``tokens`` those of the users that tests have made.
    """

    endpoint: str
    user: str
    token: str
    data: Path
    process: subprocess.Popen[str]
    place: tuple[str, ...] = ()
    tokens: dict[str, str] = field(default_factory=dict)

    def arriving(self) -> list[str]:
        """Return the files of uploads that are not whole yet: in scratch space, and parts."""
        files = [path for name in ("incoming", "parts") for path in (self.data / name).rglob("*") if path.is_file()]
        return sorted(path.relative_to(self.data).as_posix() for path in files if path.name != LOCK_NAME)

    def add_user(self, name: str, *, scope: str = "write") -> str:
        """Make a user and return a token for it."""
        self.run("user", "add", name)
        return self.create_token(name, scope=scope)

    def find_user(self, name: str) -> str:
        """Return a token for a user who is made when it is first asked for."""
        if name not in self.tokens:
            self.tokens[name] = self.add_user(name)
        return self.tokens[name]

    def create_token(self, user: str, *, scope: str = "write") -> str:
        """Return another token for a user."""
        return self.run("token", "create", user, "--scope", scope).strip()

    def add_organization(self, name: str, *members: str) -> None:
        """Make an organisation with these members."""
        options = [option for member in members for option in ("--member", member)]
        self.run("org", "add", name, *options)

    def read_blob(self, sha256: str) -> bytes | None:
        """Return a blob, or None where it is not kept."""
        path = self.data / "blobs" / sha256[:2] / sha256[2:]
        return path.read_bytes() if path.is_file() else None

    def query(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Return the rows that a query of the database finds."""
        with self.open_database() as database, database.read() as connection:
            return [tuple(row) for row in connection.execute(statement, values)]

    def open_database(self) -> AbstractContextManager[Database]:
        """Return the registry's database, open."""
        from skillhub_registry.registry import Place, open_database

        address = dict(zip(self.place[::2], self.place[1::2], strict=True)).get("--database")
        return contextlib.closing(open_database(Place(self.data, address)))

    def run(self, *arguments: str) -> str:
        """Run ``skillhub-registry`` with arguments on its data, and return what it printed."""
        return run_registry(*arguments, data=self.data, place=self.place)


def registry_environment() -> dict[str, str]:
    """Return the environment in which ``python -m skillhub_registry`` works from a checkout."""
    paths = [str(ROOT), str(ROOT / "registry"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def run_registry(*arguments: str, data: Path, place: Sequence[str] = ()) -> str:
    """Run ``skillhub-registry`` with arguments on a data folder, and return what it printed."""
    command = [sys.executable, "-m", "skillhub_registry", *arguments, "--data", str(data), *place]
    done = subprocess.run(command, env=registry_environment(), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(arguments)} ended with {done.returncode}: {done.stderr}")
    return done.stdout


@contextmanager
def running_registry(
    data: Path, options: Sequence[str] = (), *, token: str = "", place: tuple[str, ...] = (), log: Path | None = None
) -> Iterator[RegistryProcess]:
    """Start a registry on any free port, yield it once it listens, and stop it at the end.

    ``token`` is for a data folder that was served before: the first token is told at the first start only. ``place``
    are the options that say where else its data is. What it writes to stderr goes into ``log``, if that is given.
    """
    command = [
        sys.executable,
        "-m",
        "skillhub_registry",
        "serve",
        "--port",
        "0",
        "--json",
        "--data",
        str(data),
        *place,
        *options,
    ]
    with log.open("ab") if log else contextlib.nullcontext() as stderr:
        process = subprocess.Popen(
            command, env=registry_environment(), stdout=subprocess.PIPE, stderr=stderr, text=True
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()  # comes when it listens, or is empty when it ended
        if not line:
            raise RuntimeError(f"the registry did not start; it ended with {process.wait()}")
        said = json.loads(line)
        yield RegistryProcess(said["endpoint"], said["user"], said.get("token", token), data, process, place)
    finally:
        process.terminate()
        process.wait(timeout=30)
        if process.stdout is not None:
            process.stdout.close()
