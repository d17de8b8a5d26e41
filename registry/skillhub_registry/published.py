"""What is published is whole, and stays.

The index of a pack's releases only grows, the files of its releases never change, and a new release has the files that
its manifest says.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from skillhub.errors import IntegrityError, NewerSchemaError, UnsafeContentError
from skillhub.manifest import MANIFEST_FILE, MAX_MANIFEST_BYTES, Manifest
from skillhub.releases import (
    RELEASES_FILE,
    Release,
    ReleaseIndex,
    check_agreement,
    check_is_extension,
    parse_releases,
)
from skillhub_registry import limits
from skillhub_registry.blobs import BlobStore
from skillhub_registry.database import Connection
from skillhub_registry.errors import HubError, too_large
from skillhub_registry.largefiles import is_deleted
from skillhub_registry.trees import find_files

RELEASES_REWRITTEN = "ReleasesRewritten"
"""``X-Error-Code`` of a commit that would change what was published."""

RELEASE_MISMATCH = "ReleaseMismatch"
"""``X-Error-Code`` of a commit with a release whose files are not what its manifest says."""


def check_published(
    connection: Connection,
    store: BlobStore,
    repository_id: int,
    before: Mapping[str, str],
    after: Mapping[str, str],
) -> None:
    """Check what a commit makes of the main branch of a pack's repository.

    A repository that is no pack, or not one yet, may change as it likes. An index that cannot be read must still be
    the beginning of what follows; it publishes nothing.

    Args:
        connection: an open transaction.
        store: where the files are.
        repository_id: the repository's number.
        before: path → blob id of every file so far.
        after: the same, with the commit.

    Raises:
        HubError: 409 where the index would be rewritten or removed, or a published file changed or removed; 400 where a
            new release lacks a file of its manifest, or has another; 413 for an index over its limit.
    """
    for release in check_preserved(connection, store, before, after):
        _check_release(connection, store, repository_id, release, after)


def check_preserved(
    connection: Connection, store: BlobStore, before: Mapping[str, str], after: Mapping[str, str]
) -> list[Release]:
    """Check that a commit keeps what was published, with arguments as in :func:`check_published`, and return what it adds.

    Raises:
        HubError: 409 where the index would be rewritten or removed, or a published file changed or removed; 413 for an
            index over its limit.
    """
    changed = [path for path, blob in before.items() if path.startswith("releases/") and after.get(path) != blob]
    if before.get(RELEASES_FILE) == after.get(RELEASES_FILE) and not changed:
        return []
    old, new = (_read_index(connection, store, files) for files in (before, after))
    if old is not None and old != new:
        if new is None:
            raise _refusal(f"{RELEASES_FILE} lists what is published and cannot be deleted")
        try:
            check_is_extension(old, new)
        except IntegrityError as error:
            raise _refusal(f"{RELEASES_FILE} may only grow: what was published must stay its beginning") from error
    known = _parse_index(old)
    _refuse_changes(changed, known)
    versions = {release.version for release in known.releases}
    return [release for release in _parse_index(new).releases if release.version not in versions]


def read_releases(connection: Connection, store: BlobStore, files: Mapping[str, str]) -> ReleaseIndex:
    """Return what a pack's repository has published; one without an index, or with one that cannot be read, has nothing.

    Args:
        connection: an open transaction.
        store: where the files are.
        files: path → blob id, of the index at least.

    Raises:
        HubError: 413 for an index over its limit.
    """
    return _parse_index(_read_index(connection, store, files))


def refuse_deletion(
    connection: Connection, store: BlobStore, files: Mapping[str, str], blob_ids: Collection[str]
) -> None:
    """Refuse to delete for good what a published release names.

    Args:
        connection: an open transaction.
        store: where the files are.
        files: path → blob id of every file on the main branch.
        blob_ids: of the files to delete.

    Raises:
        HubError: 409.
    """
    named = [path for path, blob in files.items() if blob in blob_ids]
    if RELEASES_FILE in named:
        raise _refusal(f"{RELEASES_FILE} lists what is published and cannot be deleted")
    if named:
        _refuse_changes(named, read_releases(connection, store, files))


def _refuse_changes(changed: list[str], index: ReleaseIndex) -> None:
    folders = tuple(f"{release.folder}/" for release in index.releases)
    for path in changed:
        if path.startswith(folders):
            raise _refusal(f"{path} belongs to a published release, which never changes; publish a new version")


def _check_release(
    connection: Connection, store: BlobStore, repository_id: int, release: Release, files: Mapping[str, str]
) -> None:
    """Refuse a release that is not the one that its line in the index announces, or lacks what its manifest lists."""
    path = f"{release.folder}/{MANIFEST_FILE}"
    if path not in files:
        raise _mismatch(f"{RELEASES_FILE} announces {release.version}, and {path} is not there")
    file = find_files(connection, [files[path]])[files[path]]
    if file.size > MAX_MANIFEST_BYTES:
        raise too_large(f"{path} has {file.size} bytes; a manifest has at most {MAX_MANIFEST_BYTES}")
    try:
        manifest = check_agreement(release, store.read(file.sha256), where=path)
    except NewerSchemaError:
        return  # it is the announced one, and says what only a newer version understands
    except (IntegrityError, UnsafeContentError) as error:
        raise _mismatch(error.message) from error
    _check_files(connection, repository_id, release, manifest, files)


def _check_files(
    connection: Connection, repository_id: int, release: Release, manifest: Manifest, files: Mapping[str, str]
) -> None:
    listed = {f"{release.folder}/{entry.path}": entry for variant in manifest.variants for entry in variant.files}
    found = find_files(connection, [files[path] for path in listed if path in files])
    for path, entry in listed.items():
        if path not in files:
            raise _mismatch(f"{path} is not there; the manifest lists it with sha256 {entry.sha256}")
        file = found[files[path]]
        if (file.sha256, file.size) != (entry.sha256, entry.size):
            expected = f"{entry.size} bytes with sha256 {entry.sha256}"
            raise _mismatch(f"{path} has {file.size} bytes with sha256 {file.sha256}; the manifest expects {expected}")
        if is_deleted(connection, repository_id, file):
            raise _mismatch(f"{path} was deleted for good: upload it again")


def _read_index(connection: Connection, store: BlobStore, files: Mapping[str, str]) -> bytes | None:
    if RELEASES_FILE not in files:
        return None
    file = find_files(connection, [files[RELEASES_FILE]])[files[RELEASES_FILE]]
    if file.size > limits.RELEASES:
        raise too_large(f"{RELEASES_FILE} has at most {limits.RELEASES} bytes")
    return store.read(file.sha256)


def _parse_index(data: bytes | None) -> ReleaseIndex:
    try:
        return parse_releases(data or b"")
    except IntegrityError:
        return ReleaseIndex()


def _mismatch(message: str) -> HubError:
    return HubError(400, RELEASE_MISMATCH, message.removesuffix("."))


def _refusal(message: str) -> HubError:
    return HubError(409, RELEASES_REWRITTEN, message)
