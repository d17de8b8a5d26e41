"""Blobs in a folder: ``blobs/ab/cdef…``, and in ``parts/`` the parts of large uploads until all are there."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from skillhub_registry.blobs import PIECE, BlobStore, BlobWriter
from skillhub_registry.errors import missing_parts


class FolderStore(BlobStore):
    """The blobs of a folder. Several replicas may share it.

    Args:
        root: the folder; its ``blobs`` and ``parts`` are made if need be.
        scratch: on the same filesystem.
    """

    def __init__(self, root: Path, scratch: Path) -> None:
        super().__init__(scratch)
        self.root = root
        for name in ("blobs", "parts"):
            (root / name).mkdir(parents=True, exist_ok=True)

    def path(self, sha256: str) -> Path:
        """Return where a blob lies or would lie."""
        return self.root / "blobs" / sha256[:2] / sha256[2:]

    def has(self, sha256: str) -> bool:
        """See :meth:`BlobStore.has`."""
        return self.path(sha256).is_file()

    def read_pieces(self, sha256: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """See :meth:`BlobStore.read_pieces`."""
        path = self.path(sha256)
        with path.open("rb") as file:
            left = os.fstat(file.fileno()).st_size - start if length is None else length
            file.seek(start)
            while left > 0:
                piece = file.read(min(PIECE, left))
                if not piece:
                    raise OSError(f"{path} is shorter than recorded")
                left -= len(piece)
                yield piece

    def open_local(self, sha256: str) -> BinaryIO:
        """See :meth:`BlobStore.open_local`."""
        return self.path(sha256).open("rb")

    @contextmanager
    def open_file(self, sha256: str) -> Iterator[Path]:
        """See :meth:`BlobStore.open_file`."""
        yield self.path(sha256)

    def take(self, writer: BlobWriter) -> None:
        """See :meth:`BlobStore.take`: made durable, then renamed in."""
        target = self.path(writer.sha256)
        writer.finish(durable=True)
        if not target.parent.is_dir():
            target.parent.mkdir(parents=True, exist_ok=True)
            _sync_folder(target.parent.parent)
        writer.path.chmod(0o444)
        writer.path.replace(target)
        _sync_folder(target.parent)

    def list_blobs(self) -> Iterator[tuple[str, int]]:
        """See :meth:`BlobStore.list_blobs`."""
        for folder in (self.root / "blobs").iterdir():
            for path in folder.iterdir():
                with suppress(FileNotFoundError):  # removed meanwhile
                    yield folder.name + path.name, path.stat().st_size

    def remove(self, sha256: str) -> None:
        """See :meth:`BlobStore.remove`. Downloads that have begun go on, where the platform is POSIX."""
        self.path(sha256).unlink(missing_ok=True)

    def keep_part(self, upload: str, number: int, writer: BlobWriter) -> None:
        """See :meth:`BlobStore.keep_part`; the whole is made durable when the parts are joined."""
        writer.finish(durable=False)
        folder = self.root / "parts" / upload
        folder.mkdir(exist_ok=True)
        writer.path.replace(folder / str(number))

    def read_parts(self, upload: str, count: int) -> Iterator[bytes]:
        """See :meth:`BlobStore.read_parts`."""
        for number in range(1, count + 1):
            try:
                file = (self.root / "parts" / upload / str(number)).open("rb")
            except FileNotFoundError as error:
                raise missing_parts() from error
            with file:
                while piece := file.read(PIECE):
                    yield piece

    def drop_parts(self, upload: str) -> None:
        """See :meth:`BlobStore.drop_parts`."""
        shutil.rmtree(self.root / "parts" / upload, ignore_errors=True)

    def sweep_parts(self, age: float) -> None:
        """See :meth:`BlobStore.sweep_parts`."""
        for folder in (self.root / "parts").iterdir():
            if folder.stat().st_mtime < time.time() - age:
                shutil.rmtree(folder, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power failure, where the platform can."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
