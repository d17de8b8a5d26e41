"""Several processes that write one checkpoint or pack together, as ``torchrun`` starts them: who they are, and how they meet."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from torch import distributed

from skillhub.errors import SkillhubError, UsageError, may_pass
from skillhub.files import staged_folder

_PATIENCE = timedelta(days=2)
"""How long ranks wait for each other: for the slowest to do its share."""

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """The processes that work together.

    Attributes:
        rank: number of this one, from 0.
        count: how many there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that publishes and prints."""
        return self.rank == 0

    def own(self, sizes: Mapping[str, int]) -> list[str]:
        """Return, sorted, which of the things with these sizes are this process's.

        Each goes, the largest first, to whoever has the least so far.
        """
        loads = [0] * self.count
        chosen = []
        for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
            owner = loads.index(min(loads))
            loads[owner] += sizes[name]
            if owner == self.rank:
                chosen.append(name)
        return sorted(chosen)

    def gather(self, value: T) -> list[T]:
        """Return every process's value, by rank; all wait for all."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        distributed.all_gather_object(values, value)
        return values

    def share(self, work: Callable[[], T]) -> list[T]:
        """Do something in every process, and return what each got, by rank.

        Raises:
            SkillhubError: another process failed.
            Exception: what ``work`` raised here.
        """
        result: T | None = None
        failure: Exception | None = None
        try:
            result = work()
        except Exception as error:  # not an interrupt, which torchrun passes on to all
            failure = error
        self.agree(failure)
        results: list[Any] = self.gather(result)
        return results

    def agree(self, error: Exception | None) -> None:
        """Wait for all, then raise one's own error, or say whose work failed."""
        told = self.gather(None if error is None else (str(error), may_pass(error)))
        if error is not None:
            raise error
        failed = [(rank, failure) for rank, failure in enumerate(told) if failure is not None]
        if failed:
            rank, (text, _) = failed[0]
            raise _failed(rank, text, passes=all(passes for _, (_, passes) in failed))


@contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """Yield the processes that ``torchrun`` started together; this one alone where it did not.

    A process group that exists already is used and left as it is.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if distributed.is_available() and distributed.is_initialized():
        yield Ranks(distributed.get_rank(), distributed.get_world_size())
        return
    if count == 1 or "RANK" not in os.environ:
        yield Ranks()
        return
    distributed.init_process_group("gloo", timeout=_PATIENCE)
    try:
        yield Ranks(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()


@contextmanager
def shared_stage(ranks: Ranks, folder: Path) -> Iterator[Path]:
    """Yield one staged folder to all processes, on a file system that they share; the first puts it in its place once all are done.

    Raises:
        UsageError: a process does not see it.
        SkillhubError: another process failed; nothing was written.
    """
    if not ranks.leads:
        place, failure = ranks.gather(("", ""))[0]
        if failure:
            raise _failed(0, failure)
        with _all_done(ranks):
            if not Path(place).is_dir():
                raise UsageError(
                    f"Rank {ranks.rank} does not see {place}, which rank 0 made.",
                    hint="Give an output folder on a file system that all machines share.",
                )
            yield Path(place)
        ranks.agree(None)
        return
    told = written = False
    try:
        with staged_folder(folder, is_new=True) as staged:
            ranks.gather((str(staged), ""))
            told = True
            with _all_done(ranks):
                yield staged
            written = True
    except Exception as error:
        if not told:
            ranks.gather(("", str(error)))
        elif written:
            ranks.agree(error)
        raise
    ranks.agree(None)


@contextmanager
def _all_done(ranks: Ranks) -> Iterator[None]:
    """Wait at the end of the block until all have left theirs; fail where one failed."""
    failure: Exception | None = None
    try:
        yield
    except Exception as error:  # not an interrupt, which torchrun passes on to all
        failure = error
    ranks.agree(failure)


def _failed(rank: int, text: str, *, passes: bool = False) -> SkillhubError:
    facts = {"may_pass": True} if passes else {}
    return SkillhubError(
        f"Rank {rank} failed: {text}", hint="Nothing was written. Look at that process's output.", **facts
    )
