"""Copy-on-write clones: making one, and telling whether a file's bytes are shared with another file.

A clone costs no room until one of the two files is written to, and then only that one changes. btrfs, XFS and bcachefs
on Linux make them by ``FICLONE``, APFS on macOS by ``clonefile``.
"""

from __future__ import annotations

import os
import struct
import sys
from contextlib import suppress
from pathlib import Path

_FICLONE = 0x40049409
_FS_IOC_FIEMAP = 0xC020660B

# of linux/fiemap.h: start, length, flags, mapped extents, extents there is room for, reserved
_FIEMAP = struct.Struct("=QQLLLL")
# logical, physical, length, reserved twice, flags, reserved thrice
_EXTENT = struct.Struct("=QQQQQLLLL")
_EXTENT_SHARED = 0x2000
_WHOLE_FILE = (1 << 64) - 1


def clone(source: Path, target: Path) -> bool:
    """Try to make the new file ``target`` a clone of ``source``; say whether it was made.

    Nothing is left at ``target`` when it was not: the file system cannot clone, or the files are on two of them.

    Raises:
        OSError: ``source`` cannot be read, or ``target`` cannot be made at all.
    """
    if sys.platform == "darwin":
        return _clone_on_apfs(source, target)
    try:
        import fcntl
    except ImportError:  # Windows
        return False
    with source.open("rb") as reader, target.open("xb") as writer:
        try:
            fcntl.ioctl(writer.fileno(), _FICLONE, reader.fileno())
        except OSError:
            target.unlink()
            return False
    return True


def _clone_on_apfs(source: Path, target: Path) -> bool:
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    try:
        made: int = library.clonefile(os.fsencode(source), os.fsencode(target), 0)
    except AttributeError:  # older than macOS 10.12
        return False
    return made == 0


def shares_bytes(path: Path) -> bool:
    """Say whether removing a file would free nothing, because another name or a clone keeps its bytes.

    A clone is known by the file's first extent: what is cloned here is cloned whole. Only Linux tells.

    Raises:
        OSError: the file cannot be looked at.
    """
    status = path.stat()
    if status.st_nlink > 1:
        return True
    if sys.platform != "linux" or status.st_size == 0:
        return False
    import fcntl

    asked = bytearray(_FIEMAP.pack(0, _WHOLE_FILE, 0, 0, 1, 0) + bytes(_EXTENT.size))
    with suppress(OSError), path.open("rb") as stream:  # a file system that cannot tell cannot clone, either
        fcntl.ioctl(stream.fileno(), _FS_IOC_FIEMAP, asked)
        extents: int = _FIEMAP.unpack_from(asked)[3]
        flags: int = _EXTENT.unpack_from(asked, _FIEMAP.size)[5]
        return extents > 0 and bool(flags & _EXTENT_SHARED)
    return False
