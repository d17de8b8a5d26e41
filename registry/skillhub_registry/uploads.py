"""Receiving large files: streaming bodies into the store, and noting who sent them to which repository."""

from __future__ import annotations

import time
from collections.abc import Iterable

from starlette.requests import Request

from skillhub_registry import limits
from skillhub_registry.blobs import BlobWriter
from skillhub_registry.database import Connection
from skillhub_registry.errors import repository_not_found
from skillhub_registry.repositories import get_repository
from skillhub_registry.threads import run_changing

_NOTE_SECONDS = 3600
"""How exactly the last use of a xorb is noted: oftener would be a write for nothing."""


async def receive_body(request: Request, writer: BlobWriter) -> None:
    """Write a request's body, in pieces large enough to be worth a thread's while.

    Raises:
        HubError: 413, over the writer's limit.
    """
    pending = bytearray()
    async for chunk in request.stream():
        pending += chunk
        if len(pending) >= limits.MIB:
            await run_changing(writer.write, bytes(pending))
            pending.clear()
    await run_changing(writer.write, bytes(pending))


def record_uploads(connection: Connection, repository_id: int, sender: int, files: Iterable[tuple[str, int]]) -> None:
    """Note that files, given as sha256 and size, were sent to a repository, so that its sender's commits may refer to them.

    Raises:
        HubError: 404, the repository was deleted meanwhile.
    """
    if get_repository(connection, repository_id) is None:
        raise repository_not_found()
    connection.executemany(
        "INSERT INTO uploads VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
        [(repository_id, sender, sha256, size) for sha256, size in files],
    )


def find_upload(connection: Connection, repository_id: int, sender: int, sha256: str) -> int | None:
    """Return the size of a file that the sender sent to a repository, or None."""
    row = connection.execute(
        "SELECT size FROM uploads WHERE repository_id = ? AND sender = ? AND sha256 = ?",
        (repository_id, sender, sha256),
    ).fetchone()
    return int(row["size"]) if row else None


def record_xorb(connection: Connection, account_id: int, xorb_hash: str, sha256: str) -> None:
    """Note which blob holds a xorb that an account sent."""
    connection.execute(
        "INSERT INTO xorbs (hash, account_id, sha256, used_at) VALUES (?, ?, ?, ?) ON CONFLICT (hash, account_id) "
        "DO UPDATE SET sha256 = excluded.sha256, used_at = excluded.used_at",
        (xorb_hash, account_id, sha256, int(time.time())),
    )


def note_use(connection: Connection, xorb_hashes: Iterable[str]) -> None:
    """Note that files were put together from xorbs, which keeps them from the garbage collection for a month."""
    now = int(time.time())
    connection.executemany(
        "UPDATE xorbs SET used_at = ? WHERE hash = ? AND used_at < ?",
        [(now, xorb_hash, now - _NOTE_SECONDS) for xorb_hash in sorted(set(xorb_hashes))],
    )


def find_xorb(connection: Connection, account_id: int, xorb_hash: str) -> str | None:
    """Return the sha256 of the blob that holds a xorb: the account's own, else somebody's.

    Somebody's, because users who share a machine share the client's list of what was sent. Whoever knows a xorb's hash
    knows its content, and what is rebuilt from it must still have the sha256 that the sender announces.
    """
    row = connection.execute(
        "SELECT sha256 FROM xorbs WHERE hash = ? ORDER BY account_id <> ?, account_id LIMIT 1", (xorb_hash, account_id)
    ).fetchone()
    return str(row["sha256"]) if row else None
