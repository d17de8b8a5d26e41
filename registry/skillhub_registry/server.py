"""The process that serves: socket, first account, what to export, and a clean end."""

from __future__ import annotations

import ctypes
import getpass
import json
import os
import signal
import socket
import sys
from contextlib import nullcontext, suppress
from pathlib import Path
from types import FrameType

import click
import uvicorn
from filelock import FileLock, Timeout

from skillhub.errors import NetworkError, UsageError
from skillhub_registry import accounts, limits, tokens
from skillhub_registry.app import make_app
from skillhub_registry.audit import Change, record_change
from skillhub_registry.connections import Connection
from skillhub_registry.database import Database
from skillhub_registry.errors import HubError
from skillhub_registry.logs import configure_logs
from skillhub_registry.names import check_account_name
from skillhub_registry.rates import Rates
from skillhub_registry.registry import Mirrored, Place, open_database, open_registry

_KEEP_ALIVE_SECONDS = 75
"""Longer than clients keep idle connections, so that theirs is the end: the other way round, a request may be on its way
on a connection that the server is just closing."""


_ALLOCATOR_ARENAS = 2
"""Heaps that the C library keeps for its callers. It would make one for each thread, up to eight a core, and each would grow to
the largest answer that its threads ever made: under load that was half of the memory, and never the end of it."""

_M_ARENA_MAX = -8
"""What glibc's malloc.h calls the number of them."""


class _Server(uvicorn.Server):
    """Says where it listens once it does, not before."""

    announcement: str = ""
    as_json: bool = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        click.echo(self.announcement, err=not self.as_json)
        sys.stdout.flush()


def run_server(
    place: Place,
    host: str,
    port: int,
    *,
    part_size: int,
    links: bool,
    rates: Rates,
    quotas: limits.Quotas,
    public_metrics: bool,
    mirrored: Mirrored | None,
    log_format: str | None,
    as_json: bool,
) -> None:
    """Serve a registry until SIGINT or SIGTERM.

    Raises:
        NetworkError: the address cannot be listened on, or the database or storage not be reached.
        UsageError: another process serves the folder.
        DiskError: the folder cannot be used.
        SkillhubError: as ``open_registry`` says.
    """
    _limit_arenas()
    configure_logs(log_format)
    open_database(place).close()  # says at once what is wrong with it
    with nullcontext() if place.is_shared else _locking(place.data):
        listener = _listen(host, port)
        address = f"[{host}]" if ":" in host else host
        endpoint = f"http://{address}:{listener.getsockname()[1]}"
        registry = open_registry(
            place,
            part_size=part_size,
            links=links,
            rates=rates,
            quotas=quotas,
            public_metrics=public_metrics,
            mirrored=mirrored,
        )
        user, secret = _first_account(registry.database)
        config = uvicorn.Config(
            make_app(registry),
            log_config=None,
            access_log=False,
            http=Connection,
            lifespan="on",
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=10,
        )
        server = _Server(config)
        server.as_json = as_json
        server.announcement = _announce(endpoint, user, secret, place, as_json)
        _run_until_signal(server, listener)


def _limit_arenas() -> None:
    if "MALLOC_ARENA_MAX" in os.environ:  # somebody knows better
        return
    with suppress(OSError, AttributeError):  # of the systems that this runs on, only those with glibc have it
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _ALLOCATOR_ARENAS)


def _locking(data: Path) -> FileLock:
    """Return the lock, taken, of whoever serves a folder that one process has to itself."""
    lock = FileLock(data / "serving.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UsageError(
            f"Another process is serving {data}.", hint="Stop that one, or name another folder with --data."
        ) from error
    return lock


def _run_until_signal(server: uvicorn.Server, listener: socket.socket) -> None:
    # uvicorn raises the signals again when it is done; they have had their effect then.
    def ignore(number: int, frame: FrameType | None) -> None: ...

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, ignore)
    server.run(sockets=[listener])
    listener.close()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named so that asyncio turns Nagle's algorithm off: it would cost 40 ms an answer.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise NetworkError(
            f"Cannot listen on {host} port {port}: {error.strerror or error}.",
            hint="Another program may use the port: choose another with --port, or 0 for any free one.",
        ) from error
    return listener


def _first_account(database: Database) -> tuple[str, str | None]:
    """Return the first user's name; at the first start make it, and return its token as well."""
    with database.write() as connection:
        users = accounts.list_accounts(connection, "user")
        if users:
            return min(users, key=lambda user: user.id).name, None
        user = accounts.add_account(connection, _own_name())
        secret = tokens.create_token(connection, user, "write", "first")
        told = {"user": user.name, "name": "first", "scope": "write"}
        record_change(connection, Change("(command line)", "", "skillhub-registry serve", detail=told))
        return user.name, secret


def _own_name() -> str:
    try:
        return check_account_name(getpass.getuser())
    except (HubError, OSError, KeyError):
        return "admin"


def _announce(endpoint: str, user: str, secret: str | None, place: Place, as_json: bool) -> str:
    if as_json:
        return json.dumps({"endpoint": endpoint, "user": user, **({"token": secret} if secret else {})})
    where = place.data if place.database is None else "the database" + (" and the bucket" if place.storage else "")
    lines = [f"The registry listens on {endpoint}; its data is in {where}.", ""]
    if secret:
        lines += [f"It has one user so far, {user}. To use it (the token is shown this once):", ""]
    else:
        lines += ["To use it:", ""]
    lines += [f"    export HF_ENDPOINT={endpoint}"]
    lines += [f"    export HF_TOKEN={secret}"] if secret else []
    lines += ["", f"Another token: skillhub-registry token create {user}", "Stop it with Ctrl-C."]
    return "\n".join(lines)
