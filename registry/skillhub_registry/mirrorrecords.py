"""What the database says of mirrors: which repositories they are, and of which Hub."""

from __future__ import annotations

from skillhub_registry.accounts import Account, forget_mirrored_names
from skillhub_registry.database import Connection
from skillhub_registry.names import fold_name
from skillhub_registry.repositories import Repository, delete_repository, get_repository, insert_repository


def create_mirror(
    connection: Connection, namespace: Account, name: str, upstream: str, public_id: str | None
) -> Repository:
    """Make a mirror, without commits, of a repository of the Hub at an address, with the id that it has there.

    Raises:
        HubError: 400 for an invalid name, 409 for a name or an id that is taken.
    """
    return insert_repository(connection, namespace, name, False, None, upstream, public_id)


def find_mirror(connection: Connection, upstream: str, public_id: str | None) -> Repository | None:
    """Return the mirror of the repository that has an id on the Hub at an address, whatever its name."""
    row = connection.execute(
        "SELECT id FROM repositories WHERE upstream = ? AND public_id = ?", (upstream, public_id)
    ).fetchone()
    return get_repository(connection, row["id"]) if row else None


def list_mirrors(connection: Connection) -> list[Repository]:
    """Return all mirrors, by name."""
    rows = connection.execute("SELECT id FROM repositories WHERE upstream <> ''").fetchall()
    found = (get_repository(connection, row["id"]) for row in rows)
    return sorted((one for one in found if one is not None), key=lambda one: fold_name(one.full_name))


def drop_mirrors(connection: Connection, name: str) -> list[str]:
    """Forget a mirror (``acme/pack``), or all of a namespace, which is free then; return the names that went.

    A namespace goes with its last mirror, and with it the names that mirrors elsewhere once had there.
    """
    wanted = fold_name(name)
    namespace = wanted.partition("/")[0]
    found = [one for one in list_mirrors(connection) if wanted in map(fold_name, (one.full_name, one.namespace))]
    for repository in found:
        delete_repository(connection, repository)
    former = forget_mirrored_names(connection, namespace) if wanted == namespace else []
    freed = connection.execute(
        "DELETE FROM accounts WHERE mirrored = 1 AND lower(name) = ? "
        "AND NOT EXISTS (SELECT 1 FROM repositories r WHERE r.namespace_id = accounts.id) RETURNING name",
        (namespace,),
    ).fetchall()
    return [*(repository.full_name for repository in found), *former, *(row["name"] for row in freed)]
