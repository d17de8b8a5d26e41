"""What a hostile registry can answer to a download, at its beginning and where it is taken up again."""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from skillhub import hub
from skillhub.errors import IntegrityError, NetworkError
from skillhub.store import Store, ensure_blob

pytestmark = pytest.mark.usefixtures("homes")

DATA = random.Random(1).randbytes(10_000)
DIGEST = hashlib.sha256(DATA).hexdigest()

Answer = Callable[[int | None], tuple[int, bytes]]
"""From the first byte that is asked for, None for the whole, to the status and the body."""


@pytest.fixture(scope="module")
def serve() -> Iterator[Callable[[Answer], hub.Registry]]:
    """Serve answers to every request, by what they make of its ``Range``."""
    answers: list[Answer] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            status, body = answers[-1](int(asked.removeprefix("bytes=").rstrip("-")) if asked else None)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()

        def start(answer: Answer) -> hub.Registry:
            answers.append(answer)
            return hub.Registry("hub", f"http://127.0.0.1:{server.server_port}")

        yield start
        server.shutdown()
        thread.join()


def fetch(registry: hub.Registry, store: Store) -> Path:
    def into(folder: Path) -> Path:
        return hub.download_file(registry, "acme/x", "f", into=folder, size=len(DATA))

    return ensure_blob(store, DIGEST, len(DATA), into, what="f")


@pytest.mark.parametrize("begun", [b"evil" * 100, DATA[:400], DATA + b"more", b"x" * len(DATA)])
@pytest.mark.parametrize(
    "rest",
    [
        lambda first: (206, DATA[first:]),
        lambda first: (206, DATA[first + 7 :]),
        lambda first: (206, b"evil" * 100),
        lambda first: (206, DATA),
        lambda first: (200, DATA),
        lambda first: (416, b""),
    ],
    ids=["right", "another range", "other bytes", "from the beginning", "all", "416"],
)
def test_whatever_a_download_goes_on_from_and_with_the_right_bytes_come(
    begun: bytes, rest: Callable[[int], tuple[int, bytes]], serve: Callable[[Answer], hub.Registry], tmp_path: Path
) -> None:
    store = Store(tmp_path / "store")
    store.staging_of(DIGEST).mkdir(parents=True)
    (store.staging_of(DIGEST) / "f").write_bytes(begun)
    registry = serve(lambda first: (200, DATA) if first is None else rest(first))
    assert fetch(registry, store).read_bytes() == DATA
    assert not store.staging_of(DIGEST).exists()


@pytest.mark.parametrize(
    ("status", "body"), [(200, DATA[:-1]), (200, DATA + b"x"), (206, DATA[1:]), (204, b""), (200, b""), (416, b"")]
)
def test_wrong_bytes_never_get_a_blob_s_name(
    status: int, body: bytes, serve: Callable[[Answer], hub.Registry], tmp_path: Path
) -> None:
    store = Store(tmp_path / "store")
    with pytest.raises((IntegrityError, NetworkError)):
        fetch(serve(lambda first: (status, body)), store)
    assert not store.path_of(DIGEST).exists()
