"""How long work reports that it goes on: one kind of callback for everything, and who hears of waits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, how much is done, how much there is in all), from any thread.

The amounts are bytes, tensors or rows, as the function says that takes the callback.
"""

Notice = Callable[[str], None]
"""Called with one sentence that the user should know, such as a choice that was made for them."""


def silence(sentence: str) -> None:
    """Take notices that nobody listens to."""


def counting(what: str, total: int, progress: Progress | None) -> Callable[[int], None] | None:
    """Return a function that adds up counts of bytes and reports the sum; None where nobody listens."""
    if progress is None:
        return None
    done = 0

    def report(count: int) -> None:
        nonlocal done
        done += count
        progress(what, done, total)

    return report


_hearing_waits: list[Notice] = []


@contextmanager
def waits_told(notice: Notice) -> Iterator[None]:
    """Tell ``notice`` of every wait that a registry asks for while the block runs, from any thread."""
    _hearing_waits.append(notice)
    try:
        yield
    finally:
        _hearing_waits.remove(notice)


def tell_wait(sentence: str) -> None:
    """Tell who hears of waits that one begins."""
    for notice in list(_hearing_waits):
        notice(sentence)
