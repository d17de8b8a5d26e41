"""A content-addressed store of files by sha256: received into scratch space, verified, then visible whole or not at all.

``folderstore.py`` keeps them in a folder, ``s3store.py`` in a bucket.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO

from skillhub_registry.errors import bad_request, too_large

PIECE = 1024 * 1024
"""Bytes that are read at a time."""

PARTS_SECONDS = 24 * 3600
"""How old the parts of an upload are that was given up; the links for sending them are good for half as long."""


class BlobStore(ABC):
    """Where the blobs are. Whatever is in it never changes.

    Args:
        scratch: a folder of this process alone, for what is still arriving.
    """

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.spare: Callable[[str], None] = lambda sha256: None
        """Keeps the garbage collection from a blob for now; ``garbage.py`` says how."""

    @abstractmethod
    def has(self, sha256: str) -> bool:
        """Say whether the blob is there, whole."""

    @abstractmethod
    def read_pieces(self, sha256: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Yield a blob's bytes from ``start`` on: ``length`` of them, or all."""

    def open_local(self, sha256: str) -> BinaryIO | None:
        """Return an open file that is the blob, or None where it is not a file on this machine."""
        return None

    @abstractmethod
    def open_file(self, sha256: str) -> AbstractContextManager[Path]:
        """Yield a file on this machine that has a blob's bytes; it may be gone afterwards."""

    @abstractmethod
    def take(self, writer: BlobWriter) -> None:
        """Keep what was written, durably, before it becomes visible. For :func:`keep_blob`, which verifies it."""

    def make_link(self, sha256: str, headers: Mapping[str, str]) -> str | None:
        """Return an address where a client fetches the blob itself, for some minutes, or None: it is served from here.

        ``headers`` holds the ``Content-Type`` and ``Content-Disposition`` of the answer there.
        """
        return None

    @abstractmethod
    def list_blobs(self) -> Iterator[tuple[str, int]]:
        """Yield the sha256 and size of every blob, in no order."""

    @abstractmethod
    def remove(self, sha256: str) -> None:
        """Delete a blob, if it is there. For ``garbage.py`` alone."""

    @abstractmethod
    def keep_part(self, upload: str, number: int, writer: BlobWriter) -> None:
        """Keep a part of an upload until the others are there too; they may reach other replicas."""

    @abstractmethod
    def read_parts(self, upload: str, count: int) -> Iterator[bytes]:
        """Yield the bytes of an upload's parts, 1 to ``count``.

        Raises:
            HubError: 400, one is missing.
        """

    @abstractmethod
    def drop_parts(self, upload: str) -> None:
        """Forget an upload's parts."""

    @abstractmethod
    def sweep_parts(self, age: float) -> None:
        """Forget the parts that came more than ``age`` seconds ago."""

    def read(self, sha256: str, start: int = 0, length: int | None = None) -> bytes:
        """Return a blob's bytes from ``start`` on: ``length`` of them, or all."""
        return b"".join(self.read_pieces(sha256, start, length))


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
        """The file in the scratch folder."""
        return Path(self._file.name)

    def flush(self) -> None:
        """Hand everything to the operating system, so that others may read :attr:`path`."""
        self._file.flush()

    def finish(self, *, durable: bool) -> None:
        """End the file, and make it survive a power failure if it is to be ``durable``. Some systems rename ended files only."""
        self._file.flush()
        if durable:
            os.fsync(self._file.fileno())
        self._file.close()


@contextmanager
def write_blob(store: BlobStore, limit: int) -> Iterator[BlobWriter]:
    """Yield a writer of a temporary file, which is gone at the end unless :func:`keep_blob` took it."""
    handle, name = tempfile.mkstemp(dir=store.scratch)
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
    if not is_kept(store, writer.sha256):
        store.take(writer)
    return writer.sha256


def is_kept(store: BlobStore, sha256: str) -> bool:
    """Say whether a blob is there, to rely on: it stays long enough for a reference to it to be recorded."""
    store.spare(sha256)  # first: what is there after that is not removed
    return store.has(sha256)


def put_blob(store: BlobStore, content: bytes) -> str:
    """Store bytes and return their sha256."""
    sha256 = hashlib.sha256(content).hexdigest()
    if not is_kept(store, sha256):
        with write_blob(store, len(content)) as writer:
            writer.write(content)
            store.take(writer)
    return sha256
