"""The SQLite database: its schema, and transactions.

Everything that names or connects blobs is here; a commit is one transaction, so it is visible whole or not at all.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from skillhub.errors import DiskError, NewerSchemaError

SCHEMA = """
CREATE TABLE accounts (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL COLLATE NOCASE UNIQUE,
    kind TEXT NOT NULL CHECK (kind IN ('user', 'organization')),
    created_at INTEGER NOT NULL
);
CREATE TABLE memberships (
    organization_id INTEGER NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
    account_id INTEGER NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
    PRIMARY KEY (organization_id, account_id)
) WITHOUT ROWID;
CREATE TABLE tokens (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    account_id INTEGER NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    scope TEXT NOT NULL CHECK (scope IN ('read', 'write')),
    digest TEXT NOT NULL UNIQUE,
    created_at INTEGER NOT NULL
);
-- AUTOINCREMENT: links signed for a deleted repository must never fit a later one.
CREATE TABLE repositories (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    public_id TEXT NOT NULL UNIQUE,
    namespace_id INTEGER NOT NULL REFERENCES accounts (id),
    name TEXT NOT NULL COLLATE NOCASE,
    private INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    last_modified INTEGER NOT NULL,
    downloads INTEGER NOT NULL DEFAULT 0,
    card TEXT NOT NULL DEFAULT '{}',
    library_name TEXT,
    pipeline_tag TEXT,
    UNIQUE (namespace_id, name)
);
CREATE TABLE repository_tags (
    repository_id INTEGER NOT NULL REFERENCES repositories (id) ON DELETE CASCADE,
    tag TEXT NOT NULL,
    PRIMARY KEY (repository_id, tag)
) WITHOUT ROWID;
CREATE INDEX repository_tags_by_tag ON repository_tags (tag);
CREATE TABLE former_names (
    full_name TEXT NOT NULL COLLATE NOCASE PRIMARY KEY,
    repository_id INTEGER NOT NULL REFERENCES repositories (id) ON DELETE CASCADE
) WITHOUT ROWID;
CREATE TABLE refs (
    repository_id INTEGER NOT NULL REFERENCES repositories (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    target TEXT NOT NULL,
    message TEXT,
    PRIMARY KEY (repository_id, name)
) WITHOUT ROWID;
CREATE TABLE commits (
    repository_id INTEGER NOT NULL REFERENCES repositories (id) ON DELETE CASCADE,
    id TEXT NOT NULL,
    tree TEXT NOT NULL,
    parent TEXT,
    author TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    title TEXT NOT NULL,
    message TEXT NOT NULL,
    PRIMARY KEY (repository_id, id)
) WITHOUT ROWID;
-- Git trees, as git writes them; shared by all repositories, reachable through a commit only.
CREATE TABLE trees (
    id TEXT NOT NULL PRIMARY KEY,
    data BLOB NOT NULL
);
-- What stands behind a git blob id: the content itself, or with lfs = 1 the file that the pointer stands for.
CREATE TABLE files (
    id TEXT NOT NULL PRIMARY KEY,
    sha256 TEXT NOT NULL,
    size INTEGER NOT NULL,
    lfs INTEGER NOT NULL
) WITHOUT ROWID;
-- The large files that were sent to a repository. Knowing a digest is not enough to refer to a file.
CREATE TABLE uploads (
    repository_id INTEGER NOT NULL REFERENCES repositories (id) ON DELETE CASCADE,
    sha256 TEXT NOT NULL,
    size INTEGER NOT NULL,
    PRIMARY KEY (repository_id, sha256)
) WITHOUT ROWID;
-- Xorbs by the hash that the sender gave them, kept apart by sender: nobody can replace another's.
CREATE TABLE xorbs (
    hash TEXT NOT NULL,
    account_id INTEGER NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
    sha256 TEXT NOT NULL,
    PRIMARY KEY (hash, account_id)
) WITHOUT ROWID;
"""

PULL_REQUESTS = """
CREATE TABLE pull_requests (
    repository_id INTEGER NOT NULL REFERENCES repositories (id) ON DELETE CASCADE,
    number INTEGER NOT NULL,
    author_id INTEGER NOT NULL REFERENCES accounts (id),
    title TEXT NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('draft', 'open', 'closed', 'merged')),
    base TEXT NOT NULL,
    start TEXT NOT NULL,
    merge_commit TEXT,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (repository_id, number)
) WITHOUT ROWID;
CREATE TABLE pull_request_events (
    id INTEGER PRIMARY KEY,
    repository_id INTEGER NOT NULL,
    number INTEGER NOT NULL,
    kind TEXT NOT NULL,
    author_id INTEGER NOT NULL REFERENCES accounts (id),
    created_at INTEGER NOT NULL,
    data TEXT NOT NULL,
    FOREIGN KEY (repository_id, number) REFERENCES pull_requests (repository_id, number) ON DELETE CASCADE
);
CREATE INDEX pull_request_events_in_order ON pull_request_events (repository_id, number, id);
-- The second parent of a commit that merged a pull request.
ALTER TABLE commits ADD COLUMN merged TEXT;
-- Uploads belong to whoever sent them: 0 for the repository's members, else the account that proposes.
CREATE TABLE uploads_by_sender (
    repository_id INTEGER NOT NULL REFERENCES repositories (id) ON DELETE CASCADE,
    sender INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    size INTEGER NOT NULL,
    PRIMARY KEY (repository_id, sender, sha256)
) WITHOUT ROWID;
INSERT INTO uploads_by_sender SELECT repository_id, 0, sha256, size FROM uploads;
DROP TABLE uploads;
ALTER TABLE uploads_by_sender RENAME TO uploads;
"""

MIGRATIONS: tuple[str, ...] = (SCHEMA, PULL_REQUESTS)
"""Scripts that lead from version N to N + 1; the version is SQLite's ``user_version``. Append only."""


class Database:
    """Connections to the database file: many readers at once, one writer.

    Args:
        path: the file; made, or brought to the newest version, by :func:`open_database`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._idle: list[sqlite3.Connection] = []
        self._idle_lock = threading.Lock()
        self._write_lock = threading.Lock()

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """Yield a connection that sees one consistent state."""
        with self._connection() as connection:
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                _roll_back(connection)

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """Yield a connection whose changes become visible together at the end, or never if an error passes."""
        with self._write_lock, self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                _roll_back(connection)
                raise
            connection.execute("COMMIT")

    def close(self) -> None:
        """Close the idle connections."""
        with self._idle_lock:
            while self._idle:
                self._idle.pop().close()

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
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
        return connection


def open_database(path: Path) -> Database:
    """Open the database, making it or bringing it to the newest version.

    Raises:
        NewerSchemaError: a later version of the registry wrote it.
        DiskError: the file cannot be opened or written.
    """
    database = Database(path)
    try:
        with database._connection() as connection:
            connection.execute("PRAGMA journal_mode = WAL")
        with database.write() as connection:
            _migrate(connection, path)
    except sqlite3.Error as error:
        raise DiskError(
            f"The registry's database {path} cannot be used: {error}.",
            hint="Check that the folder is writable and that the file is a registry's; --data names another folder.",
        ) from error
    return database


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
        for statement in _split_statements(MIGRATIONS[number]):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {number + 1}")


def _split_statements(script: str) -> Iterator[str]:
    statement = ""
    for line in script.splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
