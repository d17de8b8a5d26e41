"""What the resolver is asked: the requirements, the base, and everything else that decides which releases are chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from packaging.version import Version

from skillhub.names import PackName, Requirement
from skillhub.releases import Release, ReleaseIndex
from skillhub.resolver.candidates import BaseClaim, Rejection

DEFAULT_LIMIT = 100_000
"""Steps after which the solver gives up: several times what 500 packs of 20 versions need, and at most half a minute."""

Screen = Callable[[PackName, Release], Rejection | None]
"""Says why a release that would do otherwise must not be taken: a policy, a cut-off; None when it may."""

ReadIndexes = Callable[[Sequence[PackName]], Mapping[PackName, ReleaseIndex]]
"""Reads the releases of packs, several at once; a name that is missing in the answer has no repository."""


@dataclass(frozen=True)
class Problem:
    """What is wanted.

    Attributes:
        requirements: what the environment asks for; each one's text is what its author wrote, and what messages quote. The
            pack of a folder has no owner.
        base: what variants must be for; None takes any.
        locked: versions to prefer as long as they will do; they may be yanked or pre-releases.
        constraints: narrow the versions of packs that come in anyway.
        overrides: take the place of every requirement on their packs, the environment's own included.
        allow_pre: whether pre-releases will do where no requirement names one.
        with_dependencies: whether packs that others require come in.
        screen: asked last, for releases that would do otherwise.
        limit: steps after which the solver gives up.
    """

    requirements: tuple[Requirement, ...]
    base: BaseClaim | None = None
    locked: Mapping[PackName, Version] = field(default_factory=dict)
    constraints: tuple[Requirement, ...] = ()
    overrides: tuple[Requirement, ...] = ()
    allow_pre: bool = False
    with_dependencies: bool = True
    screen: Screen | None = None
    limit: int = DEFAULT_LIMIT
