"""The store: every downloaded file once, under its digest, read-only, shared by all environments and processes.

    <cache>/store/sha256/ab/<digest>      a blob, verified before it got its name
    <cache>/store/staging/<digest>/       a download that is not verified yet
    <cache>/store/locks/<digest>          held while the blob is fetched or checked

Staging lies on the store's own file system, so a blob appears by a rename: whole or not at all. Whoever holds a blob's
lock owns its staging folder, so what lies there when the lock is taken was left by a process that was killed.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from skillhub import settings
from skillhub.errors import IntegrityError
from skillhub.files import disk_errors, link_or_copy, locked, sha256_of_file

READ_ONLY = 0o444

# A blob may be large and its download slow: wait as long as the process that fetches it lives.
_WAIT_SECONDS = 7 * 24 * 3600.0

Fetch = Callable[[Path], Path]
"""Puts a file into the empty folder it is given, and returns where."""


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

    def lock(self, digest: str) -> AbstractContextManager[None]:
        """Hold the blob against other processes."""
        return locked(self.folder / "locks" / digest, timeout_seconds=_WAIT_SECONDS)


def default_store() -> Store:
    """Return the user's store, in the cache folder (``SKILLHUB_CACHE``)."""
    return Store(settings.cache_folder() / "store")


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
    with store.lock(digest), disk_errors(path):
        staging = store.staging_of(digest)
        if staging.exists():
            shutil.rmtree(staging)
        found = find_blob(store, digest)
        if found is not None:
            return found
        try:
            staging.mkdir(parents=True)
            fetched = fetch(staging)
            _check(fetched, digest, size, what)
            fetched.chmod(READ_ONLY)
            path.parent.mkdir(parents=True, exist_ok=True)
            fetched.replace(path)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return path


def _check(fetched: Path, digest: str, size: int | None, what: str) -> None:
    found_size = fetched.stat().st_size
    found = sha256_of_file(fetched) if size in (None, found_size) else ""
    if found == digest:
        return
    said = (
        f"its digest is {found[:12]}… instead of {digest[:12]}…" if found else f"{found_size} bytes instead of {size}"
    )
    raise IntegrityError(
        f"{what} is not what its manifest announced: {said}.",
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

    A hard link shares the blob's bytes and its mode. Removing the link leaves the blob alone.

    Raises:
        DiskError: the disk is full or the folder may not be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    link_or_copy(store.path_of(digest), target)
    target.chmod(READ_ONLY)
