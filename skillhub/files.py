"""Files on disk: atomic writes, streaming digests, safe joins, cheap copies and locks between processes."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from skillhub.errors import DiskError, EnvironmentLockedError, UnsafeContentError

CHUNK = 1 << 20
"""Bytes read at a time while copying and hashing."""

_MAX_PATH_LENGTH = 1024


def sha256_of_file(path: Path, *, progress: Callable[[int], None] | None = None) -> str:
    """Return the hex SHA-256 of a file, reading it in pieces.

    Args:
        path: the file.
        progress: called with the number of bytes of each piece.
    """
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(CHUNK):
            digest.update(piece)
            if progress:
                progress(len(piece))
    return digest.hexdigest()


def sha256_of_bytes(data: bytes) -> str:
    """Return the hex SHA-256 of some bytes."""
    return hashlib.sha256(data).hexdigest()


def check_relative_path(path: str) -> PurePosixPath:
    """Return ``path`` as a relative POSIX path that stays inside its folder.

    This is the one check for every path that comes from a manifest, an index or a registry.

    Raises:
        UnsafeContentError: the path is empty, absolute, too long, has ``..``, ``.``, a backslash, a drive letter, an
            empty component or control characters.
    """
    parts = path.split("/")
    unsafe = (
        not path
        or len(path) > _MAX_PATH_LENGTH
        or any(part in ("", ".", "..") for part in parts)
        or any(character in path for character in "\\:")
        or any(ord(character) < 32 or ord(character) == 127 for character in path)
    )
    if unsafe:
        raise UnsafeContentError(
            f"The path {path!r} does not stay inside its folder.",
            hint="Do not use this pack; tell its publisher.",
            path=path,
        )
    return PurePosixPath(path)


def safe_join(folder: Path, path: str) -> Path:
    """Return ``folder / path`` after checking that the relative ``path`` cannot leave ``folder``, also not by a link.

    Raises:
        UnsafeContentError: the path is unsafe, or one of its folders is a symbolic link to elsewhere.
    """
    joined = folder.joinpath(*check_relative_path(path).parts)
    if not joined.parent.resolve().is_relative_to(folder.resolve()):
        raise UnsafeContentError(
            f"The path {path!r} leaves {folder} through a symbolic link.",
            hint="Remove the link, then try again.",
            path=path,
        )
    return joined


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk or a missing permission under ``path`` into a :class:`DiskError`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskError(
                f"The disk is full while writing {path}.",
                hint="Free some space, then run the same command again; nothing was left half-written.",
                path=str(path),
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.EEXIST):
            raise DiskError(
                f"{path} cannot be written: {error.strerror}.",
                hint="Check the folder's owner and permissions, or choose another folder.",
                path=str(path),
            ) from error
        raise


@contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside ``path`` that takes its place when the block ends well, and goes when it does not.

    Raises:
        DiskError: the disk is full or the folder may not be written.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        os.close(handle)
        staged = Path(name)
        try:
            yield staged
            staged.chmod(0o666 & ~_umask())
            with staged.open("rb") as stream:
                os.fsync(stream.fileno())
            staged.replace(path)
        except BaseException:
            staged.unlink(missing_ok=True)
            raise


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` so that a reader sees the old bytes or the new ones, never a part.

    Raises:
        DiskError: the disk is full or the folder may not be written.
    """
    with staged_file(path) as staged:
        staged.write_bytes(data)


@contextmanager
def staged_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside ``path`` that takes its place when the block ends well.

    An existing folder at ``path`` is replaced by two renames, so an interrupted process leaves the old or the new one,
    or (between the renames) none; never a mixture.

    Raises:
        DiskError: the disk is full or the folder may not be written.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        workplace = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part"))
        try:
            staged = workplace / "new"
            staged.mkdir()
            yield staged
            old = workplace / "old"
            if path.exists():
                path.rename(old)
            try:
                staged.rename(path)
            except BaseException:
                if old.exists():
                    old.rename(path)
                raise
        finally:
            shutil.rmtree(workplace, ignore_errors=True)


def link_or_copy(source: Path, target: Path) -> None:
    """Make ``target`` hold the bytes of ``source`` as cheaply as the file system can: reflink, hard link, copy.

    Raises:
        DiskError: the disk is full or the folder may not be written.
    """
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        if _reflink(source, target):
            return
        with suppress(OSError):  # another file system, or one without hard links: copy
            os.link(source, target)
            return
        with staged_file(target) as staged:
            shutil.copyfile(source, staged)


def _reflink(source: Path, target: Path) -> bool:
    """Try a copy-on-write clone (Linux ``FICLONE``); say whether it was made."""
    try:
        import fcntl
    except ImportError:  # Windows has neither
        return False
    ficlone = 0x40049409
    with suppress(OSError), source.open("rb") as reader, target.open("xb") as writer:
        try:
            fcntl.ioctl(writer.fileno(), ficlone, reader.fileno())
        except OSError:
            target.unlink()
            return False
        return True
    return False


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def locked(path: Path, *, timeout_seconds: float = 600) -> Iterator[None]:
    """Hold the lock file ``path`` against other processes and threads.

    Raises:
        EnvironmentLockedError: another process held it for longer than ``timeout_seconds``.
        DiskError: the lock file may not be written.
    """
    from filelock import FileLock, Timeout

    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=timeout_seconds)
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
