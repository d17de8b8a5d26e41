"""The audit log: who changed what, when and from where. A row is written by the transaction that makes the change."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from skillhub_registry.database import Connection
from skillhub_registry.names import fold_name

_TOLD: Final = (
    *("name", "organization", "type", "private", "visibility", "gated", "fromRepo", "toRepo", "repository", "tag"),
    *("startingPoint", "status", "user", "title", "deletions"),
)
"""The members of a request's body that say what is changed; the others may be anything, secrets too."""

_DETAIL: Final = 500
"""Characters of the details of one change."""


@dataclass
class Change:
    """A change that is being made.

    Attributes:
        account: who makes it; on the command line, ``(command line)``.
        address: from where.
        action: the method and route, or the command.
        target: the full name of the repository, or what else it is about.
        detail: what more there is to say.
        recorded: whether it is in the log.
    """

    account: str
    address: str
    action: str
    target: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)
    recorded: bool = False


@dataclass(frozen=True)
class Entry:
    """A row of the log; ``made_at`` is in seconds since 1970, UTC, ``detail`` JSON."""

    id: int
    made_at: int
    account: str
    address: str
    action: str
    target: str
    detail: str


def choose_details(parameters: Mapping[str, str], body: bytes) -> dict[str, Any]:
    """Return what a request says of a change: parts of its path, and of a JSON body those that are no secrets."""
    told: dict[str, Any] = {
        name: value for name, value in parameters.items() if name not in ("namespace", "name", "grant")
    }
    try:
        document = json.loads(body) if body else {}
    except (ValueError, RecursionError):
        document = {}
    if isinstance(document, dict):
        told.update((name, document[name]) for name in _TOLD if name in document)
    return told


def record_change(connection: Connection, change: Change) -> None:
    """Write a change into the log."""
    detail = json.dumps(change.detail, sort_keys=True)[:_DETAIL] if change.detail else ""
    connection.execute(
        "INSERT INTO audit (made_at, account, address, action, target, detail) VALUES (?, ?, ?, ?, ?, ?)",
        (int(time.time()), change.account, change.address, change.action, change.target, detail),
    )


def list_changes(connection: Connection, *, target: str | None = None, limit: int = 100) -> list[Entry]:
    """Return the latest changes, the last one first; ``target``: of one repository, under that name."""
    condition, values = ("WHERE lower(target) = ?", [fold_name(target)]) if target is not None else ("", [])
    rows = connection.execute(
        f"SELECT id, made_at, account, address, action, target, detail FROM audit {condition} ORDER BY id DESC LIMIT ?",
        [*values, limit],
    )
    return [Entry(*row) for row in rows]
