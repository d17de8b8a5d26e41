"""A content-addressed store of files by sha256: written beside, verified, made durable, renamed in.

``blobs/ab/cdef…`` are whole and never change; ``incoming/`` holds what is still arriving, and whatever a killed process
left there is swept away at the next start.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from skillhub_registry.errors import bad_request, too_large


@dataclass(frozen=True)
class BlobStore:
    """The folder that holds the blobs."""

    root: Path

    @property
    def incoming(self) -> Path:
        """The folder of uploads in progress, on the same filesystem."""
        return self.root / "incoming"

    def path(self, sha256: str) -> Path:
        """Return where a blob lies or would lie."""
        return self.root / "blobs" / sha256[:2] / sha256[2:]

    def has(self, sha256: str) -> bool:
        """Say whether the blob is there, whole."""
        return self.path(sha256).is_file()


class BlobWriter:
    """A blob that is being written. Not yet visible to anyone."""

    def __init__(self, file: BinaryIO, limit: int) -> None:
        self._file = file
        self._limit = limit
        self._digest = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> None:
        """Append bytes.

        Raises:
            HubError: 413, over the writer's limit.
        """
        self.size += len(data)
        if self.size > self._limit:
            raise too_large(f"The upload is larger than the {self._limit} bytes allowed here")
        self._digest.update(data)
        self._file.write(data)

    @property
    def sha256(self) -> str:
        """The digest of what was written so far."""
        return self._digest.hexdigest()

    @property
    def path(self) -> Path:
        """The file in ``incoming/``."""
        return Path(self._file.name)

    def flush(self) -> None:
        """Hand everything to the operating system, so that others may read :attr:`path`."""
        self._file.flush()

    def finish(self, *, durable: bool = True) -> None:
        """End the file, and make it survive a power failure if it is to be ``durable``. Some systems rename ended files only."""
        self._file.flush()
        if durable:
            os.fsync(self._file.fileno())
        self._file.close()


def prepare_store(store: BlobStore) -> None:
    """Make the folders, and remove what uploads that never ended left behind."""
    shutil.rmtree(store.incoming, ignore_errors=True)
    store.incoming.mkdir(parents=True, exist_ok=True)
    (store.root / "blobs").mkdir(exist_ok=True)


@contextmanager
def write_blob(store: BlobStore, limit: int) -> Iterator[BlobWriter]:
    """Yield a writer of a temporary file, which is gone at the end unless :func:`keep_blob` took it."""
    handle, name = tempfile.mkstemp(dir=store.incoming)
    os.close(handle)
    path = Path(name)
    try:
        with path.open("wb") as file:
            yield BlobWriter(file, limit)
    finally:
        path.unlink(missing_ok=True)


def keep_blob(store: BlobStore, writer: BlobWriter, sha256: str | None = None, size: int | None = None) -> str:
    """Verify what was written, make it durable and visible, and return its sha256.

    Raises:
        HubError: 400, the bytes are not what was promised.
    """
    if size is not None and writer.size != size:
        raise bad_request(f"The upload has {writer.size} bytes where {size} were announced")
    if sha256 is not None and writer.sha256 != sha256:
        raise bad_request(f"The upload's sha256 is {writer.sha256} where {sha256} was announced")
    target = store.path(writer.sha256)
    if target.is_file():
        return writer.sha256
    writer.finish()
    if not target.parent.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        _sync_folder(target.parent.parent)
    writer.path.chmod(0o444)
    writer.path.replace(target)
    _sync_folder(target.parent)
    return writer.sha256


def put_blob(store: BlobStore, content: bytes) -> str:
    """Store bytes and return their sha256."""
    sha256 = hashlib.sha256(content).hexdigest()
    if not store.has(sha256):
        with write_blob(store, len(content)) as writer:
            writer.write(content)
            keep_blob(store, writer)
    return sha256


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power failure, where the platform can."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
