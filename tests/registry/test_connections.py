"""Connections whose clients do nothing, or are gone: what they hold is given back, and goes to nobody else by mistake."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from uvicorn.config import Config
from uvicorn.server import ServerState

from skillhub_registry import connections
from skillhub_registry.connections import ZERO_COPY, Connection

SIZE = 50_000_000
REQUEST = b"GET / HTTP/1.1\r\nHost: registry\r\n\r\n"

pytestmark = pytest.mark.skipif(not hasattr(os, "sendfile"), reason="the kernel sends no files here")


async def send_file(scope: Any, receive: Any, send: Any) -> None:
    """Answer with a large file."""
    with tempfile.TemporaryFile() as file:
        file.truncate(SIZE)
        headers = [(b"content-length", str(SIZE).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": ZERO_COPY, "file": file, "offset": 0, "count": SIZE})


async def read_all(scope: Any, receive: Any, send: Any) -> None:
    """Answer when all of the body has come."""
    while (message := await receive())["type"] == "http.request":
        if not message.get("more_body", False):
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return


@asynccontextmanager
async def serving(state: ServerState, application: Any = send_file) -> AsyncIterator[int]:
    """Serve an application, that file if none is named, and yield the port."""
    config, loop = Config(application, lifespan="off", log_config=None), asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(config, state, {}), "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


async def until_idle(state: ServerState) -> None:
    """Wait until there is no connection and no answer."""
    while state.connections or state.tasks:
        await asyncio.sleep(0.01)


def open_numbers() -> int:
    """Return how many files and sockets this process has open."""
    return len(list(Path("/dev/fd").iterdir()))


def test_a_client_that_takes_nothing_of_a_file_holds_nothing_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_STALLED_SECONDS", 0.2)

    async def run() -> None:
        state = ServerState()
        async with serving(state) as port:
            before = open_numbers()
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(REQUEST)
                while not state.tasks:
                    await asyncio.sleep(0.01)
                await asyncio.wait_for(until_idle(state), 20)
            assert open_numbers() == before

    asyncio.run(run())


@pytest.mark.parametrize("beginning", [b"", REQUEST[:20]])
def test_a_client_that_sends_no_whole_head_is_left_after_a_while(
    monkeypatch: pytest.MonkeyPatch, beginning: bytes
) -> None:
    monkeypatch.setattr(connections, "_HEAD_SECONDS", 0.1)

    async def run() -> None:
        state = ServerState()
        async with serving(state) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(beginning)
            with suppress(ConnectionResetError):
                assert await asyncio.wait_for(reader.read(), 20) == b""
            await asyncio.wait_for(until_idle(state), 20)
            writer.close()

    asyncio.run(run())


@pytest.mark.parametrize("framing", [b"Content-Length: 10", b"Transfer-Encoding: chunked"])
@pytest.mark.parametrize("beginning", [b"", b"4\r\nhalf\r\n"])
def test_a_client_that_sends_no_whole_body_is_left_after_a_while(
    monkeypatch: pytest.MonkeyPatch, framing: bytes, beginning: bytes
) -> None:
    monkeypatch.setattr(connections, "_STALLED_SECONDS", 0.1)

    async def run() -> None:
        state = ServerState()
        async with serving(state, read_all) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"POST / HTTP/1.1\r\nHost: registry\r\n" + framing + b"\r\n\r\n" + beginning)
            with suppress(ConnectionResetError):
                assert await asyncio.wait_for(reader.read(), 20) == b""
            await asyncio.wait_for(until_idle(state), 20)
            writer.close()

    asyncio.run(run())


@pytest.mark.parametrize("expecting", [b"", b"Expect: 100-continue\r\n"])
def test_a_client_that_waits_for_the_registry_is_not_left(monkeypatch: pytest.MonkeyPatch, expecting: bytes) -> None:
    monkeypatch.setattr(connections, "_STALLED_SECONDS", 0.1)

    async def read_late(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.5)  # longer than anybody may take over a part of a body
        await read_all(scope, receive, send)

    async def run() -> None:
        async with serving(ServerState(), read_late) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            head = b"POST / HTTP/1.1\r\nHost: registry\r\n" + expecting + b"Content-Length: 1000000\r\n\r\n"
            writer.write(head)
            if expecting:
                assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20) == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(bytes(1_000_000))
            assert (await asyncio.wait_for(reader.readline(), 20)).startswith(b"HTTP/1.1 204")
            writer.close()

    asyncio.run(run())


@pytest.mark.parametrize("number", [errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.EPIPE])
def test_a_client_that_cannot_be_reached_any_more_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    def fail(*_: int) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "sendfile", fail)

    async def run() -> None:
        state = ServerState()
        async with serving(state) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(REQUEST)
            with suppress(ConnectionResetError):
                await asyncio.wait_for(reader.read(), 20)
            await asyncio.wait_for(until_idle(state), 20)
            writer.close()

    with caplog.at_level(logging.ERROR):
        asyncio.run(run())
    assert caplog.records == []


def test_a_thread_that_goes_on_sending_has_numbers_that_nobody_else_gets() -> None:
    before = open_numbers()
    with tempfile.TemporaryFile() as file:
        with connections._Ends(file.fileno(), file.fileno()) as ends:  # the connection
            ends.__enter__()  # the thread
        assert os.fstat(ends.client).st_ino == os.fstat(ends.file).st_ino == os.fstat(file.fileno()).st_ino
        ends.__exit__()
        with pytest.raises(ConnectionError), ends:  # another, which begins too late
            pass
    assert open_numbers() == before
