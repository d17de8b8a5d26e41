"""A proxy in front of a registry that makes chosen requests go wrong, each in one of the ways that networks know."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

BEFORE = "500 before the request is forwarded"
AFTER = "500 after the request was forwarded"
DROP = "the connection ends before the request is forwarded"
DROP_AFTER = "the connection ends after the request was forwarded"
CUT = "half of the body arrives"
ALTER = "a byte of the body is another"
ELSEWHERE = "the client is sent on to "  # and the endpoint of another registry
LENGTHEN = "the body is longer, and so is what its headers say"

Rule = Callable[[int, str, str], str | None]
"""From a request's number, method and path to how it goes wrong, or None."""


@dataclass
class FaultyProxy:
    """The proxy: set ``rule`` to make requests go wrong, read ``seen`` for those that came since it was cleared.

    ``heard`` has all that they said: address, headers and body.
    """

    upstream: str
    rule: Rule = lambda number, method, path: None
    seen: list[str] = field(default_factory=list)
    heard: list[str] = field(default_factory=list)
    endpoint: str = ""

    def reset(self, rule: Rule = lambda number, method, path: None) -> None:
        """Count requests from 0 again, under another rule."""
        self.seen.clear()
        self.heard.clear()
        self.rule = rule


@contextmanager
def faulty_proxy(upstream: str) -> Iterator[FaultyProxy]:
    """Run a proxy in front of ``upstream`` on any free port of the loopback."""
    proxy = FaultyProxy(upstream)

    class Handler(_Handler):
        state = proxy

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        proxy.endpoint = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    state: FaultyProxy
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def _serve(self) -> None:
        body = self._read_body()
        number = len(self.state.seen)
        self.state.seen.append(f"{self.command} {self.path}")
        self.state.heard.append(f"{self.command} {self.path}\n{self.headers}\n{body.decode('latin-1')}")
        fault = self.state.rule(number, self.command, self.path)
        if fault == DROP:
            self._end()
        elif fault == BEFORE:
            self._answer(500, {}, b"")
        elif fault and fault.startswith(ELSEWHERE):
            self._answer(307, {"Location": fault.removeprefix(ELSEWHERE) + self.path}, b"")
        else:
            self._forward(body, fault)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815

    def _forward(self, body: bytes, fault: str | None) -> None:
        upstream = http.client.HTTPConnection(urlsplit(self.state.upstream).netloc, timeout=60)
        measures = ("content-length", "transfer-encoding")
        headers = {name: value for name, value in self.headers.items() if name.lower() not in measures}
        upstream.request(self.command, self.path, body, headers | {"Content-Length": str(len(body))})
        answer = upstream.getresponse()
        data = answer.read()
        kept = {name: value for name, value in answer.getheaders() if name.lower() not in ("connection", "date")}
        upstream.close()
        if fault == DROP_AFTER:
            self._end()
        elif fault == AFTER:
            self._answer(500, {}, b"")
        else:
            if fault == ALTER and data:
                data = data[:-1] + bytes([data[-1] ^ 1])
            if fault == LENGTHEN:
                data += b"and more"
                kept = {name: value for name, value in kept.items() if name.lower() != "content-length"}
            self._answer(answer.status, kept, data, cut=fault == CUT)

    def _answer(self, status: int, headers: dict[str, str], data: bytes, *, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() != "transfer-encoding":
                self.send_header(name, value)
        if "content-length" not in {name.lower() for name in headers}:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self._end()

    def _end(self) -> None:
        self.close_connection = True

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        pieces = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def at(number: int, fault: str) -> Rule:
    """Return the rule that makes the ``number``-th request go wrong, from 0, and no other."""
    return lambda found, method, path: fault if found == number else None


def on(method: str, words: str, fault: str, *, times: int = 1 << 30) -> Rule:
    """Return the rule that makes requests go wrong whose path holds ``words``, as many as ``times``."""
    left = [times]

    def rule(number: int, found: str, path: str) -> str | None:
        if found != method or words not in path or not left[0]:
            return None
        left[0] -= 1
        return fault

    return rule
