"""The choice: the newest releases that will do together, or sentences that say why there are none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from skillhub.errors import ResolutionError, ResolverLimitError, SkillhubError, WrongBaseError
from skillhub.names import PackName
from skillhub.releases import ReleaseIndex
from skillhub.resolver.candidates import BaseClaim
from skillhub.resolver.engine import Meter, OutOfStepsError, Step, UnsolvableError, solve
from skillhub.resolver.explanations import Explanation, explain
from skillhub.resolver.hints import Failure, base_hint, find_hints
from skillhub.resolver.listings import Listings
from skillhub.resolver.problem import Problem, ReadIndexes
from skillhub.resolver.resolution import Pick, Resolution, notes_on
from skillhub.resolver.wording import enumerate_words, shortened

_NAMED = 8  # packs that an error names where there may be hundreds
_IN_DETAILS = 50

MAX_PACKS = 5_000
"""Packs whose releases are read at most; each takes a request."""


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
    listings = Listings(problem, read)
    try:
        return _resolution(listings, solve(listings, Meter(problem.limit)))
    except OutOfStepsError as error:
        raise _gave_up(error.keys, listings) from None
    except UnsolvableError as error:
        raise _no_solution(listings, error.proof, read) from None


def _resolution(listings: Listings, chosen: Mapping[str, int]) -> Resolution:
    """Return what to install, of the releases that were chosen."""
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
        if len(known) + len(new) > MAX_PACKS:  # a publisher may have made packs that require others without end
            raise ResolverLimitError(
                f"More than {MAX_PACKS} packs would have to be looked at, among the last of them "
                f"{enumerate_words([str(name) for name in new], most=_NAMED)}.",
                hint="Leave out what requires them; `--no-deps` installs a pack without what it requires.",
                packs=[str(name) for name in new[:_IN_DETAILS]],
            )
        if new:
            found = read_indexes(new)
            known.update({name: found.get(name) for name in new})
        return {name: index for name in names if (index := known[name]) is not None}

    return read


def _gave_up(keys: Sequence[str], listings: Listings) -> ResolverLimitError:
    names = [str(listings[key].name) for key in keys]
    return ResolverLimitError(
        f"No releases that will do together were found in {listings.problem.limit} steps. What could not be settled is "
        f"{enumerate_words(names, most=_NAMED)}.",
        hint="Ask for versions of these packs that are known to go together: 'OWNER/NAME==VERSION'.",
        packs=names[:_IN_DETAILS],
    )


def _no_solution(listings: Listings, proof: Step, read: ReadIndexes) -> SkillhubError:
    """Return the error that explains why there is no solution, and what would help."""
    problem = listings.problem
    told = explain(listings, proof)
    failure = Failure(problem, read, listings, tuple(one.written for one in told.wanted))
    texts = list(dict.fromkeys(map(str, told.wanted)))
    details = {"requirements": texts[:_IN_DETAILS], "chain": list(told.lines), "rejected": told.reasons}
    base = base_hint(failure)
    message = _message(told, texts, problem.base if base else None)
    if base:
        return WrongBaseError(message, hint=base, **details)
    return ResolutionError(message, hint=" ".join(find_hints(failure)), **details)


def _message(told: Explanation, wanted: Sequence[str], base: BaseClaim | None) -> str:
    """Return the explanation; it speaks of the base where that alone is in the way."""
    asked = enumerate_words([shortened(text) for text in wanted], most=_NAMED)
    if not told.lines:
        start = f"No release that {asked} allows fits {base}" if base else f"No release of {asked} will do"
        return f"{start}: {'; '.join(told.reasons.values())}."
    if len(wanted) == 1:
        start = f"No release of {asked} fits {base} with what it requires" if base else f"No release of {asked} will do"
    else:
        start = f"{asked} do not fit {base} together" if base else f"{asked} cannot be had together"
    return "\n  ".join([f"{start}:", *told.lines, *(f"{name} {why}." for name, why in told.reasons.items())])
