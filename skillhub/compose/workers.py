"""Making tensors of a composition ahead, several at a time: one alone keeps few of a machine's processors busy."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from skillhub.compose.merging import Contribution
from skillhub.fingerprint import processors
from skillhub.packdeltas import PackDelta

MOST_WORKERS = 8

AHEAD_BYTES = 4 << 30
"""Most memory for what is made at a time, unless one tensor takes more."""

BYTES = 16
"""What an element takes while it is merged: the base, the delta, their sum and what is rounded."""

T = TypeVar("T")
Item = TypeVar("Item")


def worker_count(contributions: Sequence[Contribution]) -> int:
    """Return how many tensors may be made at a time: adapters and checkpoints look at the base, which is being written to."""
    if not all(isinstance(one.delta, PackDelta) for one in contributions):
        return 1
    return min(processors(), MOST_WORKERS)


def made_ahead(
    make: Callable[[Item], T], items: Sequence[Item], elements: Callable[[Item], int], workers: int
) -> Generator[T, None, None]:
    """Yield what is made of each item, in order, while threads make what comes next, each on one processor.

    Args:
        make: makes something of an item, in any thread.
        items: the items.
        elements: how many elements what is made of an item has, at most.
        workers: how many are made at a time.

    Raises:
        Exception: what ``make`` raises, at the item's turn; what was begun ends before that.
    """
    if workers < 2 or len(items) < 2:
        yield from map(make, items)
        return
    threads, taken = torch.get_num_threads(), 0
    waiting: deque[tuple[int, Future[T]]] = deque()
    # Many threads that work on one small chunk are slower than one, and those of numpy's products are in their way.
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            for item in items:
                size = BYTES * elements(item)
                while waiting and (len(waiting) > workers or taken + size > AHEAD_BYTES):
                    done, future = waiting.popleft()
                    yield future.result()
                    taken -= done
                waiting.append((size, pool.submit(make, item)))
                taken += size
            while waiting:
                yield waiting.popleft()[1].result()
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)  # of threads that begin later
