"""What limited tokens are for, as people write it: ``acme/pack`` for a repository, ``acme`` for a namespace."""

from __future__ import annotations

from collections.abc import Iterable

from skillhub.errors import NotFoundError
from skillhub_registry.accounts import Reach, find_account
from skillhub_registry.database import Connection
from skillhub_registry.repositories import find_repository


def find_reach(connection: Connection, names: Iterable[str]) -> Reach:
    """Return what names stand for now: a repository that moves later takes its tokens along.

    Raises:
        NotFoundError: there is no such repository or namespace.
    """
    namespaces: set[int] = set()
    repositories: set[int] = set()
    for name in names:
        namespace, slash, rest = name.partition("/")
        found = find_repository(connection, namespace, rest) if slash else find_account(connection, name)
        if found is None:
            kind = "repository" if slash else "user or organisation"
            raise NotFoundError(f"There is no {kind} {name}.", hint="A token can be limited to what is there already.")
        (repositories if slash else namespaces).add(found.id)
    return Reach(frozenset(namespaces), frozenset(repositories))
