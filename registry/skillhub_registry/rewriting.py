"""Rewriting history: every ref as if some files had never been there.

Commits get other ids where their files or ancestors change. The old ones stay readable by their ids, as after squashing.
"""

from __future__ import annotations

from collections.abc import Collection

from skillhub_registry import git
from skillhub_registry.database import Connection
from skillhub_registry.revisions import Commit, insert_commit, list_refs, move_ref, resolve_revision
from skillhub_registry.trees import read_tree


def rewrite_refs(connection: Connection, repository_id: int, blob_ids: Collection[str]) -> None:
    """Take the files with these git ids out of all branches, tags and pull requests, and of their histories."""
    trees = _Trees(connection, frozenset(blob_ids))
    renamed: dict[str, str] = {}
    for ref in list_refs(connection, repository_id, "refs/"):
        target = _rewrite_history(connection, repository_id, ref.target, trees, renamed)
        if target != ref.target:
            move_ref(connection, repository_id, ref.name, target)
    trees.store()
    for column in ("start", "merge_commit"):
        connection.executemany(
            f"UPDATE pull_requests SET {column} = ? WHERE repository_id = ? AND {column} = ?",
            [(new, repository_id, old) for old, new in renamed.items() if new != old],
        )


class _Trees:
    """Trees without some files, each rewritten once. New ones are stored together, as ``Database.write`` wants it."""

    def __init__(self, connection: Connection, blob_ids: frozenset[str]) -> None:
        self._connection = connection
        self._blob_ids = blob_ids
        self._rewritten: dict[str, str] = {}
        self._new: dict[str, bytes] = {}

    def rewrite(self, tree: str) -> str:
        """Return the id of the tree without the files; folders that become empty are left out, as in git."""
        if tree not in self._rewritten:
            entries = read_tree(self._connection, tree)
            kept = []
            for entry in entries:
                inner = self.rewrite(entry.id) if entry.is_folder else entry.id
                if inner not in self._blob_ids and inner != git.EMPTY_TREE_ID:
                    kept.append(git.TreeEntry(entry.name, entry.mode, inner))
            if kept == entries:
                self._rewritten[tree] = tree
            else:
                data = git.encode_tree(kept)
                self._rewritten[tree] = git.object_id("tree", data)
                self._new[self._rewritten[tree]] = data
        return self._rewritten[tree]

    def store(self) -> None:
        """Store the trees that are new."""
        self._connection.executemany(
            "INSERT INTO trees VALUES (?, ?) ON CONFLICT DO NOTHING", sorted(self._new.items())
        )


def _rewrite_history(
    connection: Connection, repository_id: int, head: str, trees: _Trees, renamed: dict[str, str]
) -> str:
    """Return the commit that a commit becomes; ``renamed`` has old id → new id of all that were done, and gets more."""
    pending = [head]
    while pending:
        commit = resolve_revision(connection, repository_id, pending[-1])
        waiting = [parent for parent in (commit.parent, commit.merged) if parent and parent not in renamed]
        if waiting:
            pending.extend(waiting)
            continue
        renamed[commit.id] = _rewrite_commit(connection, repository_id, commit, trees, renamed)
        pending.pop()
    return renamed[head]


def _rewrite_commit(
    connection: Connection, repository_id: int, commit: Commit, trees: _Trees, renamed: dict[str, str]
) -> str:
    tree = trees.rewrite(commit.tree)
    parent, merged = (renamed[one] if one else None for one in (commit.parent, commit.merged))
    if (tree, parent, merged) == (commit.tree, commit.parent, commit.merged):
        return commit.id
    return insert_commit(
        connection,
        repository_id,
        tree=tree,
        parent=parent,
        author=commit.author,
        created_at=commit.created_at,
        title=commit.title,
        message=commit.message,
        merged=merged,
    )
