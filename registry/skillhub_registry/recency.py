"""What was done lately need not be done again: of several who ask at once one does it, and the others learn how it ended."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Final

from skillhub_registry.errors import HubError

_REMEMBERED: Final = 10_000
"""Beyond that, what has not been asked for longest is forgotten."""


@dataclass
class _Attempt:
    lock: threading.Lock = field(default_factory=threading.Lock)
    ended_at: float | None = None
    error: HubError | None = None


class Recent:
    """What was done lately, by key.

    Args:
        seconds: how long it stays done, or failed.
        clock: returns seconds.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._attempts: dict[Hashable, _Attempt] = {}

    def run(self, key: Hashable, action: Callable[[], None]) -> None:
        """Do something, unless it was done lately or while this call waited.

        Raises:
            HubError: whatever the action raised, then or now.
        """
        asked_at = self._clock()
        attempt = self._find(key)
        with attempt.lock:
            if attempt.ended_at is None or attempt.ended_at + self._seconds <= asked_at:
                attempt.error = None
                try:
                    action()
                except HubError as error:
                    attempt.error = _without_traces(error)
                attempt.ended_at = self._clock()
            if attempt.error is not None:
                raise _without_traces(attempt.error)

    def recall(self, key: Hashable) -> bool:
        """Say, without waiting for anybody, whether something was done lately.

        Raises:
            HubError: it failed lately, with that.
        """
        with self._lock:
            attempt = self._attempts.get(key)
        if attempt is None or attempt.ended_at is None or attempt.ended_at + self._seconds <= self._clock():
            return False
        if (error := attempt.error) is not None:
            raise _without_traces(error)
        return True

    def _find(self, key: Hashable) -> _Attempt:
        with self._lock:
            attempt = self._attempts.pop(key, None) or _Attempt()
            self._attempts[key] = attempt
            if len(self._attempts) > _REMEMBERED:
                del self._attempts[next(iter(self._attempts))]
            return attempt


def _without_traces(error: HubError) -> HubError:
    """Return another error that says the same: tracebacks keep all that the failing functions held, such as large answers."""
    return HubError(
        error.status,
        error.code,
        error.message,
        header_message=error.header_message,
        headers=error.headers,
        body=error.body,
    )
