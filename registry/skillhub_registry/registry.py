"""What every request works with: settings, database, blobs, the signer and the download counter."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from skillhub.errors import DiskError, MissingExtraError, NotFoundError, UsageError
from skillhub_registry import limits
from skillhub_registry.blobs import PARTS_SECONDS, BlobStore
from skillhub_registry.database import Database
from skillhub_registry.errors import HubError
from skillhub_registry.folderstore import FolderStore
from skillhub_registry.garbage import spare_blob
from skillhub_registry.metrics import Metrics
from skillhub_registry.observation import ObservedDatabase
from skillhub_registry.rates import RateLimiter, Rates
from skillhub_registry.scratch import Scratch, open_scratch
from skillhub_registry.signing import Signer, load_shared_signer, load_signer
from skillhub_registry.sqlite import open_sqlite
from skillhub_registry.statistics import DownloadCounter

if TYPE_CHECKING:  # the command line comes here too, and runs without what serving needs
    from skillhub_registry.mirrors import Mirror

logger = logging.getLogger("skillhub_registry")

_DATABASE: Final = "registry.sqlite3"


@dataclass(frozen=True)
class Place:
    """Where a registry keeps what it has.

    Attributes:
        data: a folder: for everything that is not kept elsewhere, and for what is still arriving.
        database: the address of a PostgreSQL database, which several replicas may share; None for a file in the folder.
        storage: the address of a bucket, ``s3://…``, for the blobs; None for the folder.
    """

    data: Path
    database: str | None = None
    storage: str | None = None

    @property
    def is_shared(self) -> bool:
        """Whether several processes may serve it."""
        return self.database is not None


@dataclass(frozen=True)
class Mirrored:
    """Which Hub is mirrored: its address, the token for it if there is one, and after how many seconds it is asked again."""

    address: str
    token: str | None = field(default=None, repr=False)
    refresh: int = 60


@dataclass(frozen=True)
class Registry:
    """An open registry.

    Attributes:
        part_size: the size in bytes from which LFS uploads are sent in parts.
        quotas: how large files and repositories may be.
        public_metrics: whether everybody may read the metrics.
        mirror: the mirror of another Hub, where one is mirrored.
    """

    database: Database
    blobs: BlobStore
    signer: Signer
    scratch: Scratch
    downloads: DownloadCounter = field(default_factory=DownloadCounter)
    part_size: int = 64 * limits.MIB
    metrics: Metrics = field(default_factory=Metrics)
    limiter: RateLimiter = field(default_factory=lambda: RateLimiter(Rates()))
    quotas: limits.Quotas = field(default_factory=limits.Quotas)
    public_metrics: bool = False
    mirror: Mirror | None = None

    def close(self) -> None:
        """Write what is pending and close everything."""
        if self.mirror is not None:
            self.mirror.close()
        try:
            self.downloads.flush(self.database)
        except HubError as error:
            logger.warning("the last downloads are not counted: %s", error)
        self.database.close()
        self.scratch.close()


def open_database(place: Place) -> Database:
    """Open a registry's database, making it if need be; enough for the administration of accounts.

    Raises:
        DiskError: the folder cannot be made or written.
        SkillhubError: as ``postgresql.open_postgresql`` says.
    """
    if place.database is None:
        _make_folder(place.data)
        return open_sqlite(place.data / _DATABASE)
    if not place.database.startswith(("postgresql://", "postgres://")):
        raise UsageError(
            "The database's address does not begin with postgresql://.",
            hint="Write postgresql://user:password@host/name, or leave it out for a file in the data folder.",
        )
    try:
        from skillhub_registry.postgresql import open_postgresql
    except ImportError as error:
        raise _missing_driver("PostgreSQL", error) from error
    return open_postgresql(place.database)


def open_existing_database(place: Place) -> Database:
    """Open the database of a registry that is there, for what looks after one and makes none.

    Raises:
        NotFoundError: there is no registry in the folder.
        SkillhubError: as ``open_database`` says.
    """
    if place.database is None and not (place.data / _DATABASE).exists():
        raise NotFoundError(
            f"There is no registry in {place.data}.",
            hint="`skillhub-registry serve` makes one there; --data or SKILLHUB_REGISTRY_DATA name another folder.",
        )
    return open_database(place)


def open_registry(
    place: Place,
    *,
    part_size: int = 64 * limits.MIB,
    links: bool = True,
    rates: Rates | None = None,
    quotas: limits.Quotas | None = None,
    public_metrics: bool = False,
    mirrored: Mirrored | None = None,
) -> Registry:
    """Open a registry to serve it. Without a shared database, one process at a time may do so.

    ``links``: clients fetch large files from the bucket themselves.

    Raises:
        DiskError: the folder cannot be made or written.
        SkillhubError: as ``postgresql.open_postgresql`` and ``s3store.open_s3`` say.
    """
    _make_folder(place.data)
    try:
        scratch = open_scratch(place.data / "incoming")
        store = _open_store(place, scratch.folder, links)
        store.sweep_parts(PARTS_SECONDS)
        database = open_database(place)
        signer = load_shared_signer(database) if place.is_shared else load_signer(place.data / "signing.key")
    except OSError as error:
        raise DiskError(
            f"The data folder {place.data} cannot be used: {error.strerror}.",
            hint="It must be writable; --data or SKILLHUB_REGISTRY_DATA name another.",
        ) from error
    store.spare = partial(spare_blob, database)
    metrics = Metrics()
    quotas = quotas or limits.Quotas()
    observed = ObservedDatabase(database, metrics.note_transaction)
    return Registry(
        observed,
        store,
        signer,
        scratch,
        part_size=part_size,
        metrics=metrics,
        limiter=RateLimiter(rates or Rates()),
        quotas=quotas,
        public_metrics=public_metrics,
        mirror=_open_mirror(mirrored, observed, store, quotas) if mirrored else None,
    )


def open_storage(place: Place) -> BlobStore:
    """Open a registry's files to look after them, beside those who serve it.

    Raises:
        SkillhubError: as ``s3store.open_s3`` says.
    """
    return _open_store(place, place.data, links=False)


def _open_store(place: Place, scratch: Path, links: bool) -> BlobStore:
    if place.storage is None:
        return FolderStore(place.data, scratch)
    try:
        from skillhub_registry.s3store import open_s3
    except ImportError as error:
        raise _missing_driver("S3", error) from error
    return open_s3(place.storage, scratch, links=links)


def _open_mirror(mirrored: Mirrored, database: Database, store: BlobStore, quotas: limits.Quotas) -> Mirror:
    from skillhub_registry.mirrors import Mirror
    from skillhub_registry.outgoing import open_way
    from skillhub_registry.upstream import Upstream

    way = open_way(mirrored.address, mirrored.token)
    return Mirror(Upstream(way), database, store, quotas, mirrored.refresh)


def _missing_driver(what: str, error: ImportError) -> MissingExtraError:
    name = (error.name or "its driver").partition(".")[0]
    return MissingExtraError(
        f"{what} needs {name}, which is not installed.", hint='Run: pip install "skillhub-packs[replicas]"'
    )


def _make_folder(data: Path) -> None:
    try:
        data.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskError(
            f"The data folder {data} cannot be made: {error.strerror}.",
            hint="Choose another with --data or SKILLHUB_REGISTRY_DATA.",
        ) from error
