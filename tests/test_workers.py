"""Tensors that are made ahead by threads."""

from __future__ import annotations

import threading
from contextlib import closing

import pytest
import torch

from skillhub.compose import workers
from skillhub.compose.workers import made_ahead


@pytest.mark.parametrize("count", [1, 2, 8])
def test_what_is_made_comes_in_order_from_threads_of_one_processor_each(count: int):
    threads, seen = torch.get_num_threads(), set()

    def make(number: int) -> int:
        seen.add(threading.get_ident())
        assert count == 1 or torch.get_num_threads() == 1
        return number * number

    assert list(made_ahead(make, range(50), lambda _: 1, count)) == [number * number for number in range(50)]
    assert len(seen) <= count and (threading.get_ident() in seen) == (count == 1)
    assert torch.get_num_threads() == threads
    later: list[int] = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [threads]


def test_no_more_is_made_ahead_than_there_is_memory_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(workers, "AHEAD_BYTES", 3 * workers.BYTES * 100)
    begun: list[int] = []
    sizes = [100, 100, 250, 1000, 10, 10]
    with closing(made_ahead(lambda number: begun.append(number), range(6), sizes.__getitem__, 4)) as made:
        at_most = []
        for done, _ in enumerate(made):
            at_most.append(max(begun))
            assert sum(sizes[done : max(begun) + 1]) <= 300 or max(begun) <= done + 1
    assert begun == list(range(6)) and at_most[0] <= 1


def test_an_error_comes_at_its_turn_and_ends_the_rest():
    begun: list[int] = []

    def make(number: int) -> int:
        begun.append(number)
        return 1 // (number - 3)

    found = []
    with pytest.raises(ZeroDivisionError):
        for one in made_ahead(make, range(100), lambda _: 1, 2):
            found.append(one)
    assert len(found) == 3 and len(begun) < 10
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")]


def test_a_block_that_ends_early_leaves_no_threads():
    with closing(made_ahead(lambda number: number, range(100), lambda _: 1, 2)) as made:
        assert next(made) == 0
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")]
