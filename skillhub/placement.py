"""Bringing a locked pack into an environment: its manifest and the files of one variant, through the store.

Nothing enters the store before its bytes were verified against the digest that the lock or the manifest holds, and
nothing is seen in the environment before all of it is there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from skillhub import hub
from skillhub.environments import RECEIPT_SCHEMA, Environment, Receipt
from skillhub.errors import IntegrityError, NotFoundError, OfflineError
from skillhub.files import safe_join, staged_folder
from skillhub.lockfile import LOCAL, LockedPack
from skillhub.manifest import MANIFEST_FILE, MAX_MANIFEST_BYTES, FileEntry, Manifest, Variant, parse_manifest
from skillhub.packs import RECEIPT_FILE, Pack
from skillhub.progress import Progress
from skillhub.releases import release_folder
from skillhub.store import Store, copy_into, ensure_blob, link_blob

_PARALLEL_DOWNLOADS = 8

Result = TypeVar("Result")


@dataclass(frozen=True)
class Supply:
    """Where files come from.

    Attributes:
        registry: the registry.
        store: where they are kept.
        offline: take them from the store only.
        progress: told about downloads.
    """

    registry: hub.Registry
    store: Store
    offline: bool = False
    progress: Progress | None = None


@dataclass(frozen=True)
class Origin:
    """Where one release's files are.

    Attributes:
        name: the pack, for messages.
        version: the release.
        repository: ``owner/name``; ignored where the folder is known.
        commit: tried before main.
        registry: name of the registry that has the repository; None means the supply's.
        folder: of a pack on this machine.
    """

    name: str
    version: str
    repository: str
    commit: str | None = None
    registry: str | None = None
    folder: Path | None = None

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def origin_of(locked: LockedPack, environment: Environment) -> Origin:
    """Return where a locked pack's files are."""
    if locked.registry == LOCAL:
        return Origin(locked.name, locked.version, "", folder=environment.folder / locked.repository)
    return Origin(locked.name, locked.version, locked.repository, locked.commit, locked.registry)


def fetch_manifest(supply: Supply, origin: Origin, digest: str) -> bytes:
    """Return the bytes of a release's manifest, from the store where they are known.

    Raises:
        IntegrityError: the registry has another manifest; it is not kept.
        OfflineError: it is not in the store and the network may not be used.
        SkillhubError: as :func:`skillhub.hub.failures.hub_failures`.
    """

    def fetch(into: Path) -> Path:
        if origin.folder:
            return _copy(origin, MANIFEST_FILE, into)
        path = f"{release_folder(origin.version)}/{MANIFEST_FILE}"
        data = _from_registry(supply, origin, path, lambda revision: _read(supply, origin, path, revision))
        target = into / MANIFEST_FILE
        target.write_bytes(data)
        return target

    return ensure_blob(supply.store, digest, None, fetch, what=f"The manifest of {origin}").read_bytes()


def _read(supply: Supply, origin: Origin, path: str, revision: str) -> bytes:
    read = hub.read_file(supply.registry, origin.repository, path, revision=revision, limit=MAX_MANIFEST_BYTES)
    if read is None:
        raise NotFoundError(
            f"{path} is missing from {origin.repository}.", hint="Tell its publisher: the release is not whole."
        )
    return read.data


def _from_registry(supply: Supply, origin: Origin, path: str, read: Callable[[str], Result]) -> Result:
    """Read at the commit that was seen, and on main when that commit is gone: history may be squashed."""
    if supply.offline:
        raise OfflineError(
            f"{path} of {origin} is not in the store, and the network may not be used.",
            hint="Run the command once with the network: without --offline and with HF_HUB_OFFLINE unset.",
        )
    if origin.registry not in (None, supply.registry.name):
        # never look for one registry's pack in another: anyone could have taken its name there
        raise NotFoundError(
            f"{origin} is locked from the registry {origin.registry}, not from {supply.registry.name}.",
            hint="Name that registry: --registry URL.",
        )
    if origin.commit:
        try:
            return read(origin.commit)
        except NotFoundError:
            pass  # the digest decides, wherever the bytes come from
    return read("main")


def _copy(origin: Origin, path: str, into: Path) -> Path:
    assert origin.folder is not None
    source = safe_join(origin.folder, path)
    if not source.is_file():
        raise NotFoundError(f"{source} is missing.", hint="Build the pack again, or restore the folder.")
    return copy_into(source)(into)


def fetch_files(supply: Supply, origin: Origin, files: list[FileEntry]) -> None:
    """Bring files of a release into the store, several at a time.

    Raises:
        IntegrityError: bytes are not what the manifest says; they are not kept.
        OfflineError: one is not in the store and the network may not be used.
        DiskError: the disk is full or the store may not be written.
        SkillhubError: as :func:`skillhub.hub.failures.hub_failures`.
    """
    count = _Count(str(origin), sum(entry.size for entry in files), supply.progress)

    def fetch_one(entry: FileEntry) -> None:
        meter = count.meter(entry.size)

        def fetch(into: Path) -> Path:
            if origin.folder:
                return _copy(origin, entry.path, into)
            path = f"{release_folder(origin.version)}/{entry.path}"
            return _from_registry(
                supply,
                origin,
                path,
                lambda revision: hub.download_file(
                    supply.registry,
                    origin.repository,
                    path,
                    revision=revision,
                    into=into,
                    size=entry.size,
                    progress=meter.add,
                ),
            )

        ensure_blob(supply.store, entry.sha256, entry.size, fetch, what=f"{entry.path} of {origin}")
        meter.finish()

    if len(files) <= 1 or origin.folder:
        for entry in files:
            fetch_one(entry)
        return
    pool = ThreadPoolExecutor(min(_PARALLEL_DOWNLOADS, len(files)))
    try:
        list(pool.map(fetch_one, files))
    finally:
        pool.shutdown(cancel_futures=True)  # after a failure, what has not begun need not begin


class _Count:
    """Adds up the bytes of several files that are fetched at the same time."""

    def __init__(self, what: str, total: int, progress: Progress | None) -> None:
        self._what, self._total, self._progress = what, total, progress
        self._done = 0
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        with self._lock:
            self._done += count
            if self._progress and count:
                self._progress(self._what, self._done, self._total)

    def meter(self, size: int) -> _FileMeter:
        return _FileMeter(self, size)


class _FileMeter:
    """The part of one file; a file that needs no download counts as a whole at its end."""

    def __init__(self, count: _Count, size: int) -> None:
        self._count, self._size, self._seen = count, size, 0

    def add(self, count: int) -> None:
        self._seen += count
        self._count.add(count)

    def finish(self) -> None:
        self._count.add(self._size - self._seen)


def read_variant(manifest_data: bytes, origin: Origin, fingerprint: str) -> tuple[Manifest, Variant]:
    """Return a locked pack's manifest and the variant to install.

    Raises:
        IntegrityError: the manifest is not valid, or of another pack or version than the lock says.
        WrongBaseError: it has no variant for the base.
        NewerSchemaError: it is of a schema that this version does not read.
    """
    manifest = parse_manifest(manifest_data, where=f"the manifest of {origin}")
    bare = origin.name.rpartition("/")[2]
    if manifest.name.lower() != bare.lower() or manifest.version != origin.version:
        raise IntegrityError(
            f"The manifest of {origin} is of {manifest.name} {manifest.version}.",
            hint="Do not install this release; tell its publisher.",
        )
    owner = origin.name.rpartition("/")[0] or None
    return manifest, Pack(Path(), manifest, owner).variant_for(fingerprint)


@contextmanager
def staged_pack(supply: Supply, environment: Environment, locked: LockedPack, fingerprint: str) -> Iterator[None]:
    """Prepare a pack's folder from the store; it takes its place in the environment when the block ends well.

    Its manifest and files must be in the store.

    Raises:
        DiskError: the disk is full or the environment may not be written.
        SkillhubError: as :func:`read_variant`.
    """
    origin = origin_of(locked, environment)
    manifest_data = supply.store.path_of(locked.manifest).read_bytes()
    _, variant = read_variant(manifest_data, origin, fingerprint)
    receipt = Receipt(
        schema=RECEIPT_SCHEMA,
        registry=locked.registry,
        repository=locked.repository,
        version=locked.version,
        manifest=locked.manifest,
        fingerprint=fingerprint,
        commit=locked.commit,
        files=variant.files,
    )
    with staged_folder(environment.pack_folder(locked.pack_name)) as staged:
        for entry in variant.files:
            link_blob(supply.store, entry.sha256, safe_join(staged, entry.path))
        link_blob(supply.store, locked.manifest, staged / MANIFEST_FILE)
        (staged / RECEIPT_FILE).write_bytes(receipt.to_bytes())
        yield
