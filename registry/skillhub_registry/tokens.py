"""Tokens: made for users, listed without their secrets, and made worthless."""

from __future__ import annotations

import logging
import secrets
import string
import time
from typing import Final

from skillhub.errors import NotFoundError
from skillhub_registry.accounts import Account, Reach, Token, digest_token
from skillhub_registry.audit import Change, record_failure
from skillhub_registry.database import Connection, Database
from skillhub_registry.errors import ExpiredTokenError, HubError, bad_request
from skillhub_registry.observation import describe_change

logger = logging.getLogger("skillhub_registry")

REFUSED_SECONDS: Final = 24 * 3600
"""How often the audit log tells that a token is used after its end."""

_LABEL: Final = 100
"""Characters of a token's name."""

_TOKEN_ALPHABET = string.ascii_letters + string.digits


def create_token(
    connection: Connection,
    user: Account,
    scope: str,
    name: str,
    *,
    expires_at: int | None = None,
    reach: Reach | None = None,
) -> str:
    """Make a token for a user and return its secret, which is stored nowhere: only its digest is, and in the audit log its number.

    ``scope`` is ``read`` or ``write``; ``expires_at`` is in seconds since 1970, UTC.

    Raises:
        HubError: 400, the name would not do in a list.
    """
    if not 0 < len(name) <= _LABEL or not name.isprintable():
        raise bad_request(f"A token's name is one line of 1 to {_LABEL} characters")
    secret = "hf_" + "".join(secrets.choice(_TOKEN_ALPHABET) for _ in range(34))
    (number,) = connection.execute(
        "INSERT INTO tokens (account_id, name, scope, digest, created_at, expires_at, limited) "
        "VALUES (?, ?, ?, ?, ?, ?, ?) RETURNING id",
        (user.id, name, scope, digest_token(secret), int(time.time()), expires_at, int(reach is not None)),
    ).fetchone()
    if reach is not None:
        for column, ids in (("namespace_id", reach.namespaces), ("repository_id", reach.repositories)):
            statement = f"INSERT INTO token_limits (token_id, {column}) VALUES (?, ?)"
            connection.executemany(statement, [(number, one) for one in sorted(ids)])
    describe_change(number=number)
    return secret


def list_tokens(connection: Connection, user: Account | None = None) -> list[Token]:
    """Return one user's tokens, or all; those that have expired, too."""
    condition, values = ("WHERE t.account_id = ?", (user.id,)) if user else ("", ())
    rows = connection.execute(
        "SELECT t.id, a.name, t.name, t.scope, t.created_at, t.expires_at, t.limited "
        f"FROM tokens t JOIN accounts a ON a.id = t.account_id {condition} ORDER BY t.id",
        values,
    ).fetchall()
    return [
        Token(
            id=row[0],
            account=row[1],
            name=row[2],
            scope=row[3],
            created_at=row[4],
            expires_at=row[5],
            limits=_name_limits(connection, row[0]) if row[6] else None,
        )
        for row in rows
    ]


def _name_limits(connection: Connection, token_id: int) -> tuple[str, ...]:
    namespaces = connection.execute(
        "SELECT a.name FROM token_limits l JOIN accounts a ON a.id = l.namespace_id WHERE l.token_id = ?", (token_id,)
    )
    repositories = connection.execute(
        "SELECT a.name || '/' || r.name FROM token_limits l JOIN repositories r ON r.id = l.repository_id "
        "JOIN accounts a ON a.id = r.namespace_id WHERE l.token_id = ?",
        (token_id,),
    )
    return (*sorted(row[0] for row in namespaces), *sorted(row[0] for row in repositories))


def revoke_token(connection: Connection, token_id: int) -> None:
    """Make a token worthless; the audit log tells whose it was.

    Raises:
        NotFoundError: there is no such token.
    """
    row = connection.execute(
        "SELECT a.name, t.name FROM tokens t JOIN accounts a ON a.id = t.account_id WHERE t.id = ?", (token_id,)
    ).fetchone()
    if row is None:
        raise NotFoundError(
            f"There is no token number {token_id}.", hint="`skillhub-registry token list` shows the numbers."
        )
    connection.execute("DELETE FROM tokens WHERE id = ?", (token_id,))
    describe_change(number=token_id, user=row[0], name=row[1])


def revoke_tokens(connection: Connection, user: Account) -> int:
    """Make all tokens of a user worthless, and return how many there were."""
    return connection.execute("DELETE FROM tokens WHERE account_id = ?", (user.id,)).rowcount


def note_expired_use(database: Database, error: ExpiredTokenError, address: str) -> None:
    """Have the audit log tell that a token was used after its end: once a day, whatever comes of the answer."""
    now = int(time.time())
    if error.refused_at > now - REFUSED_SECONDS:
        return
    told = Change(error.account, address, "(expired token)", detail={"number": error.number, "name": error.name})
    try:
        with database.write() as connection:
            mine = "UPDATE tokens SET refused_at = ? WHERE id = ? AND refused_at <= ?"
            if connection.execute(mine, (now, error.number, now - REFUSED_SECONDS)).rowcount:
                record_failure(connection, told)
    except HubError as failure:
        logger.warning("the audit log does not tell that an expired token was used: %s", failure)
