"""What every request works with: settings, database, blobs, the signer and the download counter."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from skillhub.errors import DiskError
from skillhub_registry import limits
from skillhub_registry.blobs import BlobStore, prepare_store
from skillhub_registry.database import Database
from skillhub_registry.signing import Signer, load_signer
from skillhub_registry.sqlite import open_sqlite
from skillhub_registry.statistics import DownloadCounter


@dataclass(frozen=True)
class Registry:
    """An open data folder. ``part_size`` is the size in bytes from which LFS uploads are sent in parts."""

    data: Path
    database: Database
    blobs: BlobStore
    signer: Signer
    downloads: DownloadCounter = field(default_factory=DownloadCounter)
    part_size: int = 64 * limits.MIB

    def close(self) -> None:
        """Write what is pending and close the database."""
        self.downloads.flush(self.database)
        self.database.close()


def open_data(data: Path) -> Database:
    """Open a data folder's database, making both; enough for the administration of accounts.

    Raises:
        DiskError: the folder cannot be made or written.
    """
    try:
        data.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskError(
            f"The data folder {data} cannot be made: {error.strerror}.",
            hint="Choose another with --data or SKILLHUB_REGISTRY_DATA.",
        ) from error
    return open_sqlite(data / "registry.sqlite3")


def open_registry(data: Path, *, part_size: int = 64 * limits.MIB) -> Registry:
    """Open a data folder to serve it. One process at a time may do so.

    Raises:
        DiskError: the folder cannot be made or written.
    """
    database = open_data(data)
    try:
        store = BlobStore(data)
        prepare_store(store)
        signer = load_signer(data / "signing.key")
    except OSError as error:
        raise DiskError(
            f"The data folder {data} cannot be used: {error.strerror}.",
            hint="It must be writable; --data or SKILLHUB_REGISTRY_DATA name another.",
        ) from error
    return Registry(data, database, store, signer, part_size=part_size)
