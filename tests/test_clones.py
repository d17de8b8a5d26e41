"""Copy-on-write clones, where the file system under the tests' folder makes them, and what happens where it does not."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from skillhub.clones import clone, shares_bytes

DATA = b"some bytes" * 10_000


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(DATA)
    return path


def test_a_clone_is_another_file_with_the_same_bytes(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    made = clone(source, target)
    assert made == target.exists()
    if made:  # on btrfs, XFS and APFS
        assert target.read_bytes() == DATA
        assert shares_bytes(source) and shares_bytes(target)
        target.write_bytes(b"other")
        assert source.read_bytes() == DATA
    assert source.stat().st_nlink == 1


def test_a_file_system_that_cannot_clone_leaves_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr("fcntl.ioctl", refuse)
    assert not clone(source, tmp_path / "target")
    assert not (tmp_path / "target").exists()
    assert not shares_bytes(source)


def test_what_is_in_the_way_of_a_clone_stays(source: Path, tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"in the way")
    with pytest.raises(FileExistsError):
        clone(source, tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == b"in the way"


def test_a_file_with_two_names_shares_its_bytes(source: Path, tmp_path: Path) -> None:
    assert not shares_bytes(source)
    os.link(source, tmp_path / "second")
    assert shares_bytes(source)
    (tmp_path / "second").unlink()
    assert not shares_bytes(source)


@pytest.mark.parametrize(("extents", "flags", "shared"), [(1, 0x2001, True), (1, 0x1, False), (0, 0x2000, False)])
def test_the_kernel_is_asked_for_the_first_extent(
    extents: int, flags: int, shared: bool, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(descriptor: int, request: int, asked: Any) -> int:
        # FS_IOC_FIEMAP of linux/fs.h: _IOWR('f', 11, struct fiemap), with room for one extent of 56 bytes
        assert request == 0xC020660B and len(asked) == 32 + 56
        assert struct.unpack_from("=QQLLL", asked) == (0, 2**64 - 1, 0, 0, 1)
        struct.pack_into("=L", asked, 20, extents)
        struct.pack_into("=L", asked, 32 + 40, flags)
        return 0

    monkeypatch.setattr(fcntl, "ioctl", answer)
    assert shares_bytes(source) == shared


@pytest.mark.parametrize("status", [0, -1])
def test_apple_clones_by_a_call_of_its_library(
    status: int, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Library:
        def clonefile(self, given: bytes, made: bytes, flags: int) -> int:
            assert flags == 0
            if status == 0:
                Path(os.fsdecode(made)).write_bytes(Path(os.fsdecode(given)).read_bytes())
            return status

    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr("ctypes.CDLL", lambda name, use_errno: Library())
    assert clone(source, tmp_path / "target") == (status == 0)
    assert (tmp_path / "target").exists() == (status == 0)
    assert not shares_bytes(source)  # it does not tell


def test_an_empty_file_shares_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert not shares_bytes(tmp_path / "empty")
