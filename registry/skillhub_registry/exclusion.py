"""Letting a user in no more: what somebody who leaves a team is left with, which is nothing."""

from __future__ import annotations

from skillhub_registry.accounts import Account
from skillhub_registry.database import Connection
from skillhub_registry.observation import describe_change
from skillhub_registry.sessions import end_sessions
from skillhub_registry.tokens import revoke_tokens


def shut_out(connection: Connection, user: Account) -> int:
    """Make a user's tokens worthless, end its sessions, and take its password and memberships; return how many tokens there were.

    What it made stays, under its name. Another token or password lets it in again; who made it a member has to do so again, too.
    """
    tokens = revoke_tokens(connection, user)
    end_sessions(connection, user)
    for table in ("passwords", "memberships"):
        connection.execute(f"DELETE FROM {table} WHERE account_id = ?", (user.id,))
    describe_change(tokens=tokens)
    return tokens
