"""Collecting garbage: blobs, xorbs, commits and trees that nothing refers to.

Nothing goes at first sight. A blob or commit that nothing refers to is marked, with the time; a later run removes what
has been marked for as long as the grace period and is still not referred to. So an upload has that long to be committed, and a
download of a commit that was squashed away as long to end.

A blob may have a new reference without anything being written: whoever sends a file that is there already relies on it. So
senders take the mark away first (``blobs.is_kept``), and only then look whether the blob is there: either they find it
unmarked, and it stays for another grace period, or they find it gone, and keep what they were sent. Blobs are removed while
the whole database is locked, marks and all, so there is no moment in between, whichever replica does it.

Xorbs are kept for a month after their last use. Clients remember for three weeks which chunks they have sent (the shards in
hf_xet's cache bear the time of their end), and do not send them again when the shard that refers to them is refused, however
often they are started (seen with hf_xet 1.8). After that nobody asks for them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from skillhub_registry.blobs import PARTS_SECONDS, BlobStore
from skillhub_registry.database import Connection, Database
from skillhub_registry.references import CommitKey, Reachable, find_blobs, find_unreferenced_commits, follow_commits

GRACE_SECONDS: Final = 24 * 3600
XORB_SECONDS: Final = 30 * 24 * 3600
_BATCH: Final = 2000
"""How many rows are removed while others wait."""

_BLOB_BATCH: Final = 100
"""How many blobs: each is a request where they are in a bucket."""


@dataclass(frozen=True)
class Collected:
    """What a run did, or would do.

    Attributes:
        commits: how many were removed, as ``trees``, ``files`` (records of what stands behind ids) and ``blobs``.
        bytes: of the blobs.
        marked: how many blobs nothing refers to that are kept for now.
        marked_bytes: of those.
    """

    commits: int
    trees: int
    files: int
    blobs: int
    bytes: int
    marked: int
    marked_bytes: int


def spare_blob(database: Database, sha256: str) -> None:
    """Take a blob's mark away."""
    with database.read() as connection:
        row = connection.execute("SELECT 1 FROM garbage WHERE kind = 'blob' AND key = ?", (sha256,)).fetchone()
    if row is not None:  # without one it is not removed before a whole grace period has passed
        with database.write() as connection:
            connection.execute("DELETE FROM garbage WHERE kind = 'blob' AND key = ?", (sha256,))


def collect_garbage(
    database: Database,
    store: BlobStore,
    *,
    grace: int = GRACE_SECONDS,
    dry_run: bool = False,
    now: int | None = None,
) -> Collected:
    """Remove what has been garbage for ``grace`` seconds, and mark what is garbage now, while others serve and commit.

    ``now`` is in seconds since 1970, UTC.
    """
    now = int(time.time()) if now is None else now
    cutoff = now - grace
    sizes = dict(store.list_blobs())  # before looking for references: what comes later is not judged
    if not dry_run:
        store.sweep_parts(PARTS_SECONDS)
        _forget_xorbs(database, now)
    found = _remove_commits(database, cutoff, now, dry_run=dry_run)
    with database.read() as connection:
        found.follow(connection)
    trees = _remove_rows(database, "trees", found, dry_run=dry_run)
    files = _remove_rows(database, "files", found, dry_run=dry_run)
    condemned, waiting = _judge_blobs(database, sizes, found, cutoff, now, dry_run=dry_run)
    removed = condemned if dry_run else _remove_blobs(database, store, condemned)
    return Collected(
        len(found.doomed),
        trees,
        files,
        len(removed),
        sum(sizes[sha256] for sha256 in removed),
        len(waiting),
        sum(sizes[sha256] for sha256 in waiting),
    )


@dataclass(frozen=True)
class _Found:
    """What a run found out.

    Attributes:
        doomed: the commits that are removed.
        waiting: those that nothing leads to either, but not for long enough.
        kept: what all commits but the doomed ones lead to.
        lasting: what is left of that without the waiting ones. What is not in it is marked, so that it goes with them.
    """

    doomed: set[CommitKey]
    waiting: set[CommitKey]
    kept: Reachable = field(default_factory=Reachable)
    lasting: Reachable = field(default_factory=Reachable)

    def follow(self, connection: Connection) -> None:
        """Find what has come since the last time."""
        follow_commits(connection, self.kept, self.doomed)
        follow_commits(connection, self.lasting, self.doomed | self.waiting)


def _forget_xorbs(database: Database, now: int) -> None:
    with database.write() as connection:
        connection.execute("UPDATE xorbs SET used_at = ? WHERE used_at = 0", (now,))
        connection.execute("DELETE FROM xorbs WHERE used_at < ?", (now - XORB_SECONDS,))


def _remove_commits(database: Database, cutoff: int, now: int, *, dry_run: bool) -> _Found:
    with database.read() if dry_run else database.write() as connection:
        found = {f"{key[0]}:{key[1]}": key for key in find_unreferenced_commits(connection)}
        doomed = {found[key] for key in _expired(connection, "commit", cutoff) if key in found}
        if not dry_run:
            _set_marks(connection, "commit", set(found), now)
            keys = sorted(doomed)
            connection.executemany("DELETE FROM commits WHERE repository_id = ? AND id = ?", keys)
            _drop_marks(connection, "commit", [f"{one}:{commit}" for one, commit in keys])
    return _Found(doomed, set(found.values()) - doomed)


def _remove_rows(database: Database, table: str, found: _Found, *, dry_run: bool) -> int:
    """Remove trees or files that no commit leads to. The transaction that stores one has a commit that leads there."""
    kept = found.kept.trees if table == "trees" else found.kept.files
    with database.read() as connection:
        candidates = [row[0] for row in connection.execute(f"SELECT id FROM {table}") if row[0] not in kept]
    if dry_run:
        return len(candidates)
    removed = 0
    for start in range(0, len(candidates), _BATCH):
        with database.write() as connection:
            found.follow(connection)
            unused = [key for key in candidates[start : start + _BATCH] if key not in kept]
            connection.executemany(f"DELETE FROM {table} WHERE id = ?", [(key,) for key in unused])
            removed += len(unused)
    return removed


def _judge_blobs(
    database: Database, sizes: dict[str, int], found: _Found, cutoff: int, now: int, *, dry_run: bool
) -> tuple[list[str], set[str]]:
    """Return which blobs are to be removed and which are garbage not yet for long enough, and set the marks.

    Nobody can refer any more to what is to be removed unless it is sent again, which takes its mark away.
    """
    with database.read() if dry_run else database.write() as connection:
        found.follow(connection)
        marked = sizes.keys() - find_blobs(connection, found.lasting)
        unneeded = sizes.keys() - find_blobs(connection, found.kept)
        condemned = sorted(unneeded & _expired(connection, "blob", cutoff))
        if not dry_run:
            _set_marks(connection, "blob", marked, now)
            for table, condition in (("uploads", ""), ("large_files", " AND deleted = 0")):
                statement = f"DELETE FROM {table} WHERE sha256 = ?{condition}"
                connection.executemany(statement, [(sha256,) for sha256 in condemned])
    return condemned, marked - set(condemned)


def _remove_blobs(database: Database, store: BlobStore, condemned: Sequence[str]) -> list[str]:
    """Remove blobs that are still marked, and return which."""
    removed = []
    for start in range(0, len(condemned), _BLOB_BATCH):
        with database.write() as connection:
            marked = _marks(connection, "blob")
            batch = [sha256 for sha256 in condemned[start : start + _BLOB_BATCH] if sha256 in marked]
            for sha256 in batch:
                store.remove(sha256)
            _drop_marks(connection, "blob", batch)
        removed += batch
    return removed


def _marks(connection: Connection, kind: str) -> dict[str, int]:
    return {row[0]: row[1] for row in connection.execute("SELECT key, marked_at FROM garbage WHERE kind = ?", (kind,))}


def _expired(connection: Connection, kind: str, cutoff: int) -> set[str]:
    """Return what was marked long enough ago."""
    return {key for key, marked_at in _marks(connection, kind).items() if marked_at <= cutoff}


def _set_marks(connection: Connection, kind: str, keys: set[str], now: int) -> None:
    """Mark what is not marked yet, and take the marks of everything else away."""
    before = _marks(connection, kind).keys()
    _drop_marks(connection, kind, sorted(before - keys))
    connection.executemany("INSERT INTO garbage VALUES (?, ?, ?)", [(kind, key, now) for key in sorted(keys - before)])


def _drop_marks(connection: Connection, kind: str, keys: Sequence[str]) -> None:
    connection.executemany("DELETE FROM garbage WHERE kind = ? AND key = ?", [(kind, key) for key in keys])
