"""Copying between repositories without sending a byte: large files that a commit is to name, and whole repositories."""

from __future__ import annotations

from collections.abc import Iterable

from skillhub_registry.accounts import Account
from skillhub_registry.database import Connection
from skillhub_registry.largefiles import find_large_files
from skillhub_registry.repositories import MEMBERS, Repository, create_repository, set_gated
from skillhub_registry.revisions import BRANCH, TAG, list_refs, resolve_revision
from skillhub_registry.uploads import record_uploads


def copy_large_files(
    connection: Connection, source: Repository, target: Repository, sender: int, sha256s: Iterable[str]
) -> tuple[list[str], list[str]]:
    """Let a sender's commits to a repository name large files of another one; return which it has, and which it lacks."""
    wanted = list(dict.fromkeys(sha256s))
    found = find_large_files(connection, source.id, wanted)
    record_uploads(connection, target.id, sender, [(file.sha256, file.size) for file in found.values()])
    return list(found), [sha256 for sha256 in wanted if sha256 not in found]


def copy_repository(
    connection: Connection, source: Repository, namespace: Account, name: str, *, private: bool, creator: Account
) -> Repository:
    """Make a repository with the files, the branches, the tags and the history of another one, and with its gate.

    What was proposed to the other one is left out: pull requests, their commits and discussions.

    Raises:
        HubError: 400 for an invalid name, 409 for one that is taken.
    """
    made = create_repository(connection, namespace, name, private, creator)
    refs = [ref for prefix in (BRANCH, TAG) for ref in list_refs(connection, source.id, prefix)]
    connection.executemany(
        "INSERT INTO refs (repository_id, name, target, message) "
        "SELECT ?, name, target, message FROM refs WHERE repository_id = ? AND name = ?",
        [(made.id, source.id, ref.name) for ref in refs],
    )
    _copy_history(connection, source.id, made.id, [ref.target for ref in refs])
    for table, columns in (
        ("large_files", "sha256, size, path, ref, pushed_at, deleted"),
        ("repository_tags", "tag"),
        ("releases", "version, published_at"),
        ("requirements", "place, version, pack, requirement"),
    ):
        connection.execute(
            f"INSERT INTO {table} (repository_id, {columns}) SELECT ?, {columns} FROM {table} WHERE repository_id = ?",
            (made.id, source.id),
        )
    connection.execute(
        "INSERT INTO uploads (repository_id, sender, sha256, size) "
        "SELECT ?, ?, sha256, size FROM large_files WHERE repository_id = ? AND deleted = 0",
        (made.id, MEMBERS, made.id),
    )
    connection.execute(
        "UPDATE repositories SET card = s.card, library_name = s.library_name, pipeline_tag = s.pipeline_tag "
        "FROM repositories s WHERE s.id = ? AND repositories.id = ?",
        (source.id, made.id),
    )
    set_gated(connection, made, source.gated)
    return made


def _copy_history(connection: Connection, source: int, target: int, heads: list[str]) -> None:
    pending, done = list(heads), set()
    while pending:
        commit = resolve_revision(connection, source, pending.pop())
        if commit.id not in done:
            done.add(commit.id)
            pending.extend(parent for parent in (commit.parent, commit.merged) if parent)
    columns = "id, tree, parent, author, created_at, title, message, merged"
    connection.executemany(
        f"INSERT INTO commits (repository_id, {columns}) "
        f"SELECT ?, {columns} FROM commits WHERE repository_id = ? AND id = ?",
        [(target, source, commit_id) for commit_id in done],
    )
