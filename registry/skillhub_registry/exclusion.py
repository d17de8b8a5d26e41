"""Letting a user in no more: whatever others gave to somebody who leaves a team ends at once."""

from __future__ import annotations

from skillhub_registry.accounts import Account, list_memberships
from skillhub_registry.database import Connection
from skillhub_registry.observation import describe_change
from skillhub_registry.sessions import end_sessions
from skillhub_registry.tokens import revoke_tokens


def shut_out(connection: Connection, user: Account) -> tuple[int, dict[str, str]]:
    """Make a user's tokens worthless, end its sessions, and take its password, memberships and access to gated repositories.

    What it made stays, under its name. Another token or password lets it in again, to what is its own or everybody's.

    Returns:
        How many tokens there were, and the role that it had in each organisation: the audit log has both.
    """
    roles = {one.organization.name: one.role for one in list_memberships(connection, user)}
    revoked = revoke_tokens(connection, user)
    end_sessions(connection, user)
    for table in ("passwords", "memberships", "access_requests"):
        connection.execute(f"DELETE FROM {table} WHERE account_id = ?", (user.id,))
    describe_change(tokens=revoked, memberships=roles)
    return revoked, roles
