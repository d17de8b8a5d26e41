"""Calling again after what passes: lost connections, answers of 500 and above, and 429 for as long as the server asks.

Every wait of a second or more is told (:func:`skillhub.progress.tell_wait`), those of huggingface_hub as well, which
calls again by itself and says so in its log.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

from skillhub.errors import NetworkError
from skillhub.hub.registries import Registry
from skillhub.progress import tell_wait

MAX_WAIT_SECONDS = 300.0
"""The longest that a registry may ask to wait: the window in which the Hub counts requests."""

_WAITS_SECONDS = (0.3, 1.0)
_UNTOLD_SECONDS = 1.0
_LONGEST_SECONDS = 10**9  # an answer can ask for more than a float holds

Result = TypeVar("Result")


def retried(registry: Registry, call: Callable[[], Result]) -> Result:
    """Call again, twice, after what may pass.

    Raises:
        NetworkError: the registry asks to wait for longer than :data:`MAX_WAIT_SECONDS`.
        Exception: what the last call raised, or the first that no waiting helps.
    """
    for seconds in _WAITS_SECONDS:
        try:
            return call()
        except Exception as error:
            if not passes(error):
                raise
            wait_after(registry, error, seconds)
    return call()


def passes(error: Exception) -> bool:
    """Say whether a failed request may succeed when it is sent again."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500 or error.response.status_code == 429
    return isinstance(error, httpx2.TimeoutException | httpx2.NetworkError | httpx2.RemoteProtocolError)


def wait_after(
    registry: Registry, error: Exception, seconds: float, heartbeat: Callable[[], object] = lambda: None
) -> None:
    """Wait after a failed request: for as long as its answer asks, else for ``seconds``.

    Args:
        registry: who answered.
        error: the failure.
        seconds: where the answer says nothing.
        heartbeat: called about once a second; what it raises ends the wait.

    Raises:
        NetworkError: the answer asks for longer than :data:`MAX_WAIT_SECONDS`.
    """
    response = getattr(error, "response", None)
    asked = None if response is None else asked_seconds(response.headers)
    if asked is not None and asked > MAX_WAIT_SECONDS:
        raise NetworkError(
            f"{registry.address} asks to wait {asked:.0f} s before the next request.",
            hint="Run the same command again after that; what is here already is kept.",
            retry_after=asked,
        ) from error
    _tell(registry.address, asked)
    left = seconds if asked is None else asked
    while left > 0:
        heartbeat()
        time.sleep(min(left, 1.0))
        left -= 1.0


def _tell(who: str, seconds: float | None) -> None:
    if seconds is not None and seconds >= _UNTOLD_SECONDS:
        tell_wait(f"{who} asks to wait {seconds:.0f} s.")


def asked_seconds(headers: Any) -> float | None:
    """Return how long an answer asks to wait, by ``RateLimit`` or ``Retry-After`` (seconds or a date), or None."""
    from email.utils import parsedate_to_datetime

    from huggingface_hub.utils._http import parse_ratelimit_headers

    text = headers.get("Retry-After", "").strip()
    try:
        limit = parse_ratelimit_headers(headers)
        if limit is not None and limit.remaining == 0:
            return float(min(limit.reset_in_seconds, _LONGEST_SECONDS))
        if text.isdecimal():
            return float(min(int(text), _LONGEST_SECONDS))
        until = parsedate_to_datetime(text)
    except ValueError:  # no date, or a number of thousands of digits
        return None
    return max((until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC)).total_seconds(), 0.0)


_CLIENT_LOG = "huggingface_hub.utils._http"
_CLIENT_WAIT = re.compile(r"Rate limited\. Waiting ([0-9.]+)s")


class _ClientWaits(logging.Handler):
    """Hears from huggingface_hub's log how long it waits, which it tells in no other way.

    What the log's other readers get is what they would get without us: they may have asked for less than warnings.
    """

    def emit(self, record: logging.LogRecord) -> None:
        found = _CLIENT_WAIT.match(record.getMessage())
        if found:
            _tell("The registry", float(found[1]))
        parent = logging.getLogger("huggingface_hub")
        if record.levelno >= parent.getEffectiveLevel():
            parent.handle(record)


def hear_client() -> None:
    """Tell the waits of huggingface_hub from now on; may be called any number of times."""
    log = logging.getLogger(_CLIENT_LOG)
    if log.propagate:
        log.propagate = False
        log.addHandler(_ClientWaits())
    log.setLevel(min(logging.WARNING, logging.getLogger("huggingface_hub").getEffectiveLevel()))
