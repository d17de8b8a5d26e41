"""Making room: removing from the store what is no longer wanted, what killed processes left, and what is damaged.

Removing needs the store alone, so nothing is removed that an installation has fetched and not yet linked. Each removal is
one system call: a process that is killed anywhere leaves a store that is whole, with fewer blobs in it.

A blob whose bytes an environment shares (by a hard link or a clone) takes no room of its own and frees none when it goes;
it would merely have to be downloaded again. So pruning counts only the others and leaves the shared ones alone. Where
environments hold copies (on another file system, or where nothing can be shared) every blob counts.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from skillhub import remembered
from skillhub.errors import DiskError, EnvironmentLockedError, IntegrityError
from skillhub.files import disk_errors, sha256_of_file
from skillhub.progress import Notice
from skillhub.store import Blob, Store, read_blobs

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rules:
    """Which blobs may go: those that meet all that is said here, and that no environment shares.

    Attributes:
        max_bytes: go on, from the least recently used, until the rest takes no more than this; None means to the end.
        used_before: last used earlier than this, in seconds since 1970.
        keep: digests that must stay.
    """

    max_bytes: int | None = None
    used_before: float | None = None
    keep: Collection[str] = frozenset()


@dataclass(frozen=True)
class Removed:
    """What was removed, or would be.

    Attributes:
        blobs: from the store.
        leftovers: other files and folders: unfinished downloads, locks of blobs that are gone, outdated fingerprints.
        leftover_bytes: that those took.
    """

    blobs: tuple[Blob, ...] = ()
    leftovers: int = 0
    leftover_bytes: int = 0

    @property
    def size(self) -> int:
        """Bytes of the blobs, whether they are free now or an environment still has them."""
        return sum(blob.size for blob in self.blobs)

    @property
    def freed(self) -> int:
        """Bytes that are free now on the disk."""
        return self.leftover_bytes + own_bytes(self.blobs)


def own_bytes(blobs: Iterable[Blob]) -> int:
    """Return how many bytes of these blobs no environment shares: what removing them frees."""
    return sum(blob.size for blob in blobs if not blob.is_shared)


def choose_blobs(blobs: Iterable[Blob], rules: Rules) -> list[Blob]:
    """Return which blobs the rules remove.

    Args:
        blobs: all of the store, the least recently used first.
        rules: which may go.
    """
    private = [blob for blob in blobs if not blob.is_shared]
    left = own_bytes(private)
    chosen = []
    for blob in private:
        if rules.max_bytes is not None and left <= rules.max_bytes:
            break
        is_recent = rules.used_before is not None and blob.used >= rules.used_before
        if not is_recent and blob.digest not in rules.keep:
            chosen.append(blob)
            left -= blob.size
    return chosen


def prune(store: Store, rules: Rules | None, *, dry_run: bool = False, notice: Notice | None = None) -> Removed:
    """Remove the blobs that the rules name, and whatever killed processes and former blobs left.

    Args:
        store: to remove from.
        rules: which blobs may go; None removes none.
        dry_run: only say what would be removed.
        notice: told when others have to be waited for.

    Raises:
        EnvironmentLockedError: others have had the store in use for ten minutes.
        DiskError: something may not be removed.
    """
    with _alone(store, notice, needed=not dry_run):
        chosen = choose_blobs(read_blobs(store), rules) if rules else []
        return _remove(store, chosen, remembered.outdated_memos(), dry_run=dry_run)


def prune_to_limit(store: Store, limit: int) -> Removed | None:
    """Remove the least recently used blobs until the store takes no more than ``limit`` bytes of its own.

    For after an installation: it waits for nobody, and looks at each blob's entry only while there is room.

    Returns:
        What was removed, or None when nothing had to be, or when somebody else has the store in use and will do this.

    Raises:
        DiskError: something may not be removed.
    """
    if not choose_blobs(read_blobs(store), Rules(max_bytes=limit)):
        return None
    try:
        with store.for_removal(timeout_seconds=0):
            # what was chosen before may have been linked since
            return _remove(store, choose_blobs(read_blobs(store), Rules(max_bytes=limit)), [], dry_run=False)
    except EnvironmentLockedError:
        _log.debug("the store is over its limit and in use by others, who will see to it")
        return None


def clean(store: Store, *, dry_run: bool = False, notice: Notice | None = None) -> Removed:
    """Remove everything from the store, and all that is remembered of files' fingerprints; environments keep their files.

    Raises:
        EnvironmentLockedError: others have had the store in use for ten minutes.
        DiskError: something may not be removed.
    """
    with _alone(store, notice, needed=not dry_run):
        return _remove(store, read_blobs(store), remembered.all_memos(), dry_run=dry_run)


@contextmanager
def _alone(store: Store, notice: Notice | None, *, needed: bool) -> Iterator[None]:
    """Hold the store alone; who has to wait is told why."""
    with ExitStack() as held:
        if needed:
            try:
                held.enter_context(store.for_removal(timeout_seconds=0))
            except EnvironmentLockedError:
                if notice:
                    notice("Waiting for other processes that have the store in use.")
                held.enter_context(store.for_removal())
        yield


def _remove(store: Store, blobs: Collection[Blob], memos: Iterable[Path], *, dry_run: bool) -> Removed:
    """Remove blobs, then what belongs to no blob any more, then memos."""
    if not dry_run:
        for blob in blobs:
            _log.debug("removing %s, %d bytes", blob.digest, blob.size)
            _delete(blob.path)
    gone = {blob.digest for blob in blobs}
    leftovers = [*_entries(store.folder / "staging"), *_idle_locks(store, gone), *memos]
    size = 0
    for path in leftovers:
        size += _size_of(path)
        if not dry_run:
            _delete(path)
    if not dry_run:
        for folder in _entries(store.folder / "sha256"):
            with suppress(OSError):  # not empty
                folder.rmdir()
    return Removed(tuple(blobs), len(leftovers), size)


def _idle_locks(store: Store, gone: Collection[str]) -> Iterator[Path]:
    """Yield the lock files of blobs that are not there any more."""
    for path in _entries(store.folder / "locks"):
        if path.name in gone or not store.path_of(path.name).exists():
            yield path


def _entries(folder: Path) -> list[Path]:
    with disk_errors(folder):
        try:
            return sorted(folder.iterdir())
        except FileNotFoundError:
            return []


def _size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files below a folder; what goes meanwhile counts nothing."""
    if path.is_symlink() or not path.is_dir():
        with suppress(FileNotFoundError):
            return path.lstat().st_size
        return 0
    return sum(_size_of(Path(where) / name) for where, _, names in os.walk(path) for name in names)


def _delete(path: Path) -> None:
    with disk_errors(path), suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


@dataclass(frozen=True)
class Damage:
    """A blob that is not what its name says.

    Attributes:
        blob: the blob.
        error: what is wrong with it.
    """

    blob: Blob
    error: IntegrityError | DiskError


def find_damage(store: Store, *, progress: Callable[[int], None] | None = None) -> tuple[int, list[Damage]]:
    """Read every blob of the store through.

    Args:
        store: to read.
        progress: called with the number of bytes of each piece that was read.

    Returns:
        How many blobs there are, and those that are damaged or cannot be read.

    Raises:
        EnvironmentLockedError: somebody has been removing blobs for ten minutes.
        DiskError: the store may not be read.
    """
    if not store.folder.is_dir():
        return 0, []
    with store.in_use():
        blobs = sorted(read_blobs(store), key=lambda blob: blob.digest)
        found = ((blob, _damage_of(blob, progress)) for blob in blobs)
        return len(blobs), [Damage(blob, error) for blob, error in found if error]


def _damage_of(blob: Blob, progress: Callable[[int], None] | None = None) -> IntegrityError | DiskError | None:
    try:
        with disk_errors(blob.path):
            found = sha256_of_file(blob.path, progress=progress)
    except DiskError as error:
        return error
    if found == blob.digest:
        return None
    shared = " Environments may share its bytes: `skillhub verify` tells in each." if blob.is_shared else ""
    return IntegrityError(
        f"{blob.path} is damaged: its digest is {found[:12]}….",
        hint=f"Remove it with `skillhub cache verify --repair`; it is fetched again when it is needed.{shared}",
        path=str(blob.path),
        expected=blob.digest,
        found=found,
    )


def remove_damaged(store: Store, damaged: Iterable[Damage], *, notice: Notice | None = None) -> Removed:
    """Remove damaged blobs; those that somebody has fetched again meanwhile stay.

    Raises:
        EnvironmentLockedError: others have had the store in use for ten minutes.
        DiskError: one may not be removed.
    """
    with _alone(store, notice, needed=True):
        still = [one.blob for one in damaged if one.blob.path.exists() and _damage_of(one.blob)]
        return _remove(store, still, [], dry_run=False)
