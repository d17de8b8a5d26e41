"""What would help where there is no solution: each guess is tried, and told only where it would.

A guess changes one thing about the problem. The mildest come first, and a few are enough.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from skillhub.errors import SkillhubError
from skillhub.names import PackName, Requirement
from skillhub.packs import short_fingerprint
from skillhub.releases import ReleaseIndex
from skillhub.resolver.candidates import list_bases
from skillhub.resolver.engine import Meter, OutOfStepsError, UnsolvableError, solve
from skillhub.resolver.listings import Listings
from skillhub.resolver.problem import Problem, ReadIndexes
from skillhub.resolver.resolution import Pick
from skillhub.resolver.wording import enumerate_words, shortened

_LIMIT = 20_000  # steps for one guess
_ALL = 50_000  # steps for all guesses together
_MAX_GUESSES = 4  # of a kind
_ENOUGH = 2  # hints


@dataclass
class Failure:
    """A problem without solution.

    Attributes:
        problem: the problem.
        read: reads the releases of packs.
        listings: the packs that came up.
        wanted: the user's requirements that have to do with it.
        steps: how many are left for guesses.
    """

    problem: Problem
    read: ReadIndexes
    listings: Listings
    wanted: tuple[Requirement, ...]
    steps: int = _ALL

    def attempt(self, problem: Problem, *, read: ReadIndexes | None = None) -> list[Pick] | None:
        """Return the solution of another problem, or None."""
        if not self.steps:
            return None
        meter = Meter(min(_LIMIT, self.steps))
        try:
            listings = Listings(problem, read or self.read)
            chosen = solve(listings, meter)
        except (SkillhubError, UnsolvableError, OutOfStepsError):  # a guess that leads nowhere is no hint
            return None
        finally:
            self.steps = max(self.steps - meter.used, 0)
        found = [(listings[key].name, listings[key].accepted[number]) for key, number in sorted(chosen.items())]
        return [Pick(name, one.release, one.fingerprint) for name, one in found]


def find_hints(failure: Failure) -> list[str]:
    """Return sentences about what would help, the mildest first."""
    found: list[str] = []
    for guess in (_exclusive, _unknown, _pre_release, _rules, _screen, _other_versions, _yanked, _leave_out):
        for hint in guess(failure):
            found.append(hint)
            if len(found) == _ENOUGH:
                return found
        if found and guess is _other_versions:
            break  # what is worse need not be said
    return found or [_last_resort(failure)]


def _last_resort(failure: Failure) -> str:
    if len(failure.problem.requirements) > 1:
        return "No single change to what is asked for would help; ask for fewer of these packs together."
    pack = failure.problem.requirements[0].pack
    listing = failure.listings[failure.listings.key_of(pack)]
    if listing.index is not None and not listing.candidates:
        return "Its publisher has to publish one."
    return f"No other release of {pack} would do either; tell its publisher."


def base_hint(failure: Failure) -> str | None:
    """Return which bases would do, where the base is the only thing in the way; else None."""
    known = [one for key in failure.listings for one in failure.listings[key].candidates]
    if not any(one.rejection is not None and one.rejection.kind == "base" for one in known):
        return None
    picks = failure.attempt(replace(failure.problem, base=None))
    if picks is None:
        return None
    fits = [{one.fingerprint for one in pick.release.event.variants} for pick in picks]
    common = sorted(set.intersection(*fits)) if fits else []
    names = enumerate_words([str(pick.name) for pick in picks])
    if len(picks) == 1:
        listing = failure.listings[str(picks[0].name).lower()]
        out = [
            one for one in reversed(listing.candidates) if one.rejection is not None and one.rejection.kind == "base"
        ]
        bases = list_bases([picks[0].release, *(one.release for one in out)])
        return f"{names} has variants for {bases}; use one of these bases."
    if common:
        bases = enumerate_words([short_fingerprint(one) for one in common], last="or")
        return f"{names} go together on the base {bases}; use that one."
    each = [f"{pick.name} is for {list_bases([pick.release])}" for pick in picks]
    return f"No base fits them all: {enumerate_words(each)}. Install them for their own bases, each in its environment."


def _exclusive(failure: Failure) -> Iterator[str]:
    for one in failure.wanted:
        if exclude_each_other(one.specifier):
            clauses = " and ".join(sorted(map(str, one.specifier)))
            yield f"No version can match {clauses}: they exclude each other. Leave one out."


def _unknown(failure: Failure) -> Iterator[str]:
    missing = [str(failure.listings[key].name) for key in failure.listings if failure.listings[key].index is None]
    if missing:
        yield (
            f"No registry has {enumerate_words(sorted(missing), last='or')}; if it is on another one, add that: see "
            "`skillhub config list`."
        )


def _pre_release(failure: Failure) -> Iterator[str]:
    if failure.problem.allow_pre:
        return
    picks = failure.attempt(replace(failure.problem, allow_pre=True)) or []
    found = [pick for pick in picks if pick.release.version.is_prerelease]
    if found:
        asks = enumerate_words([f"'{pick.name}=={pick.release.version}'" for pick in found])
        yield f"A pre-release exists; ask for it by name: {asks}."


def _rules(failure: Failure) -> Iterator[str]:
    """Try without each constraint and override that is about a pack that came up."""
    problem, known = failure.problem, set(failure.listings)
    for what, rules in (("constraint", problem.constraints), ("override", problem.overrides)):
        for rule in [one for one in rules if failure.listings.key_of(one.pack) in known][:_MAX_GUESSES]:
            rest = tuple(one for one in rules if one is not rule)
            other = replace(problem, constraints=rest) if what == "constraint" else replace(problem, overrides=rest)
            if failure.attempt(other) is not None:
                yield f"Without the {what} '{shortened(rule.text)}' there is a solution."


def _screen(failure: Failure) -> Iterator[str]:
    if failure.problem.screen is None:
        return
    picks = failure.attempt(replace(failure.problem, screen=None)) or []
    told = []
    for pick in picks:
        rejection = failure.problem.screen(pick.name, pick.release)
        if rejection is not None:
            told.append(f"{pick.name} {pick.release.version}, which {shortened(rejection.reason)}")
    if told:
        yield f"What would do is {enumerate_words(told, most=2)}."


def _other_versions(failure: Failure) -> Iterator[str]:
    """Try what the user asks for with other versions of one pack at a time."""
    narrow = [one for one in failure.wanted if one.specifier != SpecifierSet()]
    for one in narrow[:_MAX_GUESSES]:
        loose = Requirement(one.pack, SpecifierSet(), str(one.pack))
        rest = tuple(loose if other is one else other for other in failure.problem.requirements)
        picks = failure.attempt(replace(failure.problem, requirements=rest)) or []
        for pick in picks:
            version = pick.release.version
            if pick.name == one.pack and not one.specifier.contains(version, prereleases=True):
                yield _instead(failure, one, version, alone=len(failure.problem.requirements) == 1)


def _instead(failure: Failure, wanted: Requirement, version: Version, *, alone: bool) -> str:
    ask = f"'{wanted.pack}=={version}'"
    if alone:
        listing = failure.listings[failure.listings.key_of(wanted.pack)]
        finals = [one for one in listing.accepted if not one.version.is_prerelease]
        if finals and finals[-1].version == version:
            return f"The newest release is {version}; ask for it: {ask}."
    return f"With {wanted.pack} {version} there is a solution; ask for {ask} in place of '{shortened(wanted.text)}'."


def _yanked(failure: Failure) -> Iterator[str]:
    def read(names: Sequence[PackName]) -> Mapping[PackName, ReleaseIndex]:
        found = failure.read(names)
        return {
            name: replace(index, releases=tuple(replace(one, yanked=None) for one in index.releases))
            for name, index in found.items()
        }

    listings = failure.listings
    yanked = {
        (str(listings[key].name).lower(), one.version)
        for key in listings
        for one in listings[key].candidates
        if one.rejection is not None and one.rejection.kind == "yanked"
    }
    picks = failure.attempt(failure.problem, read=read) if yanked else None
    names = [
        f"{pick.name} {pick.release.version}"
        for pick in picks or ()
        if (str(pick.name).lower(), pick.release.version) in yanked
    ]
    if names:
        yield f"What would do was yanked ({enumerate_words(names)}); ask its publisher for a new release."


def _leave_out(failure: Failure) -> Iterator[str]:
    if len(failure.problem.requirements) < 2:
        return
    for one in failure.wanted[:_MAX_GUESSES]:
        rest = tuple(other for other in failure.problem.requirements if other is not one)
        if failure.attempt(replace(failure.problem, requirements=rest)) is not None:
            yield f"Leave out {shortened(one.text)}, or install it into another environment."


def exclude_each_other(specifier: SpecifierSet) -> bool:
    """Say whether no version whatever can match several clauses.

    Where a version matches that is no pre- or post-release, one does that is a bound, right after one, or after all that begin
    like one, down to the least of all.
    """
    clauses = list(specifier)
    if len(clauses) < 2 or any(clause.operator == "===" for clause in clauses):
        return False
    bounds = [Version("0"), *(Version(clause.version.removesuffix(".*")) for clause in clauses)]
    if any(bound.is_prerelease or bound.is_postrelease or bound.epoch for bound in bounds):
        return False  # such bounds have more neighbours than are tried
    length = max(len(bound.release) for bound in bounds)
    places: list[tuple[int, ...]] = []
    for bound in bounds:
        padded = bound.release + (0,) * (length - len(bound.release))
        places += [padded, (*padded, 1), *((*padded[:cut], padded[cut] + 1) for cut in range(length))]
    return not any(specifier.contains(".".join(map(str, place)), prereleases=True) for place in places)
