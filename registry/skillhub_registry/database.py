"""What every module asks of a database: transactions, and plain SQL that SQLite and PostgreSQL both understand.

Everything that names or connects blobs is there; a commit is one transaction, so it is visible whole or not at all.
``sqlite.py`` and ``postgresql.py`` hold the two kinds, ``schema.py`` the tables.

The SQL: ``?`` for values; ``ON CONFLICT`` and ``RETURNING``; integers for booleans and times; names are compared as
``lower(name) = ?`` with a value from ``names.fold_name``. Text is compared byte by byte.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol


class Row(Protocol):
    """A row of an answer: its values by name and by place."""

    def __getitem__(self, key: int | str, /) -> Any: ...

    def __iter__(self) -> Iterator[Any]: ...

    def __len__(self) -> int: ...


class Rows(Protocol):
    """The answer to a statement."""

    @property
    def rowcount(self) -> int:
        """How many rows the statement changed."""
        ...

    def fetchone(self) -> Any:
        """Return the next :class:`Row`, or None."""
        ...

    def fetchall(self) -> list[Any]:
        """Return all rows that are left."""
        ...

    def __iter__(self) -> Iterator[Any]: ...


class Connection(Protocol):
    """An open transaction."""

    def execute(self, statement: str, values: Sequence[Any] = (), /) -> Rows:
        """Run a statement; ``?`` in it stand for the values."""
        ...

    def executemany(self, statement: str, rows: Iterable[Sequence[Any]], /) -> object:
        """Run a statement once for each row of values."""
        ...


class Database(ABC):
    """A database that is open, of the newest version."""

    @abstractmethod
    def read(self) -> AbstractContextManager[Connection]:
        """Yield a connection that sees one consistent state and changes nothing.

        Raises:
            HubError: 503, the database is not there or too busy.
        """

    @abstractmethod
    def write(self, repository_id: int | None = None) -> AbstractContextManager[Connection]:
        """Yield a connection whose changes become visible together at the end, or never if an error passes.

        Nobody else changes meanwhile what the transaction may have read: one that names a repository is alone with that
        repository, and one that names none is alone altogether. The former changes its repository's rows only, besides
        the tables that all repositories share (``files``, then ``trees``; one row of ``xorbs``), sorted by key so that
        two transactions cannot wait for each other.

        Raises:
            HubError: 503, the database is not there or too busy; 507, the disk is full. Nothing has changed.
        """

    @abstractmethod
    def add_up(self, statement: str, rows: Sequence[Sequence[Any]]) -> Iterator[Sequence[Any]]:
        """Run a statement that adds to one row, once for each of these values, and yield those that are kept.

        It takes no part in the order that :meth:`write` keeps: whoever changes something else waits for it no more than it
        for them. So what it adds to must depend on nothing else, and nothing on that. Values that are not yielded are not
        kept; somebody may have been changing their row for long.

        Raises:
            HubError: 503 or 507, as :meth:`write`. What was yielded is kept.
        """

    @abstractmethod
    def close(self) -> None:
        """Close the idle connections."""
