"""One address for several replicas: each request goes to the next one, whatever connection it comes on."""

from __future__ import annotations

import asyncio
import itertools
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

from tests.support.registry_process import ROOT

_HOP = (b"connection", b"transfer-encoding", b"keep-alive")
"""Headers that are about one connection."""


@contextmanager
def running_balancer(endpoints: Sequence[str]) -> Iterator[str]:
    """Start a balancer on any free port, yield its address, and stop it at the end."""
    command = [sys.executable, "-m", "tests.support.balancer", *endpoints]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        endpoint = process.stdout.readline().strip()  # comes when it listens
        assert endpoint, "the balancer did not start"
        yield endpoint
    finally:
        process.terminate()
        process.wait(timeout=30)
        process.stdout.close()


def make_app(endpoints: Sequence[str]) -> Any:
    """Return the ASGI application that passes requests on."""
    import httpx2

    turns = itertools.cycle([httpx2.URL(endpoint) for endpoint in endpoints])
    nobodys = CookieJar(DefaultCookiePolicy(allowed_domains=[]))  # cookies are the clients', not the balancer's
    client = httpx2.AsyncClient(
        timeout=120, trust_env=False, limits=httpx2.Limits(max_connections=200), cookies=nobodys
    )

    async def answer(scope: dict[str, Any], receive: Any, send: Any) -> None:
        assert scope["type"] == "http"

        async def body() -> AsyncIterator[bytes]:
            while True:
                message = await receive()
                yield message.get("body", b"")
                if not message.get("more_body"):
                    return

        target = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
        names = {name for name, _ in scope["headers"]}
        has_body = bool(names & {b"content-length", b"transfer-encoding"})
        headers = [(name, value) for name, value in scope["headers"] if name not in _HOP]  # Host as it was sent
        url = next(turns).copy_with(raw_path=target)
        request = client.build_request(scope["method"], url, headers=headers, content=body() if has_body else None)
        response = await client.send(request, stream=True)
        try:
            kept = [(name.lower(), value) for name, value in response.headers.raw if name.lower() not in _HOP]
            await send({"type": "http.response.start", "status": response.status_code, "headers": kept})
            async for piece in response.aiter_raw():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body"})
        finally:
            await response.aclose()

    return answer


def main() -> None:
    """Serve until the process is ended."""
    import uvicorn

    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen(128)
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    config = uvicorn.Config(make_app(sys.argv[1:]), log_level="error", access_log=False, lifespan="off")
    asyncio.run(uvicorn.Server(config).serve(sockets=[listener]))


if __name__ == "__main__":
    main()
