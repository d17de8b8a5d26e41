"""Kill pruning, cleaning and repairing the store at every step, and check what is left each time.

    python -m tests.support.removals ACTION FOLDER

A process of its own: it forks for every step, and must have no other threads. It prints the number of steps.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from skillhub.files import sha256_of_file
from skillhub.pruning import Rules, clean, find_damage, prune, prune_to_limit, remove_damaged
from skillhub.store import Store, copy_into, default_store, ensure_blob, link_blob, read_blobs
from tests.support.steps import KILLED, run_until

CONTENTS = [bytes([number]) * 100 for number in range(6)]
DIGESTS = [hashlib.sha256(data).hexdigest() for data in CONTENTS]
LINKED, COPIED, DAMAGED = DIGESTS[0], DIGESTS[1], DIGESTS[5]


def prepare(here: Path) -> Store:
    """Make a store of six blobs; an environment has two of them, a third is damaged, and a download is unfinished."""
    os.environ["SKILLHUB_CACHE"] = str(here / "cache")
    store = default_store()
    (here / "source").parent.mkdir(parents=True)
    for number, (digest, data) in enumerate(zip(DIGESTS, CONTENTS, strict=True)):
        (here / "source").write_bytes(data)
        ensure_blob(store, digest, None, copy_into(here / "source"), what="it")
        os.utime(store.lock_path(digest), (number, number))
    link_blob(store, LINKED, here / "env" / "linked")
    shutil.copyfile(store.path_of(COPIED), here / "env" / "copied")
    store.path_of(DAMAGED).chmod(0o644)
    store.path_of(DAMAGED).write_bytes(b"damaged")
    store.staging_of("0" * 64).mkdir(parents=True)
    (store.staging_of("0" * 64) / "half").write_bytes(b"half")
    return store


def repair(store: Store) -> None:
    """Remove what is damaged."""
    remove_damaged(store, find_damage(store)[1])


ACTIONS: dict[str, tuple[Callable[[Store], object], set[str]]] = {
    "prune": (lambda store: prune(store, Rules(max_bytes=200)), {LINKED, DIGESTS[4], DAMAGED}),
    "limit": (lambda store: prune_to_limit(store, 200), {LINKED, DIGESTS[4], DAMAGED}),
    "clean": (clean, set()),
    "repair": (repair, set(DIGESTS) - {DAMAGED}),
}
"""What is interrupted, and the blobs that are left when it comes to its end."""


def check(store: Store, here: Path, least: set[str]) -> set[str]:
    """Fail unless the environment is whole and the store holds what it must; returns what it holds."""
    assert (here / "env" / "linked").read_bytes() == CONTENTS[0]
    assert (here / "env" / "copied").read_bytes() == CONTENTS[1]
    left = {blob.digest for blob in read_blobs(store)}
    assert least <= left <= set(DIGESTS)
    for digest in left - {DAMAGED}:
        assert sha256_of_file(store.path_of(digest)) == digest
    return left


def main() -> None:
    """Kill one action before its first step, its second, … until it comes to its end."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    action, expected = ACTIONS[name]
    for number in range(1000):
        here = folder / str(number)
        store = prepare(here)
        status, _ = run_until(lambda store=store: action(store), number)  # type: ignore[misc]
        assert status in (0, KILLED), f"step {number} ended with {status}"
        check(store, here, expected)
        action(store)
        assert check(store, here, expected) == expected
        clean(store)
        assert check(store, here, set()) == set()
        assert [path.name for path in store.folder.rglob("*") if path.is_file()] == ["lock"]
        if status == 0:
            print(number)
            return
    raise AssertionError("the action never ends")


if __name__ == "__main__":
    main()
