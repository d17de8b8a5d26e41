"""A real PostgreSQL server of the tests' own, in a temporary folder, reached through a socket there."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

REQUIRED = "SKILLHUB_REQUIRE_POSTGRESQL"
"""Set where a missing server is a failure: in continuous integration."""

USER, PASSWORD = "registry", "p@ss/word:1"
_QUOTED = "p%40ss%2Fword%3A1"


@dataclass(frozen=True)
class PostgreSQLServer:
    """A server that runs. ``folder`` has its socket and ``data``."""

    folder: Path
    programs: Path

    def address(self, database: str = "postgres", password: str = _QUOTED) -> str:
        """Return the address of one of its databases."""
        return f"postgresql://{USER}:{password}@/{database}?host={self.folder}"

    def create_database(self, name: str, encoding: str = "UTF8") -> str:
        """Make an empty database, and return its address."""
        with psycopg.connect(self.address(), autocommit=True) as connection:
            statement = f"CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0"
            connection.execute(statement.encode())
        return self.address(name)

    def control(self, *arguments: str) -> None:
        """Run ``pg_ctl``, which waits until the server has started or stopped."""
        # Unlogged and unsynced: nothing here outlives the tests.
        settings = f"-k {self.folder} -c listen_addresses= -c fsync=off -c full_page_writes=off -c max_connections=200"
        log = str(self.folder / "log")
        _run(self.programs / "pg_ctl", "-D", str(self.folder / "data"), "-w", "-l", log, "-o", settings, *arguments)


def find_programs() -> Path:
    """Return the folder of PostgreSQL's programs; skip the test where there is none, unless that is a failure."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"), reverse=True)
    program = shutil.which("pg_ctl") or (found[0] if found else None)
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
        server.control("start")
        try:
            yield server
        finally:
            server.control("-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


_SERVANT = "nobody"
"""Who runs the server where the tests are root's: it refuses to be root's."""


def _run(program: Path, *arguments: str) -> None:
    command = [str(program), *arguments]
    if os.geteuid() == 0:
        command = ["setpriv", f"--reuid={_SERVANT}", "--regid=nogroup", "--clear-groups", *command]
    # What the server inherits stays open as long as it runs: no pipes.
    with tempfile.TemporaryFile("w+") as said:
        done = subprocess.run(command, stdout=said, stderr=said, cwd="/", check=False)
        said.seek(0)
        assert done.returncode == 0, said.read()
