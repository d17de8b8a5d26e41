"""Inspecting a registry's data: whether everything that is referred to is there, and is what its name says.

From every ref to its commit, from commits to trees, from trees to files, from files to blobs; ids are computed anew. What nobody
refers to is no finding: the garbage collection removes it. It may run while others serve and commit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from skillhub_registry import git
from skillhub_registry.blobs import BlobStore
from skillhub_registry.database import Connection, Database
from skillhub_registry.references import Reachable, find_blobs, follow_commits

_RESTORE = "Restore it from a backup (OPERATIONS.md)."
_UPLOAD = "Upload the file again, or restore the blob from a backup."

_OWNED = (
    *("refs", "commits", "uploads", "large_files", "repository_tags", "former_names", "pull_requests", "releases"),
    *("requirements", "access_requests", "mirrored_changes"),
)
"""The tables whose rows belong to a repository."""


@dataclass(frozen=True)
class Finding:
    """Something that is wrong.

    Attributes:
        kind: what kind of thing: ``ref``, ``commit``, ``tree``, ``file``, ``blob``, ``upload``, ``xorb`` or ``row``.
        where: which one.
        message: what is wrong with it.
        hint: what to do.
    """

    kind: str
    where: str
    message: str
    hint: str


def inspect_registry(database: Database, store: BlobStore, *, quick: bool = False) -> Iterator[Finding]:
    """Yield what is wrong; ``quick`` leaves out reading the blobs."""
    with database.read() as connection:
        yield from _inspect_rows(connection)
        yield from _inspect_refs(connection)
        yield from _inspect_commits(connection)
        yield from _inspect_trees(connection)
        yield from _inspect_pointers(connection)
    yield from _inspect_blobs(database, store, quick=quick)


def _inspect_rows(connection: Connection) -> Iterator[Finding]:
    for table in _OWNED:
        rows = connection.execute(
            f"SELECT DISTINCT o.repository_id FROM {table} o LEFT JOIN repositories r ON r.id = o.repository_id "
            "WHERE r.id IS NULL"
        )
        for row in rows:
            yield Finding("row", f"{table}, repository {row[0]}", "belongs to no repository", _RESTORE)


def _inspect_refs(connection: Connection) -> Iterator[Finding]:
    rows = connection.execute(
        "SELECT a.name || '/' || r.name, f.name, f.target FROM refs f JOIN repositories r ON r.id = f.repository_id "
        "JOIN accounts a ON a.id = r.namespace_id "
        "LEFT JOIN commits c ON c.repository_id = f.repository_id AND c.id = f.target WHERE c.id IS NULL"
    )
    for row in rows:
        yield Finding("ref", f"{row[0]} {row[1]}", f"leads to the commit {row[2]}, which is not there", _RESTORE)


def _inspect_commits(connection: Connection) -> Iterator[Finding]:
    ids = {(row[0], row[1]) for row in connection.execute("SELECT repository_id, id FROM commits")}
    trees = {row[0] for row in connection.execute("SELECT id FROM trees")} | {git.EMPTY_TREE_ID}
    rows = connection.execute(
        "SELECT c.repository_id, c.id, tree, parent, merged, author, c.created_at, title, message, upstream "
        "FROM commits c LEFT JOIN repositories r ON r.id = c.repository_id"
    )
    for repository_id, commit_id, tree, parent, merged, author, created_at, title, message, upstream in rows:
        where = f"repository {repository_id}, {commit_id}"
        text = f"{title}\n\n{message}" if message else title
        data = git.encode_commit(git.CommitObject(tree, parent, author, created_at, text, merged))
        if not upstream and git.object_id("commit", data) != commit_id:  # elsewhere more goes into it than is told
            yield Finding("commit", where, "is not what its id says", _RESTORE)
        if tree not in trees:
            yield Finding("commit", where, f"names the tree {tree}, which is not there", _RESTORE)
        for before in (parent, merged):
            if before and (repository_id, before) not in ids:
                yield Finding("commit", where, f"comes after {before}, which is not there", _RESTORE)


def _inspect_trees(connection: Connection) -> Iterator[Finding]:
    trees = {row[0] for row in connection.execute("SELECT id FROM trees")} | {git.EMPTY_TREE_ID}
    files = {row[0] for row in connection.execute("SELECT id FROM files")}
    for row in connection.execute("SELECT id, data FROM trees"):
        if git.object_id("tree", row["data"]) != row["id"]:
            yield Finding("tree", row["id"], "is not what its id says", _RESTORE)
            continue
        for entry in git.decode_tree(row["data"]):
            if entry.id not in (trees if entry.is_folder else files):
                yield Finding("tree", row["id"], f"names {entry.name} ({entry.id}), which is not there", _RESTORE)


def _inspect_pointers(connection: Connection) -> Iterator[Finding]:
    for row in connection.execute("SELECT id, sha256, size FROM files WHERE lfs = 1"):
        if git.object_id("blob", git.lfs_pointer(row["sha256"], row["size"])) != row["id"]:
            yield Finding("file", row["id"], "is not what its id says", _RESTORE)


def _inspect_blobs(database: Database, store: BlobStore, *, quick: bool) -> Iterator[Finding]:
    """Compare blobs with what the database says of them."""
    present = dict(store.list_blobs())
    wanted = _find_wanted(database)
    missing = wanted.keys() - present.keys()
    if missing:  # what is not needed any more may have been removed since, what came since is not listed
        again = _find_wanted(database)
        missing = {sha256 for sha256 in missing & again.keys() if not store.has(sha256)}
    for sha256 in sorted(missing):
        yield Finding(wanted[sha256].kind, sha256, "its blob is not there", _UPLOAD)
    for sha256, known in sorted(wanted.items()):
        if sha256 not in present:
            continue
        if known.size is not None and known.size != present[sha256]:
            yield Finding("blob", sha256, f"has {present[sha256]} bytes instead of {known.size}", _UPLOAD)
        elif not quick:
            yield from _read_blob(store, sha256, present[sha256], known)


@dataclass(frozen=True)
class _Wanted:
    """What is known of a blob: what needs it, its size, and the git id of its content."""

    kind: str
    size: int | None = None
    git_id: str | None = None


def _find_wanted(database: Database) -> dict[str, _Wanted]:
    with database.read() as connection:
        reachable = Reachable()
        follow_commits(connection, reachable)
        needed = find_blobs(connection, reachable)
        wanted = {row[0]: _Wanted("xorb") for row in connection.execute("SELECT sha256 FROM xorbs")}
        for row in connection.execute("SELECT sha256, size FROM uploads"):
            wanted[row["sha256"]] = _Wanted("upload", row["size"])
        for row in connection.execute("SELECT id, sha256, size, lfs FROM files ORDER BY lfs DESC"):
            if row["sha256"] in needed and row["id"] in reachable.files:
                wanted[row["sha256"]] = _Wanted("file", row["size"], None if row["lfs"] else row["id"])
    return wanted


def _read_blob(store: BlobStore, sha256: str, size: int, known: _Wanted) -> Iterator[Finding]:
    digest, git_digest = hashlib.sha256(), hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    try:
        for piece in store.read_pieces(sha256):
            digest.update(piece)
            git_digest.update(piece)
    except FileNotFoundError:
        return  # removed since, or else the next inspection says so
    except OSError as error:
        yield Finding("blob", sha256, f"cannot be read: {error.strerror or error}", _UPLOAD)
        return
    if digest.hexdigest() != sha256:
        yield Finding("blob", sha256, "is not what its name says", _UPLOAD)
    elif known.git_id is not None and git_digest.hexdigest() != known.git_id:
        yield Finding("file", known.git_id, f"is not what its id says: the blob {sha256} is another file", _RESTORE)
