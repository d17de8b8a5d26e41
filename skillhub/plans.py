"""From requirements to lock entries: what an environment's requirements come to, before anything is installed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from skillhub.environments import Environment
from skillhub.errors import ResolutionError, UsageError
from skillhub.lockfile import LOCAL, Lock, LockedPack, relative_folder
from skillhub.manifest import Manifest, parse_manifest
from skillhub.names import Requirement, is_folder, parse_version
from skillhub.packs import base_text
from skillhub.placement import Origin, Supply, fetch_manifest, origin_of
from skillhub.progress import Notice
from skillhub.projects import Base, Project
from skillhub.releases import Release, check_agreement
from skillhub.resolver import BaseClaim, Pick, Request, find_conflict, resolve
from skillhub.sources import Source, Wanted, find_sources, parse_wanted


@dataclass(frozen=True)
class Planner:
    """What planning works with.

    Attributes:
        supply: where indexes, manifests and files come from.
        notice: told sentences for the user.
    """

    supply: Supply
    notice: Notice
    _found: dict[Wanted, Source] = field(default_factory=dict)

    def find_sources(self, wanted: Sequence[Wanted]) -> list[Source]:
        """Read the releases of wanted packs, each once in the planner's life."""
        new = [one for one in wanted if one not in self._found]
        found = find_sources(new, self.supply.registry, offline=self.supply.offline)
        self._found.update(zip(new, found, strict=True))
        return [self._found[one] for one in wanted]

    def read_manifest(self, source: Source, release: Release) -> Manifest:
        """Return a release's manifest after checking it against the line of the index."""
        name = str(source.wanted.name)
        origin = Origin(name, str(release.version), name, source.commit, folder=source.wanted.folder)
        data = fetch_manifest(self.supply, origin, release.manifest_digest)
        return check_agreement(release, data, where=str(origin))


def project_requirements(project: Project, lock: Lock, environment: Environment) -> list[Wanted]:
    """Return the requirements of ``skillhub.toml``.

    A folder that is locked keeps its name although it may be gone: its pack can still come from the store.
    """
    local = {entry.repository: entry for entry in lock.packs if entry.registry == LOCAL}
    return [_project_requirement(text, local, environment.folder) for text in project.requirements]


def _project_requirement(text: str, local: Mapping[str, LockedPack], start: Path) -> Wanted:
    if is_folder(text):
        folder = (start / Path(text).expanduser()).resolve()
        entry = local.get(relative_folder(folder, start))
        if entry is not None:
            return Wanted(Requirement(entry.pack_name, SpecifierSet(), text), folder)
    return parse_wanted(text, start=start)


def combine_requirements(together: Sequence[Wanted]) -> list[Wanted]:
    """Return one requirement for each pack: the versions of requirements that were given together must all hold.

    Raises:
        UsageError: a pack is wanted from a folder and from somewhere else.
    """
    combined: dict[str, Wanted] = {}
    for one in together:
        for other in combined.values():
            if _is_same_pack(one, other) and one.folder != other.folder:
                raise UsageError(
                    f"{other.requirement.text} and {one.requirement.text} are both asked for, and both are called "
                    f"{one.name.name}.",
                    hint="Keep one of them: a pack comes from one place.",
                )
        before = combined.get(one.key)
        combined[one.key] = _both(before, one) if before else one
    return list(combined.values())


def _is_same_pack(one: Wanted, other: Wanted) -> bool:
    """Say whether two requirements mean one pack; the pack in a folder may have any owner."""
    return one.key == other.key or (bool(one.folder or other.folder) and one.name.matches(other.name))


def _both(one: Wanted, other: Wanted) -> Wanted:
    first, second = one.requirement, other.requirement
    if one.folder or first.specifier == second.specifier:
        return one
    text = f"{first.text} and {second.text}"
    return replace(one, requirement=Requirement(first.pack, first.specifier & second.specifier, text))


def merge_requirements(old: Sequence[Wanted], new: Sequence[Wanted], notice: Notice) -> list[Wanted]:
    """Return all requirements, sorted: a new one takes the place of an old one, unless it names no versions.

    Args:
        old: what the environment asks for.
        new: what the user asks for now.
        notice: told which old requirement goes.

    Raises:
        UsageError: as :func:`combine_requirements`, for either.
    """
    merged = {one.key: one for one in combine_requirements(old)}
    for one in combine_requirements(new):
        replaced = [other for other in merged.values() if _is_same_pack(one, other)]
        if any(_is_kept(other, one) for other in replaced):
            continue
        for other in replaced:
            notice(f"{_said(one)} takes the place of {_said(other)}.")
            del merged[other.key]
        merged[one.key] = one
    return sorted(merged.values(), key=lambda one: one.key)


def _is_kept(old: Wanted, new: Wanted) -> bool:
    if new.folder or old.folder:
        return new.folder == old.folder
    return new.requirement.specifier in (SpecifierSet(), old.requirement.specifier)


def _said(wanted: Wanted) -> str:
    return wanted.requirement.text if wanted.folder else str(wanted.requirement)


def plan_packs(
    planner: Planner, environment: Environment, everything: Sequence[Wanted], asked: set[str], old: Lock, base: Base
) -> list[LockedPack]:
    """Return a lock entry for each requirement: the locked one while it will do, else a newly resolved one.

    Args:
        planner: what to work with.
        environment: whose lock it is.
        everything: all requirements.
        asked: keys of those that the user named in this call; a folder among them is read again.
        old: the lock so far.
        base: what the packs must fit.

    Raises:
        ResolutionError: no release of a pack will do, or packs conflict.
        WrongBaseError: a pack is not for the base.
        SkillhubError: as reading indexes and manifests.
    """
    locked = {entry.name.lower(): entry for entry in old.packs}
    kept = {
        one.key: locked[one.key]
        for one in everything
        if one.key in locked and _will_do(one, locked[one.key], environment, is_asked=one.key in asked)
    }
    sources = planner.find_sources([one for one in everything if one.key not in kept])
    requests = [
        Request(source.wanted.requirement, source.index, _version_of(locked.get(source.wanted.key)))
        for source in sources
    ]
    resolution = resolve(
        requests, base=BaseClaim(fingerprint=base.fingerprint, name=base_text(base.fingerprint, base.repo))
    )
    for note in resolution.notes:
        planner.notice(note)
    _refuse_conflicts(planner.supply, resolution.picks, kept.values(), environment)
    new = [_entry(planner, environment, *pair) for pair in zip(sources, resolution.picks, strict=True)]
    return sorted([*kept.values(), *new], key=lambda entry: entry.name.lower())


def _will_do(wanted: Wanted, entry: LockedPack, environment: Environment, *, is_asked: bool) -> bool:
    if wanted.folder:
        return not is_asked and entry.repository == relative_folder(wanted.folder, environment.folder)
    return entry.registry != LOCAL and wanted.requirement.specifier.contains(entry.version, prereleases=True)


def _version_of(entry: LockedPack | None) -> Version | None:
    return parse_version(entry.version) if entry else None


def _entry(planner: Planner, environment: Environment, source: Source, pick: Pick) -> LockedPack:
    manifest = planner.read_manifest(source, pick.release)
    folder = source.wanted.folder
    return LockedPack(
        name=str(source.wanted.name),
        version=manifest.version,
        manifest=pick.release.manifest_digest,
        registry=LOCAL if folder else planner.supply.registry.name,
        repository=relative_folder(folder, environment.folder) if folder else str(source.wanted.name),
        commit=source.commit,
        signer=manifest.signer.public_key if manifest.signer else None,
        files=[entry for variant in manifest.variants for entry in variant.files],
    )


def _refuse_conflicts(
    supply: Supply, picks: Sequence[Pick], kept: Iterable[LockedPack], environment: Environment
) -> None:
    """Refuse a new pack that does not go with one that stays."""
    for entry in kept if picks else ():
        manifest = parse_manifest(fetch_manifest(supply, origin_of(entry, environment), entry.manifest))
        for pick in picks:
            text = find_conflict(pick.release.event.conflicts, entry.pack_name, parse_version(entry.version))
            text = text or find_conflict(manifest.conflicts, pick.name, pick.release.version)
            if text:
                raise ResolutionError(
                    f"{pick.name} {pick.release.version} and {entry.name} {entry.version}, which is installed, "
                    f"conflict ({text}).",
                    hint=f"Uninstall one of them first: skillhub uninstall {entry.name}.",
                )
