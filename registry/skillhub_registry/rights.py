"""Rights: what a caller may do to a repository, by the scope of its token, its role in the namespace, and the gate.

The roles of an organisation's members are the Hub's, each with what the ones before it may do:

    read           see private repositories, and download from gated ones
    contributor    make repositories, and change and administer those that it made
    write          make repositories, change them all, and administer those that it made
    admin          administer all: delete and move them, change their settings and delete their large files for good

In its own namespace a user is ``admin``. A token that is limited to some namespaces and repositories makes a stranger of its
user everywhere else: it reads there what is public, and changes and proposes nothing.

A mirrored repository is changed by nobody. The files of one that is gated on the other Hub are for whoever has an account here:
the operator's token there got access for all of them.
"""

from __future__ import annotations

from skillhub_registry.accounts import Account, Caller
from skillhub_registry.database import Connection
from skillhub_registry.errors import HubError, forbidden, unauthorized
from skillhub_registry.repositories import Repository


def may_read(caller: Caller | None, repository: Repository) -> bool:
    """Say whether a caller may know of a repository."""
    return not repository.private or _role(caller, repository) is not None


def may_write(caller: Caller, repository: Repository) -> bool:
    """Say whether a caller may change a repository's files and refs."""
    role = _role(caller, repository)
    return caller.may_write and (role in ("write", "admin") or _is_creator(caller, repository))


def may_administer(caller: Caller, repository: Repository) -> bool:
    """Say whether a caller may delete and move a repository and change its settings."""
    role = _role(caller, repository)
    return caller.may_write and (role == "admin" or _is_creator(caller, repository))


def may_download(connection: Connection, caller: Caller | None, repository: Repository) -> bool:
    """Say whether a caller that may know of a repository may have its files.

    Those of a gated one are for the members of its namespace, and for whoever was given access.
    """
    if not repository.gated or _role(caller, repository) is not None:
        return True
    if repository.upstream:
        return caller is not None and caller.reach is None
    if caller is None or not caller.reaches(repository.namespace_id, repository.id):
        return False
    row = connection.execute(
        "SELECT 1 FROM access_requests WHERE repository_id = ? AND account_id = ? AND status = 'accepted'",
        (repository.id, caller.account.id),
    ).fetchone()
    return row is not None


def require_write_token(caller: Caller | None) -> Caller:
    """Return the caller, if it may write anywhere.

    Raises:
        HubError: 401 without a token, 403 with one for reading only.
    """
    if caller is None:
        raise unauthorized("This needs a token with write access: set HF_TOKEN")
    if not caller.may_write:
        raise forbidden(f"The token {caller.token.name!r} of {caller.account.name} is for reading only")
    return caller


def require_reach(caller: Caller, repository: Repository) -> Caller:
    """Return the caller, if its token is for the repository, among others.

    Raises:
        HubError: 403.
    """
    if not caller.reaches(repository.namespace_id, repository.id):
        raise forbidden(f"The token {caller.token.name!r} of {caller.account.name} is not for {repository.full_name}")
    return caller


def require_proposal(caller: Caller | None, repository: Repository) -> Caller:
    """Return the caller, if it may propose changes to a repository that it may read.

    Raises:
        HubError: 401 without a token, 403 with one for reading only or for something else, or where it is a mirror.
    """
    return require_local(require_reach(require_write_token(caller), repository), repository)


def require_local(caller: Caller, repository: Repository) -> Caller:
    """Return the caller, if the repository is no mirror, which nobody changes.

    Raises:
        HubError: 403.
    """
    if repository.upstream:
        what = f"{repository.full_name} is a mirror and changes with {repository.upstream} only"
        raise forbidden(f"{what}: change it there, or publish under a name of your own here")
    return caller


def require_write(caller: Caller | None, repository: Repository) -> Caller:
    """Return the caller, if it may change the repository's files and refs.

    Raises:
        HubError: 401 without a token, 403 otherwise.
    """
    writer = require_proposal(caller, repository)
    if not may_write(writer, repository):
        raise forbidden(f"{writer.account.name} has no write access to {repository.full_name}")
    return writer


def require_administration(caller: Caller | None, repository: Repository) -> Caller:
    """Return the caller, if it may administer the repository.

    Raises:
        HubError: 401 without a token, 403 otherwise.
    """
    writer = require_proposal(caller, repository)
    if not may_administer(writer, repository):
        needed = f"this takes an admin of {repository.namespace}, or whoever made it"
        raise forbidden(f"{writer.account.name} may not administer {repository.full_name}: {needed}")
    return writer


def require_creation(caller: Caller | None, namespace: Account) -> Caller:
    """Return the caller, if it may make repositories in the namespace.

    Raises:
        HubError: 401 without a token, 403 otherwise.
    """
    writer = require_write_token(caller)
    if writer.reach is not None and namespace.id not in writer.reach.namespaces:
        raise forbidden(f"The token {writer.token.name!r} of {writer.account.name} is not for all of {namespace.name}")
    if writer.role_in(namespace.id) not in ("contributor", "write", "admin"):
        raise forbidden(f"{writer.account.name} has no write access to the namespace {namespace.name}")
    return writer


def gated(caller: Caller | None, repository: Repository, endpoint: str) -> HubError:
    """Return the error for files of a gated repository that the caller has no access to."""
    ask = f"Ask for it: POST {endpoint}/{repository.full_name}/ask-access"
    if repository.upstream:
        ask = "It is a mirror: everybody with an account here has access, with a token without limits"
    if caller is None:
        message = f"Access to model {repository.full_name} is restricted. Set HF_TOKEN and ask for it"
        return HubError(401, "GatedRepo", message)
    return HubError(403, "GatedRepo", f"Access to model {repository.full_name} is restricted. {ask}")


def _role(caller: Caller | None, repository: Repository) -> str | None:
    return caller.role_for(repository.namespace_id, repository.id) if caller else None


def _is_creator(caller: Caller, repository: Repository) -> bool:
    role = _role(caller, repository)
    return repository.creator_id == caller.account.id and role in ("contributor", "write")
