"""The choice: the newest releases that will do together, or sentences that say why there are none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from skillhub.errors import ResolutionError, ResolverLimitError, SkillhubError, WrongBaseError
from skillhub.names import PackName
from skillhub.releases import ReleaseIndex
from skillhub.resolver.engine import OutOfStepsError, UnsolvableError, solve
from skillhub.resolver.listings import Listings
from skillhub.resolver.problem import Problem, ReadIndexes
from skillhub.resolver.resolution import Pick, Resolution, notes_on

_NAMED = 6  # packs that an error names where there may be hundreds


def resolve(problem: Problem, read_indexes: ReadIndexes) -> Resolution:
    """Choose releases that will do together; the same problem gives the same choice.

    Args:
        problem: what is wanted.
        read_indexes: reads the releases of packs.

    Raises:
        ResolutionError: no releases will do together.
        WrongBaseError: only the base is in the way.
        ResolverLimitError: the solver gave up.
        SkillhubError: as ``read_indexes`` and the problem's screen.
    """
    read = _remember(read_indexes)
    try:
        return choose(Listings(problem, read), problem.limit)
    except OutOfStepsError as error:
        raise _gave_up(error.keys, problem) from error
    except UnsolvableError as error:
        raise _explain(problem, read) from error


def _explain(problem: Problem, read: ReadIndexes) -> SkillhubError:
    wanted = ", ".join(sorted(one.text for one in problem.requirements))
    if problem.base is not None:
        try:
            choose(Listings(replace(problem, base=None), read), problem.limit)
        except (SkillhubError, OutOfStepsError, UnsolvableError):
            pass
        else:
            return WrongBaseError(f"No releases of {wanted} fit {problem.base}.", hint="Use another base.")
    return ResolutionError(f"No releases of {wanted} will do together.")


def choose(listings: Listings, limit: int) -> Resolution:
    """Return what to install.

    Raises:
        UnsolvableError: there is no solution.
        OutOfStepsError: none was found within the limit.
    """
    chosen = solve(listings, limit)
    picks, notes = [], []
    for key in sorted(chosen):
        listing, candidate = listings[key], listings[key].accepted[chosen[key]]
        requires = {one.written.pack for one in listings.declared(key, chosen[key])}
        dependencies = tuple(sorted(requires, key=lambda name: str(name).lower()))
        picks.append(Pick(listing.name, candidate.release, candidate.fingerprint, dependencies))
        notes += notes_on(listing.name, candidate.release, listing.index or ReleaseIndex())
    return Resolution(tuple(picks), tuple(notes))


def _remember(read_indexes: ReadIndexes) -> ReadIndexes:
    """Return what reads each pack once, however often it is asked for."""
    known: dict[PackName, ReleaseIndex | None] = {}

    def read(names: Sequence[PackName]) -> Mapping[PackName, ReleaseIndex]:
        new = [name for name in names if name not in known]
        if new:
            found = read_indexes(new)
            known.update({name: found.get(name) for name in new})
        return {name: index for name in names if (index := known[name]) is not None}

    return read


def _gave_up(keys: Sequence[str], problem: Problem) -> ResolverLimitError:
    named = ", ".join(keys[:_NAMED]) + (f" and {len(keys) - _NAMED} others" if len(keys) > _NAMED else "")
    return ResolverLimitError(
        f"No choice of releases was found in {problem.limit} steps, and none was ruled out; what could not be settled is {named}.",
        hint="Ask for narrower versions of these packs, such as the ones that you know to work together.",
        packs=list(keys[:50]),
    )
