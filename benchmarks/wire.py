"""HTTP/1.1 as cheap as Python has it, so that hundreds of clients cost less than the server that they ask."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Answer:
    """A server's answer; the headers' names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """Return the body, read as JSON."""
        return json.loads(self.body)


class Wire:
    """One client's connection, opened when it is needed and kept alive.

    Args:
        endpoint: the server's address.
        token: sent with every request.
    """

    def __init__(self, endpoint: str, token: str = "") -> None:
        parts = urlsplit(endpoint)
        self._host, self._port = parts.hostname or "", parts.port or 80
        self._head = f"Host: {parts.netloc}\r\n" + (f"Authorization: Bearer {token}\r\n" if token else "")
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, path: str, body: bytes = b"") -> Answer:
        """Send a request and return the answer, whatever its status.

        Raises:
            OSError: the connection broke, or cannot be opened.
            asyncio.IncompleteReadError: the server ended the connection before the end of the answer.
        """
        length = f"Content-Length: {len(body)}\r\n" if method not in ("GET", "HEAD") else ""
        try:
            if self._streams is None:
                self._streams = await asyncio.open_connection(self._host, self._port, limit=2**20)
            reader, writer = self._streams
            writer.write(f"{method} {path} HTTP/1.1\r\n{self._head}{length}\r\n".encode() + body)
            await writer.drain()
            return await self._read(reader, method)
        except BaseException:
            self.close()
            raise

    async def _read(self, reader: asyncio.StreamReader, method: str) -> Answer:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:-2])}
        status = int(lines[0].split(" ", 2)[1])
        body = await reader.readexactly(int(headers["content-length"])) if method != "HEAD" else b""
        if headers.get("connection") == "close":
            self.close()
        return Answer(status, headers, body)

    def close(self) -> None:
        """End the connection; the next request opens another."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def __aenter__(self) -> Wire:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
