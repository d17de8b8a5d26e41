"""The choice: for each requirement the newest candidate that will do, or sentences that say why there is none.

Packs that require others are refused: what they need is not looked for yet, and must not be ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from skillhub.errors import ResolutionError, SkillhubError, WrongBaseError
from skillhub.names import PackName, Requirement, parse_requirement
from skillhub.releases import Release, ReleaseIndex
from skillhub.resolver.candidates import BaseClaim, Candidate, RejectionKind, find_candidates, list_bases

MAX_REASONS = 8
"""Candidates whose rejection is told; of the others only the number."""


@dataclass(frozen=True)
class Request:
    """One pack to choose a release of.

    Attributes:
        requirement: with the pack's owner.
        index: the pack's releases.
        locked: the version that is locked, which is preferred as long as it will do.
    """

    requirement: Requirement
    index: ReleaseIndex
    locked: Version | None = None


@dataclass(frozen=True)
class Pick:
    """The chosen release of a pack.

    Attributes:
        name: the pack.
        release: the release.
        fingerprint: of the variant to install; None when no base was asked for.
    """

    name: PackName
    release: Release
    fingerprint: str | None


@dataclass(frozen=True)
class Resolution:
    """What to install.

    Attributes:
        picks: one for each request, in their order.
        notes: sentences for the user: yanked releases that stay, deprecated packs, newer pre-releases.
    """

    picks: tuple[Pick, ...]
    notes: tuple[str, ...] = ()


def resolve(requests: Sequence[Request], *, base: BaseClaim | None) -> Resolution:
    """Choose a release for every request; the same input gives the same choice.

    Args:
        requests: what is wanted.
        base: what variants must be for; None takes any.

    Raises:
        ResolutionError: no release of a pack will do, the one that would requires other packs, or two conflict.
        WrongBaseError: the only thing wrong with a pack's releases is that none is for the base.
    """
    picks, notes = [], []
    for request in requests:
        candidates = find_candidates(request.requirement, request.index, base=base, locked=request.locked)
        chosen = _choose(candidates, request.locked)
        if chosen is None:
            raise explain(request, candidates, base)
        _refuse_dependencies(request, chosen, candidates)
        picks.append(Pick(request.requirement.pack, chosen.release, chosen.fingerprint))
        notes += _notes(request, chosen)
    _refuse_conflicts(picks)
    return Resolution(tuple(picks), tuple(notes))


def _choose(candidates: Sequence[Candidate], locked: Version | None) -> Candidate | None:
    """Return the locked candidate if it is accepted, else the newest accepted one."""
    accepted = [candidate for candidate in candidates if candidate.rejection is None]
    kept = [candidate for candidate in accepted if candidate.version == locked]
    return next(iter(kept or accepted), None)


def explain(request: Request, candidates: Sequence[Candidate], base: BaseClaim | None) -> SkillhubError:
    """Return the error for a pack none of whose releases will do: each release's reason, and hints."""
    wanted = request.requirement.text
    if not candidates:
        return ResolutionError(f"{request.requirement.pack} has no releases.", hint="Its publisher has to publish one.")
    kinds = {candidate.rejection.kind for candidate in candidates if candidate.rejection}
    told = [
        f"{candidate.version} {candidate.rejection.reason}"
        for candidate in candidates[:MAX_REASONS]
        if candidate.rejection
    ]
    if len(candidates) > MAX_REASONS:
        told.append(f"{len(candidates) - MAX_REASONS} older releases are out as well")
    details = {"requirement": wanted, "rejected": told}
    why = "; ".join(told)
    if "base" in kinds:  # some release would do if it were not for the base
        return WrongBaseError(
            f"No release that {wanted} allows fits {base}: {why}.", hint=_base_hint(request, candidates), **details
        )
    return ResolutionError(f"No release of {wanted} will do: {why}.", hint=_hint(request, candidates), **details)


def _base_hint(request: Request, candidates: Sequence[Candidate]) -> str:
    fitting = list_bases(candidate.release for candidate in candidates)
    return f"{request.requirement.pack} has variants for {fitting}; use one of these bases."


def _hint(request: Request, candidates: Sequence[Candidate]) -> str:
    """Return what would help, the mildest first."""
    if _exclude_each_other(request.requirement.specifier):
        clauses = " and ".join(sorted(map(str, request.requirement.specifier)))
        return f"No version can match {clauses}: they exclude each other. Leave one out."
    pre = _first_standing(candidates, "pre-release")
    if pre:
        return f"A pre-release exists; ask for it by name: '{request.requirement.pack}=={pre.version}'."
    other = _first_standing(candidates, "version")
    if other:
        return f"The newest release is {other.version}; ask for it: '{request.requirement.pack}=={other.version}'."
    return "Every release that would do was yanked; ask the publisher for a new one."


def _exclude_each_other(specifier: SpecifierSet) -> bool:
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


def _first_standing(candidates: Sequence[Candidate], kind: RejectionKind) -> Candidate | None:
    """Return the newest candidate that was rejected for this alone and was not yanked besides; of finals first."""
    found = [one for one in candidates if one.rejection and one.rejection.kind == kind and one.release.yanked is None]
    final = [one for one in found if not one.version.is_prerelease]
    return next(iter(final or found), None)


def _refuse_dependencies(request: Request, chosen: Candidate, candidates: Sequence[Candidate]) -> None:
    needs = chosen.release.event.requires
    if not needs:
        return
    name = request.requirement.pack
    alone = [one.version for one in candidates if one.rejection is None and not one.release.event.requires]
    hint = f"Ask for a release that needs no other: '{name}=={alone[0]}'." if alone else "Upgrade skillhub."
    raise ResolutionError(
        f"{name} {chosen.version} requires {', '.join(needs)}, and this skillhub does not resolve dependencies yet.",
        hint=hint,
        requires=needs,
    )


def _refuse_conflicts(picks: Sequence[Pick]) -> None:
    for pick in picks:
        for other in picks:
            text = find_conflict(pick.release.event.conflicts, other.name, other.release.version)
            if text and other is not pick:
                raise ResolutionError(
                    f"{pick.name} {pick.release.version} conflicts with {text}, and {other.name} "
                    f"{other.release.version} is wanted too.",
                    hint="Leave one of them out, or install it into another environment.",
                )


def find_conflict(conflicts: Sequence[str], name: PackName, version: Version) -> str | None:
    """Return the text among ``conflicts`` that a pack's version falls under, or None."""
    for text in conflicts:
        conflict = parse_requirement(text)
        if conflict.pack.matches(name) and conflict.specifier.contains(version, prereleases=True):
            return text
    return None


def _notes(request: Request, chosen: Candidate) -> list[str]:
    name = request.requirement.pack
    notes = []
    if chosen.release.yanked is not None:
        notes.append(f"{name} {chosen.version} was yanked ({chosen.release.yanked}); it stays because it is locked.")
    if request.index.deprecated:
        notes.append(f"{name} is deprecated: {request.index.deprecated}.")
    if request.index.moved_to:
        notes.append(f"{name} has moved to {request.index.moved_to}.")
    notes += request.index.notes
    return notes
