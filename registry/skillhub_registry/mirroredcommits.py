"""Commits of the other Hub: fetching what they consist of, and keeping them under the ids that they have there.

Files that are kept in git are fetched with the commit, large ones when somebody wants them. A file's bytes must be what its id
or its sha256 says; that a commit has these files, the other Hub is believed, as it does not tell all that a commit's id is
computed from. Of what came before a commit, those commits are known that are here as well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from skillhub.manifest import MANIFEST_FILE
from skillhub.releases import RELEASES_FILE
from skillhub_registry import git, limits
from skillhub_registry.blobs import BlobStore, keep_blob, write_blob
from skillhub_registry.commits import store_files, store_trees
from skillhub_registry.database import Connection
from skillhub_registry.errors import too_large
from skillhub_registry.indexing import index_files
from skillhub_registry.largefiles import expect_large_files, find_large_files, record_large_files
from skillhub_registry.outgoing import UpstreamError
from skillhub_registry.published import check_preserved
from skillhub_registry.references import Reachable, follow_trees
from skillhub_registry.revisions import (
    DEFAULT_REF,
    Commit,
    find_ref,
    has_commit,
    move_ref,
    record_commit,
    resolve_revision,
)
from skillhub_registry.tensorheaders import INDEX_FILE
from skillhub_registry.trees import File, find_files, read_files
from skillhub_registry.upstream import Described, Listed, Upstream

_READ_HERE: Final = frozenset([RELEASES_FILE, MANIFEST_FILE, "README.md", "config.json", INDEX_FILE])
"""Files that the registry itself reads: they come with the commit, even where they are kept out of git."""

_RELEASES: Final = "releases"
_AT_ONCE: Final = 8


@dataclass(frozen=True)
class MirroredCommit:
    """A commit with what it consists of.

    Attributes:
        id: as upstream.
        described: what it says of itself.
        files: by path.
        here: the sha256 of those large files that were fetched with it.
        changes: when the folders of releases were changed last, as path → git id, seconds since 1970.
    """

    id: str
    described: Described
    files: dict[str, File]
    here: frozenset[str]
    changes: Mapping[str, tuple[str, int]]


def find_mirrored_files(connection: Connection, repository_id: int) -> dict[str, File]:
    """Return the files that were fetched for a mirrored repository, by git id. What others have here does not count."""
    roots = [row[0] for row in connection.execute("SELECT tree FROM commits WHERE repository_id = ?", (repository_id,))]
    reachable = Reachable()
    follow_trees(connection, reachable, roots)
    files = find_files(connection, reachable.files)
    fetched = find_large_files(connection, repository_id, [file.sha256 for file in files.values() if file.lfs])
    return {blob_id: file for blob_id, file in files.items() if not file.lfs or file.sha256 in fetched}


def fetch_commit(
    upstream: Upstream, store: BlobStore, full_name: str, commit: str, known: Mapping[str, File], quotas: limits.Quotas
) -> MirroredCommit:
    """Return a commit, the files that come with it being in the store.

    Args:
        upstream: where it is.
        store: where the files go.
        full_name: the repository's.
        commit: its full id.
        known: what was fetched for the repository before, by git id.
        quotas: how large files, and a repository's large files together, may be.

    Raises:
        UpstreamError: it cannot be had.
        HubError: 413, it is larger than the quotas allow; the store cannot take it.
    """
    listed = upstream.list_files(full_name, commit)
    wanted = {one.id: one for one in listed if one.id not in known and _comes_along(one)}
    size = sum(one.size for one in wanted.values())
    if size > limits.MIRRORED_REGULAR:
        raise UpstreamError(f"The files of {full_name} that are kept in git have {size} bytes: too many")
    _check_sizes(full_name, wanted.values(), known.values(), quotas)
    described = upstream.describe_commit(full_name, commit)
    paths = {one.path for one in listed}
    is_pack = RELEASES_FILE in paths and any(path.startswith(f"{_RELEASES}/") for path in paths)
    changes = upstream.list_changes(full_name, commit, _RELEASES) if is_pack else {}
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        fetched = pool.map(lambda one: fetch_file(upstream, store, full_name, commit, one), wanted.values())
        files = {**known, **{file.id: file for file in fetched}}
    found = {one.path: files.get(one.id) or File(one.id, str(one.sha256), one.size, True) for one in listed}
    here = frozenset(file.sha256 for file in files.values() if file.lfs)
    return MirroredCommit(commit, described, found, here, changes)


def _check_sizes(full_name: str, wanted: Collection[Listed], known: Collection[File], quotas: limits.Quotas) -> None:
    coming = sum(one.size for one in wanted if one.sha256)
    total = coming + sum(file.size for file in known if file.lfs)
    if any(one.size > quotas.file for one in wanted) or (coming and 0 < quotas.repository < total):
        raise too_large(f"Files that come with the mirrored {full_name} are larger than is allowed here")


def _comes_along(listed: Listed) -> bool:
    name = listed.path.rpartition("/")[2]
    return listed.sha256 is None or (name in _READ_HERE and listed.size <= limits.RELEASES)


def fetch_file(upstream: Upstream, store: BlobStore, full_name: str, commit: str, listed: Listed) -> File:
    """Fetch a file into the store, verify it, and return it.

    Raises:
        UpstreamError: it cannot be had, or is another; nothing is kept then.
        HubError: the store cannot take it.
    """
    digest = hashlib.sha1(f"blob {listed.size}\0".encode(), usedforsecurity=False)
    beginning = b""
    with upstream.open_file(full_name, commit, listed) as pieces, write_blob(store, listed.size) as writer:
        for piece in pieces:
            writer.write(piece)
            digest.update(piece)
            beginning += piece[: 1024 - len(beginning)]
        right = writer.sha256 == listed.sha256 if listed.sha256 else digest.hexdigest() == listed.id
        # A pointer's text would give access to the file that it stands for, as in ``commits.py``.
        if not right or writer.size != listed.size or (listed.sha256 is None and git.is_lfs_pointer(beginning)):
            raise UpstreamError(f"{upstream.address} sends another {listed.path} of {full_name} than it lists")
        sha256 = keep_blob(store, writer)
    return File(listed.id, sha256, listed.size, listed.sha256 is not None)


def keep_commit(connection: Connection, repository_id: int, mirrored: MirroredCommit, ref: str | None) -> None:
    """Record a commit in a mirrored repository; ``ref`` is where it was found, None where it was asked for by its id."""
    store_files(connection, mirrored.files.values())
    tree = store_trees(connection, {path: file.id for path, file in mirrored.files.items()})
    told = mirrored.described
    parent = next((one for one in told.ancestors if has_commit(connection, repository_id, one)), None)
    commit = Commit(mirrored.id, tree, parent, told.author, told.created_at, told.title, told.message)
    record_commit(connection, repository_id, commit)
    present = {path: file for path, file in mirrored.files.items() if file.sha256 in mirrored.here}
    record_large_files(connection, repository_id, ref or "", present)
    expect_large_files(connection, repository_id, ref or "", mirrored.files)
    connection.executemany(
        "INSERT INTO mirrored_changes (repository_id, path, id, changed_at) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
        [(repository_id, path, entry, at) for path, (entry, at) in sorted(mirrored.changes.items())],
    )


def move_mirrored_ref(connection: Connection, store: BlobStore, repository_id: int, ref: str, commit_id: str) -> None:
    """Let a ref of a mirrored repository point to a commit that is here; on main, what was published stays.

    Raises:
        HubError: 409, the other Hub changed what was published.
    """
    before = find_ref(connection, repository_id, ref)
    if before is not None and before.target == commit_id:
        return
    if ref != DEFAULT_REF:
        move_ref(connection, repository_id, ref, commit_id)
        return
    files = read_files(connection, resolve_revision(connection, repository_id, commit_id).tree)
    if before is not None:
        old = read_files(connection, resolve_revision(connection, repository_id, before.target).tree)
        check_preserved(connection, store, old, files)
    move_ref(connection, repository_id, ref, commit_id)
    index_files(connection, store, repository_id, files)
    connection.execute(
        "UPDATE releases SET published_at = coalesce((SELECT min(changed_at) * 1000 FROM mirrored_changes c "
        "WHERE c.repository_id = releases.repository_id AND c.path = ? || releases.version), published_at) "
        "WHERE repository_id = ?",
        (f"{_RELEASES}/", repository_id),
    )
