"""Repositories: making, finding, moving, deleting and searching them."""

from __future__ import annotations

import base64
import binascii
import json
import re
import secrets
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from skillhub_registry.accounts import Account
from skillhub_registry.cards import Card
from skillhub_registry.database import Connection, Database, Row
from skillhub_registry.errors import bad_request, conflict
from skillhub_registry.names import check_repository_name, fold_name

_COLUMNS = (
    "r.id, r.public_id, r.namespace_id, a.name AS namespace, r.name, r.private, r.created_at, r.last_modified, "
    "r.downloads, r.card, r.library_name, r.pipeline_tag, r.gated, r.creator_id, r.upstream"
)
_FROM = "FROM repositories r JOIN accounts a ON a.id = r.namespace_id"
_BY_NAME = "lower(a.name) = ? AND lower(r.name) = ?"


PACK_TAG: Final = "skillpack"
"""The tag of repositories that hold packs."""

MEMBERS: Final = 0
"""The sender of what a repository's members send: their commits may refer to each other's uploads.

Everybody else's uploads are kept apart by account, so that knowing the digest of a file that was sent and not committed
gives nobody access to it.
"""


@dataclass(frozen=True)
class Repository:
    """A model repository. Times are milliseconds since 1970, UTC; ``public_id`` survives a move.

    Attributes:
        gated: ``auto`` or ``manual`` where access to its files has to be asked for, else empty.
        creator_id: the account that made it, where that is known.
        upstream: the address of the Hub that it is a mirror of, else empty.
    """

    id: int
    public_id: str
    namespace_id: int
    namespace: str
    name: str
    private: bool
    created_at: int
    last_modified: int
    downloads: int
    card: dict[str, Any]
    library_name: str | None
    pipeline_tag: str | None
    gated: str
    creator_id: int | None
    upstream: str = ""

    @property
    def full_name(self) -> str:
        """``namespace/name``."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True)
class Search:
    """What :func:`search_repositories` looks for; the defaults find everything.

    ``tags`` must all be there; every word of ``words`` must occur in the full name; ``readable`` are the accounts whose
    private repositories may be shown.
    """

    author: str | None = None
    words: str = ""
    tags: tuple[str, ...] = ()
    pipeline_tag: str | None = None
    gated: bool | None = None
    sort: str = "lastModified"
    ascending: bool = False
    limit: int = 100
    cursor: str | None = None
    readable: Collection[int] = field(default_factory=frozenset)


def now_milliseconds() -> int:
    """Return the time as repositories record it."""
    return time.time_ns() // 1_000_000


def create_repository(
    connection: Connection, namespace: Account, name: str, private: bool, creator: Account
) -> Repository:
    """Make a repository without commits.

    Raises:
        HubError: 400 for an invalid name, 409 for one that is taken.
    """
    return insert_repository(connection, namespace, name, private, creator.id)


def insert_repository(
    connection: Connection,
    namespace: Account,
    name: str,
    private: bool,
    creator_id: int | None,
    upstream: str = "",
    public_id: str | None = None,
) -> Repository:
    """Make a repository, a mirror where ``upstream`` says of which Hub; for the functions that know what it is to be.

    Raises:
        HubError: 400 for an invalid name, 409 for a name or ``public_id`` that is taken.
    """
    checked = check_repository_name(name)
    now = now_milliseconds()
    public_id = public_id or secrets.token_hex(12)
    inserted = connection.execute(
        "INSERT INTO repositories "
        "(public_id, namespace_id, name, private, created_at, last_modified, creator_id, upstream) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (public_id, namespace.id, checked, int(private), now, now, creator_id, upstream),
    )
    if inserted.rowcount == 0:
        raise conflict(f"You already created this model repo: {namespace.name}/{checked}")
    _forget_former_name(connection, f"{namespace.name}/{checked}")
    repository = _select_repository(connection, "r.public_id = ?", public_id)
    assert repository is not None
    return repository


def find_repository(connection: Connection, namespace: str, name: str) -> Repository | None:
    """Return the repository of that name, or the one that once had it."""
    found = _select_repository(connection, _BY_NAME, fold_name(namespace), fold_name(name))
    if found is None:
        former = "r.id = (SELECT repository_id FROM former_names WHERE full_name = ?)"
        found = _select_repository(connection, former, fold_name(f"{namespace}/{name}"))
    return found


def get_repository(connection: Connection, repository_id: int) -> Repository | None:
    """Return the repository of that number, unless it was deleted."""
    return _select_repository(connection, "r.id = ?", repository_id)


def delete_repository(connection: Connection, repository: Repository) -> None:
    """Remove a repository with its commits and refs. Blobs stay until they are collected."""
    connection.execute("DELETE FROM repositories WHERE id = ?", (repository.id,))


def move_repository(connection: Connection, repository: Repository, namespace: Account, name: str) -> None:
    """Give a repository another name; the old one keeps leading to it until somebody takes it.

    Raises:
        HubError: 400 for an invalid name, 409 for one that is taken.
    """
    checked = check_repository_name(name)
    taken = _select_repository(connection, _BY_NAME, fold_name(namespace.name), fold_name(checked))
    if taken is not None and taken.id != repository.id:
        raise conflict(f"The repository {namespace.name}/{checked} exists already")
    connection.execute(
        "UPDATE repositories SET namespace_id = ?, name = ? WHERE id = ?", (namespace.id, checked, repository.id)
    )
    new_name = f"{namespace.name}/{checked}"
    _forget_former_name(connection, new_name)
    if fold_name(new_name) != fold_name(repository.full_name):
        keep_former_name(connection, repository, repository.full_name)


def keep_former_name(connection: Connection, repository: Repository, full_name: str) -> None:
    """Let a name that a repository had lead to it, until somebody takes it."""
    connection.execute(
        "INSERT INTO former_names VALUES (?, ?) "
        "ON CONFLICT (full_name) DO UPDATE SET repository_id = excluded.repository_id",
        (fold_name(full_name), repository.id),
    )


def _forget_former_name(connection: Connection, full_name: str) -> None:
    connection.execute("DELETE FROM former_names WHERE full_name = ?", (fold_name(full_name),))


def set_private(connection: Connection, repository: Repository, private: bool) -> None:
    """Hide a repository from others, or show it to everybody."""
    connection.execute("UPDATE repositories SET private = ? WHERE id = ?", (int(private), repository.id))


def set_gated(connection: Connection, repository: Repository, gated: str) -> None:
    """Put a gate before a repository's files (``auto`` or ``manual``), or take it away (empty)."""
    connection.execute("UPDATE repositories SET gated = ? WHERE id = ?", (gated, repository.id))


def set_card(connection: Connection, repository_id: int, card: Card) -> None:
    """Record what the main branch says of itself, for searching, and that it changed now."""
    connection.execute(
        "UPDATE repositories SET card = ?, library_name = ?, pipeline_tag = ?, last_modified = ? WHERE id = ?",
        (json.dumps(card.data), card.library_name, card.pipeline_tag, now_milliseconds(), repository_id),
    )
    connection.execute("DELETE FROM repository_tags WHERE repository_id = ?", (repository_id,))
    connection.executemany(
        "INSERT INTO repository_tags VALUES (?, ?) ON CONFLICT DO NOTHING", [(repository_id, tag) for tag in card.tags]
    )


def read_tags(connection: Connection, repository_id: int) -> list[str]:
    """Return the tags by which a repository is found."""
    rows = connection.execute("SELECT tag FROM repository_tags WHERE repository_id = ? ORDER BY tag", (repository_id,))
    return [row["tag"] for row in rows]


def add_downloads(database: Database, counts: Mapping[int, int]) -> Iterator[int]:
    """Add to the download counts, given by repository number; yield the numbers of those that were added."""
    statement = "UPDATE repositories SET downloads = downloads + ? WHERE id = ?"
    for _, repository_id in database.add_up(statement, [(count, number) for number, count in counts.items()]):
        yield repository_id


def readable_condition(readable: Collection[int]) -> tuple[str, list[Any]]:
    """Return the SQL condition, with its values, for a repository ``r`` that may be shown to whoever may read these accounts'."""
    values = sorted(readable)
    private = f" OR r.namespace_id IN ({', '.join('?' * len(values))})" if values else ""
    return f"(r.private = 0{private})", list(values)


def count_repositories(connection: Connection, namespace_id: int, readable: Collection[int]) -> int:
    """Return how many repositories of a namespace may be shown to whoever may read those of ``readable`` accounts."""
    shown = "" if namespace_id in readable else " AND private = 0"
    (count,) = connection.execute(
        f"SELECT count(*) FROM repositories WHERE namespace_id = ?{shown}", (namespace_id,)
    ).fetchone()
    return int(count)


def count_tagged(connection: Connection, tag: str, readable: Collection[int]) -> int:
    """Return how many repositories with a tag may be shown to whoever may read those of ``readable`` accounts."""
    condition, values = readable_condition(readable)
    (count,) = connection.execute(
        "SELECT count(*) FROM repository_tags t JOIN repositories r ON r.id = t.repository_id "
        f"WHERE t.tag = ? AND {condition}",
        (tag, *values),
    ).fetchone()
    return int(count)


_LIKE_SIGNS = re.compile("[!%_]")

SORTS = {
    "lastModified": "r.last_modified",
    "createdAt": "r.created_at",
    "downloads": "r.downloads",
    "trendingScore": "r.downloads",
    "likes": "r.last_modified",
}
"""What models may be sorted by, and the columns."""


def search_repositories(connection: Connection, search: Search) -> tuple[list[Repository], str | None]:
    """Return a page of repositories by ``sort``, greatest first unless ``ascending``, and the cursor of the next page if there is one.

    Raises:
        HubError: 400, an unknown order or a malformed cursor.
    """
    order = SORTS.get(search.sort)
    if order is None:
        raise bad_request(f"Cannot sort by {search.sort!r}; choose one of {', '.join(SORTS)}")
    readable, values = readable_condition(search.readable)
    conditions = [readable]
    if search.author is not None:
        conditions.append("lower(a.name) = ?")
        values.append(fold_name(search.author))
    for word in search.words.split():
        conditions.append("lower(a.name || '/' || r.name) LIKE ? ESCAPE '!'")
        values.append("%" + _LIKE_SIGNS.sub(r"!\g<0>", fold_name(word)) + "%")
    for tag in search.tags:
        conditions.append("EXISTS (SELECT 1 FROM repository_tags t WHERE t.repository_id = r.id AND t.tag = ?)")
        values.append(tag)
    if search.pipeline_tag is not None:
        conditions.append("r.pipeline_tag = ?")
        values.append(search.pipeline_tag)
    if search.gated is not None:
        conditions.append("r.gated <> ''" if search.gated else "r.gated = ''")
    if search.cursor is not None:
        conditions.append(f"({order}, r.id) {'>' if search.ascending else '<'} (?, ?)")
        values.extend(_decode_cursor(search.cursor))
    direction = "ASC" if search.ascending else "DESC"
    rows = connection.execute(
        f"SELECT {_COLUMNS}, {order} AS position {_FROM} WHERE {' AND '.join(conditions)} "
        f"ORDER BY {order} {direction}, r.id {direction} LIMIT ?",
        [*values, search.limit + 1],
    ).fetchall()
    page = rows[: search.limit]
    cursor = _encode_cursor(page[-1]["position"], page[-1]["id"]) if len(rows) > len(page) else None
    return [_to_repository(row) for row in page], cursor


def _encode_cursor(position: int, repository_id: int) -> str:
    return base64.urlsafe_b64encode(f"{position}:{repository_id}".encode()).decode()


def _decode_cursor(cursor: str) -> tuple[int, int]:
    try:
        position, _, repository_id = base64.urlsafe_b64decode(cursor).decode().partition(":")
        decoded = int(position), int(repository_id)
    except (binascii.Error, UnicodeDecodeError, ValueError) as error:
        raise bad_request("The cursor is malformed") from error
    if max(map(abs, decoded)) >= 2**63:
        raise bad_request("The cursor is malformed")
    return decoded


def _select_repository(connection: Connection, condition: str, *values: object) -> Repository | None:
    row = connection.execute(f"SELECT {_COLUMNS} {_FROM} WHERE {condition}", values).fetchone()
    return _to_repository(row) if row else None


def _to_repository(row: Row) -> Repository:
    return Repository(
        id=row["id"],
        public_id=row["public_id"],
        namespace_id=row["namespace_id"],
        namespace=row["namespace"],
        name=row["name"],
        private=bool(row["private"]),
        created_at=row["created_at"],
        last_modified=row["last_modified"],
        downloads=row["downloads"],
        card=json.loads(row["card"]),
        library_name=row["library_name"],
        pipeline_tag=row["pipeline_tag"],
        gated=row["gated"],
        creator_id=row["creator_id"],
        upstream=row["upstream"],
    )
