"""Packs, problems and a solver that tries everything, for the tests of the resolver."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from packaging.version import Version

from skillhub.names import PackName, Requirement, parse_pack_name, parse_requirement
from skillhub.releases import Event, Release, ReleaseIndex, ReleaseVariant
from skillhub.resolver import BaseClaim, Resolution
from skillhub.resolver.problem import Problem, ReadIndexes
from skillhub.resolver.solving import resolve
from tests.support.packs import BASE, OTHER_BASE

OURS = BaseClaim(fingerprint=BASE, name="our base")

Table = Mapping[str, Sequence[Release]]
"""Pack → its releases."""

_REQUIREMENTS = ["", "", ">=1", "<2", ">=2", "==1.0", "!=2.0", "~=2.0", ">=1.1rc1", "==3.0rc1", ">=9"]
_VERSIONS = ["0.9", "1.0", "1.1rc1", "2.0", "2.1", "3.0rc1"]


def release(
    version: str,
    requires: Sequence[str] = (),
    *,
    conflicts: Sequence[str] = (),
    bases: Sequence[str] = (BASE,),
    yanked: str | None = None,
    base_files: Sequence[str] = (),
) -> Release:
    """Return a release of some pack."""
    event = Event(
        schema=0,
        event="release",
        version=version,
        manifest="ab" * 32,
        requires=list(requires),
        conflicts=list(conflicts),
        variants=[ReleaseVariant(fingerprint=base, base_files=list(base_files)) for base in bases],
    )
    return Release(Version(version), event, yanked)


def requirements(*texts: str) -> tuple[Requirement, ...]:
    """Return requirements as they are written."""
    return tuple(map(parse_requirement, texts))


@dataclass
class Shelf:
    """Answers the resolver's question for releases, and notes what was asked at once."""

    table: Table
    asked: list[list[str]] = field(default_factory=list)

    def __call__(self, names: Sequence[PackName]) -> Mapping[PackName, ReleaseIndex]:
        self.asked.append([str(name) for name in names])
        indexes = {parse_pack_name(name): ReleaseIndex(tuple(found)) for name, found in self.table.items()}
        return {name: indexes[name] for name in names if name in indexes}


def chosen(found: Resolution) -> dict[str, str]:
    """Return the chosen version of each pack."""
    return {str(pick.name): str(pick.release.version) for pick in found.picks}


def solve(table: Table | ReadIndexes, *wanted: str, base: BaseClaim | None = OURS, **rules: object) -> dict[str, str]:
    """Return the chosen version of each pack for requirements, as they are written, and other attributes of a problem."""
    read = table if callable(table) else Shelf(table)
    return chosen(resolve(Problem(requirements(*wanted), base, **rules), read))  # type: ignore[arg-type]


def random_problem(seed: int) -> tuple[Problem, dict[str, list[Release]]]:
    """Return a small problem in which every rule has something to say."""
    rng = random.Random(seed)
    names = [f"o/p{number}" for number in range(rng.randint(2, 6))]

    def some(most: int, chance: float = 1.0) -> list[str]:
        count = rng.randint(0, most) if rng.random() < chance else 0
        return [rng.choice(names).replace("p", rng.choice("pP")) + rng.choice(_REQUIREMENTS) for _ in range(count)]

    table = {
        name: [
            release(
                version,
                some(2),
                conflicts=some(1, 0.3),
                bases=[BASE] if rng.random() < 0.85 else [OTHER_BASE],
                yanked="broken" if rng.random() < 0.1 else None,
            )
            for version in rng.sample(_VERSIONS, rng.randint(1, 4))
        ]
        for name in names
    }
    locked = {parse_pack_name(name): rng.choice(found).version for name, found in table.items() if rng.random() < 0.3}
    forbidden = {(name, str(one.version)) for name, found in table.items() for one in found if rng.random() < 0.05}
    return Problem(
        requirements=requirements(*(some(2) or [names[0]])),
        base=OURS if rng.random() < 0.8 else None,
        locked=locked if rng.random() < 0.5 else {},
        constraints=requirements(*some(1, 0.2)),
        overrides=requirements(*some(1, 0.2)),
        allow_pre=rng.random() < 0.1,
        with_dependencies=rng.random() < 0.95,
        screen=forbidding(forbidden) if rng.random() < 0.3 else None,
    ), table


def forbidding(forbidden: set[tuple[str, str]]) -> Callable[..., object]:
    """Return a screen that rejects some releases."""
    from skillhub.resolver import Rejection

    def screen(name: PackName, found: Release) -> Rejection | None:
        is_out = (str(name).lower(), str(found.version)) in forbidden
        return Rejection("policy", "is not signed, which the policy requires") if is_out else None

    return screen


def every_answer(problem: Problem, table: Table) -> Iterator[dict[str, Release]]:
    """Yield every choice of releases that will do, by trying all of them."""

    def extend(choice: dict[str, Release]) -> Iterator[dict[str, Release]]:
        if any(True for _ in complaints(problem, table, choice)):
            return
        missing = sorted(_required(problem, choice) - set(choice))
        if not missing:
            yield choice
            return
        for one in table.get(missing[0], ()):
            yield from extend({**choice, missing[0]: one})

    return extend({})


def _required(problem: Problem, choice: Mapping[str, Release]) -> set[str]:
    return {str(need.pack).lower() for need, _ in _needs(problem, choice)}


def _needs(problem: Problem, choice: Mapping[str, Release]) -> Iterator[tuple[Requirement, str]]:
    """Yield every requirement and whose it is, the user's first."""
    for one in problem.requirements:
        yield one, ""
    for name, found in choice.items():
        for text in found.event.requires if problem.with_dependencies else ():
            yield parse_requirement(text), name


def complaints(problem: Problem, table: Table, choice: Mapping[str, Release]) -> Iterator[str]:
    """Yield what is wrong with the releases that were chosen so far; none when they will do."""
    for need, asker in _needs(problem, choice):
        found = choice.get(str(need.pack).lower())
        overrides = [one for one in problem.overrides if one.pack == need.pack]
        will_do = _matches_release if str(need.pack).lower() == asker else partial(_means, problem)
        for one in overrides or [need]:
            if found is not None and not will_do(one, found):
                yield f"{one} is required by {asker}"
    for name, found in choice.items():
        version, is_locked = found.version, problem.locked.get(parse_pack_name(name)) == found.version
        if found not in table[name]:
            yield f"{name} {version} is no release"
        if found.yanked is not None and not is_locked:
            yield f"{name} {version} is yanked"
        if problem.base and found.variant_for(str(problem.base.fingerprint)) is None:
            yield f"{name} {version} is for another base"
        if any(one.pack == parse_pack_name(name) and not _matches(one, version) for one in problem.constraints):
            yield f"{name} {version} is constrained away"
        if problem.screen is not None and problem.screen(parse_pack_name(name), found):
            yield f"{name} {version} is screened out"
        for text in found.event.conflicts:
            conflict = parse_requirement(text)
            other = choice.get(str(conflict.pack).lower())
            if other is not None and other is not found and _matches(conflict, other.version):
                yield f"{name} {version} conflicts with {text}"


def _matches(requirement: Requirement, version: Version) -> bool:
    return requirement.specifier.contains(version, prereleases=True)


def _matches_release(requirement: Requirement, found: Release) -> bool:
    """Say whether a release's requirement of its own pack allows it; who wants a pre-release need not say so again."""
    return _matches(requirement, found.version)


def _means(problem: Problem, requirement: Requirement, found: Release) -> bool:
    """Say whether a requirement means a release: a pre-release only where it, or the user, names one."""
    if not _matches(requirement, found.version):
        return False
    users = [*problem.requirements, *problem.constraints, *problem.overrides]
    return (
        not found.version.is_prerelease
        or problem.allow_pre
        or problem.locked.get(requirement.pack) == found.version
        or any(one.specifier.prereleases for one in [requirement, *users] if one.pack == requirement.pack)
    )
