"""Receiving a file's bytes over plain HTTP, into a file; a connection that is lost is taken up where it ended.

huggingface_hub's own loop receives half as fast: it gathers pieces of 10 MB by copying. Its session is used all the
same, so proxies and certificates are as it has them. Files that the registry offers through Xet are left to it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from skillhub.errors import IntegrityError
from skillhub.hub.registries import Registry
from skillhub.hub.waits import passes, wait_after

if TYPE_CHECKING:
    import httpx2

_WAITS_SECONDS = (0.3, 1.0, 3.0)

# A connection that brought less than this before it broke is no better than the one before.
_HEADWAY = 1 << 20


@dataclass
class _Transfer:
    """One file on its way."""

    registry: Registry
    url: str
    stream: BinaryIO
    size: int | None
    report: Callable[[int], None]
    done: int = 0

    def receive(self, response: httpx2.Response) -> None:
        """Write what a response brings at the place that it is for."""
        if self.done and response.status_code != 206:  # the server sends all of it again
            self.restart()
        encoded = response.headers.get("Content-Encoding", "identity").lower() != "identity"
        for piece in response.iter_bytes() if encoded else response.iter_raw():
            self.stream.write(piece)
            self.done += len(piece)
            if self.size is not None and self.done > self.size:
                raise IntegrityError(
                    f"More bytes arrive than the {self.size} that were announced.",
                    hint="Do not use this pack; tell its publisher.",
                )
            self.report(len(piece))

    def go_on(self) -> None:
        """Count what is there already; where that may be all or too much, begin anew, as nothing would be left to ask for."""
        self.done = self.stream.seek(0, os.SEEK_END)
        self.report(self.done)
        if self.size is not None and self.done >= self.size:
            self.restart()

    def restart(self) -> None:
        self.stream.seek(0)
        self.stream.truncate()
        self.report(-self.done)
        self.done = 0

    @contextmanager
    def request(self, *, follow: bool) -> Iterator[httpx2.Response]:
        """Ask for what is missing yet."""
        from huggingface_hub import constants, get_session

        headers = {"Accept-Encoding": "identity"} | self.registry.authorization
        if self.done:
            headers["Range"] = f"bytes={self.done}-"
        with get_session().stream(
            "GET", self.url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT, follow_redirects=follow
        ) as response:
            yield response


def receive_file(
    registry: Registry, url: str, stream: BinaryIO, *, size: int | None, report: Callable[[int], None]
) -> bool:
    """Write the bytes behind an address into a file; what it holds already is taken for their beginning.

    Args:
        registry: whose address it is; its token goes there and to no other host.
        url: the address.
        stream: the file, open for reading, and for writing at its end.
        size: bytes to expect; more end the transfer.
        report: called with the number of bytes of each piece (below 0 when a piece has to be sent again), and with 0
            about once a second while waiting.

    Returns:
        Whether they were received; False when the registry would rather send them through Xet.

    Raises:
        IntegrityError: more than ``size`` bytes arrived.
        NetworkError: the registry asks for too long a wait.
        Exception: what huggingface_hub and its HTTP library raise.
    """
    transfer = _Transfer(registry, url, stream, size, report)
    transfer.go_on()
    waits, headway = iter(_WAITS_SECONDS), transfer.done
    while True:
        try:
            return _try(transfer)
        except Exception as error:
            if not passes(error):
                raise
            if transfer.done - headway >= _HEADWAY:
                waits, headway = iter(_WAITS_SECONDS), transfer.done
            seconds = next(waits, None)
            if seconds is None:
                raise
            wait_after(registry, error, seconds, lambda: report(0))


def _try(transfer: _Transfer) -> bool:
    """Ask once, and receive what comes; a redirection is followed unless it is to Xet."""
    from huggingface_hub import hf_raise_for_status

    with transfer.request(follow=False) as response:
        if _is_for_xet(response):
            return False
        if response.status_code == 416 and transfer.done:  # the file is shorter than what is there already
            transfer.restart()
        elif not response.is_redirect:
            hf_raise_for_status(response)
            transfer.receive(response)
            return True
    with transfer.request(follow=True) as response:
        hf_raise_for_status(response)
        transfer.receive(response)
    return True


def _is_for_xet(response: httpx2.Response) -> bool:
    from huggingface_hub import constants
    from huggingface_hub.utils._runtime import is_xet_available

    return constants.HUGGINGFACE_HEADER_X_XET_HASH in response.headers and is_xet_available()
