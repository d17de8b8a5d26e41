"""Connections: uvicorn's HTTP/1.1 on httptools' parser, with bounds on what a head may be, and files sent by the kernel.

Files go out by ``http.response.zerocopysend``, an extension of ASGI
(https://asgi.readthedocs.io/en/latest/extensions.html#zero-copy-send): their bytes never pass through Python.
"""

from __future__ import annotations

import errno
import os
import select
import threading
from asyncio import AbstractEventLoop, TimerHandle, Transport
from typing import TYPE_CHECKING, Any, Final, cast

from anyio import CapacityLimiter, fail_after, to_thread, wait_writable
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from skillhub_registry import limits

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

ZERO_COPY: Final = "http.response.zerocopysend"
"""The extension of ASGI by which a server sends files."""

_TURN: Final = 64 * limits.MIB
"""Bytes of a file that go out before other connections have a turn."""

_PATIENCE_MILLISECONDS: Final = 5
"""How long a thread waits for a client to take more; for a slower one, the event loop waits."""

_STALLED_SECONDS: Final = 60
"""How long a client may take nothing of a file that it asked for, or send nothing of a body that it has begun."""

_HEAD_SECONDS: Final = 60
"""How long a client may take for the head of a request; before another one begins, uvicorn waits for less."""

_UNREACHABLE: Final = (errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.ENETUNREACH, errno.ENETDOWN)

_SENDERS: Final = CapacityLimiter(8)
"""The threads that send files: not those that answer requests, so that downloads never hold these up."""


class Connection(HttpToolsProtocol):
    """A client's connection."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._answer = self.app
        if hasattr(os, "sendfile"):
            self.app = cast(Any, self._offer_files)
        self._unread = 0
        self._head = 0
        self._patience: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Wait for a request, though not for ever."""
        super().connection_made(transport)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing any more."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came; what never comes to an end is refused, as the parser would keep it all."""
        self._unread += len(data)
        super().data_received(data)
        if self._unread > limits.HEADERS and not self.transport.is_closing():
            self.send_400_response("The head of the request is too large.")

    def on_message_begin(self) -> None:
        """Begin to count a head."""
        self._head = 0
        self._wait_for_head()
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, of the request or after its body; an error here ends the connection with 400."""
        self._head += len(name) + len(value) + len(": \r\n")
        if self._head > limits.HEADERS:
            raise ValueError("the head of the request is too large")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Begin to answer."""
        self._unread = 0
        self._wait_for_body()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        self._unread = 0
        self._wait_for_body()
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End the request."""
        self._unread = 0
        self._stop_waiting()
        super().on_message_complete()

    def _wait_for_head(self) -> None:
        self._stop_waiting()
        self._patience = self.loop.call_later(_HEAD_SECONDS, self._give_up)

    def _wait_for_body(self) -> None:
        self._stop_waiting()
        self._patience = self.loop.call_later(_STALLED_SECONDS, self._give_up_body)

    def _give_up_body(self) -> None:
        if self.flow.read_paused or (self.cycle is not None and self.cycle.waiting_for_100_continue):
            self._wait_for_body()  # the client waits for us
        else:
            self.transport.abort()

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _give_up(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._wait_for_head()  # while an answer goes out, nothing need be read of what follows
        else:
            self.transport.abort()

    async def _offer_files(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application, and send the files that it names."""
        cycle = send.__self__  # type: ignore[attr-defined]
        assert isinstance(cycle, RequestResponseCycle)

        async def send_files_too(message: Message) -> None:
            if message["type"] == ZERO_COPY:
                await self._send_file(cycle, message)
            else:
                await send(message)

        scope["extensions"] = {**scope.get("extensions", {}), ZERO_COPY: {}}
        await self._answer(cast(Any, scope), cast(Any, receive), cast(Any, send_files_too))

    async def _send_file(self, cycle: RequestResponseCycle, message: Message) -> None:
        offset, left = message["offset"], message["count"]
        self.transport.set_write_buffer_limits(0)  # so that draining means that the head has left
        try:
            with fail_after(_STALLED_SECONDS):
                await cycle.flow.drain()
            if self.transport.is_closing():
                return
            with _Ends(self.transport.get_extra_info("socket").fileno(), message["file"].fileno()) as ends:
                while left:
                    sent = await to_thread.run_sync(_send_while_taken, ends, offset, left, limiter=_SENDERS)
                    offset, left = offset + sent, left - sent
                    if left:
                        with fail_after(_STALLED_SECONDS):
                            await wait_writable(ends.client)
        except OSError as error:
            if not isinstance(error, ConnectionError | TimeoutError) and error.errno not in _UNREACHABLE:
                raise
            cycle.disconnected = True
            self.transport.abort()
            return
        finally:
            self.transport.set_write_buffer_limits()
        cycle.expected_content_length = 0
        await cycle.send({"type": "http.response.body", "body": b"", "more_body": False})


class _Ends:
    """A client's socket and a file, by numbers of their own, which stay theirs until everybody who entered has left.

    Nobody can end a thread: where its connection ends by force it goes on for a moment, and must not send something else to
    somebody else by numbers that were given away.
    """

    def __init__(self, client: int, file: int) -> None:
        self.client = os.dup(client)
        try:
            self.file = os.dup(file)
        except OSError:
            os.close(self.client)
            raise
        self._lock = threading.Lock()
        self._inside = 0
        self._closed = False

    def __enter__(self) -> _Ends:
        with self._lock:
            if self._closed:
                raise ConnectionAbortedError(errno.ECONNABORTED, "the connection has ended")
            self._inside += 1
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            self._closed = self._inside == 0
            if self._closed:
                os.close(self.client)
                os.close(self.file)


def _send_while_taken(ends: _Ends, offset: int, count: int) -> int:
    """Send a part of a file until the client has been busy for a moment, or others should have a turn; return the bytes sent."""
    count, sent = min(count, _TURN), 0
    writable = select.poll()
    with ends:
        writable.register(ends.client, select.POLLOUT)
        while sent < count:
            try:
                piece = os.sendfile(ends.client, ends.file, offset + sent, count - sent)
            except BlockingIOError:
                if not writable.poll(_PATIENCE_MILLISECONDS):
                    break
                continue
            if not piece:
                raise OSError("a file ended before what was recorded as its end")
            sent += piece
    return sent
