"""Calls: a request that has been let in, and the one function that decides who is let in.

Every route declares its :class:`Permission` in ``routes/table.py``; :func:`admit` is the only place that grants it.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any
from urllib.parse import unquote

from starlette.requests import Request
from starlette.responses import Response

from skillhub_registry import limits
from skillhub_registry.accounts import Caller, find_caller
from skillhub_registry.contracts import Contract
from skillhub_registry.database import Connection
from skillhub_registry.errors import (
    INVALID_CREDENTIALS,
    HubError,
    bad_request,
    forbidden,
    repository_not_found,
    too_large,
    unauthorized,
)
from skillhub_registry.rates import is_local, read_address
from skillhub_registry.registry import Registry
from skillhub_registry.repositories import MEMBERS, Repository, find_repository
from skillhub_registry.rights import (
    gated,
    may_download,
    may_read,
    may_write,
    require_administration,
    require_local,
    require_proposal,
    require_reach,
    require_write,
)
from skillhub_registry.sessions import COOKIE, find_session


class Permission(Enum):
    """What a route asks of its caller."""

    ANYONE = "anyone; a token, if sent, must be valid"
    GRANT = "a link or access token that this registry signed; the handler checks it"
    ACCOUNT = "a valid token"
    OPERATE = "a valid token, or a caller on the machine that serves; what tells of the registry's operation"
    SESSION = "a browser's session, in which somebody has signed in"
    READ = "may read the repository in the path: public, or a member's of its namespace"
    ASK = "may read the repository in the path, and has a valid token: enough to ask for access to a gated one"
    DOWNLOAD = "may read the repository in the path and, where it is gated, was given access"
    PROPOSE = "may read the repository in the path, and has a write token: enough for pull requests of one's own"
    WRITE = "may write to the repository in the path: a write token, and a role in its namespace that includes it"
    ADMINISTER = "may administer the repository in the path: a write token, as an admin of its namespace or its maker"


@dataclass(frozen=True)
class Call:
    """A request that was let in.

    ``parameters`` are the decoded parts of the path. ``repository`` is there under READ and all that ask for more; use
    :attr:`target`.
    ``body`` is there for handlers that are plain functions; coroutines read ``request`` themselves.
    """

    registry: Registry
    request: Request
    parameters: dict[str, str]
    caller: Caller | None = None
    repository: Repository | None = None
    body: bytes = b""

    @property
    def target(self) -> Repository:
        """The repository in the path, which READ or a permission that asks for more has found."""
        assert self.repository is not None
        return self.repository

    @property
    def account(self) -> Caller:
        """The caller, whom ACCOUNT, ASK, PROPOSE, WRITE or ADMINISTER has required."""
        assert self.caller is not None
        return self.caller

    @property
    def sender(self) -> int:
        """Whose the caller's uploads to the repository are, as ``repositories.MEMBERS`` explains."""
        return MEMBERS if may_write(self.account, self.target) else self.account.account.id

    @property
    def address(self) -> str:
        """The address of the client, or of a proxy that does not tell it."""
        return read_address(self.request.client.host) if self.request.client else ""

    @property
    def endpoint(self) -> str:
        """This registry's address as the client sees it."""
        host = self.request.headers.get("host", "127.0.0.1")
        return f"{self.request.url.scheme}://{host}"

    def json(self) -> dict[str, Any]:
        """Return the body, which must be a JSON object.

        Raises:
            HubError: 400.
        """
        return parse_json(self.body)

    def flag(self, name: str) -> bool:
        """Return a yes-or-no query parameter, as the client spells it."""
        return is_true(self.request.query_params.get(name))


Handler = Callable[[Call], Response] | Callable[[Call], Awaitable[Response]]


@dataclass(frozen=True)
class Endpoint:
    """A route: what it answers to, what it asks of the caller, what it takes and answers with, and its body's limit in bytes.

    With ``sessions`` a browser's session identifies its caller as a token does; what is posted must then be a form of
    ours. The routes of the Hub's protocol have no part in that: no page of somebody else's can use them.
    """

    method: str
    path: str
    permission: Permission
    handler: Handler
    contract: Contract
    body_limit: int = limits.JSON_BODY
    sessions: bool = False


def is_true(value: str | None) -> bool:
    """Read a yes-or-no parameter."""
    return value is not None and value.lower() in ("1", "true", "yes", "on")


def parse_json(body: bytes) -> dict[str, Any]:
    """Return a body as a JSON object.

    Raises:
        HubError: 400.
    """
    try:
        value = json.loads(body)
        json.dumps(value, ensure_ascii=False).encode()  # halves of surrogate pairs fit into no name or path
    except (ValueError, RecursionError) as error:
        raise bad_request("The body is not valid JSON") from error
    if not isinstance(value, dict):
        raise bad_request("The body must be a JSON object")
    return value


def decode_parameters(raw: dict[str, str]) -> dict[str, str]:
    """Decode the percent-encoded parts of a path.

    Raises:
        HubError: 400, not UTF-8.
    """
    try:
        return {name: unquote(value, errors="strict") for name, value in raw.items()}
    except UnicodeDecodeError as error:
        raise bad_request("The path is not valid UTF-8") from error


def admit(call: Call, permission: Permission, *, sessions: bool = False) -> Call:
    """Return the call with its caller and repository found, if the caller may do this.

    ``sessions``: a browser's session tells who is calling, where there is no token.

    Raises:
        HubError: 401 without a needed token or with an unknown or expired one; 404 for a repository that is missing or that the
            caller may not see; 403 for one that the caller sees but may not change, or not download from.
    """
    if permission is Permission.GRANT:
        return call
    local = call.registry.public_metrics or is_local(call.address)
    with call.registry.database.read() as connection:
        secret = _bearer(call.request)
        caller = find_caller(connection, secret) if secret else None
        if secret and caller is None:
            raise unauthorized(INVALID_CREDENTIALS)
        if caller is None and sessions and COOKIE in call.request.cookies:
            caller = find_session(connection, call.request.cookies[COOKIE])
        if permission in _WITHOUT_REPOSITORY:
            needed = permission is not Permission.ANYONE and not (permission is Permission.OPERATE and local)
            _require_account(caller, permission, needed=needed, with_token=secret is not None)
            return _with(call, caller, None)
        repository = find_repository(connection, call.parameters["namespace"], call.parameters["name"])
        if repository is None or not may_read(caller, repository):
            raise repository_not_found()
        if permission is Permission.DOWNLOAD and not may_download(connection, caller, repository):
            raise gated(caller, repository, call.endpoint)
    if permission is Permission.ASK:
        if caller is None:
            raise unauthorized("This needs a token: set HF_TOKEN")
        require_local(require_reach(caller, repository), repository)
    if permission in _REQUIREMENTS:
        _REQUIREMENTS[permission](caller, repository)
    return _with(call, caller, repository)


def find_again(connection: Connection, call: Call) -> Caller:
    """Return a call's caller as it is now, in the transaction that does what it asked for: rights may have ended while a body came.

    Raises:
        HubError: 401, its token or session has ended; 404, it may not see the repository any more.
    """
    secret = _bearer(call.request)
    caller = (
        find_caller(connection, secret) if secret else find_session(connection, call.request.cookies.get(COOKIE, ""))
    )
    if caller is None or caller.account.id != call.account.account.id:
        raise unauthorized(INVALID_CREDENTIALS)
    if call.repository is not None and not may_read(caller, call.repository):
        raise repository_not_found()
    return caller


def recognise(call: Call) -> Call:
    """Return the call with whoever has signed in as its caller, for a page that tells of an error and nothing else."""
    secret = call.request.cookies.get(COOKIE)
    if not secret or "authorization" in call.request.headers:
        return call
    try:
        with call.registry.database.read() as connection:
            return _with(call, find_session(connection, secret), None)
    except HubError:
        return call  # the page tells of the first error


_WITHOUT_REPOSITORY = (Permission.ANYONE, Permission.ACCOUNT, Permission.OPERATE, Permission.SESSION)


def _require_account(caller: Caller | None, permission: Permission, *, needed: bool, with_token: bool) -> None:
    if needed and caller is None:
        raise unauthorized("This needs a token: set HF_TOKEN")
    if permission is Permission.SESSION and with_token:
        raise forbidden("This is done in a browser, after signing in; a token is not enough")


_REQUIREMENTS: dict[Permission, Callable[[Caller | None, Repository], Caller]] = {
    Permission.PROPOSE: require_proposal,
    Permission.WRITE: require_write,
    Permission.ADMINISTER: require_administration,
}


async def read_body(request: Request, limit: int) -> bytes:
    """Return a request's body.

    Raises:
        HubError: 413, over the limit.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise too_large(f"The body is larger than the {limit} bytes allowed here")
    return bytes(body)


def _bearer(request: Request) -> str | None:
    header = request.headers.get("authorization")
    if header is None:
        return None
    scheme, _, secret = header.partition(" ")
    if scheme.lower() != "bearer" or not secret.strip():
        raise unauthorized(INVALID_CREDENTIALS)
    return secret.strip()


def _with(call: Call, caller: Caller | None, repository: Repository | None) -> Call:
    return Call(call.registry, call.request, call.parameters, caller, repository, call.body)
