"""A limit on answers that huggingface_hub reads whole: of API routes, redirections and errors, compressed or not.

Its client knows none, and a hostile registry may send without end. What we read piece by piece is counted there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from skillhub.errors import NetworkError

if TYPE_CHECKING:
    import httpx2

MAX_ANSWER_BYTES = 64 << 20
"""Far more than a page of any API route."""

_asking: ContextVar[str | None] = ContextVar("asking", default=None)


@contextmanager
def bounded_answers(address: str) -> Iterator[None]:
    """Limit what a registry answers to the requests of this block; those of others in this process are left alone.

    An answer that is longer raises a :class:`NetworkError` where it is read.

    Args:
        address: the registry's, for the message.
    """
    from huggingface_hub import get_session

    session = get_session()
    hooks = session.event_hooks
    if _bound not in hooks["response"]:
        session.event_hooks = hooks | {"response": [*hooks["response"], _bound]}
    before = _asking.set(address)
    try:
        yield
    finally:
        _asking.reset(before)


def _bound(response: httpx2.Response) -> None:
    """Put a counter before the body of an answer, behind its decompression; the client calls this before it reads."""
    import httpx2

    address = _asking.get()
    if address is None or (response.status_code < 300 and "/api/" not in response.request.url.path):
        return
    encoded = httpx2.Response(
        response.status_code, headers=response.headers, stream=response.stream, request=response.request
    )

    class Counted(httpx2.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            left = MAX_ANSWER_BYTES
            for piece in encoded.iter_bytes():
                left -= len(piece)
                if left < 0:
                    raise NetworkError(
                        f"{address} sends more than {MAX_ANSWER_BYTES} bytes.", hint="Tell its operator."
                    )
                yield piece

        def close(self) -> None:
            encoded.close()

    response.stream = Counted()
    response.headers.pop("Content-Encoding", None)
