"""Scratch space: a folder of this process alone, for what is still arriving.

A process that is killed leaves its folder behind; whoever starts next beside it, on the same machine or, where several
share a data folder, another one, removes the folders whose lock nobody holds.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

LOCK_NAME = "lock"


@dataclass(frozen=True)
class Scratch:
    """A locked folder. What is in it goes when it is closed, or when its process has ended."""

    folder: Path
    lock: FileLock

    def close(self) -> None:
        """Remove the folder."""
        self.lock.release()
        shutil.rmtree(self.folder, ignore_errors=True)


def open_scratch(incoming: Path) -> Scratch:
    """Make a scratch folder below ``incoming/``, and remove what ended processes left there."""
    incoming.mkdir(parents=True, exist_ok=True)
    with FileLock(incoming.with_suffix(".lock")):
        for entry in incoming.iterdir():
            if not entry.is_dir():
                entry.unlink(missing_ok=True)
            elif not _is_held(entry):
                shutil.rmtree(entry, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(dir=incoming))
        lock = FileLock(folder / LOCK_NAME, thread_local=False)
        lock.acquire(timeout=0)
    return Scratch(folder, lock)


def _is_held(folder: Path) -> bool:
    lock = FileLock(folder / LOCK_NAME)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False
