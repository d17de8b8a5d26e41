"""What was published stays: the index of a pack's releases only grows, and the files of its releases never change."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from skillhub.errors import IntegrityError
from skillhub.releases import RELEASES_FILE, ReleaseIndex, check_is_extension, parse_releases
from skillhub_registry import limits
from skillhub_registry.blobs import BlobStore
from skillhub_registry.database import Connection
from skillhub_registry.errors import HubError, too_large
from skillhub_registry.trees import find_files

RELEASES_REWRITTEN = "ReleasesRewritten"
"""``X-Error-Code`` of a commit that would change what was published."""


def check_published(
    connection: Connection, store: BlobStore, before: Mapping[str, str], after: Mapping[str, str]
) -> None:
    """Check what a commit makes of the main branch of a pack's repository.

    A repository that is no pack, or not one yet, may change as it likes. An index that cannot be read must still be
    the beginning of what follows; it publishes nothing.

    Args:
        connection: an open transaction.
        store: where the files are.
        before: path → blob id of every file so far.
        after: the same, with the commit.

    Raises:
        HubError: 409 where the index would be rewritten or removed, or a published file changed or removed; 413 for an
            index over its limit.
    """
    if RELEASES_FILE in before and before[RELEASES_FILE] != after.get(RELEASES_FILE):
        if RELEASES_FILE not in after:
            raise _refusal(f"{RELEASES_FILE} lists what is published and cannot be deleted")
        old, new = (_read_index(connection, store, files[RELEASES_FILE]) for files in (before, after))
        try:
            check_is_extension(old, new)
        except IntegrityError as error:
            raise _refusal(f"{RELEASES_FILE} may only grow: what was published must stay its beginning") from error
    changed = [path for path, blob in before.items() if path.startswith("releases/") and after.get(path) != blob]
    if changed and RELEASES_FILE in before:
        _refuse_changes(changed, _parse_index(_read_index(connection, store, before[RELEASES_FILE])))


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
    if named and RELEASES_FILE in files:
        if RELEASES_FILE in named:
            raise _refusal(f"{RELEASES_FILE} lists what is published and cannot be deleted")
        _refuse_changes(named, _parse_index(_read_index(connection, store, files[RELEASES_FILE])))


def _refuse_changes(changed: list[str], index: ReleaseIndex) -> None:
    folders = tuple(f"{release.folder}/" for release in index.releases)
    for path in changed:
        if path.startswith(folders):
            raise _refusal(f"{path} belongs to a published release, which never changes; publish a new version")


def _read_index(connection: Connection, store: BlobStore, blob: str) -> bytes:
    file = find_files(connection, [blob])[blob]
    if file.size > limits.RELEASES:
        raise too_large(f"{RELEASES_FILE} has at most {limits.RELEASES} bytes")
    return store.path(file.sha256).read_bytes()


def _parse_index(data: bytes) -> ReleaseIndex:
    try:
        return parse_releases(data)
    except IntegrityError:
        return ReleaseIndex()


def _refusal(message: str) -> HubError:
    return HubError(409, RELEASES_REWRITTEN, message)
