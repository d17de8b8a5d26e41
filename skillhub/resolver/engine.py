"""The solver: PubGrub, as nab-resolver does it. Nothing else here knows that package.

It is asked in keys and numbers (see :mod:`skillhub.resolver.listings`) and answers with numbers, or with a proof that
there is no answer. What it is told about packs it is told when it decides about them: a requirement of a release, or a
conflict, is one clause for all releases of the pack that say the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from nab_resolver.errors import ResolutionError, ResolutionLimitError
from nab_resolver.resolver import BaseProvider, Resolver, ResolverObserver
from nab_resolver.root import ROOT
from nab_resolver.types import (
    Incompatibility,
    IncompatibilityCause,
    RangeProtocol,
    RangeRelation,
    RootRequirement,
    Term,
)

from skillhub.resolver.listings import Bits, Demand, Listings


class Releases:
    """A set of a pack's releases, as the solver computes with it: the bits of an integer, all of them for -1."""

    __slots__ = ("bits",)

    def __init__(self, bits: Bits) -> None:
        self.bits = bits

    @classmethod
    def empty(cls) -> Self:
        """Return the set of none."""
        return cls(0)

    @classmethod
    def full(cls) -> Self:
        """Return the set of all."""
        return cls(-1)

    @classmethod
    def singleton(cls, version: int) -> Self:
        """Return the set of one."""
        return cls(1 << version)

    @property
    def is_empty(self) -> bool:
        """Whether there is none in the set."""
        return self.bits == 0

    def __contains__(self, version: int) -> bool:
        return bool(self.bits >> version & 1)

    def __and__(self, other: Any) -> Self:
        return type(self)(self.bits & other.bits)

    def __or__(self, other: Any) -> Self:
        return type(self)(self.bits | other.bits)

    def __sub__(self, other: Any) -> Self:
        return type(self)(self.bits & ~other.bits)

    def __invert__(self) -> Self:
        return type(self)(~self.bits)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Releases) and self.bits == other.bits

    def __hash__(self) -> int:
        return hash(self.bits)

    def is_subset(self, other: Self) -> bool:
        """Say whether all of these are among the others."""
        return self.bits & ~other.bits == 0

    def is_superset(self, other: Self) -> bool:
        """Say whether all others are among these."""
        return other.bits & ~self.bits == 0

    def is_disjoint(self, other: Self) -> bool:
        """Say whether the sets share none."""
        return self.bits & other.bits == 0

    def relation(self, other: Self) -> RangeRelation:
        """Return both answers at once."""
        common = self.bits & other.bits
        if common == 0:
            return RangeRelation.DISJOINT if self.bits else RangeRelation.EMPTY
        return RangeRelation.SUBSET if common == self.bits else RangeRelation.OVERLAPPING


StepKind = Literal["asked", "requires", "conflicts", "rejected", "follows"]


@dataclass(frozen=True)
class Claim:
    """A pack's release is (or is not) among some.

    Attributes:
        key: of the pack.
        bits: the releases.
        holds: False for "is not among them".
    """

    key: str
    bits: Bits
    holds: bool


@dataclass(frozen=True, eq=False)
class Step:
    """One step of a proof: these claims cannot all be true.

    Attributes:
        kind: ``asked`` (the user asks for it), ``requires``, ``conflicts`` (the first pack says so of the second), ``rejected``
            (all these releases were screened out), or ``follows`` from the causes.
        claims: what cannot be true together; without any, there is no solution.
        demand: of ``asked``: the user's requirement.
        causes: the two steps that this one follows from.
    """

    kind: StepKind
    claims: tuple[Claim, ...]
    demand: Demand | None = None
    causes: tuple[Step, ...] = ()


class UnsolvableError(Exception):
    """There is no solution.

    Args:
        proof: the last step, which follows from the others.
    """

    def __init__(self, proof: Step) -> None:
        super().__init__()
        self.proof = proof


class OutOfStepsError(Exception):
    """The solver gave up.

    Args:
        keys: the packs that it could not settle, the most often tried first.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        super().__init__()
        self.keys = keys


@dataclass
class Meter:
    """Counts the solver's steps: decisions, derivations, and the claims of each clause that a conflict is resolved to.

    They take about as long each. The solver's own limit counts rounds, some of which take a thousand times as long as others.

    Attributes:
        limit: the steps that there are.
        used: those that were needed so far.
    """

    limit: int
    used: int = 0

    def count(self, steps: int) -> None:
        """Note some steps.

        Raises:
            _LimitError: there were fewer left.
        """
        self.used += steps
        if self.used > self.limit:
            raise _LimitError


class _Observer(ResolverObserver[str, int]):
    """Has the meter count."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def on_decision(self, package: str, version: int, level: int) -> None:
        self._meter.count(1)

    def on_derivation(self, package: str, *, positive: bool, cause: Incompatibility[str, int]) -> None:
        self._meter.count(1)

    def on_conflict_step(self, incompatibility: Incompatibility[str, int], **_: Any) -> None:
        self._meter.count(len(incompatibility.terms))


class _LimitError(Exception):
    """There are no steps left."""


def solve(listings: Listings, meter: Meter) -> dict[str, int]:
    """Return the number of the chosen release of each pack that comes in.

    Args:
        listings: the packs.
        meter: says when to give up.

    Raises:
        UnsolvableError: there is no solution.
        OutOfStepsError: none was found within the meter's limit.
    """
    resolver: Resolver[str, int] = Resolver(
        _Provider(listings),
        _Observer(meter),
        max_iterations=meter.limit + 1,
        range_type=Releases,
        root_version=0,
        format_range=_nothing,
    )
    wanted: list[RootRequirement[str, int]] = [
        RootRequirement(one.key, Releases(listings[one.key].matching(one.requirement)), origin=one)
        for one in listings.roots
    ]
    try:
        return resolver.resolve(wanted)
    except (_LimitError, ResolutionLimitError):
        counts = resolver.stats.package_conflict_counts
        raise OutOfStepsError(sorted(counts, key=lambda key: (-counts[key], key)) or list(listings)) from None
    except ResolutionError as error:
        if error.incompatibility is None or type(error) is not ResolutionError:
            raise  # a fault of the solver's, which is no proof
        raise UnsolvableError(_convert(error.incompatibility)) from None


def _nothing(releases: object) -> str:
    """Word a set of releases for the solver's own report, which nobody reads."""
    return ""


class _Provider(BaseProvider[str, int]):
    """Answers the solver's questions from the listings."""

    def __init__(self, listings: Listings) -> None:
        self._listings = listings
        self._told: set[tuple[str, str, Bits, bool]] = set()
        self._untold: list[Incompatibility[str, int]] = []
        self._releases: dict[Bits, Releases] = {}

    def _set(self, bits: Bits) -> Releases:
        """Return one and the same object for equal sets: the solver remembers what it computed by identity."""
        return self._releases.setdefault(bits, Releases(bits))

    def choose_version(self, package: str, version_range: RangeProtocol[int]) -> int | None:
        number = self._listings.choose(package, _bits(version_range))
        if number is not None:
            for other, bits in self._listings.needs(package, number).items():
                self._tell(package, self._listings.sharing(package, other, bits), other, bits, forbids=False)
            for one in self._listings.conflicts(package, number):
                self._tell(one.key, one.bits, one.other, one.other_bits, forbids=True)
        return number

    def _tell(self, key: str, bits: Bits, other: str, other_bits: Bits, *, forbids: bool) -> None:
        """Have the solver told that some releases require, or forbid, some of another pack."""
        fact = (key, other, other_bits, forbids)
        if fact in self._told or (forbids and not other_bits):
            return
        self._told.add(fact)
        terms: list[Term[str, int]] = [
            Term(key, self._set(bits), positive=True),
            Term(other, self._set(other_bits), positive=forbids),
        ]
        self._untold.append(Incompatibility(terms, cause=IncompatibilityCause.DEPENDENCY))

    def consume_pending_clauses(self) -> list[Incompatibility[str, int]]:
        untold, self._untold = self._untold, []
        return untold

    def has_satisfying_version(self, package: str, version_range: RangeProtocol[int]) -> bool:
        return self._listings.choose(package, _bits(version_range)) is not None

    def get_dependencies(self, package: str, version: int) -> Mapping[str, RangeProtocol[int]]:
        needs = self._listings.needs(package, version)
        return {other: self._set(bits) for other, bits in needs.items()}

    def prioritize(
        self,
        package: str,
        version_range: RangeProtocol[int],
        conflict_counts: Mapping[str, int],
        culprit_counts: Mapping[str, int] | None = None,
    ) -> tuple[int, int]:
        # the pack with the least choice: where nothing is left the way back is short; counting conflicts was no better
        return self._listings.rank(package), _bits(version_range).bit_count()

    def widen_decision(self, package: str, version: int) -> None:
        return None


def _bits(releases: RangeProtocol[int]) -> Bits:
    assert isinstance(releases, Releases)
    return releases.bits


def _convert(last: Incompatibility[Any, Any]) -> Step:
    """Return the solver's proof in our words; equal parts stay one step."""
    steps: dict[int, Step] = {}
    for one in _causes_first(last):
        causes = tuple(steps[id(cause)] for cause in (one.cause_left, one.cause_right) if cause is not None)
        claims = tuple(
            Claim(term.package, _bits(term.constraint), term.is_positive())
            for term in one.terms
            if term.package is not ROOT
        )
        demand = one.origin if isinstance(one.origin, Demand) else None
        steps[id(one)] = Step(_KINDS[one.cause](claims), claims, demand, causes)
    return steps[id(last)]


_KINDS: Mapping[IncompatibilityCause, Callable[[Sequence[Claim]], StepKind]] = {
    IncompatibilityCause.ROOT: lambda claims: "asked",
    IncompatibilityCause.DEPENDENCY: lambda claims: "conflicts" if claims[-1].holds else "requires",
    IncompatibilityCause.NO_VERSIONS: lambda claims: "rejected",
    IncompatibilityCause.DERIVED: lambda claims: "follows",
}


def _causes_first(last: Incompatibility[Any, Any]) -> Iterator[Incompatibility[Any, Any]]:
    """Yield every part of a proof once, after its causes; proofs are deeper than Python's stack."""
    pending = [(last, False)]
    seen: set[int] = set()
    while pending:
        one, is_open = pending.pop()
        if is_open:
            yield one
        elif id(one) not in seen:
            seen.add(id(one))
            pending.append((one, True))
            pending += [(cause, False) for cause in (one.cause_right, one.cause_left) if cause is not None]
