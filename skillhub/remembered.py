"""Facts about large files that cost a whole read, remembered as long as the file has not changed.

A memo's key is the file's real path, size, modification time and inode; each memo is a small JSON file in the cache
folder. Losing one costs time only: a damaged memo is ignored and written again, and a cache folder that may not be
written merely remembers nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from skillhub.errors import DiskError
from skillhub.files import disk_errors, sha256_of_bytes, write_atomically
from skillhub.settings import cache_folder

FOLDER = "fingerprints"

_RACE_SECONDS = 1.0
"""A file changed this recently could change again without its modification time moving; it is not remembered."""

_WRITING_SECONDS = 3600.0
"""What is younger than this without having its final name may be in somebody's hands."""

T = TypeVar("T")


def remembered(
    path: Path, fact: str, decode: Callable[[Any], T], encode: Callable[[T], Any], compute: Callable[[], T]
) -> T:
    """Return a fact about the file ``path`` from its memo, or compute it and remember it.

    Args:
        path: the file.
        fact: what is remembered, with its format's number (``tensors-0``).
        decode: makes the value from its JSON form; may raise ValueError, TypeError, KeyError or IndexError.
        encode: makes the JSON form of a value.
        compute: reads the file.
    """
    started = time.time()
    key = _key(path, fact)
    memo = cache_folder() / FOLDER / f"{sha256_of_bytes(json.dumps(key).encode())}.json"
    with suppress(OSError, ValueError, TypeError, KeyError, IndexError):  # absent or damaged: compute
        stored = json.loads(memo.read_bytes())
        if stored["key"] == key:
            return decode(stored["value"])
    value = compute()
    settled = key[3] < (started - _RACE_SECONDS) * 1e9
    if settled and _key(path, fact) == key:
        with suppress(DiskError):
            write_atomically(memo, json.dumps({"key": key, "value": encode(value)}).encode())
    return value


def all_memos() -> list[Path]:
    """Return the files of all memos, and of those that were never finished.

    Raises:
        DiskError: the cache folder may not be read.
    """
    folder = cache_folder() / FOLDER
    with disk_errors(folder):
        try:
            return sorted(folder.iterdir())
        except FileNotFoundError:
            return []


def outdated_memos() -> list[Path]:
    """Return the memos of files that have changed or gone, and what killed processes left of others.

    Raises:
        DiskError: the cache folder may not be read.
    """
    return [memo for memo in all_memos() if not (_is_current(memo) or _is_being_written(memo))]


def _is_current(memo: Path) -> bool:
    try:
        key = json.loads(memo.read_bytes())["key"]
        fact, path, *_ = key
        return bool(key == _key(Path(path), fact))
    except (OSError, ValueError, TypeError, KeyError, IndexError, RecursionError):
        return False


def _is_being_written(memo: Path) -> bool:
    if memo.suffix == ".json":
        return False
    with suppress(FileNotFoundError):
        return memo.stat().st_mtime > time.time() - _WRITING_SECONDS
    return False


def _key(path: Path, fact: str) -> list[Any]:
    real = path.resolve()
    status = real.stat()
    return [fact, str(real), status.st_size, status.st_mtime_ns, status.st_ino]
