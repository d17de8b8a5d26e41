"""Data folders of earlier versions are brought up to date, with everything that is in them."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi

from skillhub_registry.commits import store_files
from skillhub_registry.database import Connection, Rows
from skillhub_registry.schema import MIGRATIONS
from skillhub_registry.sqlite import open_sqlite
from skillhub_registry.trees import File, find_files
from skillhub_registry.uploads import find_upload
from tests.support.registry_process import running_registry


def test_uploads_of_an_earlier_version_are_the_members(tmp_path: Path) -> None:
    path = tmp_path / "registry.sqlite3"
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript(MIGRATIONS[0])
        connection.execute("INSERT INTO accounts VALUES (1, 'ann', 'user', 0)")
        connection.execute(
            "INSERT INTO repositories (id, public_id, namespace_id, name, private, created_at, last_modified) "
            "VALUES (7, 'p', 1, 'pack', 0, 0, 0)"
        )
        connection.execute("INSERT INTO commits VALUES (7, ?, ?, NULL, 'ann', 0, 'title', '')", ("c" * 40, "t" * 40))
        connection.execute("INSERT INTO uploads VALUES (7, ?, 123)", ("ab" * 32,))
        connection.execute("PRAGMA user_version = 1")
    database = open_sqlite(path)
    with database.read() as connection:
        assert connection.execute("PRAGMA user_version").fetchone()[0] == len(MIGRATIONS)
        assert find_upload(connection, 7, 0, "ab" * 32) == 123
        assert find_upload(connection, 7, 1, "ab" * 32) is None
        assert connection.execute("SELECT merged FROM commits").fetchone()[0] is None
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    database.close()


def test_a_folder_that_was_served_before_is_served_again(tmp_path: Path) -> None:
    """What stands in the middle of a proposal goes on after a restart."""
    with running_registry(tmp_path / "data") as first:
        api = HfApi(endpoint=first.endpoint, token=first.token)
        repository = api.create_repo(f"{first.user}/again").repo_id
        api.create_commit(repository, [CommitOperationAdd("a.txt", b"1")], commit_message="Proposed", create_pr=True)
        token = first.token
    with running_registry(tmp_path / "data", token=token) as second:
        api = HfApi(endpoint=second.endpoint, token=token)
        api.merge_pull_request(repository, 1)
        fetched = api.hf_hub_download(repository, "a.txt", local_dir=tmp_path / "fetched")
        assert Path(fetched).read_bytes() == b"1"


def test_files_are_looked_up_by_few_statements_however_many_they_are(tmp_path: Path) -> None:
    """Every connection keeps the statements that it saw: one for each number of files would be a leak."""
    statements: set[str] = set()

    class Listening:
        """A transaction whose statements are noted."""

        def __init__(self, connection: Connection) -> None:
            self.connection = connection
            self.executemany = connection.executemany

        def execute(self, statement: str, values: Sequence[Any] = (), /) -> Rows:
            statements.add(statement)
            return self.connection.execute(statement, values)

    files = [File(f"{number:040}", f"{number:064}", number, bool(number % 2)) for number in range(1100)]
    database = open_sqlite(tmp_path / "registry.sqlite3")
    with database.write() as connection:
        store_files(connection, files)
    with database.read() as connection:
        for count in (0, *range(1, 40), 511, 512, 513, 1024, 1025, 1100):
            found = find_files(Listening(connection), [file.id for file in files[:count]])
            assert found == {file.id: file for file in files[:count]}
    database.close()
    assert len(statements) <= 10
