"""Gates: who asked for access to a gated repository, and who has it."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Final

from skillhub_registry.accounts import Account
from skillhub_registry.database import Connection
from skillhub_registry.errors import HubError, bad_request
from skillhub_registry.names import fold_name
from skillhub_registry.repositories import Repository, now_milliseconds

STATUSES: Final = ("pending", "accepted", "rejected")
AUTOMATIC: Final = "auto"
MANUAL: Final = "manual"

_COLUMNS = "q.public_id, a.name AS user_name, q.status, q.created_at"


@dataclass(frozen=True)
class AccessRequest:
    """Somebody's request. ``created_at`` is in milliseconds since 1970, UTC."""

    public_id: str
    user: str
    status: str
    created_at: int


def ask_access(connection: Connection, repository: Repository, account: Account) -> str:
    """Note that somebody asks for access, and return the request's status; asking again changes nothing.

    Where the gate is automatic, asking is enough.

    Raises:
        HubError: 400, the repository is not gated.
    """
    _require_gate(repository)
    status = "accepted" if repository.gated == AUTOMATIC else "pending"
    connection.execute(
        "INSERT INTO access_requests (public_id, repository_id, account_id, status, created_at) VALUES (?, ?, ?, ?, ?) "
        "ON CONFLICT (repository_id, account_id) DO NOTHING",
        (secrets.token_hex(12), repository.id, account.id, status, now_milliseconds()),
    )
    found = find_request(connection, repository, account)
    assert found is not None
    return found


def find_request(connection: Connection, repository: Repository, account: Account) -> str | None:
    """Return the status of somebody's request, or None for whoever has not asked."""
    row = connection.execute(
        "SELECT status FROM access_requests WHERE repository_id = ? AND account_id = ?", (repository.id, account.id)
    ).fetchone()
    return str(row["status"]) if row else None


def grant_access(connection: Connection, repository: Repository, account: Account) -> None:
    """Give somebody access, whether it was asked for or not.

    Raises:
        HubError: 400, the repository is not gated, or the user has access.
    """
    _require_gate(repository)
    changed = connection.execute(
        "INSERT INTO access_requests (public_id, repository_id, account_id, status, created_at) "
        "VALUES (?, ?, ?, 'accepted', ?) ON CONFLICT (repository_id, account_id) DO UPDATE SET status = 'accepted' "
        "WHERE access_requests.status <> 'accepted'",
        (secrets.token_hex(12), repository.id, account.id, now_milliseconds()),
    )
    if changed.rowcount == 0:
        raise bad_request(f"{account.name} has access to {repository.full_name} already")


def handle_request(
    connection: Connection, repository: Repository, status: str, *, user: str | None, public_id: str | None
) -> None:
    """Accept, reject or reopen a request, named by its user or its id.

    Raises:
        HubError: 400, the repository is not gated; 404, there is no such request, or it has that status already.
    """
    _require_gate(repository)
    column, value = ("lower(a.name)", fold_name(user or "")) if user is not None else ("q.public_id", public_id or "")
    row = connection.execute(
        f"SELECT q.public_id, q.status FROM access_requests q JOIN accounts a ON a.id = q.account_id "
        f"WHERE q.repository_id = ? AND {column} = ?",
        (repository.id, value),
    ).fetchone()
    if row is None:
        raise HubError(404, "NotFound", f"{user or public_id} has not asked for access to {repository.full_name}")
    if row["status"] == status:
        raise HubError(404, "NotFound", f"The request of {user or public_id} is {status} already")
    connection.execute("UPDATE access_requests SET status = ? WHERE public_id = ?", (status, row["public_id"]))


def list_requests(
    connection: Connection, repository: Repository, status: str, *, start: int, limit: int
) -> list[AccessRequest]:
    """Return the requests with a status, oldest first, from ``start`` on.

    Raises:
        HubError: 400, the repository is not gated.
    """
    _require_gate(repository)
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM access_requests q JOIN accounts a ON a.id = q.account_id "
        "WHERE q.repository_id = ? AND q.status = ? ORDER BY q.created_at, q.public_id LIMIT ? OFFSET ?",
        (repository.id, status, limit, start),
    )
    return [AccessRequest(row["public_id"], row["user_name"], row["status"], row["created_at"]) for row in rows]


def _require_gate(repository: Repository) -> None:
    if not repository.gated:
        raise bad_request(f"{repository.full_name} is not gated")
