"""The large files of a repository: which its commits name, and which were deleted for good.

Whatever a commit on any ref has named is listed once, by its sha256. A deleted file is gone from the repository, not from the
store: another repository may have it. It is there again once a commit names it again.

Those of a mirrored repository are listed as deleted until they were fetched for it: that another repository has them gives
nobody access to them here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from skillhub_registry import git
from skillhub_registry.database import Connection
from skillhub_registry.repositories import now_milliseconds
from skillhub_registry.trees import File

_COLUMNS = "sha256, size, path, ref, pushed_at"


@dataclass(frozen=True)
class LargeFile:
    """A large file of a repository.

    Attributes:
        sha256: of the content.
        size: bytes.
        path: where the commit that first named it had it; empty where that was before such things were noted.
        ref: full name of the branch or pull request of that commit.
        pushed_at: when that was, in milliseconds since 1970, UTC.
    """

    sha256: str
    size: int
    path: str
    ref: str
    pushed_at: int

    @property
    def blob_id(self) -> str:
        """The git id of the pointer that stands for it in trees."""
        return git.object_id("blob", git.lfs_pointer(self.sha256, self.size))


def record_large_files(connection: Connection, repository_id: int, ref: str, files: Mapping[str, File]) -> None:
    """Note which large files a commit on a ref names, given as path → file; the first commit to name a file is kept."""
    now = now_milliseconds()
    connection.executemany(
        f"INSERT INTO large_files (repository_id, {_COLUMNS}, deleted) VALUES (?, ?, ?, ?, ?, ?, 0) "
        "ON CONFLICT (repository_id, sha256) DO UPDATE SET path = excluded.path, ref = excluded.ref, "
        "pushed_at = excluded.pushed_at, deleted = 0 WHERE large_files.deleted = 1",
        [(repository_id, file.sha256, file.size, path, ref, now) for path, file in files.items() if file.lfs],
    )


def expect_large_files(connection: Connection, repository_id: int, ref: str, files: Mapping[str, File]) -> None:
    """Note which large files a mirrored commit names, given as path → file: they are not here before they are fetched."""
    now = now_milliseconds()
    connection.executemany(
        f"INSERT INTO large_files (repository_id, {_COLUMNS}, deleted) VALUES (?, ?, ?, ?, ?, ?, 1) ON CONFLICT DO NOTHING",
        [(repository_id, file.sha256, file.size, path, ref, now) for path, file in files.items() if file.lfs],
    )


def list_large_files(connection: Connection, repository_id: int, *, after: str = "", limit: int) -> list[LargeFile]:
    """Return large files by sha256, those that come after one."""
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM large_files WHERE repository_id = ? AND deleted = 0 AND sha256 > ? "
        "ORDER BY sha256 LIMIT ?",
        (repository_id, after, limit),
    )
    return [LargeFile(*row) for row in rows]


def find_large_files(connection: Connection, repository_id: int, sha256s: Iterable[str]) -> dict[str, LargeFile]:
    """Return those of the files that the repository has, by sha256."""
    found = {}
    for sha256 in dict.fromkeys(sha256s):
        row = connection.execute(
            f"SELECT {_COLUMNS} FROM large_files WHERE repository_id = ? AND sha256 = ? AND deleted = 0",
            (repository_id, sha256),
        ).fetchone()
        if row is not None:
            found[sha256] = LargeFile(*row)
    return found


def sum_sizes(connection: Connection, repository_id: int) -> int:
    """Return the bytes of all large files that a repository has."""
    (total,) = connection.execute(
        "SELECT coalesce(sum(size), 0) FROM large_files WHERE repository_id = ? AND deleted = 0", (repository_id,)
    ).fetchone()
    return int(total)


def is_deleted(connection: Connection, repository_id: int, file: File) -> bool:
    """Say whether a file, which commits of the repository may still name, was deleted for good, or not mirrored so far."""
    if not file.lfs:
        return False
    row = connection.execute(
        "SELECT 1 FROM large_files WHERE repository_id = ? AND sha256 = ? AND deleted = 1", (repository_id, file.sha256)
    ).fetchone()
    return row is not None


def forget_large_files(connection: Connection, repository_id: int, sha256s: Iterable[str]) -> None:
    """Note that files are deleted for good, and that they have to be uploaded again before a commit can name them."""
    keys = [(repository_id, sha256) for sha256 in sha256s]
    connection.executemany("UPDATE large_files SET deleted = 1 WHERE repository_id = ? AND sha256 = ?", keys)
    connection.executemany("DELETE FROM uploads WHERE repository_id = ? AND sha256 = ?", keys)
