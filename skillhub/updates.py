"""What has been published since an environment was locked: of each pack the newest release that will do, and the newest.

Only indexes are read: one HEAD a pack when nothing changed, and none offline. Of an adapter the newest commit is asked
for, of a folder the pack that is in it now is looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from skillhub.catalogs import Source
from skillhub.environments import Environment, as_environment, read_project
from skillhub.errors import LockStaleError, OfflineError, ResolutionError, WrongBaseError
from skillhub.lockfile import LOCAL, PACK, PEFT, Lock, LockedPack, files_digest, read_lock
from skillhub.manifest import MANIFEST_FILE
from skillhub.names import PackName, Requirement, parse_requirement, parse_version
from skillhub.packs import base_text, open_pack
from skillhub.plans import Choice, Locking, Planner
from skillhub.projects import Base, Project
from skillhub.releases import RELEASES_SCHEMA, Event, Release, ReleaseIndex, ReleaseVariant
from skillhub.requirements import parse_rules, project_requirements
from skillhub.resolver import Pick
from skillhub.resolver.problem import Screen
from skillhub.screening import parse_cut_off
from skillhub.sessions import Session
from skillhub.wanted import Wanted


@dataclass(frozen=True)
class Update:
    """What there is of one locked pack.

    Attributes:
        name: the pack.
        kind: ``pack`` or ``peft``.
        current: the locked version; of an adapter, the first digits of its commit.
        wanted: what ``skillhub upgrade`` would lock; None where that is not known.
        latest: the newest there is; None where that is not known.
        reasons: why the newest is not wanted, and what else is to be said.
        is_outdated: whether another release than the locked one is wanted, or there is a newer one.
    """

    name: str
    kind: str
    current: str
    wanted: str | None = None
    latest: str | None = None
    reasons: tuple[str, ...] = ()
    is_outdated: bool = False


def find_updates(session: Session, environment: Environment, *, allow_pre: bool = False) -> list[Update]:
    """Compare what an environment has locked with what is published now.

    Args:
        session: where releases are looked for.
        environment: the environment.
        allow_pre: take pre-releases for newer ones, whatever will do.

    Returns:
        One for each locked pack, sorted by name.

    Raises:
        LockStaleError: there is no lock.
        SkillhubError: as reading indexes.
    """
    place = as_environment(environment)
    project, lock = read_project(place), read_lock(place.lock_path)
    bases = [*project.base, *(Base(fingerprint=one.fingerprint, repo=one.repo) for one in (lock.bases if lock else ()))]
    if lock is None or not bases:
        raise LockStaleError(f"{place.folder} has no lock.", hint="Make one: skillhub lock.")
    wanted = session.complete(project_requirements(project, lock, place.folder), [project], lock)
    return _Comparison(session.planner(project), place, project, tuple(wanted), lock, bases[0], allow_pre).updates()


@dataclass(frozen=True)
class _Comparison:
    planner: Planner
    environment: Environment
    project: Project
    wanted: tuple[Wanted, ...]
    lock: Lock
    base: Base
    allow_pre: bool

    def updates(self) -> list[Update]:
        entries = sorted(self.lock.packs, key=lambda entry: entry.name.lower())
        return [self._adapter(one) if one.kind == PEFT else self._pack(one) for one in entries]

    def _pack(self, entry: LockedPack) -> Update:
        return self._folder(entry) if entry.registry == LOCAL else self._release(entry)

    @cached_property
    def _indexes(self) -> Mapping[PackName, ReleaseIndex]:
        """What main of each locked pack has, wherever the pack is pinned to."""
        names = [one.pack_name for one in self.lock.packs if one.kind == PACK and one.registry != LOCAL]
        self.planner.catalog.place([], self.lock)
        return self.planner.catalog.read(names)

    @cached_property
    def _picks(self) -> Mapping[PackName, Pick]:
        """The releases that upgrading everything would lock; none where no releases will do together any more."""
        indexes, catalog = self._indexes, self.planner.catalog
        for entry in self.lock.packs:
            one = self._asked(entry)
            if one is not None and one.revision is not None and entry.kind == PACK:
                index = ReleaseIndex((self._locked_release(entry, indexes.get(entry.pack_name)),))
                catalog.put(entry.pack_name, Source(index, catalog.registries.named(entry.registry), entry.commit))
        moving = frozenset(one.pack_name for one in self.lock.packs if one.registry != LOCAL or self._is_there(one))
        choice = Choice(unlocked=moving)
        try:
            picks = Locking(
                self.planner, self.environment, self.project, self.wanted, self.lock, self.base, choice
            ).choose()
        except (ResolutionError, WrongBaseError) as error:
            self.planner.notice(f"What is locked cannot be upgraded: {error.message}")
            return {}
        return {pick.name: pick for pick in picks}

    def _locked_release(self, entry: LockedPack, index: ReleaseIndex | None) -> Release:
        """Return a release that is pinned by its commit: its line in the index, or what the lock knows of it."""
        version = parse_version(entry.version)
        found = index.find(version) if index else None
        if found is not None and found.manifest_digest == entry.manifest:
            return found
        fits = entry.files_for(self.base.fingerprint)
        variants = [ReleaseVariant(fingerprint=self.base.fingerprint)] if fits else []
        event = Event(
            schema=RELEASES_SCHEMA,
            event="release",
            version=entry.version,
            manifest=entry.manifest,
            requires=entry.dependencies,
            variants=variants,
        )
        return Release(version, event)

    def _asked(self, entry: LockedPack) -> Wanted | None:
        return next((one for one in self.wanted if one.name == entry.pack_name), None)

    def _is_there(self, entry: LockedPack) -> bool:
        return (self.environment.folder / entry.repository / MANIFEST_FILE).is_file()

    def _release(self, entry: LockedPack) -> Update:
        name, current = entry.pack_name, parse_version(entry.version)
        pick = self._picks.get(name)
        will_do = pick.release.version if pick else None
        index = self._indexes.get(name, ReleaseIndex())
        latest = self._newest(index, current)
        reasons = []
        locked = index.find(current)
        if locked is not None and locked.yanked is not None:
            reasons.append(f"{current} was yanked ({locked.yanked})")
        if latest is not None and latest.version > (will_do or current):
            reasons.append(next(self._obstacles(name, latest), f"{latest.version} does not go with the other packs"))
        if index.deprecated:
            reasons.append(f"it is deprecated: {index.deprecated}")
        newest = max(latest.version, current) if latest else current
        outdated = newest > current or will_do not in (None, current)
        wanted = str(will_do) if will_do else None
        return Update(entry.name, PACK, entry.version, wanted, str(newest), tuple(reasons), outdated)

    def _newest(self, index: ReleaseIndex, current: Version) -> Release | None:
        standing = [one for one in index.releases if one.yanked is None]
        if not (self.allow_pre or self.project.pre_releases or current.is_prerelease):
            standing = [one for one in standing if not one.version.is_prerelease]
        return max(standing, key=lambda release: release.version, default=None)

    def _obstacles(self, name: PackName, release: Release) -> Iterator[str]:
        """Yield what keeps a release from being chosen, each as a clause."""
        version = release.version
        overrides = [rule for rule in parse_rules(self.project.overrides, what="override") if rule.pack == name]
        asked = [one for one in self.wanted if one.name == name]
        yield from (f"{one} is asked for" for one in asked if one.revision is not None)
        for rule in overrides or [one.requirement for one in asked]:
            if not rule.specifier.contains(version, prereleases=True):
                yield f"{'the override ' if overrides else ''}{rule.text} is asked for"
        for rule in parse_rules(self.project.constraints, what="constraint"):
            if rule.pack == name and not rule.specifier.contains(version, prereleases=True):
                yield f"the constraint {rule.text} does not allow {version}"
        if release.variant_for(self.base.fingerprint) is None:
            yield f"{version} has no variant for {base_text(self.base.fingerprint, self.base.repo)}"
        if version.is_prerelease and not self.project.pre_releases:
            yield f"{version} is a pre-release"
        rejection = self._screen(name, release) if self._screen else None
        if rejection is not None:
            yield f"{version} {rejection.reason}"
        for pick in self._picks.values() if not overrides else ():
            for text in pick.release.event.requires:
                if _excludes(parse_requirement(text), name, version):
                    yield f"{pick.name} {pick.release.version} requires {text}"

    @cached_property
    def _screen(self) -> Screen | None:
        return self.planner.screen(parse_cut_off(self.project.exclude_newer) if self.project.exclude_newer else None)

    def _folder(self, entry: LockedPack) -> Update:
        if not self._is_there(entry):
            gone = f"the folder {entry.repository} is gone; its pack comes from the store"
            return Update(entry.name, PACK, entry.version, entry.version, None, (gone,))
        pack = open_pack(self.environment.folder / entry.repository)
        pick, version = self._picks.get(entry.pack_name), pack.manifest.version
        changed = pack.digest != entry.manifest
        reasons = [f"the pack in {entry.repository} is another one now"] if changed else []
        return Update(entry.name, PACK, entry.version, version if pick else None, version, tuple(reasons), changed)

    def _adapter(self, entry: LockedPack) -> Update:
        asked = self._asked(entry)
        name = Requirement(entry.pack_name, SpecifierSet(), entry.name)
        try:
            found = self.planner.catalog.find_adapter(Wanted(name, kind=PEFT))[1]
        except OfflineError:
            return Update(entry.name, PEFT, entry.version, None, None, ("newer commits are not known offline",))
        if files_digest(found.files) == entry.manifest:
            return Update(entry.name, PEFT, entry.version, entry.version, entry.version)
        latest, pinned = found.commit[:12], asked is not None and asked.revision is not None
        reasons = (f"{asked} is asked for",) if pinned else ()
        return Update(entry.name, PEFT, entry.version, entry.version if pinned else latest, latest, reasons, True)


def _excludes(requirement: Requirement, name: PackName, version: Version) -> bool:
    return requirement.pack.matches(name) and not requirement.specifier.contains(version, prereleases=True)
