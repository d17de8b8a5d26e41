"""Files on disk: atomic writes, streaming digests, safe joins and cheap copies."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from skillhub.clones import clone
from skillhub.errors import DiskError, UnsafeContentError, UsageError

CHUNK = 1 << 20
"""Bytes read at a time while copying and hashing."""

_MAX_PATH_BYTES = 1024
_MAX_COMPONENT_BYTES = 255
_GIT_FOLDERS = (".git", "git~1")

# Windows takes these for devices in every folder, with any ending.
_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(10))}

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NOT_ALLOWED = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.EIO),
)


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


def read_limited(path: Path, limit: int) -> bytes:
    """Return the bytes of a file, which may be a link to something that never ends.

    Raises:
        UnsafeContentError: it has more than ``limit``.
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise UnsafeContentError(
            f"{path} has more than {limit} bytes, which no such file has.",
            hint="Look where it comes from; restore it from version control, or remove it.",
            path=str(path),
        )
    return data


def check_relative_path(path: str) -> PurePosixPath:
    """Return ``path`` as a relative POSIX path that stays inside its folder on every platform.

    This is the one check for every path that comes from a manifest, an index or a registry.

    Raises:
        UnsafeContentError: the path is empty, absolute or too long; it has a backslash, a colon, or characters that
            cannot be seen (control, direction marks, lone surrogates); one of its components is empty, ends in a dot or
            a space (``..`` and ``.`` as well), is git's own folder or a Windows device.
    """
    unsafe = (
        len(path.encode(errors="replace")) > _MAX_PATH_BYTES
        or not path.isprintable()
        or any(character in path for character in "\\:")
        or not all(_is_component(part) for part in path.split("/"))
    )
    if unsafe:
        raise UnsafeContentError(
            f"The path {path!r} does not stay inside its folder, or is not one for every system.",
            hint="Do not use this pack; tell its publisher.",
            path=path,
        )
    return PurePosixPath(path)


def _is_component(part: str) -> bool:
    lowered = part.casefold()
    return (
        0 < len(part.encode(errors="replace")) <= _MAX_COMPONENT_BYTES
        and not part.endswith((".", " "))
        and lowered not in _GIT_FOLDERS
        and lowered.partition(".")[0].rstrip() not in _DEVICES
    )


def safe_join(folder: Path, path: str) -> Path:
    """Return ``folder / path`` after checking that the relative ``path`` cannot leave ``folder``, also not by a link.

    Raises:
        UnsafeContentError: the path is unsafe, or one of its folders is a symbolic link to elsewhere.
    """
    joined = folder.joinpath(*check_relative_path(path).parts)
    try:
        inside = joined.parent.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # links in a circle
        inside = False
    if not inside:
        raise UnsafeContentError(
            f"The path {path!r} leaves {folder} through a symbolic link.",
            hint="Remove the link, then try again.",
            path=path,
        )
    return joined


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk or a missing permission while working on ``path`` into a :class:`DiskError`."""
    try:
        yield
    except OSError as error:
        where = error.filename if isinstance(error.filename, str) else str(path)
        if error.errno in _NO_ROOM:
            raise DiskError(
                f"There is no room for {path}: {error.strerror}.",
                hint="Free some space, then run the same command again; nothing was left half-written.",
                path=str(path),
            ) from error
        if error.errno in _NOT_ALLOWED:
            raise DiskError(
                f"{where} cannot be used: {error.strerror}.",
                hint="Check its owner and permissions and those of its folder, or choose another folder.",
                path=where,
            ) from error
        raise


@contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """Yield an empty temporary file beside ``path`` that takes its place when the block ends well, else goes.

    Raises:
        DiskError: the disk is full or the folder may not be written.
    """
    with disk_errors(path), _staged_path(path) as staged:
        staged.touch(exist_ok=False)
        yield staged
        with staged.open("r+b") as stream:
            os.fsync(stream.fileno())
        staged.replace(path)


@contextmanager
def _staged_path(path: Path) -> Iterator[Path]:
    """Yield a free name beside ``path``; what lies there at the end of the block is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name[:40]}.{secrets.token_hex(6)}.part")
    try:
        yield staged
    finally:
        staged.unlink(missing_ok=True)


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` so that a reader sees the old bytes or the new ones, never a part.

    Raises:
        DiskError: the disk is full or the folder may not be written.
    """
    with staged_file(path) as staged:
        staged.write_bytes(data)


def expanded(path: str | Path) -> Path:
    """Return a path with ``~`` replaced by the home folder; one of a user who is not known stays as it is."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def new_folder(path: str | Path) -> Path:
    """Return the absolute path of a folder that is to be made, before any work is done for it.

    Raises:
        UsageError: something is there that is not an empty folder, or it is the working folder, which cannot be replaced.
        DiskError: it may not be looked at.
    """
    given = expanded(path)
    with disk_errors(given):
        folder = given.resolve()
        if given.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
            raise UsageError(
                f"{path} exists already and is not an empty folder.",
                hint="Choose another folder with -o, or remove that one.",
                path=str(folder),
            )
        if folder.exists() and folder.samefile(os.curdir):
            raise UsageError(
                f"{path} is the working folder, which cannot be replaced.",
                hint="Name a new folder inside it, such as -o ./new.",
                path=str(folder),
            )
    return folder


@contextmanager
def staged_folder(path: Path, *, is_new: bool = False) -> Iterator[Path]:
    """Yield an empty temporary folder beside ``path`` that takes its place when the block ends well.

    An existing folder at ``path`` is replaced by two renames, so an interrupted process leaves the old or the new one,
    or (between the renames) none; never a mixture. What killed processes left behind for the same ``path`` is removed.

    Args:
        path: the folder.
        is_new: it was not there (or empty) when the work began (:func:`new_folder`), so that what is there at its end is another's.

    Raises:
        DiskError: the disk is full or the folder may not be written.
        UsageError: a new folder has come into being meanwhile, with something in it; that stays.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        workplace = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name[:40]}.", suffix=".part"))
        staged, old = workplace / "new", workplace / "old"
        lock = _lock_folder(workplace)
        try:
            staged.mkdir()
            _sweep(path)
            yield staged
            if is_new:
                new_folder(path)
            try:
                if os.path.lexists(path):
                    path.rename(old)
                staged.rename(path)
            except BaseException:
                if os.path.lexists(old) and not os.path.lexists(path):
                    old.rename(path)
                raise
        finally:
            shutil.rmtree(workplace, ignore_errors=True)
            if lock is not None:
                os.close(lock)


def _sweep(path: Path) -> None:
    """Remove what killed processes left beside ``path``: workplaces that have something in them and that nobody holds.

    One that holds the old folder stays while there is no other: its process died between the two renames.
    """
    pattern = re.compile(rf"\.{re.escape(path.name[:40])}\.[a-z0-9_]{{8}}\.part")
    for workplace in path.parent.iterdir():
        if not pattern.fullmatch(workplace.name) or workplace.is_symlink() or not workplace.is_dir():
            continue
        with suppress(OSError):  # another process may be sweeping, too
            lost = (workplace / "old").exists() and not os.path.lexists(path)
            # Processes lock their workplace before they put anything there.
            if not lost and any(workplace.iterdir()) and (lock := _lock_folder(workplace)) is not None:
                shutil.rmtree(workplace, ignore_errors=True)
                os.close(lock)


def _lock_folder(folder: Path) -> int | None:
    """Lock a folder until the descriptor is closed or the process dies; None where it is held, or cannot be locked."""
    try:
        import fcntl
    except ImportError:  # Windows: nothing is swept there
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def link_or_copy(source: Path, target: Path) -> None:
    """Make ``target`` hold the bytes of ``source`` as cheaply as the file system can: clone, hard link, copy.

    What was at ``target`` is replaced, at once. After a hard link both names are one file: a write to either shows in both.

    Raises:
        DiskError: the disk is full or the folder may not be written.
    """
    with disk_errors(target), _staged_path(target) as staged:
        if not clone(source, staged) and not _hard_link(source, staged):
            shutil.copyfile(source, staged)
        staged.replace(target)


def _hard_link(source: Path, target: Path) -> bool:
    """Try a hard link; say whether it was made."""
    with suppress(OSError):  # another file system, or one without hard links
        os.link(source, target)
        return True
    return False
