"""Threads in which requests are answered: those who wait for their turn to change something keep nobody from reading."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, ParamSpec, TypeVar

from anyio import CapacityLimiter, to_thread

P = ParamSpec("P")
T = TypeVar("T")

_READING: Final = CapacityLimiter(24)
_CHANGING: Final = CapacityLimiter(12)
"""Most of these wait, for the disk or for one another: more of them would not do more."""


async def run_reading(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function that changes nothing, or next to nothing."""
    return await to_thread.run_sync(lambda: function(*args, **kwargs), limiter=_READING)


async def run_changing(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function that stores something."""
    return await to_thread.run_sync(lambda: function(*args, **kwargs), limiter=_CHANGING)
