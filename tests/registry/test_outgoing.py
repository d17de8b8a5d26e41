"""Requests of the registry's own: where they may lead, and what is not believed of the answers."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from skillhub.errors import UsageError
from skillhub_registry import limits
from skillhub_registry.outgoing import UpstreamError, is_private, open_way
from skillhub_registry.upstream import Upstream


@contextmanager
def hub(answer: Callable[[str], tuple[bytes, dict[str, str]]]) -> Iterator[Upstream]:
    """Run a Hub that answers a path with a body and headers, and yield the way to ask it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body, headers = answer(self.path)
            self.send_response(307 if "Location" in headers else 200)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        upstream = Upstream(open_way(f"http://127.0.0.1:{server.server_port}", None))
        try:
            yield upstream
        finally:
            upstream.close()
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    "host", ["127.1", "2130706433", "0x7f.1", "localhost.", "a.LOCALHOST", "127.0.0.1.", "10.1", "::ffff:127.0.0.1"]
)
def test_an_address_that_is_spelt_in_another_way_is_as_private(host: str) -> None:
    assert is_private(host)


def test_what_is_of_the_internet_is_not_private() -> None:
    for host in ("8.8.8.8", "8.8", "cdn.example", "2606:4700::1111", "::ffff:8.8.8.8", "localhost.example"):
        assert not is_private(host), host


def test_no_redirection_leads_to_a_name_of_a_private_address(monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(host: str, *_: Any, **__: Any) -> list[Any]:
        if host == "nowhere.example":
            raise socket.gaierror
        found = ["8.8.8.8", "10.0.0.1"] if host == "inside.example" else ["8.8.8.8"]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in found]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    public, inside = open_way("https://hub.example", None), open_way("http://127.0.0.1", None)
    assert not public.may_go("https://inside.example/x", False)
    assert public.may_go("https://cdn.example/x", False) and public.may_go("https://nowhere.example/x", False)
    assert inside.may_go("http://inside.example/x", False)
    public.close()
    inside.close()


def test_an_address_with_a_path_is_no_address_of_a_hub() -> None:
    with pytest.raises(UsageError, match="is no address of a Hub"):
        open_way("https://hub.example/models", None)
    open_way("https://hub.example/", None).close()


def test_a_list_does_not_go_on_page_after_page_nor_minute_after_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def answer(path: str) -> tuple[bytes, dict[str, str]]:
        asked.append(path)
        return json.dumps([{"type": "directory"}]).encode(), {"Link": f'<{path}>; rel="next"'}

    with hub(answer) as upstream:
        monkeypatch.setattr(limits, "UPSTREAM_PAGES", 3)
        with pytest.raises(UpstreamError, match="more than 3 pages"):
            upstream.list_files("team/model", "c" * 40)
        assert len(asked) == 3
        monkeypatch.setattr("skillhub_registry.upstream._LISTING_SECONDS", -1)
        with pytest.raises(UpstreamError, match="too slowly"):
            upstream.list_files("team/model", "c" * 40)
        assert len(asked) == 3


def test_redirections_take_no_longer_than_an_answer_may() -> None:
    with hub(lambda path: (b"", {"Location": path})) as upstream:
        with pytest.raises(UpstreamError, match="redirects again and again"):
            upstream.way.ask("/api/models/a/b")
        with pytest.raises(UpstreamError, match="too slowly"):
            upstream.way.ask("/api/models/a/b", (), time.monotonic() - 1)


@pytest.mark.parametrize("title", [rb"\ud800", b"\xed\xa0\x80", b"\xff"])
def test_text_that_is_no_text_is_no_answer(title: bytes) -> None:
    commit = "c" * 40
    listed = b'[{"id": "%s", "title": "%s", "date": "2026-01-01T00:00:00Z"}]' % (commit.encode(), title)
    with hub(lambda path: (listed, {})) as upstream, pytest.raises(UpstreamError, match="with no JSON"):
        upstream.describe_commit("team/model", commit)
