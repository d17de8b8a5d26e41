"""What is known of packs while a solution is looked for: their candidates, what these ask for, and what to try first.

Packs are told apart by keys. The releases of a pack that may be chosen are numbered, the oldest is 0, and a set of them is
an integer with one bit for each.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, reduce
from operator import and_

from packaging.specifiers import SpecifierSet

from skillhub.names import PackName, Requirement, parse_requirement
from skillhub.releases import ReleaseIndex
from skillhub.resolver.candidates import Candidate, Rejection, find_candidates
from skillhub.resolver.problem import Problem, ReadIndexes

Bits = int
"""A set of a pack's numbered releases."""

_parse = lru_cache(maxsize=1 << 16)(parse_requirement)  # releases of a pack repeat what they require


@dataclass(frozen=True)
class Demand:
    """Something that is required of a pack.

    Attributes:
        key: of the pack.
        requirement: what counts; an override may have taken the place of what was written.
        written: the requirement as its author wrote it.
    """

    key: str
    requirement: Requirement
    written: Requirement

    def __str__(self) -> str:
        if self.requirement is self.written:
            return self.written.text
        return f"{self.written.text} (the override {self.requirement.text} takes its place)"


@dataclass(frozen=True)
class Listing:
    """The releases of one pack.

    Attributes:
        name: the pack.
        index: what was read; None when no registry has the pack.
        candidates: all releases, the oldest first.
        accepted: those of them that may be chosen; their places are their numbers.
        locked: the number of the locked release, where it may be chosen.
        takes_pre: whether pre-releases will do for requirements that name none.
    """

    name: PackName
    index: ReleaseIndex | None
    candidates: tuple[Candidate, ...]
    accepted: tuple[Candidate, ...]
    locked: int | None
    takes_pre: bool
    _matching: dict[tuple[SpecifierSet, bool], Bits] = field(default_factory=dict)

    @property
    def all(self) -> Bits:
        """Every release that may be chosen."""
        return (1 << len(self.accepted)) - 1

    def matching(self, requirement: Requirement) -> Bits:
        """Return the releases that a requirement means."""
        specifier = requirement.specifier
        takes_pre = self.takes_pre or bool(specifier.prereleases)
        known = self._matching.get((specifier, takes_pre))
        if known is None:
            versions = [one.version for one in self.accepted]
            found = set(specifier.filter(versions, prereleases=True))
            known = 0
            for number, version in enumerate(versions):
                if version in found and (takes_pre or number == self.locked or not version.is_prerelease):
                    known |= 1 << number
            self._matching[specifier, takes_pre] = known
        return known

    def preferred(self, allowed: Bits) -> Iterator[int]:
        """Yield the releases of a set, the one to try first first: the locked one, then the newest."""
        if self.locked is not None and allowed >> self.locked & 1:
            yield self.locked
        for number in numbers_in(allowed, newest_first=True):
            if number != self.locked:
                yield number


def numbers_in(bits: Bits, *, newest_first: bool = False) -> list[int]:
    """Return the numbers of the releases in a set."""
    numbers = [number for number in range(bits.bit_length()) if bits >> number & 1]
    return numbers[::-1] if newest_first else numbers


@dataclass(frozen=True)
class Conflict:
    """Releases of two packs that must not be installed together.

    Attributes:
        key: the pack whose releases say so.
        bits: these releases.
        other: the other pack.
        other_bits: its releases.
    """

    key: str
    bits: Bits
    other: str
    other_bits: Bits


class Listings:
    """The packs that came up, read in waves so that many are read at once.

    Args:
        problem: what is wanted.
        read_indexes: reads the releases of packs.
    """

    def __init__(self, problem: Problem, read_indexes: ReadIndexes) -> None:
        self.problem = problem
        self._read = read_indexes
        self._known: dict[str, Listing] = {}
        asked = sorted(
            problem.requirements, key=lambda one: one.text
        )  # so that of several spellings one is always taken
        self._roots = {str(one.pack).lower(): one.pack for one in asked}
        self._folders = {name.name.lower(): key for key, name in self._roots.items() if name.owner is None}
        self._overrides = self._join_overrides()
        self._locked = {str(name).lower(): version for name, version in problem.locked.items()}
        self._screened: dict[tuple[str, int], Rejection | None] = {}
        self._waiting: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
        self._asks: dict[str, dict[str, dict[int, list[Demand]]]] = {}
        self._needs: dict[tuple[str, str], dict[int, Bits]] = {}
        self._conflicts: dict[str, dict[str, Bits]] = {}
        self.roots = self._root_demands()
        self.load(self.roots)
        self._first = self._packs_to_decide_first()

    def __getitem__(self, key: str) -> Listing:
        return self._known[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def key_of(self, name: PackName) -> str:
        """Return a pack's key: of the folder that is asked for, where it has the pack of this name."""
        key = str(name).lower()
        return key if key in self._roots else self._folders.get(name.name.lower(), key)

    def _join_overrides(self) -> dict[str, Requirement]:
        joined: dict[str, Requirement] = {}
        for rule in sorted(self.problem.overrides, key=lambda rule: rule.text):
            before = joined.get(self.key_of(rule.pack))
            if before and before.text != rule.text:
                text = f"{before.text} and {rule.text}"
                rule = Requirement(rule.pack, before.specifier & rule.specifier, text)
            joined[self.key_of(rule.pack)] = rule
        return joined

    def _root_demands(self) -> tuple[Demand, ...]:
        """Return what the user asks for, in an order that is not the user's."""
        demands = [self._demand(one) for one in self.problem.requirements]
        return tuple(sorted(demands, key=lambda one: (one.key, one.written.text, str(one.written))))

    def _demand(self, written: Requirement) -> Demand:
        key = self.key_of(written.pack)
        return Demand(key, self._overrides.get(key, written), written)

    def load(self, demands: Iterable[Demand]) -> None:
        """Read the packs that are asked for, and those that their releases would bring in, as far as can be guessed."""
        wave = [one for one in demands if one.key not in self._known]
        while wave:
            firsts = {one.key: one for one in sorted(wave, key=lambda one: one.key) if one.key not in self._known}
            names = {key: self._roots.get(key, one.written.pack) for key, one in firsts.items()}
            found = self._read(list(names.values()))
            for key, name in names.items():
                self._known[key] = self._list(key, name, found.get(name))
            wave = [more for one in firsts.values() for more in self._guess(one) if more.key not in self._known]

    def _guess(self, demand: Demand) -> Sequence[Demand]:
        listing = self._known[demand.key]
        number = next(listing.preferred(listing.matching(demand.requirement)), None)
        return () if number is None else self.demands(demand.key, number)

    def _list(self, key: str, name: PackName, index: ReleaseIndex | None) -> Listing:
        constraints = [rule for rule in self.problem.constraints if self.key_of(rule.pack) == key]
        locked = self._locked.get(key)
        found = find_candidates(index or ReleaseIndex(), base=self.problem.base, locked=locked, constraints=constraints)
        candidates = tuple(self._reject_odd(key, one) for one in found)
        accepted = tuple(one for one in candidates if one.rejection is None)
        own = [one for one in self.problem.requirements if self.key_of(one.pack) == key]
        rules = [*own, *constraints, *(rule for rule in self.problem.overrides if self.key_of(rule.pack) == key)]
        takes_pre = self.problem.allow_pre or name.owner is None or any(rule.specifier.prereleases for rule in rules)
        at = next((number for number, one in enumerate(accepted) if one.version == locked), None)
        return Listing(name, index, candidates, accepted, at, takes_pre)

    def _reject_odd(self, key: str, candidate: Candidate) -> Candidate:
        """Reject a release that requires another release of its own pack."""
        if candidate.rejection is not None or not self.problem.with_dependencies:
            return candidate
        for text in candidate.release.event.requires:
            demand = self._demand(_parse(text))
            specifier = demand.requirement.specifier
            if demand.key == key and not specifier.contains(candidate.version, prereleases=True):
                return Candidate(candidate.release, None, Rejection("itself", f"requires {demand}, not itself"))
        return candidate

    def demands(self, key: str, number: int) -> tuple[Demand, ...]:
        """Return what a release requires of other packs that come in with it."""
        return self.declared(key, number) if self.problem.with_dependencies else ()

    def declared(self, key: str, number: int) -> tuple[Demand, ...]:
        """Return what a release requires of other packs, whether they come in or not."""
        requires = self._known[key].accepted[number].release.event.requires
        return tuple(one for one in map(self._demand, map(_parse, requires)) if one.key != key)

    def choose(self, key: str, allowed: Bits) -> int | None:
        """Return the release of a set to try first, or None when none may be taken."""
        for number in self._known[key].preferred(allowed):
            if self.screen(key, number) is None:
                return number
        return None

    def screen(self, key: str, number: int) -> Rejection | None:
        """Return why a release must not be taken although it would do, or None."""
        if self.problem.screen is None:
            return None
        if (key, number) not in self._screened:
            listing = self._known[key]
            self._screened[key, number] = self.problem.screen(listing.name, listing.accepted[number].release)
        return self._screened[key, number]

    def screened(self, key: str, number: int) -> Rejection | None:
        """Return why a release must not be taken, as far as that was asked; None otherwise."""
        return self._screened.get((key, number))

    def needs(self, key: str, number: int) -> Mapping[str, Bits]:
        """Return what a release requires: for each pack the releases that will do."""
        demands = self.demands(key, number)
        self.load(demands)
        return {one.key: self._needs_on(key, one.key)[number] for one in demands}

    def sharing(self, key: str, other: str, bits: Bits) -> Bits:
        """Return the releases of a pack that require exactly these releases of another one."""
        return sum(1 << number for number, need in self._needs_on(key, other).items() if need == bits)

    def _needs_on(self, key: str, other: str) -> Mapping[int, Bits]:
        """Return for the releases of a pack that require another one which releases of it they require."""
        if (key, other) not in self._needs:
            listing = self._known[other]
            self._needs[key, other] = {
                number: reduce(and_, [listing.matching(one.requirement) for one in demands])
                for number, demands in self._asks_of(key)[other].items()
            }
        return self._needs[key, other]

    def _asks_of(self, key: str) -> Mapping[str, Mapping[int, list[Demand]]]:
        """Return what the releases of a pack require, by the packs that they require."""
        if key not in self._asks:
            asks: dict[str, dict[int, list[Demand]]] = {}
            for number in range(len(self._known[key].accepted)):
                for one in self.demands(key, number):
                    asks.setdefault(one.key, {}).setdefault(number, []).append(one)
            self._asks[key] = asks
        return self._asks[key]

    def conflicts(self, key: str, number: int) -> list[Conflict]:
        """Return the conflicts to mind once a release is chosen; one with a pack that is not known waits until it is."""
        release = self._known[key].accepted[number].release
        said = [(key, text) for text in release.event.conflicts] + self._waiting.pop(key, [])
        found = []
        for by, text in said:
            conflict = _parse(text)
            other = self.key_of(conflict.pack)
            if other == by:
                continue
            if other not in self._known:
                self._waiting[other].append((by, text))
                continue
            falling = self._falling_under(other, conflict.specifier)
            found.append(Conflict(by, self._conflicting(by)[text], other, falling))
        return found

    def _conflicting(self, key: str) -> Mapping[str, Bits]:
        """Return which releases of a pack declare which conflicts."""
        if key not in self._conflicts:
            said: dict[str, Bits] = {}
            for number, one in enumerate(self._known[key].accepted):
                for text in one.release.event.conflicts:
                    said[text] = said.get(text, 0) | 1 << number
            self._conflicts[key] = said
        return self._conflicts[key]

    def _falling_under(self, key: str, specifier: SpecifierSet) -> Bits:
        versions = [one.version for one in self._known[key].accepted]
        found = set(specifier.filter(versions, prereleases=True))
        return sum(1 << number for number, version in enumerate(versions) if version in found)

    def rank(self, key: str) -> int:
        """Return when to decide about a pack: what is new or moves, then what is locked, then what these bring in."""
        if not self._locked:
            return 0
        if key in self._first:
            return 0
        return 1 if key in self._locked else 2

    def _packs_to_decide_first(self) -> frozenset[str]:
        """Return the packs whose versions are to move, so that what is locked does not hold them.

        They are those that are asked for and not locked, those that a locked release requires and that are not locked any
        more, and those that are preferred at a version that does not go with the other locked ones.
        """
        first = {one.key for one in self.roots if one.key not in self._locked}
        for key, listing in self._known.items():
            for one in self.demands(key, listing.locked) if listing.locked is not None else ():
                version = self._locked.get(one.key)
                if version is None:
                    first.add(one.key)
                elif not one.requirement.specifier.contains(version, prereleases=True):
                    first.add(key)
        return frozenset(first)
