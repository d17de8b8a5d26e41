"""Counting downloads: on both databases nothing is lost or counted twice, and nobody waits for it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from skillhub_registry.accounts import add_account
from skillhub_registry.database import Database
from skillhub_registry.errors import HubError
from skillhub_registry.observation import ObservedDatabase
from skillhub_registry.registry import Place, open_database
from skillhub_registry.repositories import create_repository
from skillhub_registry.statistics import DownloadCounter
from tests.support.postgresql_server import PostgreSQLServer

Opener = Callable[[], Database]


@pytest.fixture(params=["sqlite", "postgresql"])
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Opener:
    """What opens a database in which there are three repositories, as each replica does for itself."""
    address = None
    if request.param == "postgresql":
        server: PostgreSQLServer = request.getfixturevalue("postgresql")
        address = server.create_database(f"statistics_{abs(hash(str(tmp_path)))}")
    place = Place(tmp_path, address)
    with contextlib.closing(open_database(place)) as database, database.write() as connection:
        ann = add_account(connection, "ann")
        for name in ("one", "two", "three"):
            create_repository(connection, ann, name, False, ann)
    return lambda: open_database(place)


@pytest.fixture
def database(opener: Opener) -> Iterator[Database]:
    with contextlib.closing(opener()) as found:
        yield found


def read_counts(database: Database) -> dict[int, int]:
    with database.read() as connection:
        return {row[0]: row[1] for row in connection.execute("SELECT id, downloads FROM repositories ORDER BY id")}


def count(numbers: dict[int, int]) -> DownloadCounter:
    counter = DownloadCounter()
    for number, times in numbers.items():
        for _ in range(times):
            counter.count(number)
    return counter


def test_what_several_replicas_count_at_once_adds_up(opener: Opener, database: Database) -> None:
    def serve(_: int) -> None:
        with contextlib.closing(opener()) as own:
            for _ in range(10):
                count({1: 2, 3: 1, 2: 1, 99: 1}).flush(own)  # 99 was deleted meanwhile

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(serve, range(4)))
    assert read_counts(database) == {1: 80, 2: 40, 3: 40}


def test_what_cannot_be_written_is_counted_later_and_once(database: Database) -> None:
    class Failing(ObservedDatabase):
        """The database, which goes away after the first row."""

        def add_up(self, statement: str, rows: Any) -> Iterator[Any]:
            yield from super().add_up(statement, rows[:1])
            raise HubError(503, "Busy", "gone")

    counter = count({1: 1, 2: 2})
    with pytest.raises(HubError, match="gone"):
        counter.flush(Failing(database))
    assert read_counts(database) == {1: 1, 2: 0, 3: 0}
    counter.count(2)
    counter.flush(database)
    counter.flush(database)
    assert read_counts(database) == {1: 1, 2: 3, 3: 0}


@pytest.mark.parametrize("opener", ["postgresql"], indirect=True)
def test_nobody_waits_for_counting_nor_it_for_others(opener: Opener, database: Database) -> None:
    """While somebody changes everything it goes on; a row that is being changed itself is counted the next time."""
    counter = count({1: 1, 2: 1})
    with contextlib.closing(opener()) as other, other.write() as connection:
        counter.flush(database)
        assert read_counts(database) == {1: 1, 2: 1, 3: 0}
        connection.execute("UPDATE repositories SET last_modified = 7 WHERE id = 1")
        counter.count(1)
        counter.count(3)
        counter.flush(database)
        assert read_counts(database) == {1: 1, 2: 1, 3: 1}
    counter.flush(database)
    assert read_counts(database) == {1: 2, 2: 1, 3: 1}
