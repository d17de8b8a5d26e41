"""What is seen of each request, for logs, metrics and the audit log: an ASGI layer around the application, and one around the database."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from skillhub_registry.audit import Change, record_change
from skillhub_registry.database import Connection, Database
from skillhub_registry.rates import read_address

if TYPE_CHECKING:  # the command line comes here too, and runs without what serving needs
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

UNKNOWN_ROUTE = "(none)"
"""The route of requests that fit none."""


_METHODS = frozenset(["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
"""Clients may make up others, as many as they like."""


@dataclass
class Observation:
    """A request while it is answered, and afterwards.

    Attributes:
        request_id: chosen here, told to the client as ``X-Request-Id``.
        method: ``GET``, ….
        address: the client's.
        route: the path as the table of routes has it; never the path itself, which may hold a signed link.
        account: who called, where that is known.
        repository: the full name of the repository that it was about.
        status: of the answer; 499 for a client that was gone before there was one.
        seconds: from the first byte to the last.
        bytes_in: of the body that was read.
        bytes_out: of the body that was sent.
    """

    method: str
    address: str
    request_id: str = field(default_factory=lambda: secrets.token_hex(8))
    route: str = UNKNOWN_ROUTE
    account: str = ""
    repository: str = ""
    status: int = 499
    seconds: float = 0.0
    bytes_in: int = 0
    bytes_out: int = 0


class Observer:
    """Calls ``begin`` and ``end`` with the :class:`Observation` of every request.

    Routes find it as ``request.scope["observation"]`` and say there what they know.
    """

    def __init__(self, app: ASGIApp, begin: Callable[[Observation], None], end: Callable[[Observation], None]) -> None:
        self._app = app
        self._begin = begin
        self._end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, and see what it was."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method = scope["method"] if scope["method"] in _METHODS else "OTHER"
        seen = Observation(method, read_address((scope.get("client") or ("",))[0]))
        began = time.perf_counter()

        async def receive_and_count() -> Message:
            message = await receive()
            seen.bytes_in += len(message.get("body", b""))
            return message

        async def send_and_count(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen.status = message["status"]
                message.setdefault("headers", [])
                message["headers"] = [*message["headers"], (b"x-request-id", seen.request_id.encode())]
            seen.bytes_out += len(message.get("body", b"")) + message.get("count", 0)
            await send(message)

        self._begin(seen)
        try:
            await self._app({**scope, "observation": seen}, receive_and_count, send_and_count)
        finally:
            seen.seconds = time.perf_counter() - began
            self._end(seen)


current_change: ContextVar[Change | None] = ContextVar("current_change", default=None)
"""The change that is being made, where one is: the first transaction that writes records it, or nothing happens at all."""


class ObservedDatabase(Database):
    """A database whose transactions are timed, and in which changes are recorded.

    Args:
        database: the one that does it.
        note_seconds: is told how long each transaction was open.
    """

    def __init__(self, database: Database, note_seconds: Callable[[float], None] = lambda seconds: None) -> None:
        self._database = database
        self._note_seconds = note_seconds

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """See :meth:`Database.read`."""
        with self._timing(), self._database.read() as connection:
            yield connection

    @contextmanager
    def write(self, repository_id: int | None = None) -> Iterator[Connection]:
        """See :meth:`Database.write`. A change is in the audit log if and only if it took place."""
        change = current_change.get()
        with self._timing(), self._database.write(repository_id) as connection:
            yield connection
            if change is not None and not change.recorded:
                record_change(connection, change)
        if change is not None:
            change.recorded = True

    def add_up(self, statement: str, rows: Sequence[Sequence[Any]]) -> Iterator[Sequence[Any]]:
        """See :meth:`Database.add_up`."""
        with self._timing():
            yield from self._database.add_up(statement, rows)

    def close(self) -> None:
        """See :meth:`Database.close`."""
        self._database.close()

    @contextmanager
    def _timing(self) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self._note_seconds(time.perf_counter() - began)


def describe_change(**detail: Any) -> None:
    """Have the audit log tell more of the change that is being made."""
    change = current_change.get()
    if change is not None:
        change.detail = {**change.detail, **detail}


@contextmanager
def making_change(change: Change | None) -> Iterator[None]:
    """Record a change with the first transaction that writes; None for what records itself what it does."""
    token = current_change.set(change)
    try:
        yield
    finally:
        current_change.reset(token)
