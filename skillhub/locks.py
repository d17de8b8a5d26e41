"""Locks between processes: files that one process at a time holds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from skillhub.errors import EnvironmentLockedError
from skillhub.files import disk_errors
from skillhub.progress import tell_wait

if TYPE_CHECKING:
    from filelock import FileLock

_PATIENCE_SECONDS = 1


@contextmanager
def locked(path: Path, *, timeout_seconds: float = 600, what: str = "") -> Iterator[None]:
    """Hold the lock file ``path`` against other processes and threads.

    Args:
        path: the lock file.
        timeout_seconds: how long to wait for others.
        what: what the others do; who waits for longer than a second is told. Empty tells nobody.

    Raises:
        EnvironmentLockedError: another process held it for longer than ``timeout_seconds``.
        DiskError: the lock file may not be written.
    """
    from filelock import FileLock, Timeout

    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            _acquire(lock, timeout_seconds, what)
        except Timeout as error:
            raise EnvironmentLockedError(
                f"Another process has held {path} for over {timeout_seconds:.0f} seconds.",
                hint="Wait for it to end, or end it, then try again.",
                path=str(path),
            ) from error
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: FileLock, timeout_seconds: float, what: str) -> None:
    from filelock import Timeout

    if what and timeout_seconds > _PATIENCE_SECONDS:
        with suppress(Timeout):
            lock.acquire(timeout=_PATIENCE_SECONDS)
            return
        tell_wait(f"Waiting for another process that {what}.")
    lock.acquire(timeout=timeout_seconds)
