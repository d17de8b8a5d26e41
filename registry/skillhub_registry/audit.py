"""The audit log: who changed what, when and from where. A row is written by the transaction that makes the change.

Who signed in is there too, and what was tried in vain to get in. Strangers cause such failures, as many as they like: of
those only so many are told in a while, and only so many are kept.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from skillhub import redaction
from skillhub_registry.database import Connection
from skillhub_registry.names import fold_name

_TOLD: Final = (
    *("name", "organization", "type", "private", "visibility", "gated", "fromRepo", "toRepo", "repository", "tag"),
    *("startingPoint", "status", "user", "title", "deletions"),
)
"""The members of a request's body that say what is changed; the others may be anything, secrets too."""

_DETAIL: Final = 500
"""Characters of the details of one change."""

_GIVEN: Final = 96
"""Characters that are told of what a stranger typed: as many as a name has at most."""

FAILURE_SECONDS: Final = 900
FAILURES_TOLD: Final = 200
"""Failures in so many seconds that get a row each; the others are counted in one row."""

FAILURES_KEPT: Final = 100_000
"""Failures of which there is a row; of more, the oldest go. Changes stay for ever."""

_UNTOLD: Final = "(failures)"
"""The action of the row that counts the failures which have none."""


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
    """A row of the log; ``made_at`` is in seconds since 1970, UTC, ``detail`` JSON; ``failed`` if nothing came of it."""

    id: int
    made_at: int
    account: str
    address: str
    action: str
    target: str
    detail: str
    failed: bool


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
    _insert(connection, change, int(time.time()), failed=False)


def record_failure(connection: Connection, change: Change) -> None:
    """Write into the log what somebody tried in vain, or count it where there were too many of late."""
    now = int(time.time())
    recent = connection.execute(
        "SELECT id, made_at, action, detail FROM audit WHERE failed = 1 ORDER BY id DESC LIMIT ?", (FAILURES_TOLD + 1,)
    ).fetchall()
    recent = [row for row in recent if row["made_at"] > now - FAILURE_SECONDS]
    if len(recent) < FAILURES_TOLD:
        _insert(connection, change, now, failed=True)
        _forget_failures(connection)
        return
    untold = next((row for row in recent if row["action"] == _UNTOLD), None)
    if untold is None:
        _insert(connection, Change("(nobody)", "", _UNTOLD, detail={"untold": 1}), now, failed=True)
        return
    count = json.loads(untold["detail"])["untold"] + 1
    connection.execute("UPDATE audit SET detail = ? WHERE id = ?", (json.dumps({"untold": count}), untold["id"]))


def _insert(connection: Connection, change: Change, now: int, *, failed: bool) -> None:
    detail = json.dumps(change.detail, sort_keys=True)[:_DETAIL] if change.detail else ""
    connection.execute(
        "INSERT INTO audit (made_at, account, address, action, target, detail, failed) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (now, change.account, change.address, change.action, change.target, detail, int(failed)),
    )


def _forget_failures(connection: Connection) -> None:
    """Remove the oldest failures where there are too many; changes stay."""
    connection.execute(
        "DELETE FROM audit WHERE failed = 1 AND id <= "
        "(SELECT id FROM audit WHERE failed = 1 ORDER BY id DESC LIMIT 1 OFFSET ?)",
        (FAILURES_KEPT,),
    )


def clean_given(text: str) -> str:
    """Return what a stranger typed as the log may tell it: one short line of letters and signs, without tokens."""
    shown = "".join(c if " " <= c <= "~" else "?" for c in redaction.presentable(text[: 4 * _GIVEN]))
    return shown if len(shown) <= _GIVEN else shown[: _GIVEN - 3] + "..."


def list_changes(
    connection: Connection, *, target: str | None = None, failed: bool | None = None, limit: int = 100
) -> list[Entry]:
    """Return the latest changes and failures, the last one first.

    Args:
        connection: an open transaction.
        target: of one repository, under that name.
        failed: failures only, or none of them.
        limit: how many at most.
    """
    conditions, values = ["1 = 1"], list[Any]()
    if target is not None:
        conditions.append("lower(target) = ?")
        values.append(fold_name(target))
    if failed is not None:
        conditions.append(f"failed = {int(failed)}")
    rows = connection.execute(
        "SELECT id, made_at, account, address, action, target, detail, failed FROM audit "
        f"WHERE {' AND '.join(conditions)} ORDER BY id DESC LIMIT ?",
        [*values, limit],
    )
    return [Entry(*(*tuple(row)[:7], bool(row["failed"]))) for row in rows]
