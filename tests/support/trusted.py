"""The two services that trusted publishing needs besides a registry: a CI that vouches, and an exchange of tokens.

Neither is ours; this is what huggingface_hub expects of them. Everything else goes through to the registry.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.support.faults import FaultyProxy, _Handler

REQUEST_TOKEN = "the-jobs-own-request-token"


@dataclass
class TrustedHub:
    """A hub that trusts one job.

    Attributes:
        trusted: ID tokens → the token that the hub gives for it.
        resource: the repository that it gives one for.
        exchanges: what was asked of it.
        id_token: what the CI vouches with.
    """

    trusted: dict[str, str]
    resource: str
    id_token: str = "header.job.signature"
    exchanges: list[dict[str, Any]] = field(default_factory=list)
    audiences: list[str] = field(default_factory=list)
    endpoint: str = ""

    @property
    def github(self) -> dict[str, str]:
        """What a job on GitHub finds in its environment."""
        return {
            "GITHUB_ACTIONS": "true",
            "ACTIONS_ID_TOKEN_REQUEST_URL": f"{self.endpoint}/id-token",
            "ACTIONS_ID_TOKEN_REQUEST_TOKEN": REQUEST_TOKEN,
        }


@contextmanager
def trusted_hub(upstream: str, token: str, resource: str) -> Iterator[TrustedHub]:
    """Run such a hub in front of a registry, on any free port of the loopback."""
    running = TrustedHub({"header.job.signature": token}, resource)

    class Handler(_Handler):
        state = FaultyProxy(upstream)

        def _serve(self) -> None:
            parts = urlsplit(self.path)
            if parts.path == "/id-token":
                allowed = self.headers["Authorization"] == f"Bearer {REQUEST_TOKEN}"
                running.audiences.extend(parse_qs(parts.query)["audience"])
                self._tell(200 if allowed else 401, {"value": running.id_token})
            elif parts.path == "/oauth/token":
                asked = json.loads(self._read_body())
                running.exchanges.append(asked)
                given = running.trusted.get(asked["subject_token"]) if asked["resource"] == running.resource else None
                self._tell(200, {"access_token": given, "expires_in": 3600}) if given else self._tell(403, {})
            else:
                super()._serve()

        def _tell(self, status: int, body: dict[str, Any]) -> None:
            self._answer(status, {"Content-Type": "application/json"}, json.dumps(body).encode())

        do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        running.endpoint = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield running
        finally:
            server.shutdown()
            thread.join()
