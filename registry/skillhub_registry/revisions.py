"""Revisions: branches, tags, pull requests and commits, and what a revision's name means."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import astuple, dataclass

from skillhub_registry import git
from skillhub_registry.database import Connection
from skillhub_registry.errors import HubError, bad_request, conflict, revision_not_found
from skillhub_registry.names import check_ref_name, is_commit_id

BRANCH = "refs/heads/"
TAG = "refs/tags/"
PULL_REQUEST = "refs/pr/"
DEFAULT_BRANCH = "main"
DEFAULT_REF = BRANCH + DEFAULT_BRANCH

_COMMIT_COLUMNS = "id, tree, parent, author, created_at, title, message, merged"
_PULL_REQUEST_REF = re.compile(r"refs/pr/([1-9][0-9]{0,8})")
_SHORT_ID = re.compile(r"[0-9a-f]{7,40}")


@dataclass(frozen=True)
class Commit:
    """A commit of a repository. ``created_at`` is in seconds since 1970, UTC; ``merged`` the pull request's head, if any."""

    id: str
    tree: str
    parent: str | None
    author: str
    created_at: int
    title: str
    message: str
    merged: str | None = None


@dataclass(frozen=True)
class Ref:
    """A branch, tag or pull request: its full name (``refs/heads/…``, ``refs/tags/…``, ``refs/pr/…``) and its commit."""

    name: str
    target: str


def resolve_revision(connection: Connection, repository_id: int, revision: str) -> Commit:
    """Return the commit that a branch, tag, full ref name, commit id or its beginning stands for, in that order.

    Raises:
        HubError: 404, RevisionNotFound.
    """
    for name in (BRANCH + revision, TAG + revision, revision):
        ref = find_ref(connection, repository_id, name)
        if ref is not None:
            return _get_commit(connection, repository_id, ref.target)
    lowered = revision.lower()
    if is_short_id(lowered):
        rows = connection.execute(
            f"SELECT {_COMMIT_COLUMNS} FROM commits WHERE repository_id = ? AND id >= ? AND id < ? LIMIT 2",
            (repository_id, lowered, lowered + "g"),
        ).fetchall()
        if len(rows) == 1:
            return Commit(*rows[0])
    raise revision_not_found(revision)


def is_short_id(revision: str) -> bool:
    """Say whether a revision may be a commit's id or the beginning of one."""
    return _SHORT_ID.fullmatch(revision) is not None


def _get_commit(connection: Connection, repository_id: int, commit_id: str) -> Commit:
    row = connection.execute(
        f"SELECT {_COMMIT_COLUMNS} FROM commits WHERE repository_id = ? AND id = ?", (repository_id, commit_id)
    ).fetchone()
    return Commit(*row)


def find_ref(connection: Connection, repository_id: int, name: str) -> Ref | None:
    """Return the ref of that full name."""
    row = connection.execute(
        "SELECT name, target FROM refs WHERE repository_id = ? AND name = ?", (repository_id, name)
    ).fetchone()
    return Ref(*row) if row else None


def list_refs(connection: Connection, repository_id: int, prefix: str) -> list[Ref]:
    """Return the branches (``prefix=BRANCH``), tags or pull requests, by name."""
    rows = connection.execute(
        "SELECT name, target FROM refs WHERE repository_id = ? AND name >= ? AND name < ? ORDER BY name",
        (repository_id, prefix, prefix[:-1] + "0"),
    )
    return [Ref(*row) for row in rows]


def create_ref(
    connection: Connection,
    repository_id: int,
    prefix: str,
    name: str,
    target: str,
    message: str | None = None,
) -> None:
    """Make a branch or tag.

    Raises:
        HubError: 400 for an invalid name, 409 where it exists.
    """
    full_name = prefix + check_ref_name(name)
    if find_ref(connection, repository_id, full_name) is not None:
        kind = "Tag" if prefix == TAG else "Branch"
        raise conflict(f"{kind} {name} already exists")
    connection.execute("INSERT INTO refs VALUES (?, ?, ?, ?)", (repository_id, full_name, target, message))


def move_ref(connection: Connection, repository_id: int, name: str, target: str) -> None:
    """Let the ref of that full name, made if need be, point to another commit."""
    connection.execute(
        "INSERT INTO refs VALUES (?, ?, ?, NULL) ON CONFLICT (repository_id, name) DO UPDATE SET target = excluded.target",
        (repository_id, name, target),
    )


def delete_ref(connection: Connection, repository_id: int, prefix: str, name: str) -> None:
    """Remove a branch or tag; its commits stay reachable by their ids.

    Raises:
        HubError: 404 where there is none, 400 for the default branch.
    """
    if prefix == BRANCH and name == DEFAULT_BRANCH:
        raise bad_request("The main branch cannot be deleted")
    deleted = connection.execute(
        "DELETE FROM refs WHERE repository_id = ? AND name = ?", (repository_id, prefix + name)
    )
    if deleted.rowcount == 0:
        raise revision_not_found(name)


def insert_commit(
    connection: Connection,
    repository_id: int,
    *,
    tree: str,
    parent: str | None,
    author: str,
    created_at: int,
    title: str,
    message: str,
    merged: str | None = None,
) -> str:
    """Record a commit and return its id; no branch points to it yet."""
    text = f"{title}\n\n{message}" if message else title
    data = git.encode_commit(git.CommitObject(tree, parent, author, created_at, text, merged))
    commit = Commit(git.object_id("commit", data), tree, parent, author, created_at, title, message, merged)
    record_commit(connection, repository_id, commit)
    return commit.id


def record_commit(connection: Connection, repository_id: int, commit: Commit) -> None:
    """Record a commit that has its id already."""
    connection.execute(
        f"INSERT INTO commits (repository_id, {_COMMIT_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) "
        "ON CONFLICT DO NOTHING",
        (repository_id, *astuple(commit)),
    )


def has_commit(connection: Connection, repository_id: int, commit_id: str) -> bool:
    """Say whether a repository has the commit of that full id."""
    statement = "SELECT 1 FROM commits WHERE repository_id = ? AND id = ?"
    return connection.execute(statement, (repository_id, commit_id)).fetchone() is not None


def walk_history(connection: Connection, repository_id: int, start: Commit) -> Iterator[Commit]:
    """Yield a commit and its ancestors, newest first; of a merge it follows what was there, not what was merged."""
    commit: Commit | None = start
    while commit is not None:
        yield commit
        commit = _get_commit(connection, repository_id, commit.parent) if commit.parent else None


def branch_of(revision: str) -> str:
    """Return the branch that a commit is to be made on, given as ``name`` or ``refs/heads/name``.

    Raises:
        HubError: 400, it cannot be a branch.
    """
    if is_commit_id(revision) or (revision.startswith("refs/") and not revision.startswith(BRANCH)):
        raise bad_request(f"Commits are made on a branch, not on {revision}")
    return check_ref_name(revision.removeprefix(BRANCH))


def target_ref(revision: str) -> str:
    """Return the full name of the ref that a commit is to be made on: a branch's, or a pull request's.

    Raises:
        HubError: 400, it is neither.
    """
    return revision if _PULL_REQUEST_REF.fullmatch(revision) else BRANCH + branch_of(revision)


def pull_request_number(revision: str) -> int | None:
    """Return the number of the pull request whose ref this is, or None."""
    match = _PULL_REQUEST_REF.fullmatch(revision)
    return int(match[1]) if match else None


def stale_parent() -> HubError:
    """Return the error for a commit whose parent is not the branch's head any more."""
    return HubError(412, "PreconditionFailed", "A commit has happened since. Please refresh and try again.")
