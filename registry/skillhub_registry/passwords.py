"""Passwords: with which users sign in to the pages, hashed with Argon2id (RFC 9106).

Trying is limited, and counted in the database, so that all replicas count together. What comes of it is in the audit
log, with the name as it was typed and never the password. Whoever does not exist or has no
password is told the same, after the same work, as whoever mistyped it.
"""

from __future__ import annotations

import ipaddress
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerifyMismatchError

from skillhub_registry.accounts import Account, find_account
from skillhub_registry.audit import Change, clean_given, record_change, record_failure
from skillhub_registry.database import Connection, Database
from skillhub_registry.errors import HubError, bad_request
from skillhub_registry.names import fold_name
from skillhub_registry.sessions import end_sessions, start_session
from skillhub_registry.tokens import revoke_tokens

SHORTEST: Final = 10
LONGEST: Final = 1000
"""Characters of a password."""

WINDOW_SECONDS: Final = 900
TRIES_HERE: Final = 10
TRIES_OF_ADDRESS: Final = 50
TRIES_OF_ACCOUNT: Final = 100
"""Failures in a window after which nobody is let in: of an account from one address, from one address, of an account.

The last is the loosest, as it lets strangers keep somebody out for a while.
"""

_WRONG: Final = "There is no user of that name with that password"

_HASHER: Final = PasswordHasher()
_HASHING: Final = threading.BoundedSemaphore(2)
"""Each takes 64 MiB and a while of processor time: more at once would let strangers exhaust both."""


def check_password(password: str) -> str:
    """Return a password that may be set.

    Raises:
        HubError: 400, it is too short or too long.
    """
    if not SHORTEST <= len(password) <= LONGEST:
        raise bad_request(f"A password has {SHORTEST} to {LONGEST} characters")
    return password


def set_password(connection: Connection, account: Account, password: str) -> None:
    """Give a user a password, or another one. Sessions that began with the one before end.

    Raises:
        HubError: 400, it is too short or too long.
    """
    _store(connection, account, _hash(check_password(password)))
    end_sessions(connection, account)


@dataclass(frozen=True)
class Attempt:
    """Somebody who types a password.

    Attributes:
        name: the user's, as it was typed.
        address: IP address that it was typed at.
        action: what is to happen, as the audit log calls it.
        account: whose session it is, where there is one.
    """

    name: str
    address: str
    action: str
    account: str = "(nobody)"

    def fail(self, outcome: str) -> Change:
        """Return what the audit log tells where nothing came of it."""
        detail = {"name": clean_given(self.name), "outcome": outcome}
        return Change(self.account, self.address, self.action, detail=detail)


def sign_in(database: Database, attempt: Attempt, password: str) -> str:
    """Begin a session for whoever knows a user's password, and return the secret of its cookie.

    Raises:
        HubError: 401, there is no such user, or the password is another one; 429, too many have failed.
    """
    subjects = _begin(database, attempt)
    with database.read() as connection:
        account = find_account(connection, attempt.name[:LONGEST])
        stored = _find_hash(connection, account) if account is not None else None
    matches = _verify(stored or _nobodys_hash(), password)
    if account is None or stored is None or not matches:
        raise _fail(database, attempt, HubError(401, "WrongPassword", _WRONG))
    renewed = _hash(password) if _HASHER.check_needs_rehash(stored) else None
    with database.write() as connection:
        if _find_hash(connection, account) == stored:
            if renewed is not None:
                _store(connection, account, renewed)
            _forget_try(connection, subjects)
            told = {"outcome": "signed in"}
            record_change(connection, Change(account.name, attempt.address, attempt.action, detail=told))
            return start_session(connection, account)
    raise _fail(database, attempt, HubError(401, "WrongPassword", "The password has just changed"))


def change_password(
    database: Database, account: Account, attempt: Attempt, current: str, password: str, *, with_tokens: bool
) -> str:
    """Give whoever knows a user's password another one; return the secret of the one session that goes on.

    Args:
        database: an open one.
        account: the user.
        attempt: who types it.
        current: the password as it is.
        password: what it is to be.
        with_tokens: whether the user's tokens become worthless, too.

    Raises:
        HubError: 400, the new one is too short or too long; 403, the current one is another; 429, too many have failed.
    """
    check_password(password)
    subjects = _begin(database, attempt)
    with database.read() as connection:
        stored = _find_hash(connection, account)
    if not _verify(stored or _nobodys_hash(), current) or stored is None:
        raise _fail(database, attempt, HubError(403, "WrongPassword", "That is not your current password"))
    hashed = _hash(password)
    with database.write() as connection:
        if _find_hash(connection, account) == stored:
            _store(connection, account, hashed)
            end_sessions(connection, account)
            _forget_try(connection, subjects)
            told = {"outcome": "changed", "tokens_revoked": revoke_tokens(connection, account) if with_tokens else 0}
            record_change(connection, Change(account.name, attempt.address, attempt.action, detail=told))
            return start_session(connection, account)
    raise _fail(database, attempt, HubError(403, "WrongPassword", "The password has just changed"))


def _begin(database: Database, attempt: Attempt) -> list[tuple[str, int]]:
    """Count a try and return what it is counted by; the first that is refused is in the audit log, and no other.

    Raises:
        HubError: 429, too many have failed.
    """
    subjects = _subjects(attempt.name, attempt.address)
    with database.write() as connection:
        refusal = _count_try(connection, subjects)
        if refusal is not None and refusal.is_first:
            record_failure(connection, attempt.fail("too many tries"))
    if refusal is not None:
        message = f"Too many tries: wait {-(-refusal.wait // 60)} minutes"
        raise HubError(429, "TooManyTries", message, headers={"Retry-After": str(refusal.wait)})
    return subjects


def _fail(database: Database, attempt: Attempt, error: HubError) -> HubError:
    """Return the error that ends a try, which is in the audit log."""
    with database.write() as connection:
        record_failure(connection, attempt.fail("wrong name or password"))
    return error


def _store(connection: Connection, account: Account, hashed: str) -> None:
    connection.execute(
        "INSERT INTO passwords (account_id, hash, changed_at) VALUES (?, ?, ?) "
        "ON CONFLICT (account_id) DO UPDATE SET hash = excluded.hash, changed_at = excluded.changed_at",
        (account.id, hashed, int(time.time())),
    )


def _find_hash(connection: Connection, account: Account) -> str | None:
    row = connection.execute("SELECT hash FROM passwords WHERE account_id = ?", (account.id,)).fetchone()
    return str(row["hash"]) if row else None


def _hash(password: str) -> str:
    with _HASHING:
        return _HASHER.hash(password.encode())


def _verify(hashed: str, password: str) -> bool:
    if len(password) > LONGEST:
        password = ""  # it is nobody's, and must not take longer for being long
    try:
        with _HASHING:
            return _HASHER.verify(hashed, password.encode())
    except (VerifyMismatchError, InvalidHashError):
        return False


@cache
def _nobodys_hash() -> str:
    return _hash("the password of nobody")


def _subjects(name: str, address: str) -> list[tuple[str, int]]:
    """Return what tries are counted by, with the number of failures that each may have."""
    account, place = fold_name(name[:100]), _network(address)
    return [
        (f"account {account} from {place}", TRIES_HERE),
        (f"from {place}", TRIES_OF_ADDRESS),
        (f"account {account}", TRIES_OF_ACCOUNT),
    ]


def _network(address: str) -> str:
    """Return what one person has of addresses: one of IPv4, and of IPv6 a network of 64 bits."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address[:100]
    return str(ipaddress.ip_network((parsed, 64), strict=False)) if parsed.version == 6 else address


@dataclass(frozen=True)
class _Refusal:
    """A try that does not take place: for how many seconds, and whether it is the first since the limit was reached."""

    wait: int
    is_first: bool


def _count_try(connection: Connection, subjects: Sequence[tuple[str, int]]) -> _Refusal | None:
    """Count a try before its outcome is known: many at once are no way around the limit."""
    now = int(time.time())
    connection.execute("DELETE FROM sign_in_tries WHERE since <= ?", (now - WINDOW_SECONDS,))
    for subject, limit in subjects:
        row = connection.execute("SELECT tries, since FROM sign_in_tries WHERE subject = ?", (subject,)).fetchone()
        if row is not None and row["tries"] >= limit:
            if row["tries"] == limit:
                connection.execute("UPDATE sign_in_tries SET tries = tries + 1 WHERE subject = ?", (subject,))
            return _Refusal(max(row["since"] + WINDOW_SECONDS - now, 1), row["tries"] == limit)
    connection.executemany(
        "INSERT INTO sign_in_tries (subject, tries, since) VALUES (?, 1, ?) "
        "ON CONFLICT (subject) DO UPDATE SET tries = sign_in_tries.tries + 1",
        [(subject, now) for subject, _ in subjects],
    )
    return None


def _forget_try(connection: Connection, subjects: Sequence[tuple[str, int]]) -> None:
    """Take back a try that was none, and all that failed of this account from this address."""
    connection.execute("DELETE FROM sign_in_tries WHERE subject = ?", (subjects[0][0],))
    connection.executemany(
        "UPDATE sign_in_tries SET tries = tries - 1 WHERE subject = ?", [(subject,) for subject, _ in subjects[1:]]
    )
