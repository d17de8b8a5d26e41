"""Deleting large files for good. What a published release names stays: a release never changes."""

from __future__ import annotations

from collections.abc import Sequence

from skillhub_registry.blobs import BlobStore
from skillhub_registry.database import Connection
from skillhub_registry.errors import HubError
from skillhub_registry.indexing import index_files
from skillhub_registry.largefiles import find_large_files, forget_large_files
from skillhub_registry.published import refuse_deletion
from skillhub_registry.revisions import DEFAULT_REF, resolve_revision
from skillhub_registry.rewriting import rewrite_refs
from skillhub_registry.trees import read_files


def delete_large_files(
    connection: Connection, store: BlobStore, repository_id: int, sha256s: Sequence[str], *, rewrite: bool
) -> None:
    """Delete large files of a repository for good.

    Args:
        connection: an open transaction.
        store: where the files are.
        repository_id: the repository's number.
        sha256s: which files.
        rewrite: take them out of every ref and its history as well; otherwise these name files that cannot be read.

    Raises:
        HubError: 404, the repository has no such file; 409, a published release names one. Nothing is deleted then.
    """
    files = find_large_files(connection, repository_id, sha256s)
    missing = [sha256 for sha256 in sha256s if sha256 not in files]
    if missing:
        raise HubError(404, "LfsObjectMissing", f"The repository has no large file with sha256 {missing[0]}")
    blob_ids = {file.blob_id for file in files.values()}
    present = read_files(connection, resolve_revision(connection, repository_id, DEFAULT_REF).tree)
    refuse_deletion(connection, store, present, blob_ids)
    forget_large_files(connection, repository_id, files)
    if not rewrite:
        return
    rewrite_refs(connection, repository_id, blob_ids)
    if blob_ids.intersection(present.values()):
        index_files(connection, store, repository_id, {p: blob for p, blob in present.items() if blob not in blob_ids})
