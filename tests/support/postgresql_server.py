"""A real PostgreSQL server of the tests' own, in a temporary folder, reached through a socket there."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import psycopg
import pytest

REQUIRED = "SKILLHUB_REQUIRE_POSTGRESQL"
"""Set where a missing server is a failure: in continuous integration."""

USER, PASSWORD = "registry", "p@ss/word:1"
_QUOTED = "p%40ss%2Fword%3A1"


@dataclass
class PostgreSQLServer:
    """A server that runs, or may be started again. ``folder`` has its socket and ``data``."""

    folder: Path
    programs: Path
    process: subprocess.Popen[str] | None = None
    reader: Thread | None = None

    def address(self, database: str = "postgres", password: str = _QUOTED) -> str:
        """Return the address of one of its databases."""
        return f"postgresql://{USER}:{password}@/{database}?host={self.folder}"

    def create_database(self, name: str, encoding: str = "UTF8") -> str:
        """Make an empty database, and return its address."""
        with psycopg.connect(self.address(), autocommit=True) as connection:
            statement = f"CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0"
            connection.execute(statement.encode())
        return self.address(name)

    def start(self) -> None:
        """Start it, and return when it answers."""
        # Unsynced: nothing here outlives the tests.
        settings = ["listen_addresses=", "fsync=off", "full_page_writes=off", "max_connections=200", "lc_messages=C"]
        options = [word for setting in settings for word in ("-c", setting)]
        command = [str(self.programs / "postgres"), "-D", str(self.folder / "data"), "-k", str(self.folder), *options]
        self.process = subprocess.Popen(_as_servant(command), stderr=subprocess.PIPE, text=True, cwd="/")
        assert self.process.stderr is not None
        said = []
        for line in self.process.stderr:
            said.append(line)
            if "ready to accept connections" in line:
                break
        else:
            raise AssertionError("".join(said))
        self.reader = Thread(target=self.process.stderr.read, daemon=True)  # it must not wait for one
        self.reader.start()

    def stop(self) -> None:
        """Stop it as a power failure would."""
        assert self.process is not None
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait(timeout=60)
        if self.reader is not None and self.process.stderr is not None:
            self.reader.join()
            self.process.stderr.close()


def find_programs() -> Path:
    """Return the folder of PostgreSQL's programs; skip the test where there is none, unless that is a failure."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), reverse=True)
    program = found[0] if found else shutil.which("postgres")
    if program is None:
        if os.environ.get(REQUIRED):
            pytest.fail("PostgreSQL is not installed (Debian: apt-get install postgresql)")
        pytest.skip("PostgreSQL is not installed")
    return Path(program).resolve().parent


@contextmanager
def running_postgresql() -> Iterator[PostgreSQLServer]:
    """Start a server, yield it once it answers, and remove it at the end."""
    programs = find_programs()
    folder = Path(
        tempfile.mkdtemp(prefix="pg-")
    )  # not pytest's: the path of a socket is short, and root's folders closed
    try:
        (folder / "password").write_text(PASSWORD)
        if os.geteuid() == 0:
            shutil.chown(folder, _SERVANT)
            shutil.chown(folder / "password", _SERVANT)
        options = [
            "--auth=scram-sha-256",
            f"--pwfile={folder / 'password'}",
            "--encoding=UTF8",
            "--no-locale",
            "--no-sync",
        ]
        _run(programs / "initdb", "-D", str(folder / "data"), "-U", USER, *options)
        server = PostgreSQLServer(folder, programs)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


_SERVANT = "nobody"
"""Who runs the server where the tests are root's: it refuses to be root's."""


def _as_servant(command: list[str]) -> list[str]:
    if os.geteuid() != 0:
        return command
    return ["setpriv", f"--reuid={_SERVANT}", "--regid=nogroup", "--clear-groups", *command]


def _run(program: Path, *arguments: str) -> None:
    command = _as_servant([str(program), *arguments])
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)
    assert done.returncode == 0, done.stderr
