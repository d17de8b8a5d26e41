"""The embedded database: one SQLite file, many readers at once, one writer."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from skillhub.errors import DiskError, NewerSchemaError
from skillhub_registry.database import Connection, Database
from skillhub_registry.errors import busy, disk_full
from skillhub_registry.schema import MIGRATIONS, split_statements

logger = logging.getLogger("skillhub_registry")


class SQLiteDatabase(Database):
    """Connections to the database file.

    Args:
        path: the file; made, or brought to the newest version, by :func:`open_sqlite`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._idle: list[sqlite3.Connection] = []
        self._idle_lock = threading.Lock()
        self._write_lock = threading.Lock()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """See :meth:`Database.read`."""
        with _answering_errors(), self.connection() as connection:
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                _roll_back(connection)

    @contextmanager
    def write(self, repository_id: int | None = None) -> Iterator[Connection]:
        """See :meth:`Database.write`; here there is one writer, whatever it writes to."""
        with _answering_errors(), self._write_lock, self.connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                _roll_back(connection)
                raise
            connection.execute("COMMIT")

    def add_up(self, statement: str, rows: Sequence[Sequence[Any]]) -> Iterator[Sequence[Any]]:
        """See :meth:`Database.add_up`; here one transaction, so that the disk is waited for once."""
        with self.write() as connection:
            connection.executemany(statement, rows)
        yield from rows

    def close(self) -> None:
        """See :meth:`Database.close`."""
        with self._idle_lock:
            while self._idle:
                self._idle.pop().close()

    @contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """Yield a connection outside a transaction."""
        with self._idle_lock:
            connection = self._idle.pop() if self._idle else None
        connection = connection or self._connect()
        try:
            yield connection
        except sqlite3.Error:
            connection.close()
            raise
        except BaseException:
            self._release(connection)
            raise
        self._release(connection)

    def _release(self, connection: sqlite3.Connection) -> None:
        with self._idle_lock:
            self._idle.append(connection)

    def _connect(self) -> sqlite3.Connection:
        # isolation_level=None: transactions begin and end where this file says so.
        connection = sqlite3.connect(self._path, timeout=30, isolation_level=None, check_same_thread=False)
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA cache_size = -512")  # kB; there are dozens of connections, and one system's cache
        return connection


def open_sqlite(path: Path) -> SQLiteDatabase:
    """Open the database, making it or bringing it to the newest version.

    Raises:
        NewerSchemaError: a later version of the registry wrote it.
        DiskError: the file cannot be opened or written.
    """
    database = SQLiteDatabase(path)
    try:
        with database.connection() as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("BEGIN IMMEDIATE")
            try:
                _migrate(connection, path)
            except BaseException:
                _roll_back(connection)
                raise
            connection.execute("COMMIT")
    except sqlite3.Error as error:
        raise DiskError(
            f"The registry's database {path} cannot be used: {error}.",
            hint="Check that the folder is writable and that the file is a registry's; --data names another folder.",
        ) from error
    return database


@contextmanager
def _answering_errors() -> Iterator[None]:
    """Turn what is not the program's fault into answers."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if "locked" in str(error) or "busy" in str(error):
            raise busy() from error
        if "full" in str(error):
            logger.error("the disk is full: %s", error)
            raise disk_full() from error
        raise


def _roll_back(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:  # SQLite has ended it itself after some errors, a full disk among them
        connection.execute("ROLLBACK")


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        raise NewerSchemaError(
            f"The registry's database {path} is of version {version}; this program knows up to {len(MIGRATIONS)}.",
            hint="Upgrade skillhub-packs, or restore a backup made by this version.",
        )
    for number in range(version, len(MIGRATIONS)):
        # Not executescript: that would end the transaction.
        for statement in split_statements(MIGRATIONS[number]):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {number + 1}")
