"""The content-addressed store."""

from __future__ import annotations

import hashlib
import os
import signal
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from skillhub.errors import DiskError, IntegrityError, NetworkError, SkillhubError, TrustError
from skillhub.store import Fetch, Store, copy_into, ensure_blob, find_blob, link_blob

DATA = b"some bytes" * 1000
DIGEST = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(DATA)
    return path


def no_fetch(folder: Path) -> Path:
    raise AssertionError("fetched although it is there")


def everything_below(store: Store) -> list[str]:
    return sorted(
        path.relative_to(store.folder).as_posix()
        for path in store.folder.rglob("*")
        if path.is_file() and path.relative_to(store.folder).parts[0] not in ("lock", "locks")
    )


def test_a_blob_is_fetched_once_and_is_read_only(store: Store, source: Path) -> None:
    path = ensure_blob(store, DIGEST, len(DATA), copy_into(source), what="it")
    assert path.read_bytes() == DATA
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    assert everything_below(store) == [f"sha256/{DIGEST[:2]}/{DIGEST}"]
    assert ensure_blob(store, DIGEST, len(DATA), no_fetch, what="it") == path
    assert find_blob(store, DIGEST) == path
    assert not list((store.folder / "staging").iterdir())


@pytest.mark.parametrize(("data", "words"), [(DATA[:-1], "9999 bytes instead of 10000"), (b"x" * 10000, "its digest")])
def test_wrong_bytes_do_not_enter(store: Store, source: Path, data: bytes, words: str) -> None:
    source.write_bytes(data)
    with pytest.raises(IntegrityError, match=words):
        ensure_blob(store, DIGEST, len(DATA), copy_into(source), what="it")
    assert everything_below(store) == []
    assert find_blob(store, DIGEST) is None


def test_the_digest_alone_decides_where_no_size_is_known(store: Store, source: Path) -> None:
    assert ensure_blob(store, DIGEST, None, copy_into(source), what="it").read_bytes() == DATA


def test_an_altered_blob_is_fetched_again(store: Store, source: Path) -> None:
    path = ensure_blob(store, DIGEST, len(DATA), copy_into(source), what="it")
    path.chmod(0o644)
    path.write_bytes(b"y" * len(DATA))
    assert find_blob(store, DIGEST) is None
    assert ensure_blob(store, DIGEST, len(DATA), copy_into(source), what="it").read_bytes() == DATA
    assert stat.S_IMODE(path.stat().st_mode) == 0o444


@pytest.mark.parametrize("half", [DATA[:10], b"wrong" + DATA[5:10]])
def test_what_a_killed_process_left_is_gone_on_from_and_is_cleared_in_the_end(store: Store, half: bytes) -> None:
    staging = store.staging_of(DIGEST)
    (staging / "deep").mkdir(parents=True)
    (staging / "deep" / "half").write_bytes(half)
    begun: list[int] = []

    def fetch(folder: Path) -> Path:
        file = folder / "deep" / "half"
        file.parent.mkdir(exist_ok=True)
        with file.open("ab") as stream:
            begun.append(stream.tell())
            stream.write(DATA[stream.tell() :])
        return file

    assert ensure_blob(store, DIGEST, len(DATA), fetch, what="it").read_bytes() == DATA
    assert begun == ([10] if half == DATA[:10] else [10, 0])
    assert not staging.exists()


def test_what_has_arrived_stays_only_when_the_network_fails(store: Store) -> None:
    def fetch(error: Exception) -> Fetch:
        def fail(folder: Path) -> Path:
            (folder / "half").write_bytes(DATA[:10])
            raise error

        return fail

    for error, stays in ((NetworkError("lost"), True), (OSError(28, "full"), False), (TrustError("no"), False)):
        with pytest.raises((SkillhubError, OSError)):
            ensure_blob(store, DIGEST, len(DATA), fetch(error), what="it")
        assert store.staging_of(DIGEST).exists() == stays


def test_a_linked_file_can_be_removed_without_harm(store: Store, source: Path, tmp_path: Path) -> None:
    blob = ensure_blob(store, DIGEST, len(DATA), copy_into(source), what="it")
    target = tmp_path / "environment" / "deep" / "file"
    link_blob(store, DIGEST, target)
    assert target.read_bytes() == DATA
    assert stat.S_IMODE(target.stat().st_mode) == 0o444
    target.unlink()
    assert blob.read_bytes() == DATA


def test_a_store_that_may_not_be_written(tmp_path: Path, source: Path) -> None:
    (tmp_path / "store").write_bytes(b"a file where the folder should be")
    with pytest.raises(DiskError):
        ensure_blob(Store(tmp_path / "store"), DIGEST, len(DATA), copy_into(source), what="it")


PROCESS = """
import sys, time
from pathlib import Path
from skillhub.store import Store, copy_into, ensure_blob

def fetch(folder):
    with open(sys.argv[4], "a") as log:
        log.write("fetched\\n")
    time.sleep(0.2)  # long enough for every process to want it meanwhile
    return copy_into(Path(sys.argv[2]))(folder)

ensure_blob(Store(Path(sys.argv[1])), sys.argv[3], None, fetch, what="it")
"""


def test_of_many_processes_one_fetches(store: Store, source: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [sys.executable, "-c", PROCESS, str(store.folder), str(source), DIGEST, str(log)]
    processes = [subprocess.Popen(command, env=dict(os.environ)) for _ in range(6)]
    assert [process.wait() for process in processes] == [0] * 6
    assert log.read_text() == "fetched\n"
    assert find_blob(store, DIGEST) is not None


KILLED = """
import os, signal, sys
from pathlib import Path
from skillhub.store import Store, copy_into, ensure_blob

store, source, first, second = Store(Path(sys.argv[1])), Path(sys.argv[2]), sys.argv[3], sys.argv[4]

def fetch(folder):
    (folder / "half").write_bytes(b"half of it")
    os.kill(os.getpid(), signal.SIGKILL)

with store.in_use():
    ensure_blob(store, first, None, copy_into(source), what="the first")
    ensure_blob(store, second, None, fetch, what="the second")
"""


def test_a_killed_download_loses_that_file_only(store: Store, source: Path) -> None:
    other = hashlib.sha256(b"other").hexdigest()
    command = [sys.executable, "-c", KILLED, str(store.folder), str(source), DIGEST, other]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    assert (store.staging_of(other) / "half").exists()
    assert ensure_blob(store, DIGEST, len(DATA), no_fetch, what="the first").read_bytes() == DATA
    source.write_bytes(b"other")
    assert ensure_blob(store, other, None, copy_into(source), what="the second").read_bytes() == b"other"
    assert not list((store.folder / "staging").iterdir())
    with store.for_removal(timeout_seconds=0):
        pass  # the killed process holds nothing


def test_a_blob_can_be_fetched_while_its_user_holds_the_store(store: Store, source: Path) -> None:
    with store.in_use(), store.in_use():
        ensure_blob(store, DIGEST, None, copy_into(source), what="it")


def test_where_locks_cannot_be_shared_a_process_holds_the_store_with_all_its_threads(
    store: Store, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)  # as on Windows
    with ThreadPoolExecutor(2) as pool, store.in_use():
        fetched = pool.map(
            lambda what: ensure_blob(store, DIGEST, None, copy_into(source), what=what), ["one", "another"]
        )
        assert set(fetched) == {store.path_of(DIGEST)}
