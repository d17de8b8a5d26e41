"""Accounts: users, organisations and their members, and who a token stands for."""

from __future__ import annotations

import hashlib
import re
import time
from dataclasses import dataclass
from typing import Final

from skillhub.errors import NotFoundError, UsageError
from skillhub_registry.database import Connection
from skillhub_registry.errors import ExpiredTokenError
from skillhub_registry.names import check_account_name, fold_name

ROLES: Final = ("read", "contributor", "write", "admin")
"""Of an organisation's members, from the least to the most; ``rights.py`` says what each may do."""


@dataclass(frozen=True)
class Account:
    """A user or an organisation; ``kind`` is ``user`` or ``organization``."""

    id: int
    name: str
    kind: str
    created_at: int


@dataclass(frozen=True)
class Reach:
    """What a limited token is for, all else being as if it were not there: namespaces and repositories, by their numbers."""

    namespaces: frozenset[int]
    repositories: frozenset[int]


@dataclass(frozen=True)
class Token:
    """A token, without its secret.

    Attributes:
        id: its number.
        account: the name of its user.
        name: what it is for, in its user's words.
        scope: ``read`` or ``write``.
        created_at: in seconds since 1970, UTC, as ``expires_at`` is.
        expires_at: from when on it is worthless; None for never.
        limits: the names of the namespaces and repositories that it is limited to; None for one without limits.
    """

    id: int
    account: str
    name: str
    scope: str
    created_at: int
    expires_at: int | None = None
    limits: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Membership:
    """A user's place in an organisation; ``role`` is one of ``ROLES``."""

    organization: Account
    role: str


@dataclass(frozen=True)
class Caller:
    """Who is calling: the account behind a valid token, and the organisations that it is a member of.

    ``reach`` is there for a limited token: to whatever is outside of it, the caller is a stranger.
    """

    account: Account
    token: Token
    memberships: tuple[Membership, ...]
    reach: Reach | None = None

    @property
    def may_write(self) -> bool:
        """Whether the token is for writing as well."""
        return self.token.scope == "write"

    @property
    def namespace_ids(self) -> frozenset[int]:
        """The accounts all of whose private repositories the caller sees."""
        namespaces = frozenset([self.account.id, *(one.organization.id for one in self.memberships)])
        return namespaces & self.reach.namespaces if self.reach else namespaces

    def role_in(self, namespace_id: int) -> str | None:
        """Return the caller's role in a namespace, or None for a stranger. A user is ``admin`` in its own."""
        return self._role_in(namespace_id) if namespace_id in self.namespace_ids else None

    def role_for(self, namespace_id: int, repository_id: int) -> str | None:
        """Return the caller's role in a repository of a namespace, or None for a stranger."""
        return self._role_in(namespace_id) if self.reaches(namespace_id, repository_id) else None

    def reaches(self, namespace_id: int, repository_id: int) -> bool:
        """Say whether the token is for a repository of a namespace, among others."""
        reach = self.reach
        return reach is None or namespace_id in reach.namespaces or repository_id in reach.repositories

    def _role_in(self, namespace_id: int) -> str | None:
        if namespace_id == self.account.id:
            return "admin"
        return next((one.role for one in self.memberships if one.organization.id == namespace_id), None)


def add_account(connection: Connection, name: str, kind: str = "user") -> Account:
    """Make a user or organisation. Names below it that mirrored repositories had lead to them no more.

    Raises:
        HubError: 400, an invalid name.
        UsageError: the name is taken.
    """
    account = _insert_account(connection, name, kind)
    forget_mirrored_names(connection, account.name)
    return account


def forget_mirrored_names(connection: Connection, namespace: str) -> list[str]:
    """Let former names below a namespace lead to no mirrors any more; return these names."""
    rows = connection.execute(
        "DELETE FROM former_names WHERE full_name LIKE ? ESCAPE '!' "
        "AND repository_id IN (SELECT id FROM repositories WHERE upstream <> '') RETURNING full_name",
        (re.sub("[!%_]", r"!\g<0>", fold_name(namespace)) + "/%",),
    ).fetchall()
    return sorted(row[0] for row in rows)


def _insert_account(connection: Connection, name: str, kind: str) -> Account:
    checked = check_account_name(name)
    if find_account(connection, checked) is not None:
        hint = (
            "`skillhub-registry org join` adds members to an organisation that is there. Names are compared without "
            "regard to case; `skillhub-registry mirror list` names those of mirrors."
        )
        raise UsageError(f"The name {checked} is taken.", hint=hint)
    created_at = int(time.time())
    (number,) = connection.execute(
        "INSERT INTO accounts (name, kind, created_at) VALUES (?, ?, ?) RETURNING id", (checked, kind, created_at)
    ).fetchone()
    return Account(number, checked, kind, created_at)


def add_mirrored_namespace(connection: Connection, name: str) -> Account:
    """Make the namespace that a mirrored repository has on the other Hub: an organisation without members.

    Raises:
        HubError: 400, an invalid name.
        UsageError: the name is taken.
    """
    account = _insert_account(connection, name, "organization")
    connection.execute("UPDATE accounts SET mirrored = 1 WHERE id = ?", (account.id,))
    return account


def is_mirrored(connection: Connection, account: Account) -> bool:
    """Say whether a namespace came with a mirrored repository, and is nobody's here."""
    row = connection.execute("SELECT mirrored FROM accounts WHERE id = ?", (account.id,)).fetchone()
    return row is not None and bool(row["mirrored"])


def find_account(connection: Connection, name: str) -> Account | None:
    """Return the account of that name, regardless of case."""
    row = connection.execute(
        "SELECT id, name, kind, created_at FROM accounts WHERE lower(name) = ?", (fold_name(name),)
    ).fetchone()
    return Account(*row) if row else None


def get_account(connection: Connection, name: str, kind: str) -> Account:
    """Return the user or organisation of that name.

    Raises:
        NotFoundError: there is none.
    """
    account = find_account(connection, name)
    if account is None or account.kind != kind:
        verb = "user" if kind == "user" else "org"
        raise NotFoundError(f"There is no {kind} {name}.", hint=f"`skillhub-registry {verb} list` names them all.")
    return account


def list_accounts(connection: Connection, kind: str) -> list[Account]:
    """Return all users or all organisations, by name; mirrored namespaces are neither."""
    rows = connection.execute(
        "SELECT id, name, kind, created_at FROM accounts WHERE kind = ? AND mirrored = 0 ORDER BY lower(name)", (kind,)
    )
    return [Account(*row) for row in rows]


def add_member(connection: Connection, organization: Account, user: Account, role: str) -> None:
    """Make a user a member of an organisation, or give a member another role: one of ``ROLES``.

    Raises:
        UsageError: it is a mirrored namespace.
    """
    if is_mirrored(connection, organization):
        raise UsageError(
            f"{organization.name} came with a mirrored repository and has no members.",
            hint=f"`skillhub-registry mirror drop {organization.name}` makes the name free for one of your own.",
        )
    connection.execute(
        "INSERT INTO memberships (organization_id, account_id, role) VALUES (?, ?, ?) "
        "ON CONFLICT (organization_id, account_id) DO UPDATE SET role = excluded.role",
        (organization.id, user.id, role),
    )


def remove_member(connection: Connection, organization: Account, user: Account) -> None:
    """Take a user out of an organisation."""
    connection.execute(
        "DELETE FROM memberships WHERE organization_id = ? AND account_id = ?", (organization.id, user.id)
    )


def list_members(connection: Connection, organization: Account) -> dict[str, str]:
    """Return an organisation's members: name → role, by name."""
    rows = connection.execute(
        "SELECT a.name, m.role FROM memberships m JOIN accounts a ON a.id = m.account_id WHERE m.organization_id = ? "
        "ORDER BY lower(a.name)",
        (organization.id,),
    )
    return {row["name"]: row["role"] for row in rows}


def list_memberships(connection: Connection, user: Account) -> tuple[Membership, ...]:
    """Return the organisations that a user is a member of, by name."""
    rows = connection.execute(
        "SELECT o.id, o.name, o.kind, o.created_at, m.role FROM memberships m "
        "JOIN accounts o ON o.id = m.organization_id WHERE m.account_id = ? ORDER BY lower(o.name)",
        (user.id,),
    )
    return tuple(Membership(Account(*tuple(row)[:4]), row["role"]) for row in rows)


def find_caller(connection: Connection, secret: str) -> Caller | None:
    """Return who a token's secret stands for, or None for an unknown one.

    The secret has about 200 random bits, so a plain digest is enough to store and to look it up.

    Raises:
        ExpiredTokenError: 401, the token has expired.
    """
    row = connection.execute(
        "SELECT t.id, t.name, t.scope, t.created_at, t.expires_at, t.limited, t.refused_at, "
        "a.id, a.name, a.kind, a.created_at FROM tokens t JOIN accounts a ON a.id = t.account_id WHERE t.digest = ?",
        (digest_token(secret),),
    ).fetchone()
    if row is None:
        return None
    account = Account(*tuple(row)[7:])
    token = Token(row[0], account.name, *tuple(row)[1:5])
    if token.expires_at is not None and token.expires_at <= time.time():
        raise ExpiredTokenError(token.id, token.name, account.name, row["refused_at"])
    reach = _read_reach(connection, token.id) if row["limited"] else None
    return Caller(account, token, list_memberships(connection, account), reach)


def _read_reach(connection: Connection, token_id: int) -> Reach:
    rows = connection.execute(
        "SELECT namespace_id, repository_id FROM token_limits WHERE token_id = ?", (token_id,)
    ).fetchall()
    namespaces, repositories = (frozenset(row[place] for row in rows if row[place] is not None) for place in (0, 1))
    return Reach(namespaces, repositories)


def digest_token(secret: str) -> str:
    """Return what is stored of a token's secret."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()
