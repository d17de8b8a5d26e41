"""Limits on how often somebody may ask: a bucket of tokens for each account, or address of whoever has none, that fills up steadily.

Calls of the API and downloads are counted apart, as on the Hub. Each process counts for itself.
"""

from __future__ import annotations

import ipaddress
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from skillhub_registry.errors import HubError

WINDOW_SECONDS: Final = 300
"""As on the Hub, limits are said as a number of requests in five minutes."""

_BUCKETS: Final = 100_000
"""Callers that are remembered; beyond that, those who have not called for longest are forgotten."""


@dataclass(frozen=True)
class Rates:
    """How many requests in five minutes are answered; 0 for any number.

    Attributes:
        api: calls of the API.
        downloads: of files.
        local: whether callers on this machine are counted too.
    """

    api: int = 0
    downloads: int = 0
    local: bool = False


class RateLimiter:
    """Counts the requests of each caller.

    Args:
        rates: what is allowed.
        clock: returns seconds.
    """

    def __init__(self, rates: Rates, clock: Callable[[], float] = time.monotonic) -> None:
        self._rates = rates
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: dict[tuple[str, str], tuple[float, float]] = {}

    def check(self, kind: str, caller: str, address: str) -> None:
        """Count a request of a kind, ``api`` or ``downloads``.

        ``caller`` is the account, or empty where there is none: then the address counts.

        Raises:
            HubError: 429, with the time after which there is one more.
        """
        limit = self._rates.api if kind == "api" else self._rates.downloads
        if not limit or (not self._rates.local and is_local(address)):
            return
        rate, key = limit / WINDOW_SECONDS, (kind, f"account {caller}" if caller else f"address {address}")
        with self._lock:
            now = self._clock()
            left, since = self._buckets.pop(key, (float(limit), now))
            left = min(limit, left + (now - since) * rate)
            self._buckets[key] = (max(left - 1, 0.0) if left >= 1 else left, now)
            if len(self._buckets) > _BUCKETS:
                del self._buckets[next(iter(self._buckets))]
        if left < 1:
            raise _too_many(kind, limit, math.ceil((1 - left) / rate))


@lru_cache(1000)
def read_address(told: str) -> str:
    """Return the IP address that a connection or a proxy tells of a client; ``(unknown)`` for another text, which no log is to have."""
    try:
        return str(ipaddress.ip_address(told.partition("%")[0])) if told else ""
    except ValueError:
        return "(unknown)"


@lru_cache(1000)
def is_local(address: str) -> bool:
    """Say whether an address is this machine's own."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _too_many(kind: str, limit: int, seconds: int) -> HubError:
    name = "api" if kind == "api" else "resolvers"
    headers = {
        "Retry-After": str(seconds),
        "RateLimit": f'"{name}";r=0;t={seconds}',
        "RateLimit-Policy": f'"fixed window";"{name}";q={limit};w={WINDOW_SECONDS}',
    }
    message = f"More than {limit} requests in {WINDOW_SECONDS // 60} minutes; try again in {seconds} s"
    return HubError(429, "TooManyRequests", message, headers=headers)
