"""Files and folders of a commit: finding, listing, and when each last changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from skillhub_registry import git
from skillhub_registry.database import Connection
from skillhub_registry.git import TreeEntry
from skillhub_registry.revisions import Commit, walk_history


@dataclass(frozen=True)
class File:
    """What stands behind a git blob id. With ``lfs``, the id is that of the pointer to the content."""

    id: str
    sha256: str
    size: int
    lfs: bool

    @property
    def pointer_size(self) -> int:
        """Bytes of the pointer's text."""
        return len(git.lfs_pointer(self.sha256, self.size))


@dataclass(frozen=True)
class Entry:
    """A file or folder by its path in the repository; ``file`` is None for a folder."""

    path: str
    id: str
    file: File | None


def read_tree(connection: Connection, tree: str) -> list[TreeEntry]:
    """Return a tree's entries, in git's order."""
    if tree == git.EMPTY_TREE_ID:
        return []
    row = connection.execute("SELECT data FROM trees WHERE id = ?", (tree,)).fetchone()
    return list(git.decode_tree(row["data"]))


def find_entry(connection: Connection, tree: str, path: str) -> TreeEntry | None:
    """Return the file or folder at a path, or None."""
    entry = TreeEntry("", git.FOLDER_MODE, tree)
    for part in path.split("/") if path else ():
        if not entry.is_folder:
            return None
        found = next((child for child in read_tree(connection, entry.id) if child.name == part), None)
        if found is None:
            return None
        entry = found
    return entry


def walk_tree(
    connection: Connection, tree: str, prefix: str = "", recursive: bool = True
) -> Iterator[tuple[str, TreeEntry]]:
    """Yield path and entry of everything in a tree, each folder before what is in it; paths begin with ``prefix``."""
    for entry in read_tree(connection, tree):
        path = prefix + entry.name
        yield path, entry
        if recursive and entry.is_folder:
            yield from walk_tree(connection, entry.id, path + "/")


def read_files(connection: Connection, tree: str) -> dict[str, str]:
    """Return every file of a tree as path → blob id."""
    return {path: entry.id for path, entry in walk_tree(connection, tree) if not entry.is_folder}


def find_files(connection: Connection, blob_ids: Iterable[str]) -> dict[str, File]:
    """Return what stands behind blob ids."""
    wanted = list(dict.fromkeys(blob_ids))
    found: dict[str, File] = {}
    for start in range(0, len(wanted), 512):
        batch = wanted[start : start + 512]
        # Of a few lengths only: a database's driver keeps every statement that it saw, for each connection.
        batch += batch[-1:] * ((1 << (len(batch) - 1).bit_length()) - len(batch))
        marks = ", ".join("?" * len(batch))
        rows = connection.execute(f"SELECT id, sha256, size, lfs FROM files WHERE id IN ({marks})", batch)
        found.update((row["id"], File(row["id"], row["sha256"], row["size"], bool(row["lfs"]))) for row in rows)
    return found


def describe_entries(connection: Connection, entries: Iterable[tuple[str, TreeEntry]]) -> list[Entry]:
    """Return entries with what stands behind them."""
    listed = list(entries)
    files = find_files(connection, (entry.id for _, entry in listed if not entry.is_folder))
    return [Entry(path, entry.id, None if entry.is_folder else files[entry.id]) for path, entry in listed]


def find_last_commits(
    connection: Connection, repository_id: int, start: Commit, paths: Iterable[str]
) -> dict[str, Commit]:
    """Return, for each path that exists at a commit, the newest commit up to there that changed it."""
    entry_ids = _entry_ids(connection, start, paths)
    current = dict(entry_ids)
    found: dict[str, Commit] = {}
    newer = start
    for commit in walk_history(connection, repository_id, start):
        ids = _entry_ids(connection, commit, current) if commit.tree != newer.tree else dict(current)
        for path in [path for path, entry_id in current.items() if ids.get(path) != entry_id]:
            found[path] = newer
            del current[path]
        if not current:
            break
        newer = commit
    found.update(dict.fromkeys(current, newer))
    told = _read_mirrored_changes(connection, repository_id)
    for path, commit in found.items():
        if told and (path, entry_ids[path]) in told:
            found[path] = replace(commit, created_at=told[path, entry_ids[path]])
    return found


def _read_mirrored_changes(connection: Connection, repository_id: int) -> dict[tuple[str, str], int]:
    """Return when entries of a mirrored repository changed last, by path and git id, as far as the other Hub told."""
    rows = connection.execute(
        "SELECT path, id, changed_at FROM mirrored_changes WHERE repository_id = ?", (repository_id,)
    )
    return {(row["path"], row["id"]): row["changed_at"] for row in rows}


def _entry_ids(connection: Connection, commit: Commit, paths: Iterable[str]) -> dict[str, str]:
    """Return path → git id of the paths that a commit has, reading each folder once."""
    folders: dict[str, dict[str, TreeEntry]] = {}

    def entries_of(folder: str) -> dict[str, TreeEntry]:
        if folder not in folders:
            if folder:
                parent, _, name = folder.rpartition("/")
                entry = entries_of(parent).get(name)
            else:
                entry = TreeEntry("", git.FOLDER_MODE, commit.tree)
            children = read_tree(connection, entry.id) if entry is not None and entry.is_folder else []
            folders[folder] = {child.name: child for child in children}
        return folders[folder]

    found = {}
    for path in paths:
        parent, _, name = path.rpartition("/")
        entry = entries_of(parent).get(name)
        if entry is not None:
            found[path] = entry.id
    return found
