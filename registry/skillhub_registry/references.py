"""What refers to what: which commits nothing leads to, and which trees, files and blobs the others need.

A commit is kept by refs, by the start of a pull request, and by the commits after it; in a mirrored repository all are kept,
since the other Hub may have forgotten them. Trees and files are kept by every
commit that is there, a blob by every file but the large ones that were deleted for good in each repository that had them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from skillhub_registry import git
from skillhub_registry.database import Connection

CommitKey = tuple[int, str]
"""A commit: the number of its repository, and its id."""


@dataclass(frozen=True)
class Reachable:
    """The ids of trees and files that were found so far. None of them changes, so finding more never starts anew."""

    trees: set[str] = field(default_factory=set)
    files: set[str] = field(default_factory=set)


def find_unreferenced_commits(connection: Connection) -> set[CommitKey]:
    """Return the commits that can be read by their ids only."""
    parents = {
        (row[0], row[1]): (row[2], row[3])
        for row in connection.execute("SELECT repository_id, id, parent, merged FROM commits")
    }
    pending: list[CommitKey] = []
    for roots in (
        "SELECT repository_id, target FROM refs",
        "SELECT repository_id, start FROM pull_requests WHERE is_pull_request = 1",
        "SELECT c.repository_id, c.id FROM commits c JOIN repositories r ON r.id = c.repository_id WHERE r.upstream <> ''",
    ):
        pending.extend((row[0], row[1]) for row in connection.execute(roots))
    while pending:
        repository_id, commit_id = pending.pop()
        before = parents.pop((repository_id, commit_id), ())
        pending.extend((repository_id, parent) for parent in before if parent)
    return set(parents)


def follow_commits(connection: Connection, reachable: Reachable, doomed: Collection[CommitKey] = ()) -> None:
    """Add what all commits lead to, but for doomed ones."""
    rows = connection.execute("SELECT repository_id, id, tree FROM commits").fetchall()
    follow_trees(connection, reachable, {row[2] for row in rows if (row[0], row[1]) not in doomed})


def follow_trees(connection: Connection, reachable: Reachable, roots: Iterable[str]) -> None:
    """Add trees with everything in them; what is missing leads nowhere."""
    pending = [tree for tree in roots if tree not in reachable.trees]
    while pending:
        tree = pending.pop()
        if tree in reachable.trees:
            continue
        reachable.trees.add(tree)
        row = connection.execute("SELECT data FROM trees WHERE id = ?", (tree,)).fetchone()
        for entry in git.decode_tree(row["data"]) if row else ():
            if entry.is_folder:
                pending.append(entry.id)
            else:
                reachable.files.add(entry.id)


def find_blobs(connection: Connection, reachable: Reachable) -> set[str]:
    """Return the sha256 of the blobs that files stand for, and of those that hold xorbs."""
    deleted = {
        row[0] for row in connection.execute("SELECT sha256 FROM large_files GROUP BY sha256 HAVING min(deleted) = 1")
    }
    blobs = {row[0] for row in connection.execute("SELECT sha256 FROM xorbs")}
    for row in connection.execute("SELECT id, sha256, lfs FROM files"):
        if row["id"] in reachable.files and not (row["lfs"] and row["sha256"] in deleted):
            blobs.add(row["sha256"])
    return blobs
