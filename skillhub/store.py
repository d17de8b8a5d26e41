"""The store: every downloaded file once, under its digest, read-only, shared by all environments and processes.

    <cache>/store/sha256/ab/<digest>      a blob, verified before it got its name
    <cache>/store/staging/<digest>/       a download that is not verified yet
    <cache>/store/locks/<digest>          held while the blob is fetched or checked; its time is when that last was
    <cache>/store/lock                    held together by all who use blobs, alone by who removes some

Staging lies on the store's own file system, so a blob appears by a rename: whole or not at all. Whoever holds a blob's
lock owns its staging folder, so what lies there when the lock is taken was left by a process that was killed or lost the
network: the download goes on from there, and the digest tells whether that was right.

A blob that was fetched must still be there when it is linked, so installing holds the store (:meth:`Store.in_use`)
around both, and removing waits until nobody does. Fetching holds it as well, so who holds the store alone may remove
everything in it, locks and staging folders too, and needs no other lock. The system lets go of locks when a process dies.

When a blob was last used is the modification time of its lock file, set while that is held: nobody else writes it, it
costs one system call, and it is not the blob's own time, which a hard link would share with an environment's file (where
backups and ``make`` look at it). A blob without a lock file was last used when it came.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from skillhub import settings
from skillhub.clones import shares_bytes
from skillhub.errors import EnvironmentLockedError, IntegrityError, NetworkError, SkillhubError
from skillhub.files import disk_errors, link_or_copy, sha256_of_file
from skillhub.locks import locked

READ_ONLY = 0o444

_DIGEST = re.compile("[0-9a-f]{64}")

_log = logging.getLogger(__name__)

# A blob may be large and its download slow: wait as long as the process that fetches it lives.
_WAIT_SECONDS = 7 * 24 * 3600.0

# Removing blobs takes seconds; who waits longer for it should know.
_REMOVAL_SECONDS = 600.0
_POLL_SECONDS = 0.02

Fetch = Callable[[Path], Path]
"""Puts a file into the folder it is given, and returns where. An earlier attempt may have left a part of it there."""


@dataclass(frozen=True)
class Store:
    """A store; see the module for what lies where."""

    folder: Path

    def path_of(self, digest: str) -> Path:
        """Return where the blob with this SHA-256 is or would be."""
        return self.folder / "sha256" / digest[:2] / digest

    def staging_of(self, digest: str) -> Path:
        """Return the folder in which this blob is downloaded."""
        return self.folder / "staging" / digest

    def lock_path(self, digest: str) -> Path:
        """Return the blob's lock file."""
        return self.folder / "locks" / digest

    def lock(self, digest: str) -> AbstractContextManager[None]:
        """Hold the blob against other processes; only for who has the store in use."""
        return locked(self.lock_path(digest), timeout_seconds=_WAIT_SECONDS)

    def in_use(self) -> AbstractContextManager[None]:
        """Keep every blob in the store while the block runs; as many processes and threads as like may do so at once.

        Raises:
            EnvironmentLockedError: another process has been removing blobs for ten minutes.
            DiskError: the store may not be written.
        """
        return _held(self.folder / "lock", exclusive=False, timeout_seconds=_REMOVAL_SECONDS)

    def for_removal(self, *, timeout_seconds: float = _REMOVAL_SECONDS) -> AbstractContextManager[None]:
        """Hold the store alone, as removing a blob needs. Who has it in use may not ask for this.

        Raises:
            EnvironmentLockedError: others have had it in use for longer than ``timeout_seconds``.
            DiskError: the store may not be written.
        """
        return _held(self.folder / "lock", exclusive=True, timeout_seconds=timeout_seconds)


@dataclass(frozen=True)
class Blob:
    """A file in the store.

    Attributes:
        digest: its SHA-256, which is its name.
        path: where it is.
        size: its bytes.
        used: when it was last used, in seconds since 1970.
        is_shared: whether an environment has the same bytes by a hard link or a clone, so that they stay when it goes.
    """

    digest: str
    path: Path
    size: int
    used: float
    is_shared: bool


def default_store() -> Store:
    """Return the user's store, in the cache folder (``SKILLHUB_CACHE``)."""
    return Store(settings.cache_folder() / "store")


def read_blobs(store: Store) -> list[Blob]:
    """Return what is in the store, the least recently used first; no blob is read.

    Raises:
        DiskError: the store may not be read.
    """
    with disk_errors(store.folder):
        found = [blob for path in _blob_paths(store) if (blob := _read_blob(store, path))]
    return sorted(found, key=lambda blob: (blob.used, blob.digest))


def _blob_paths(store: Store) -> Iterator[Path]:
    for folder in _entries(store.folder / "sha256"):
        if folder.is_dir(follow_symlinks=False):
            for entry in _entries(Path(folder.path)):
                if _DIGEST.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                    yield Path(entry.path)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:
        return []


def _read_blob(store: Store, path: Path) -> Blob | None:
    """Return a blob, or None when it was removed meanwhile."""
    try:
        status = path.stat()
        shared = shares_bytes(path)
    except FileNotFoundError:
        return None
    try:
        used = store.lock_path(path.name).stat().st_mtime
    except FileNotFoundError:
        used = status.st_mtime
    return Blob(path.name, path, status.st_size, used, shared)


@contextmanager
def _held(path: Path, *, exclusive: bool, timeout_seconds: float) -> Iterator[None]:
    """Hold a lock file together with others, or alone."""
    try:
        import fcntl
    except ImportError:
        with _held_by_one_process(path, timeout_seconds):
            yield
        return
    kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    end = time.monotonic() + timeout_seconds
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        while not _try_lock(fcntl.flock, descriptor, kind | fcntl.LOCK_NB):
            if time.monotonic() >= end:
                raise _in_use_for_too_long(path, timeout_seconds)
            time.sleep(_POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _held_by_one_process(path: Path, timeout_seconds: float) -> Iterator[None]:
    """Hold a lock file where there are no locks to hold together (Windows): one process at a time, with all its threads."""
    from filelock import FileLock, Timeout

    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, is_singleton=True, thread_local=False)
        try:
            lock.acquire(timeout=timeout_seconds)
        except Timeout as error:
            raise _in_use_for_too_long(path, timeout_seconds) from error
    try:
        yield
    finally:
        lock.release()


def _in_use_for_too_long(path: Path, timeout_seconds: float) -> EnvironmentLockedError:
    return EnvironmentLockedError(
        f"Other processes have had the store {path.parent} in use for over {timeout_seconds:.0f} seconds.",
        hint="Wait for them to end, then try again.",
        path=str(path),
    )


def _try_lock(flock: Callable[[int, int], None], descriptor: int, kind: int) -> bool:
    try:
        flock(descriptor, kind)
    except BlockingIOError:
        return False
    return True


def find_blob(store: Store, digest: str) -> Path | None:
    """Return a blob's path after reading it through, or None when it is not there or was altered.

    Raises:
        DiskError: it cannot be read.
    """
    path = store.path_of(digest)
    with disk_errors(path):
        return path if path.is_file() and sha256_of_file(path) == digest else None


def ensure_blob(store: Store, digest: str, size: int | None, fetch: Fetch, *, what: str) -> Path:
    """Return a blob's path, fetching it when it is not there; of several processes at once, one fetches.

    It has been used now. Who goes on to read or link it has the store in use around this and that.

    Args:
        store: where to keep it.
        digest: hex SHA-256 that the file must have.
        size: bytes that it must have, where known.
        fetch: downloads the file.
        what: what to call the file in messages.

    Raises:
        IntegrityError: what was fetched has another size or digest; it is not kept.
        DiskError: the disk is full or the store may not be written.
    """
    path = store.path_of(digest)
    with store.in_use(), store.lock(digest), disk_errors(path):
        os.utime(store.lock_path(digest))
        staging = store.staging_of(digest)
        found = find_blob(store, digest)
        if found is not None:
            _log.debug("%s is in the store", what)
            shutil.rmtree(staging, ignore_errors=True)
            return found
        _log.debug("fetching %s", what)
        try:
            fetched = _fetch_and_check(staging, fetch, digest, size, what)
            fetched.chmod(READ_ONLY)
            path.parent.mkdir(parents=True, exist_ok=True)
            fetched.replace(path)
        except NetworkError:
            raise  # what has arrived stays, for the next attempt to go on from
        except (SkillhubError, OSError):
            shutil.rmtree(staging, ignore_errors=True)
            raise
        shutil.rmtree(staging, ignore_errors=True)
        return path


def _fetch_and_check(staging: Path, fetch: Fetch, digest: str, size: int | None, what: str) -> Path:
    """Return the fetched file; where it went on from what an earlier attempt left, and is wrong, fetch it from nothing."""
    goes_on = staging.exists()
    staging.mkdir(parents=True, exist_ok=True)
    try:
        fetched = fetch(staging)
        _check(fetched, digest, size, what)
    except IntegrityError:
        if not goes_on:
            raise
        shutil.rmtree(staging)
        return _fetch_and_check(staging, fetch, digest, size, what)
    return fetched


def _check(fetched: Path, digest: str, size: int | None, what: str) -> None:
    found_size = fetched.stat().st_size
    found = sha256_of_file(fetched) if size in (None, found_size) else ""
    if found == digest:
        return
    said = (
        f"its digest is {found[:12]}… instead of {digest[:12]}…" if found else f"{found_size} bytes instead of {size}"
    )
    raise IntegrityError(
        f"{what} is not what it should be: {said}.",
        hint="Try again; if that does not help, do not use this pack and tell its publisher.",
        expected=digest,
        found=found or None,
    )


def copy_into(source: Path) -> Fetch:
    """Return a fetch that copies a file of this machine."""

    def fetch(folder: Path) -> Path:
        return Path(shutil.copyfile(source, folder / "copied"))

    return fetch


def link_blob(store: Store, digest: str, target: Path) -> None:
    """Make ``target`` hold a blob's bytes, as cheaply as the file system can; the file is read-only.

    A hard link shares the blob's bytes and its mode. Removing the link leaves the blob alone; who makes it writable and
    writes to it damages the blob, which is noticed when it is next used, and fetched again.

    Raises:
        DiskError: the disk is full or the folder may not be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    link_or_copy(store.path_of(digest), target)
    target.chmod(READ_ONLY)
