"""Sessions: browsers in which somebody has signed in, by a cookie of which only a digest is stored."""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from typing import Final

from skillhub_registry.accounts import Account, Caller, Token, list_memberships
from skillhub_registry.database import Connection

COOKIE: Final = "skillhub_session"
SECONDS: Final = 14 * 24 * 3600
"""How long a session lasts, whether it is used or not."""

SCOPE: Final = "write"
"""What a session may do: as much as its user's token for writing."""

_SECRET: Final = re.compile(r"[A-Za-z0-9_-]{43}")


def make_secret() -> str:
    """Return what a cookie holds: 256 random bits."""
    return secrets.token_urlsafe(32)


def is_secret(text: str) -> bool:
    """Say whether a cookie holds what :func:`make_secret` could have made."""
    return _SECRET.fullmatch(text) is not None


def start_session(connection: Connection, account: Account) -> str:
    """Begin a session and return the secret that the browser's cookie is to hold; those that have expired are forgotten."""
    now = int(time.time())
    secret = make_secret()
    connection.execute("DELETE FROM sessions WHERE expires_at <= ?", (now,))
    connection.execute(
        "INSERT INTO sessions (digest, account_id, created_at, expires_at) VALUES (?, ?, ?, ?)",
        (_digest(secret), account.id, now, now + SECONDS),
    )
    return secret


def find_session(connection: Connection, secret: str) -> Caller | None:
    """Return who has signed in where the cookie has this secret; None for nobody, and after the session's end."""
    row = connection.execute(
        "SELECT s.created_at, a.id, a.name, a.kind, a.created_at FROM sessions s JOIN accounts a ON a.id = s.account_id "
        "WHERE s.digest = ? AND s.expires_at > ?",
        (_digest(secret), int(time.time())),
    ).fetchone()
    if row is None:
        return None
    account = Account(*tuple(row)[1:])
    token = Token(id=0, account=account.name, name="a browser's session", scope=SCOPE, created_at=row[0])
    return Caller(account, token, list_memberships(connection, account))


def end_session(connection: Connection, secret: str) -> None:
    """End the session whose cookie has this secret."""
    connection.execute("DELETE FROM sessions WHERE digest = ?", (_digest(secret),))


def end_sessions(connection: Connection, account: Account) -> None:
    """End all sessions of a user."""
    connection.execute("DELETE FROM sessions WHERE account_id = ?", (account.id,))


def _digest(secret: str) -> str:
    # The secret is random and long enough: a plain digest is enough to store and to look it up.
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()
