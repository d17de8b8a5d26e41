"""How long work reports that it goes on: one kind of callback for everything."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, how much is done, how much there is in all), from any thread.

The amounts are bytes, tensors or rows, as the function says that takes the callback.
"""

Notice = Callable[[str], None]
"""Called with one sentence that the user should know, such as a choice that was made for them."""


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
