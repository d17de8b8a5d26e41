"""Requests that the registry makes itself: to the Hub that is mirrored, and to where that keeps its files.

Nobody who sends requests here chooses where they go: the address is the operator's, and redirections are the Hub's. Its token
goes to its own address alone. Nothing that comes back is believed to be short, quick or well-formed.
"""

from __future__ import annotations

import ipaddress
import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urljoin, urlsplit

import httpx2

from skillhub.errors import UsageError
from skillhub_registry import limits
from skillhub_registry.errors import INVALID_CREDENTIALS

MIRROR: Final = "skillhub-mirror"
"""Sent along as ``Via``: a mirror asks nobody for another mirror, so none waits for itself, by whatever detour."""

_TIMEOUT: Final = httpx2.Timeout(20, connect=5)
_REDIRECTS: Final = 5
_ANSWER_SECONDS: Final = 60
"""How long one answer of its API may take."""

_SLOWEST: Final = 50_000
"""Bytes a second: a file that comes more slowly is given up, after ten minutes at the earliest."""


class UpstreamError(Exception):
    """The other Hub could not be reached, or its answer not be used; the message says which."""


class UnreachableUpstreamError(UpstreamError):
    """The other Hub does not answer at all."""


class MissingUpstreamError(UpstreamError):
    """The other Hub does not have it, or does not show it to us.

    Attributes:
        code: its ``X-Error-Code``.
    """

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Outgoing:
    """The way to another Hub.

    Attributes:
        address: without a slash at its end.
        token: sent to that address, with everything that is asked of it; None for none.
    """

    address: str
    token: str | None = field(default=None, repr=False)
    client: httpx2.Client = field(default_factory=lambda: httpx2.Client(timeout=_TIMEOUT))

    def ask(
        self, path: str, query: tuple[tuple[str, str], ...] = (), deadline: float = float("inf")
    ) -> tuple[Any, str | None]:
        """Return the JSON that a route of the API answers, and the address of the next page, if there is one.

        Args:
            path: of the route, or an address that came as that of a next page.
            query: names and values.
            deadline: when the answer must be here at the latest, by ``time.monotonic``.

        Raises:
            UpstreamError: it does not answer, or not well.
        """
        url = httpx2.URL(urljoin(self.address, path))
        deadline = min(deadline, time.monotonic() + _ANSWER_SECONDS)
        asked = str(url.copy_merge_params(query) if query else url)
        with self._reach(asked, deadline, only_here=True) as response:
            data = b"".join(self._read(response, limits.UPSTREAM_ANSWER, deadline))
            following = response.links.get("next", {}).get("url")
        try:
            document = json.loads(data.decode())
            json.dumps(document, ensure_ascii=False).encode()  # halves of surrogate pairs cannot be kept
        except (ValueError, RecursionError) as error:
            raise UpstreamError(f"{self.address} answers {path} with no JSON") from error
        return document, urljoin(str(url), following) if following else None

    @contextmanager
    def open(self, path: str, size: int) -> Iterator[Iterator[bytes]]:
        """Yield the bytes of a file as they arrive, not more than ``size`` of them.

        Raises:
            UpstreamError: it does not answer, or not well.
        """
        deadline = time.monotonic() + max(600, size // _SLOWEST)
        with self._reach(self.address + path, deadline, only_here=False) as response:
            yield self._read(response, size, deadline)

    def close(self) -> None:
        """Close the connections."""
        self.client.close()

    @contextmanager
    def _reach(self, url: str, deadline: float, *, only_here: bool) -> Iterator[httpx2.Response]:
        """Yield the successful answer to a GET, after redirections; ``only_here``: within the Hub's own address."""
        try:
            for _ in range(_REDIRECTS + 1):
                if time.monotonic() > deadline:
                    raise UpstreamError(f"{self.address} answers too slowly")
                if not self.may_go(url, only_here):
                    raise UpstreamError(f"{self.address} leads elsewhere, to {_origin(url)}: not followed")
                with self.client.stream("GET", url, headers=self.make_headers(url)) as response:
                    if response.has_redirect_location:
                        url = urljoin(url, response.headers["Location"])
                        continue
                    self._check(response)
                    yield response
                    return
            raise UpstreamError(f"{self.address} redirects again and again")
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
            raise UnreachableUpstreamError(
                f"{self.address} cannot be reached: {error or type(error).__name__}"
            ) from error

    def make_headers(self, url: str) -> dict[str, str]:
        """Return the headers of a request."""
        headers = {"Accept-Encoding": "identity", "User-Agent": "skillhub-registry", "Via": f"1.1 {MIRROR}"}
        if self.token and _origin(url) == _origin(self.address):
            headers["Authorization"] = f"Bearer {self.token}"
        return headers

    def may_go(self, url: str, only_here: bool) -> bool:
        """Say whether a redirection is followed: not from https to http, and from the internet into no private network."""
        if _origin(url) == _origin(self.address):
            return True
        own, other = urlsplit(self.address), urlsplit(url)
        if only_here or other.scheme not in ("https", own.scheme) or other.username is not None:
            return False
        return is_private(own.hostname or "") or not _leads_inside(other.hostname or "")

    def _check(self, response: httpx2.Response) -> None:
        if response.status_code == 200 and "Content-Encoding" not in response.headers:
            return
        path, status = response.request.url.path, response.status_code
        if status == 401 and response.headers.get("X-Error-Message") == INVALID_CREDENTIALS:
            raise UpstreamError(f"{self.address} does not take the token that the operator gave for it")
        if status in (401, 403, 404, 410, 451):
            code = response.headers.get("X-Error-Code", "")
            raise MissingUpstreamError(f"{self.address} answers {path} with {status} {ascii(code)[1:81]}", code)
        raise UpstreamError(f"{self.address} answers {path} with {status}, or compressed")

    def _read(self, response: httpx2.Response, limit: int, deadline: float) -> Iterator[bytes]:
        total = 0
        try:
            for piece in response.iter_raw():
                total += len(piece)
                if total > limit:
                    raise UpstreamError(f"{self.address} sends more than {limit} bytes")
                if time.monotonic() > deadline:
                    raise UpstreamError(f"{self.address} sends too slowly")
                yield piece
        except httpx2.HTTPError as error:
            raise UpstreamError(f"{self.address} stopped sending: {error or type(error).__name__}") from error


def open_way(address: str, token: str | None) -> Outgoing:
    """Return the way to the Hub at an address that the operator chose.

    Raises:
        UsageError: it is no address, or the token would travel unencrypted.
    """
    parts = urlsplit(address.rstrip("/"))
    rest = parts.username or parts.path or parts.query or parts.fragment
    if parts.scheme not in ("http", "https") or not parts.hostname or rest:
        hint = "Write https://host, without user, password, path and query."
        raise UsageError(f"{_origin(address)} is no address of a Hub.", hint=hint)
    if token and parts.scheme == "http" and not is_private(parts.hostname):
        raise UsageError(
            "The token for the mirrored Hub would be sent unencrypted.", hint="Mirror https://…, or without a token."
        )
    return Outgoing(address.rstrip("/"), token or None)


def is_private(host: str) -> bool:
    """Say whether a host is this machine or has an address that is not of the internet; names are not looked up."""
    host = host.removesuffix(".").lower()
    with suppress(ValueError):
        return _is_inside(host)
    with suppress(OSError, UnicodeEncodeError):  # 127.1 and 2130706433 are addresses as well
        return _is_inside(socket.inet_ntoa(socket.inet_aton(host)))
    return host == "localhost" or host.endswith(".localhost")


def _leads_inside(host: str) -> bool:
    """Say whether a host is private, or a name of a private address.

    A name that cannot be looked up here leads nowhere, or to where a proxy leads it.
    """
    if is_private(host):
        return True
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False
    return any(_is_inside(str(address[0])) for *_, address in found)


def _is_inside(address: str) -> bool:
    parsed = ipaddress.ip_address(address)
    return not (getattr(parsed, "ipv4_mapped", None) or parsed).is_global


def _origin(url: str) -> str:
    parts = urlsplit(url)
    port = parts.port or {"https": 443, "http": 80}.get(parts.scheme)
    return f"{parts.scheme}://{parts.hostname}:{port}"
