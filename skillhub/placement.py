"""Bringing a locked pack into an environment: its manifest and the files of one variant, through the store.

Nothing enters the store before its bytes were verified against the digest that the lock or the manifest holds, and
nothing is seen in the environment before all of it is there.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from skillhub import hub
from skillhub.environments import RECEIPT_SCHEMA, Environment, Receipt
from skillhub.errors import IntegrityError, NotFoundError, OfflineError
from skillhub.files import disk_errors, safe_join, staged_folder
from skillhub.lockfile import LOCAL, PACK, PEFT, LockedPack
from skillhub.manifest import MANIFEST_FILE, MAX_MANIFEST_BYTES, FileEntry, Manifest, Variant, parse_manifest
from skillhub.packs import RECEIPT_FILE, Pack, check_content, check_file
from skillhub.progress import Progress
from skillhub.registries import Registries
from skillhub.releases import release_folder
from skillhub.store import Store, copy_into, ensure_blob, link_blob

_PARALLEL_DOWNLOADS = 8

Result = TypeVar("Result")


@dataclass(frozen=True)
class Supply:
    """Where files come from.

    Attributes:
        registries: the registries, by the names that locks have for them.
        store: where they are kept.
        offline: take them from the store only.
        progress: told about downloads.
    """

    registries: Registries
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
        registry: name of the registry that has the repository.
        commit: tried before main.
        folder: of a pack on this machine.
        kind: ``pack`` or ``peft``.
    """

    name: str
    version: str
    repository: str
    registry: str = LOCAL
    commit: str | None = None
    folder: Path | None = None
    kind: str = PACK

    def __str__(self) -> str:
        return f"{self.name} {self.version}"

    def path_of(self, file: str) -> str:
        """Return where a file is in the repository: a release has a folder of its own, an adapter has not."""
        return file if self.kind == PEFT else f"{release_folder(self.version)}/{file}"


def origin_of(locked: LockedPack, environment: Environment) -> Origin:
    """Return where a locked pack's files are."""
    if locked.registry == LOCAL:
        return Origin(locked.name, locked.version, "", folder=environment.folder / locked.repository)
    return Origin(locked.name, locked.version, locked.repository, locked.registry, locked.commit, kind=locked.kind)


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
        path = origin.path_of(MANIFEST_FILE)
        data = _from_registry(supply, origin, path, lambda registry, at: _read(registry, origin, path, at))
        target = into / MANIFEST_FILE
        target.write_bytes(data)
        return target

    with supply.store.in_use():
        return ensure_blob(supply.store, digest, None, fetch, what=f"The manifest of {origin}").read_bytes()


def _read(registry: hub.Registry, origin: Origin, path: str, revision: str) -> bytes:
    read = hub.read_file(registry, origin.repository, path, revision=revision, limit=MAX_MANIFEST_BYTES)
    if read is None:
        raise NotFoundError(
            f"{path} is missing from {origin.repository}.", hint="Tell its publisher: the release is not whole."
        )
    return read.data


def _from_registry(supply: Supply, origin: Origin, path: str, read: Callable[[hub.Registry, str], Result]) -> Result:
    """Read at the commit that was seen, and on main when that commit is gone: history may be squashed."""
    # never another registry than the one that is locked: anyone could have taken the pack's name there
    registry = supply.registries.named(origin.registry)
    if supply.offline and registry.folder is None:
        raise OfflineError(
            f"{path} of {origin} is not in the store, and the network may not be used.",
            hint="Run the command once with the network: without --offline and with HF_HUB_OFFLINE unset.",
        )
    if origin.commit:
        try:
            return read(registry, origin.commit)
        except NotFoundError:
            pass  # the digest decides, wherever the bytes come from
    return read(registry, "main")


def _copy(origin: Origin, path: str, into: Path) -> Path:
    assert origin.folder is not None
    source = safe_join(origin.folder, path)
    if not source.is_file():
        raise NotFoundError(f"{source} is missing.", hint="Build the pack again, or restore the folder.")
    return copy_into(source)(into)


def fetch_files(supply: Supply, origin: Origin, files: list[FileEntry]) -> None:
    """Bring files of a release into the store, several at a time.

    Raises:
        IntegrityError: bytes are not what the manifest says; they are not kept. Or a file is no safetensors file.
        UnsafeContentError: a file has a header longer than any pack's.
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
            path = origin.path_of(entry.path)
            return _from_registry(
                supply,
                origin,
                path,
                lambda registry, at: hub.download_file(
                    registry,
                    origin.repository,
                    path,
                    revision=at,
                    into=into,
                    size=entry.size,
                    progress=meter.add,
                ),
            )

        blob = ensure_blob(supply.store, entry.sha256, entry.size, fetch, what=f"{entry.path} of {origin}")
        check_content(blob, name=entry.path)
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


def locked_files(supply: Supply, locked: LockedPack, environment: Environment, fingerprint: str) -> list[FileEntry]:
    """Return the files of a locked pack that belong to one base: those of its variant, all of an adapter's.

    The manifest is fetched where it is not in the store.

    Raises:
        IntegrityError: the lock and the manifest list different files.
        SkillhubError: as :func:`fetch_manifest` and :func:`read_variant`.
    """
    if locked.kind == PEFT:
        return locked.files
    origin = origin_of(locked, environment)
    manifest, variant = read_variant(fetch_manifest(supply, origin, locked.manifest), origin, fingerprint)
    listed = {entry.path: entry for one in manifest.variants for entry in one.files}
    if {entry.path: entry for entry in locked.files} != listed:
        raise IntegrityError(
            f"The lock lists other files, sizes or digests of {origin} than its manifest does.",
            hint=f"The lock was edited. Lock the pack again: skillhub upgrade {locked.name}.",
        )
    return variant.files


def fetch_pack(supply: Supply, environment: Environment, locked: LockedPack, fingerprint: str) -> None:
    """Bring what one base needs of a locked pack into the store.

    Raises:
        SkillhubError: as :func:`locked_files` and :func:`fetch_files`.
    """
    files = locked_files(supply, locked, environment, fingerprint)
    fetch_files(supply, origin_of(locked, environment), files)


@contextmanager
def staged_pack(supply: Supply, environment: Environment, locked: LockedPack, fingerprint: str) -> Iterator[None]:
    """Prepare a pack's folder from the store; it takes its place in the environment when the block ends well.

    Its manifest and files must be in the store.

    Raises:
        DiskError: the disk is full or the environment may not be written.
        SkillhubError: as :func:`read_variant`.
    """
    files = locked_files(supply, locked, environment, fingerprint)
    receipt = Receipt(
        schema=RECEIPT_SCHEMA,
        kind=locked.kind,
        name=locked.name,
        registry=locked.registry,
        repository=locked.repository,
        version=locked.version,
        manifest=locked.manifest,
        fingerprint=fingerprint,
        commit=locked.commit,
        files=files,
    )
    with staged_folder(environment.pack_folder(locked.pack_name)) as staged:
        for entry in files:
            link_blob(supply.store, entry.sha256, safe_join(staged, entry.path))
        if locked.kind == PACK:
            link_blob(supply.store, locked.manifest, staged / MANIFEST_FILE)
        (staged / RECEIPT_FILE).write_bytes(receipt.to_bytes())
        yield


def copy_blobs(store: Store, files: Iterable[FileEntry], folder: Path) -> None:
    """Copy files from the store into a folder, and read the copies through.

    They are no links to the store's files: whoever writes to them writes to nothing else.

    Args:
        store: has the files.
        files: with paths relative to ``folder``.
        folder: where they go.

    Raises:
        IntegrityError: a copy is not what it should be.
        UnsafeContentError: a path leaves the folder.
        DiskError: the disk is full or the folder may not be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for entry in files:
        target = safe_join(folder, entry.path)
        with disk_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(store.path_of(entry.sha256), target)
        check_file(target, entry)
