"""What the main branch says of itself, kept beside it so that searching and asking need not read files."""

from __future__ import annotations

from collections.abc import Mapping

from skillhub_registry import limits
from skillhub_registry.blobs import BlobStore
from skillhub_registry.cards import make_card
from skillhub_registry.database import Connection
from skillhub_registry.packs import base_tags, record_releases
from skillhub_registry.published import read_releases
from skillhub_registry.repositories import set_card
from skillhub_registry.trees import find_files


def index_files(connection: Connection, store: BlobStore, repository_id: int, files: Mapping[str, str]) -> None:
    """Note what the main branch now says: its card, its releases, which bases they fit and what they require.

    Args:
        connection: an open transaction.
        store: where the files are.
        repository_id: the repository's number.
        files: path → blob id of every file on the main branch.

    Raises:
        HubError: 413 for an index of releases over its limit.
    """
    index = read_releases(connection, store, files)
    record_releases(connection, repository_id, index)
    set_card(connection, repository_id, make_card(_read_readme(connection, store, files), files, base_tags(index)))


def _read_readme(connection: Connection, store: BlobStore, files: Mapping[str, str]) -> str:
    if "README.md" not in files:
        return ""
    file = find_files(connection, [files["README.md"]])[files["README.md"]]
    if file.size > limits.CARD:
        return ""
    return store.read(file.sha256).decode(errors="replace")
