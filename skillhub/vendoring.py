"""Vendoring: everything that a machine without a network needs to install what an environment has locked.

The folder has the layout of ``hub.folders``, with copies of ``skillhub.toml`` and ``skillhub.lock``. A pack from a folder below
the environment lies at the same place below the vendored folder, so that folder is a project of its own, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from skillhub import hub
from skillhub.environments import Environment, read_project
from skillhub.errors import IntegrityError, LockStaleError, NotFoundError, OfflineError, UnsafeContentError, UsageError
from skillhub.files import check_relative_path, disk_errors, new_folder, read_limited, safe_join, staged_folder
from skillhub.hub.folders import (
    REPOSITORY_FILE,
    VENDOR_FILE,
    VENDOR_SCHEMA,
    VendoredFolder,
    VendoredRepository,
    registry_folder,
)
from skillhub.indexes import read_index, remembered_index
from skillhub.lockfile import LOCAL, LOCK_FILE, MAX_LOCK_BYTES, PACK, Lock, LockedPack, parse_lock, read_lock
from skillhub.manifest import MANIFEST_FILE, FileEntry
from skillhub.names import PackName, parse_version
from skillhub.placement import Supply, copy_blobs, fetch_files, fetch_manifest, locked_files, origin_of
from skillhub.progress import Notice
from skillhub.projects import MAX_PROJECT_BYTES, PROJECT_FILE
from skillhub.releases import RELEASES_FILE, ReleaseIndex, parse_releases
from skillhub.requirements import project_requirements, stale_reason
from skillhub.store import Store


@dataclass(frozen=True)
class Vendored:
    """What was vendored.

    Attributes:
        folder: the vendored folder.
        registries: names of the registries that it stands in for.
        packs: what it has.
        left_out: packs from folders outside the environment, which have to be taken along by other means.
        size: bytes of all files of packs.
    """

    folder: Path
    registries: tuple[str, ...]
    packs: tuple[LockedPack, ...]
    left_out: tuple[LockedPack, ...]
    size: int


@dataclass(frozen=True)
class _Copy:
    """One pack on its way into the folder: the store's blobs, and small files that were read.

    Attributes:
        place: where the repository, or the pack's folder, goes; relative to the vendored folder.
        blobs: with paths relative to ``place``.
        notes: path relative to ``place`` → bytes.
    """

    place: str
    blobs: tuple[FileEntry, ...]
    notes: dict[str, bytes]


def vendor(
    supply: Supply,
    environment: Environment,
    folder: str | Path,
    *,
    all_variants: bool = False,
    notice: Notice | None = None,
) -> Vendored:
    """Write a vendored folder, or bring one up to date; what is there is replaced as a whole, at the end.

    Args:
        supply: where files come from; what the store has is not downloaded again.
        environment: what to vendor the lock of.
        folder: a new or empty folder, or one that was written by this function.
        all_variants: take the packs' variants for every base; else those for the environment's.
        notice: told sentences for the user.

    Raises:
        NotFoundError: the environment has no lock, or a release is gone.
        LockStaleError: the lock is not that of ``skillhub.toml``.
        UsageError: the folder has something else in it.
        IntegrityError: bytes are not what the lock says.
        OfflineError: something is not in the store, and the network may not be used.
        DiskError: the disk is full or a folder may not be written.
        SkillhubError: as :func:`skillhub.hub.failures.hub_failures`.
    """
    project_data, lock_data, lock = _read_environment(environment)
    target = _check_target(Path(folder))
    registries = tuple(sorted({one.registry for one in lock.packs} - {LOCAL}))
    taken = [one for one in lock.packs if one.registry != LOCAL or _local_place(one, registries) is not None]
    left_out = tuple(one for one in lock.packs if one not in taken)
    for one in left_out:
        if notice:
            notice(f"{one.name} is not vendored: its folder {one.repository} has to be taken along by itself.")
    with supply.store.in_use():
        copies = [_fetch(supply, environment, lock, one, all_variants=all_variants) for one in taken]
        with staged_folder(target) as staged:
            for copy in copies:
                _write(supply.store, copy, staged)
            (staged / PROJECT_FILE).write_bytes(project_data)
            (staged / LOCK_FILE).write_bytes(lock_data)
            note = VendoredFolder(schema=VENDOR_SCHEMA, registries=list(registries))
            (staged / VENDOR_FILE).write_bytes(note.to_bytes())
    size = sum(entry.size for copy in copies for entry in copy.blobs)
    return Vendored(target, registries, tuple(taken), left_out, size)


def _read_environment(environment: Environment) -> tuple[bytes, bytes, Lock]:
    """Return the bytes of the project and of its lock, and the lock, which must be up to date."""
    try:
        with disk_errors(environment.lock_path):
            lock_data = read_limited(environment.lock_path, MAX_LOCK_BYTES)
        with disk_errors(environment.project_path):
            project_data = read_limited(environment.project_path, MAX_PROJECT_BYTES)
    except FileNotFoundError as error:
        raise NotFoundError(
            f"{error.filename} is missing: there is nothing to vendor.",
            hint="Make it: `skillhub lock`, or `skillhub install`.",
        ) from error
    lock = parse_lock(lock_data, where=str(environment.lock_path))
    project = read_project(environment)
    reason = stale_reason(project, project_requirements(project, lock, environment.folder), lock, environment)
    if reason:
        raise LockStaleError(
            f"{environment.lock_path} is not up to date: {reason}.", hint="Run `skillhub lock`, then vendor again."
        )
    return project_data, lock_data, lock


def _check_target(folder: Path) -> Path:
    """Return the folder's absolute path, unless writing it would take something else away."""
    given = folder.expanduser().resolve()
    if not hub.is_vendored(given):
        return new_folder(given)
    own = {VENDOR_FILE, PROJECT_FILE, LOCK_FILE, *(one.name for one in _registry_folders(given))}
    for one in (read_lock(given / LOCK_FILE) or Lock("")).packs:
        own |= {one.repository.partition("/")[0]} if one.registry == LOCAL else set()
    with disk_errors(given):
        foreign = sorted(entry.name for entry in given.iterdir() if entry.name not in own)
        is_here = given.samefile(Path.cwd())
    if foreign or is_here:
        what = f"{foreign[0]} in {given} was not vendored" if foreign else f"{given} is the working folder"
        raise UsageError(f"{what}, and would be lost.", hint="Name another folder, or move that away.")
    return given


def _registry_folders(folder: Path) -> list[Path]:
    return [one.folder for one in hub.vendored_registries(folder).values() if one.folder]


def _local_place(pack: LockedPack, registries: Sequence[str]) -> str | None:
    """Return where a folder's pack goes: where it is below the environment; None when it is not, or has no free place."""
    try:
        top = check_relative_path(pack.repository).parts[0]
    except UnsafeContentError:
        return None
    taken = {PROJECT_FILE, LOCK_FILE, VENDOR_FILE, *(registry_folder(Path(), name).name for name in registries)}
    return None if top.lower() in {name.lower() for name in taken} or top.startswith(".") else pack.repository


def _fetch(supply: Supply, environment: Environment, lock: Lock, pack: LockedPack, *, all_variants: bool) -> _Copy:
    """Bring what is needed of one pack into the store."""
    origin = origin_of(pack, environment)
    files = list(_needed_files(supply, environment, lock, pack, all_variants=all_variants or pack.registry == LOCAL))
    fetch_files(supply, origin, files)
    manifest = []
    if pack.kind == PACK:
        data = fetch_manifest(supply, origin, pack.manifest)
        manifest = [FileEntry(path=MANIFEST_FILE, size=len(data), sha256=pack.manifest)]
    if pack.registry == LOCAL:
        return _Copy(pack.repository, (*manifest, *files), {})
    blobs = tuple(
        FileEntry(path=origin.path_of(entry.path), size=entry.size, sha256=entry.sha256)
        for entry in (*manifest, *files)
    )
    note = VendoredRepository(schema=VENDOR_SCHEMA, commit=pack.commit, id=pack.id)
    notes = {REPOSITORY_FILE: note.to_bytes()}
    if pack.kind == PACK:
        notes[RELEASES_FILE] = _index_with(supply, pack)
    place = f"{registry_folder(Path(), pack.registry).name}/{pack.repository.lower()}"
    return _Copy(place, blobs, notes)


def _needed_files(
    supply: Supply, environment: Environment, lock: Lock, pack: LockedPack, *, all_variants: bool
) -> Iterator[FileEntry]:
    """Yield files of all variants, or of those for the locked bases, each once."""
    if all_variants or not lock.bases:
        yield from pack.files
        return
    found = [locked_files(supply, pack, environment, base.fingerprint) for base in lock.bases]
    yield from {entry.path: entry for files in found for entry in files}.values()


def _index_with(supply: Supply, pack: LockedPack) -> bytes:
    """Return the bytes of a pack's index, in which the locked release is: main's, or else the locked commit's."""
    registry = supply.registries.named(pack.registry)
    name = PackName(*pack.repository.split("/"))
    offline = supply.offline and registry.folder is None
    if _has(read_index(registry, name, offline=offline).index, pack):
        return remembered_index(registry, name) or b""
    if offline:
        raise OfflineError(
            f"The releases of {pack.name} at {pack.commit} are not remembered, and the network may not be used.",
            hint="Run the command once with the network: without --offline and with HF_HUB_OFFLINE unset.",
        )
    read = hub.read_releases(registry, pack.repository, revision=pack.commit) if pack.commit else None
    data = read.data if read else b""
    if not _has(parse_releases(data), pack):
        raise IntegrityError(
            f"{pack.name} {pack.version} is not among the releases of {pack.repository} as it is locked.",
            hint="Find out from its publisher why it is gone before using it.",
        )
    return data


def _has(index: ReleaseIndex, pack: LockedPack) -> bool:
    release = index.find(parse_version(pack.version))
    return release is not None and release.manifest_digest == pack.manifest


def _write(store: Store, copy: _Copy, staged: Path) -> None:
    place = safe_join(staged, copy.place)
    copy_blobs(store, copy.blobs, place)
    for path, data in copy.notes.items():
        (place / path).write_bytes(data)
