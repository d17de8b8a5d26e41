"""Paths that stay inside their folder, writes that appear whole or not at all, and locks between processes."""

from __future__ import annotations

import errno
import hashlib
import ntpath
import os
import posixpath
import resource
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from skillhub import files
from skillhub.errors import DiskError, EnvironmentLockedError, UnsafeContentError, UsageError
from skillhub.files import (
    check_relative_path,
    disk_errors,
    link_or_copy,
    safe_join,
    sha256_of_bytes,
    sha256_of_file,
    staged_file,
    staged_folder,
    write_atomically,
)
from skillhub.locks import locked

REPOSITORY = Path(files.__file__).parents[1]

# Pieces from which a path with a trick in it is likely.
MOVES = ("..", ".", "...", "/", "//", "\\", ":", "C:", "~", ".. ", "%2e%2e", "\uff0e\uff0e", "\u2024\u2024", "\u2215")
LETTERS = ("a", "b.txt", " ", "é", "e\u0301", "$HOME", "-rf", "\0", "\n", "\x7f", "\u202e", "\u200d", "\ud800")
RESERVED = (".git", ".GIT", "git~1", "con", "NUL.txt", "com1", "aux .txt")
PIECES = st.sampled_from([*MOVES, *LETTERS, *RESERVED])
TRICKY_PATHS = st.one_of(
    st.lists(PIECES, max_size=6).map("".join), st.lists(PIECES, max_size=6).map("/".join), st.text()
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a file beside it that nothing may touch."""
    (tmp_path / "outside.txt").write_text("untouched")
    inside = tmp_path / "inside"
    inside.mkdir()
    return inside


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("size", [0, 1, files.CHUNK - 1, files.CHUNK, files.CHUNK + 1, 3 * files.CHUNK + 7])
def test_sha256_is_that_of_sha256sum(size: int, tmp_path: Path) -> None:
    data = os.urandom(size)
    path = tmp_path / "data"
    path.write_bytes(data)
    seen: list[int] = []
    expected = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout.split()[0]
    assert sha256_of_file(path, progress=seen.append) == sha256_of_bytes(data) == expected
    assert sum(seen) == size


@given(TRICKY_PATHS)
@example("../x")
@example("a/../../x")
@example("/etc/passwd")
@example("..\\x")
@example("C:x")
@example("a/.. /x")
def test_an_accepted_path_stays_inside_on_every_platform(path: str) -> None:
    try:
        checked = check_relative_path(path)
    except UnsafeContentError as error:
        assert error.details["path"] == path
        return
    assert str(checked) == path
    assert os.fsencode(path).count(b"\0") == 0
    for flavour, root in ((posixpath, "/home/folder"), (ntpath, r"C:\home\folder")):
        joined = flavour.normpath(flavour.join(root, path))
        assert joined.startswith(root + flavour.sep)
        assert not flavour.isabs(path) and flavour.splitdrive(path)[0] == ""
        # Windows drops dots and spaces at the end of each component
        assert all(part.rstrip(". ") == part for part in path.split("/"))


@given(st.lists(st.from_regex(r"[a-z0-9_-][a-z0-9._-]{0,20}[a-z0-9_-]", fullmatch=True), min_size=1, max_size=5))
@example(["variants", "0123456789ab", "delta-00001.safetensors"])
@example(["été", "日本"])
def test_ordinary_paths_are_accepted(parts: list[str]) -> None:
    if not {part.split(".")[0] for part in parts} & files._DEVICES:
        assert check_relative_path("/".join(parts)).parts == tuple(parts)


LEAVING = ("", ".", "..", "/", "//", "a//b", "a/", "/a", "a/./b", "a/..", "../a", "..\\a", "a\\b", "C:/a", "c:a", "a:s")
UNSEEN = ("a\0b", "a\nb", "a\x1bb", "a\x7fb", "a\x85b", "a\u2028b", "a\u202eb", "a\u200bb", "a\ud800b")
TRIMMED = ("a ", "a.", ".. ", "...", "a/b. /c")
DEVICES = (".git/config", "a/.GIT/hooks/x", "git~1/x", "NUL", "nul.txt", "a/com1", "LPT9.x.y", "aux .txt")
TOO_LONG = ("x" * 256, "é" * 128, "/".join(["x" * 100] * 11))


@pytest.mark.parametrize("path", [*LEAVING, *UNSEEN, *TRIMMED, *DEVICES, *TOO_LONG])
def test_an_unsafe_path_is_refused(path: str) -> None:
    with pytest.raises(UnsafeContentError) as caught:
        check_relative_path(path)
    assert caught.value.hint and caught.value.exit_code == 12


@pytest.mark.parametrize(
    "path", ["x" * 255, "é" * 127, ".gitattributes", "console", "com", "nul-set", "a b", "~/a", "..a"]
)
def test_a_path_near_an_unsafe_one_is_accepted(path: str, folder: Path) -> None:
    assert safe_join(folder, path) == folder / path


def test_safe_join_refuses_to_leave_through_a_link(folder: Path) -> None:
    (folder / "up").symlink_to("..")
    (folder / "loop").symlink_to("loop")
    (folder / "real").mkdir()
    (folder / "alias").symlink_to("real")
    for path in ("up/outside.txt", "loop/x", "alias/../../outside.txt", "up/inside/../outside.txt"):
        with pytest.raises(UnsafeContentError):
            safe_join(folder, path)
    assert safe_join(folder, "alias/x") == folder / "alias" / "x"
    assert safe_join(folder, "up") == folder / "up"


def test_safe_join_works_under_a_folder_that_is_a_link_itself(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    assert safe_join(tmp_path / "link", "a/b") == tmp_path / "link" / "a" / "b"


def test_write_atomically_makes_folders_and_replaces(folder: Path) -> None:
    path = folder / "a" / "b.txt"
    write_atomically(path, b"first")
    write_atomically(path, b"second")
    assert path.read_bytes() == b"second"
    assert names_in(path.parent) == ["b.txt"]


def test_write_atomically_replaces_a_link_and_not_what_it_points_to(folder: Path) -> None:
    link = folder / "link"
    link.symlink_to("../outside.txt")
    write_atomically(link, b"new")
    assert not link.is_symlink() and link.read_bytes() == b"new"
    assert (folder.parent / "outside.txt").read_text() == "untouched"


def test_a_name_as_long_as_the_file_system_allows_can_be_written(folder: Path) -> None:
    for name in ("x" * 255, "é" * 127):
        write_atomically(folder / name, b"data")
        with staged_folder(folder / f"{name[:-1]}d") as staged:
            (staged / "file").touch()
    assert len(names_in(folder)) == 4


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_the_umask_decides_about_permissions(mask: int, folder: Path) -> None:
    before = os.umask(mask)
    try:
        write_atomically(folder / "file", b"")
        with staged_folder(folder / "sub") as staged:
            (staged / "file").touch()
    finally:
        os.umask(before)
    assert stat.S_IMODE((folder / "file").stat().st_mode) == 0o666 & ~mask
    assert stat.S_IMODE((folder / "sub").stat().st_mode) == 0o777 & ~mask


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let the kernel refuse every write beyond ``size`` bytes of a file, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("size", [0, 1, 9_999])
def test_a_write_that_finds_no_room_leaves_the_old_file(size: int, folder: Path) -> None:
    path = folder / "file"
    path.write_bytes(b"old")
    with largest_file(size), pytest.raises(DiskError, match="no room") as caught:
        write_atomically(path, b"x" * 10_000)
    assert caught.value.exit_code == 14 and caught.value.hint and caught.value.__cause__
    assert path.read_bytes() == b"old"
    assert names_in(folder) == ["file"]


def test_a_full_disk_while_copying_leaves_the_old_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_hard_link", lambda source, target: False)
    source, target = folder / "source", folder / "target"
    source.write_bytes(b"x" * 100_000)
    target.write_bytes(b"old")
    with largest_file(5_000), pytest.raises(DiskError, match="no room"):
        link_or_copy(source, target)
    assert target.read_bytes() == b"old"
    assert names_in(folder) == ["source", "target"]


STEPS = ["os.fsync", "pathlib.Path.replace", "pathlib.Path.touch"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EACCES, errno.EROFS])
@pytest.mark.parametrize("step", STEPS)
def test_a_failure_at_any_step_of_a_write_leaves_nothing(
    step: str, number: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    (folder / "file").write_bytes(b"old")
    with monkeypatch.context() as patch:
        patch.setattr(step, fail)
        with pytest.raises(DiskError):
            write_atomically(folder / "file", b"new")
    assert (folder / "file").read_bytes() == b"old"
    assert names_in(folder) == ["file"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SystemExit])
def test_an_exception_in_the_block_passes_and_leaves_nothing(error: type[BaseException], folder: Path) -> None:
    with pytest.raises(error), staged_file(folder / "file") as staged:
        staged.write_bytes(b"half")
        raise error
    with pytest.raises(error), staged_folder(folder / "sub") as staged:
        (staged / "half").write_bytes(b"half")
        raise error
    assert names_in(folder) == []


def test_an_error_that_is_not_about_the_disk_keeps_its_type(folder: Path) -> None:
    with pytest.raises(ConnectionResetError), disk_errors(folder):
        raise ConnectionResetError(errno.ECONNRESET, "reset")
    with pytest.raises(FileNotFoundError):
        link_or_copy(folder / "nothing", folder / "target")
    assert names_in(folder) == []


def test_writing_below_a_file_or_over_a_folder_names_the_path(folder: Path) -> None:
    (folder / "file").touch()
    (folder / "sub").mkdir()
    for path in (folder / "file" / "below", folder / "sub", folder / ("x" * 256)):
        with pytest.raises(DiskError, match=str(folder)):
            write_atomically(path, b"data")
    assert names_in(folder) == ["file", "sub"]


def test_a_missing_permission_names_the_path_that_lacks_it(folder: Path) -> None:
    with pytest.raises(DiskError, match="/elsewhere/secret cannot be used: Permission denied"), disk_errors(folder):
        raise PermissionError(errno.EACCES, "Permission denied", "/elsewhere/secret")


def test_staged_folder_replaces_whatever_was_there(folder: Path) -> None:
    target = folder / "target"
    for number, old in enumerate(("nothing", "folder", "file", "dangling link", "link to folder")):
        if old == "file":
            target.write_text("old")
        elif old == "dangling link":
            target.symlink_to("nowhere")
        elif old == "link to folder":
            target.symlink_to("..")
        with staged_folder(target) as staged:
            assert list(staged.iterdir()) == []
            (staged / f"{number}.txt").write_text("new")
        assert target.is_dir() and not target.is_symlink()
        assert names_in(target) == [f"{number}.txt"]
        assert names_in(folder) == ["target"]
        if old != "nothing":
            files.shutil.rmtree(target)
    assert (folder.parent / "outside.txt").read_text() == "untouched"


def test_a_new_folder_does_not_take_the_place_of_what_came_into_being_meanwhile(folder: Path) -> None:
    target = folder / "target"
    with staged_folder(target, is_new=True) as staged:
        (staged / "mine.txt").touch()
        target.mkdir()
    assert names_in(target) == ["mine.txt"]
    with pytest.raises(UsageError, match="exists already"), staged_folder(folder / "other", is_new=True):
        (folder / "other").mkdir()
        (folder / "other" / "theirs.txt").touch()
    assert names_in(folder / "other") == ["theirs.txt"] and names_in(folder) == ["other", "target"]


@pytest.mark.parametrize("failing", [1, 2])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_a_failed_exchange_of_folders_brings_the_old_one_back(
    failing: int, error: BaseException, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = folder / "target"
    target.mkdir()
    (target / "old.txt").touch()
    rename, calls = Path.rename, []

    def sometimes(self: Path, other: Path) -> Path:
        calls.append(self)
        if len(calls) == failing:
            raise error
        return rename(self, other)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", sometimes)
        with pytest.raises((DiskError, KeyboardInterrupt)), staged_folder(target) as staged:
            (staged / "new.txt").touch()
    assert names_in(target) == ["old.txt"]
    assert names_in(folder) == ["target"]


def test_an_interrupt_right_after_the_first_rename_brings_the_old_folder_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = folder / "target"
    target.mkdir()
    (target / "old.txt").touch()
    rename, calls = Path.rename, []

    def interrupted(self: Path, other: Path) -> Path:
        result = rename(self, other)
        calls.append(self)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return result

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt), staged_folder(target):
            pass
    assert names_in(target) == ["old.txt"]
    assert names_in(folder) == ["target"]


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_holds_is_not(folder: Path) -> None:
    program = (
        "import sys, pathlib; from skillhub.files import staged_folder\n"
        "with staged_folder(pathlib.Path(sys.argv[1])) as staged:\n"
        "    (staged / 'file').write_text('half'); print('ready', flush=True); sys.stdin.read()"
    )
    target, other = folder / "pack", folder / "pack.two"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    processes = [
        subprocess.Popen([sys.executable, "-c", program, str(path)], **pipes) for path in (target, target, other)
    ]
    assert all(process.stdout.readline() == b"ready\n" for process in processes)
    (folder / ".pack.mine.part").mkdir()
    (folder / ".pack.mine.part" / "file").write_text("not a workplace")
    for dead in (processes[0], processes[2]):
        dead.kill()
        dead.communicate()
    with staged_folder(target) as staged:
        (staged / "file").write_text("whole")
    left = {path.name for path in folder.iterdir()}
    assert {name[:6] for name in left - {"pack", ".pack.mine.part"}} == {".pack."} and len(left) == 4
    processes[1].communicate(b"")
    assert (target / "file").read_text() == "half" and processes[1].returncode == 0
    assert {path.name.split(".")[1] for path in folder.glob(".*")} == {"pack"} and len(list(folder.glob(".*"))) == 2


def test_the_only_copy_of_the_old_folder_is_not_swept(folder: Path) -> None:
    (folder / ".pack.abcd1234.part" / "old").mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt), staged_folder(folder / "pack"):
        raise KeyboardInterrupt
    assert (folder / ".pack.abcd1234.part" / "old").is_dir()
    for _ in "ab":
        with staged_folder(folder / "pack"):
            pass
    assert [path.name for path in folder.iterdir()] == ["pack"]


def test_a_full_disk_inside_a_staged_folder_leaves_the_old_one(folder: Path) -> None:
    target = folder / "target"
    target.mkdir()
    (target / "old.txt").touch()
    with largest_file(10), pytest.raises(DiskError), staged_folder(target) as staged:
        (staged / "big").write_bytes(b"x" * 100)
    assert names_in(target) == ["old.txt"]
    assert names_in(folder) == ["target"]


def test_link_or_copy_holds_the_same_bytes_and_replaces(folder: Path) -> None:
    source, target = folder / "source", folder / "sub" / "target"
    source.write_bytes(b"bytes")
    link_or_copy(source, target)
    link_or_copy(source, target)  # also where both are one file already
    assert target.read_bytes() == b"bytes"
    target.unlink()
    target.write_bytes(b"other")
    link_or_copy(source, target)
    assert target.read_bytes() == b"bytes" and source.read_bytes() == b"bytes"
    assert names_in(target.parent) == ["target"]


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP])
def test_link_or_copy_copies_where_the_file_system_cannot_link(
    number: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.link", refuse)
    monkeypatch.setattr("fcntl.ioctl", refuse)
    (folder / "source").write_bytes(b"bytes")
    link_or_copy(folder / "source", folder / "target")
    (folder / "target").write_bytes(b"changed")
    assert (folder / "source").read_bytes() == b"bytes"


def test_link_or_copy_clones_where_the_file_system_can(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def clone(target: int, request: int, source: int) -> int:
        assert request == 0x40049409  # FICLONE of linux/fs.h: _IOW(0x94, 9, int)
        return os.write(target, os.read(source, 1 << 20))

    monkeypatch.setattr("fcntl.ioctl", clone)
    (folder / "source").write_bytes(b"bytes")
    link_or_copy(folder / "source", folder / "target")
    assert (folder / "target").read_bytes() == b"bytes"
    assert (folder / "target").stat().st_nlink == 1


def test_writers_at_once_leave_one_of_their_files(folder: Path) -> None:
    path = folder / "file"
    contents = [hashlib.sha256(bytes([number])).digest() * 2_000 for number in range(8)]

    def write(data: bytes) -> None:
        for _ in range(10):
            write_atomically(path, data)
            assert path.read_bytes() in contents

    threads = [threading.Thread(target=write, args=(data,)) for data in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert names_in(folder) == ["file"]


HOLD = """
import sys
from pathlib import Path
from skillhub.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until its input ends."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    ) as process:
        assert process.stdout and process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.communicate()


def test_a_lock_keeps_other_processes_out_until_released(folder: Path) -> None:
    path = folder / "sub" / ".lock"
    with holder(path) as process:
        with (
            pytest.raises(EnvironmentLockedError, match="Another process") as caught,
            locked(path, timeout_seconds=0.05),
        ):
            pytest.fail("the lock was given twice")
        assert caught.value.exit_code == 11 and caught.value.details == {"path": str(path)}
        process.communicate()
        with locked(path, timeout_seconds=5):
            pass


def test_a_killed_holder_lets_go(folder: Path) -> None:
    with holder(folder / ".lock") as process:
        process.kill()
        process.wait()
        with locked(folder / ".lock", timeout_seconds=5):
            pass


def test_a_lock_keeps_other_threads_out(folder: Path) -> None:
    refused: list[bool] = []

    def other() -> None:
        try:
            with locked(folder / ".lock", timeout_seconds=0.05):
                refused.append(False)
        except EnvironmentLockedError:
            refused.append(True)

    with locked(folder / ".lock"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert refused == [True]


def test_a_lock_is_released_after_an_error_which_keeps_its_type(folder: Path) -> None:
    with pytest.raises(PermissionError), locked(folder / ".lock"):
        raise PermissionError(errno.EACCES, "not about the lock")
    with locked(folder / ".lock", timeout_seconds=1):
        pass


def test_a_lock_file_that_cannot_be_written_is_a_disk_error(folder: Path) -> None:
    (folder / "file").touch()
    with pytest.raises(DiskError), locked(folder / "file" / ".lock"):
        pass
    (folder / "link").symlink_to("../outside.txt")
    with pytest.raises(DiskError), locked(folder / "link"):
        pass
