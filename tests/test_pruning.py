"""Making room in the store: what goes, what stays, and what being killed in between does."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from skillhub.errors import EnvironmentLockedError, IntegrityError
from skillhub.pruning import Rules, choose_blobs, clean, find_damage, own_bytes, prune, prune_to_limit, remove_damaged
from skillhub.remembered import FOLDER, remembered
from skillhub.store import Store, copy_into, ensure_blob, find_blob, read_blobs
from tests.support.registry_process import ROOT

HOUR = 3600


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("SKILLHUB_CACHE", str(tmp_path / "cache"))
    return Store(tmp_path / "cache" / "store")


def put(store: Store, data: bytes, *, used: float) -> str:
    """Bring bytes into the store as if they had last been used at that time; returns their digest."""
    digest = hashlib.sha256(data).hexdigest()
    source = store.folder.parent / "source"
    source.parent.mkdir(exist_ok=True)
    source.write_bytes(data)
    ensure_blob(store, digest, len(data), copy_into(source), what="it")
    os.utime(store.lock_path(digest), (used, used))
    source.unlink()
    return digest


def share(store: Store, digest: str, target: Path) -> None:
    """Link a blob as most file systems do; a clone would be told apart from it by what happens to it later."""
    target.parent.mkdir(exist_ok=True)
    os.link(store.path_of(digest), target)


def digests(store: Store) -> set[str]:
    return {blob.digest for blob in read_blobs(store)}


@pytest.fixture
def five(store: Store) -> list[str]:
    """Five blobs of 100 bytes, the least recently used first."""
    return [put(store, bytes([number]) * 100, used=number * HOUR) for number in range(1, 6)]


def test_blobs_are_told_by_their_last_use(store: Store, five: list[str]) -> None:
    assert [blob.digest for blob in read_blobs(store)] == five
    assert [blob.used for blob in read_blobs(store)] == [number * HOUR for number in range(1, 6)]
    ensure_blob(store, five[1], 100, copy_into(Path("/nowhere")), what="it")
    assert [blob.digest for blob in read_blobs(store)] == [five[0], *five[2:], five[1]]


def test_using_a_blob_leaves_its_own_time_alone(store: Store, five: list[str], tmp_path: Path) -> None:
    share(store, five[0], tmp_path / "linked")
    os.utime(tmp_path / "linked", (12345, 12345))
    ensure_blob(store, five[0], 100, copy_into(Path("/nowhere")), what="it")
    assert (tmp_path / "linked").stat().st_mtime == 12345


def test_a_blob_without_a_lock_file_was_last_used_when_it_came(store: Store, five: list[str]) -> None:
    os.utime(store.path_of(five[4]), (5, 5))
    store.lock_path(five[4]).unlink()
    assert read_blobs(store)[0].digest == five[4] and read_blobs(store)[0].used == 5


def test_other_files_are_no_blobs(store: Store, five: list[str], tmp_path: Path) -> None:
    folder = store.path_of(five[0]).parent
    (folder / "notes.txt").write_text("mine")
    (folder / ("f" * 64)).mkdir()
    (folder / ("e" * 64)).symlink_to(tmp_path)
    (store.folder / "sha256" / "file").touch()
    assert digests(store) == set(five)


@pytest.mark.parametrize(
    ("limit", "left"), [(500, 5), (10_000, 5), (499, 4), (400, 4), (250, 2), (100, 1), (99, 0), (0, 0)]
)
def test_the_least_recently_used_go_until_the_rest_fits(store: Store, five: list[str], limit: int, left: int) -> None:
    removed = prune(store, Rules(max_bytes=limit))
    assert [blob.digest for blob in removed.blobs] == five[: 5 - left]
    assert digests(store) == set(five[5 - left :])
    assert removed.size == removed.freed == (5 - left) * 100
    assert sorted(path.name for path in (store.folder / "locks").iterdir()) == sorted(five[5 - left :])


def test_conditions_must_all_be_met(store: Store, five: list[str]) -> None:
    blobs = read_blobs(store)

    def chosen(rules: Rules) -> list[int]:
        return [five.index(blob.digest) for blob in choose_blobs(blobs, rules)]

    assert chosen(Rules()) == [0, 1, 2, 3, 4]
    assert chosen(Rules(used_before=3 * HOUR)) == [0, 1]
    assert chosen(Rules(keep={five[0], five[3]})) == [1, 2, 4]
    assert chosen(Rules(used_before=4 * HOUR, keep={five[1]})) == [0, 2]
    assert chosen(Rules(max_bytes=350, used_before=2 * HOUR)) == [0]
    assert chosen(Rules(max_bytes=350, keep={five[0]})) == [1, 2]


def test_what_an_environment_shares_stays_and_does_not_count(store: Store, five: list[str], tmp_path: Path) -> None:
    share(store, five[0], tmp_path / "env" / "file")
    assert own_bytes(read_blobs(store)) == 400
    assert not prune(store, Rules(max_bytes=400)).blobs
    removed = prune(store, Rules(max_bytes=0))
    assert digests(store) == {five[0]} and removed.freed == 400
    (tmp_path / "env" / "file").unlink()
    assert prune(store, Rules(max_bytes=0)).freed == 100


def test_a_dry_run_removes_nothing_and_waits_for_nobody(store: Store, five: list[str]) -> None:
    staging = store.staging_of("0" * 64)
    staging.mkdir(parents=True)
    with store.in_use():
        removed = prune(store, Rules(max_bytes=200), dry_run=True)
        everything = clean(store, dry_run=True)
    assert (len(removed.blobs), removed.freed, removed.leftovers) == (3, 300, 1 + 3)
    assert len(everything.blobs) == 5
    assert digests(store) == set(five) and staging.exists()


def test_leftovers_go_even_without_rules(store: Store, five: list[str], tmp_path: Path) -> None:
    (store.staging_of(five[0]) / "deep").mkdir(parents=True)
    (store.staging_of(five[0]) / "deep" / "half").write_bytes(b"x" * 50)
    store.lock_path("0" * 64).touch()
    (store.folder / "sha256" / "zz").mkdir()
    removed = prune(store, None)
    assert (removed.blobs, removed.leftovers, removed.freed) == ((), 2, 50)
    assert digests(store) == set(five)
    assert not list((store.folder / "staging").iterdir())
    assert sorted(path.name for path in (store.folder / "locks").iterdir()) == sorted(five)
    assert not (store.folder / "sha256" / "zz").exists()
    assert prune(store, None).leftovers == 0


def test_fingerprints_go_with_the_files_that_they_are_of(store: Store, tmp_path: Path) -> None:
    def remember(name: str) -> Path:
        path = tmp_path / name
        path.write_text(name)
        os.utime(path, (1, 1))
        remembered(path, "text-0", str, str, path.read_text)
        return path

    kept, changed, gone = remember("kept"), remember("changed"), remember("gone")
    changed.write_text("changed since")
    gone.unlink()
    folder = tmp_path / "cache" / FOLDER
    for name, age in ((".half.json.0123.part", 0), (".old.json.0123.part", 1)):
        (folder / name).touch()
        if age:
            os.utime(folder / name, (age, age))
    (folder / "damaged.json").write_text("[")
    assert prune(store, None).leftovers == 4
    left = {path.name: path for path in folder.iterdir()}
    assert ".half.json.0123.part" in left  # somebody may be writing it
    del left[".half.json.0123.part"]
    assert [json.loads(path.read_bytes())["key"][1] for path in left.values()] == [str(kept)]


def test_cleaning_removes_everything_and_environments_keep_theirs(
    store: Store, five: list[str], tmp_path: Path
) -> None:
    share(store, five[0], tmp_path / "env" / "file")
    removed = clean(store)
    assert (len(removed.blobs), removed.size, removed.freed) == (5, 500, 400)
    assert [path.name for path in store.folder.rglob("*") if path.is_file()] == ["lock"]
    assert (tmp_path / "env" / "file").read_bytes() == bytes([1]) * 100
    assert put(store, bytes([1]) * 100, used=0) == five[0]


def test_the_limit_is_kept_only_when_nobody_has_the_store_in_use(store: Store, five: list[str]) -> None:
    with store.in_use():
        assert prune_to_limit(store, 250) is None
        assert digests(store) == set(five)
    removed = prune_to_limit(store, 250)
    assert removed and removed.freed == 300
    assert digests(store) == set(five[3:])
    assert prune_to_limit(store, 250) is None


def test_keeping_the_limit_of_an_empty_store_makes_nothing(store: Store) -> None:
    assert prune_to_limit(store, 0) is None
    assert not store.folder.exists()


def test_pruning_waits_until_nobody_has_the_store_in_use(store: Store, five: list[str]) -> None:
    told: list[str] = []
    release, holding = threading.Event(), threading.Event()

    def use() -> None:
        with store.in_use():
            holding.set()
            release.wait()
            assert digests(store) == set(five)

    user = threading.Thread(target=use)
    user.start()
    holding.wait()

    def notice(sentence: str) -> None:
        told.append(sentence)
        release.set()

    assert len(prune(store, Rules(), notice=notice).blobs) == 5
    user.join()
    assert told == ["Waiting for other processes that have the store in use."]


def test_who_waits_too_long_is_told(store: Store, five: list[str]) -> None:
    expected = pytest.raises(EnvironmentLockedError, match="in use for over 0 seconds")
    with store.in_use(), expected as caught, store.for_removal(timeout_seconds=0):
        pass
    assert caught.value.exit_code == 11 and caught.value.hint


def damage(store: Store, digest: str) -> None:
    path = store.path_of(digest)
    path.chmod(0o644)
    path.write_bytes(b"y" * path.stat().st_size)
    path.chmod(0o444)


def test_damage_is_found_and_removed(store: Store, five: list[str], tmp_path: Path) -> None:
    share(store, five[3], tmp_path / "env" / "file")
    damage(store, five[1])
    damage(store, five[3])
    read: list[int] = []
    count, damaged = find_damage(store, progress=read.append)
    assert count == 5 and sum(read) == 500
    assert {one.blob.digest for one in damaged} == {five[1], five[3]}
    for one in damaged:
        assert isinstance(one.error, IntegrityError) and str(one.blob.path) in one.error.message
        assert ("skillhub verify" in one.error.hint) == (one.blob.digest == five[3])
    removed = remove_damaged(store, damaged)
    assert {blob.digest for blob in removed.blobs} == {five[1], five[3]}
    assert digests(store) == {five[0], five[2], five[4]}
    assert find_damage(store)[1] == []


def test_what_was_fetched_again_meanwhile_is_not_removed(store: Store, five: list[str]) -> None:
    damage(store, five[0])
    damaged = find_damage(store)[1]
    put(store, bytes([1]) * 100, used=0)
    assert remove_damaged(store, damaged).blobs == ()
    assert find_blob(store, five[0]) is not None


def test_there_is_nothing_to_find_in_no_store(store: Store) -> None:
    assert read_blobs(store) == []
    assert find_damage(store) == (0, [])
    assert prune(store, Rules()).blobs == ()
    assert clean(store).blobs == ()


@pytest.mark.parametrize(("action", "least_steps"), [("prune", 8), ("limit", 5), ("clean", 12), ("repair", 4)])
def test_killed_at_every_step(action: str, least_steps: int, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.support.removals", action, str(tmp_path / "steps")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) >= least_steps


INSTALL = """
import sys
from pathlib import Path
from skillhub.store import Store, copy_into, ensure_blob, link_blob

store, digest, source = Store(Path(sys.argv[1])), sys.argv[2], Path(sys.argv[3])

def fetch(folder):
    (store.folder.parent / "fetching").touch(exist_ok=False)  # two at once would find it
    copied = copy_into(source)(folder)
    (store.folder.parent / "fetching").unlink()
    return copied

for turn in range(60):
    ensure_blob(store, digest, None, fetch, what="it")
    with store.in_use():
        ensure_blob(store, digest, None, fetch, what="it")
        link_blob(store, digest, Path(sys.argv[4]))
"""

PRUNE = """
import sys
from pathlib import Path
from skillhub.pruning import clean, prune_to_limit
from skillhub.store import Store

for turn in range(60):
    clean(Store(Path(sys.argv[1])))
    prune_to_limit(Store(Path(sys.argv[1])), 0)
"""


def test_installing_and_cleaning_at_once_do_not_disturb_each_other(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"bytes")
    digest = hashlib.sha256(b"bytes").hexdigest()
    commands = [
        [sys.executable, "-c", INSTALL, str(store.folder), digest, str(source), str(tmp_path / f"env{number}" / "file")]
        for number in range(3)
    ]
    commands += [[sys.executable, "-c", PRUNE, str(store.folder)]] * 2
    processes = [subprocess.Popen(command) for command in commands]
    assert [process.wait() for process in processes] == [0] * 5
    for number in range(3):
        assert (tmp_path / f"env{number}" / "file").read_bytes() == b"bytes"
