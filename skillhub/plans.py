"""From what an environment asks for to its lock, before anything is installed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property

import msgspec
from packaging.version import Version

from skillhub import hub
from skillhub.adapterplans import lock_adapter, stays_locked
from skillhub.catalogs import Catalog, Source, folder_source
from skillhub.environments import Environment
from skillhub.errors import NetworkError, OfflineError, ResolutionError
from skillhub.lockfile import (
    LOCAL,
    PACK,
    PEFT,
    Lock,
    LockedBase,
    LockedPack,
    relative_folder,
)
from skillhub.manifest import Manifest, parse_manifest
from skillhub.names import PackName, parse_version
from skillhub.packs import base_text
from skillhub.placement import Origin, Supply, fetch_manifest, origin_of
from skillhub.policy import read_policy
from skillhub.progress import Notice
from skillhub.projects import Base, Project
from skillhub.releases import Release, check_agreement
from skillhub.requirements import lock_inputs, parse_rules
from skillhub.resolver import BaseClaim, Pick
from skillhub.resolver.problem import Problem, Screen
from skillhub.screening import make_screen, parse_cut_off
from skillhub.sightings import check_repository_id, check_signature, read_sightings
from skillhub.wanted import Wanted


@dataclass(frozen=True)
class Choice:
    """How a lock may differ from the one before.

    Attributes:
        asked: what the user named in this call; a folder or a revision among them is read again.
        unlocked: packs whose locked versions are not preferred; None means all.
        precise: versions that are preferred to the locked ones.
        resolve: ask what has been published although the lock will do.
        with_dependencies: whether packs that others require come in.
    """

    asked: tuple[Wanted, ...] = ()
    unlocked: frozenset[PackName] | None = frozenset()
    precise: Mapping[PackName, Version] = field(default_factory=dict)
    resolve: bool = False
    with_dependencies: bool = True

    @property
    def reads_anew(self) -> bool:
        """Whether a lock that will do may still not be the one to take."""
        if self.resolve or not self.with_dependencies:
            return True
        return (
            bool(self.precise) or self.unlocked != frozenset() or any(one.folder or one.revision for one in self.asked)
        )

    def is_unlocked(self, name: PackName) -> bool:
        """Say whether a pack's locked version is not preferred."""
        return self.unlocked is None or name in self.unlocked


@dataclass(frozen=True)
class Planner:
    """What planning works with.

    Attributes:
        supply: where manifests and files come from.
        catalog: where releases come from.
        notice: told sentences for the user.
    """

    supply: Supply
    catalog: Catalog
    notice: Notice

    def read_manifest(self, name: PackName, release: Release) -> Manifest:
        """Return a release's manifest after checking it against the line of the index.

        Raises:
            IntegrityError: they do not agree.
            SkillhubError: as :func:`skillhub.placement.fetch_manifest`.
        """
        source = self.catalog.source(name)
        origin = Origin(
            str(name),
            str(release.version),
            source.repository or str(name),
            source.registry.name if source.registry else LOCAL,
            source.commit,
            source.folder,
        )
        data = fetch_manifest(self.supply, origin, release.manifest_digest)
        return check_agreement(release, data, where=str(origin))

    def screen(self, cut_off: datetime | None = None) -> Screen | None:
        """Return what keeps releases from being chosen, whatever requirements say; None where nothing does.

        Args:
            cut_off: releases that were published later are left alone; the policy's rules hold in any case.

        Raises:
            UsageError: the policy is not valid.
        """
        return make_screen(
            read_policy(), cut_off, lambda name: self.catalog.source(name).registry, offline=self.supply.offline
        )

    def repository_id(self, name: PackName, source: Source, known: str | None) -> str | None:
        """Return the id of a pack's repository after comparing it with those that were seen.

        That takes an API request, of which registries allow few; so it is asked when there are more releases than at the last
        time. Of those that were there, whoever serves them can only serve the bytes that the index names.

        Args:
            name: the pack.
            source: where its releases are, on a registry.
            known: the id in the lock, where there is one.

        Raises:
            TrustError: it is another repository of the same name.
            SkillhubError: as :func:`skillhub.hub.repository_id`.
        """
        assert source.registry is not None
        if self.supply.offline or source.registry.folder is not None:
            return known
        seen, releases = read_sightings(source.registry, name), len(source.index.releases)
        if seen.repository is not None and releases <= seen.identified:
            check_repository_id(source.registry, name, seen.repository, locked=known)
            return seen.repository
        return self.identify(source.registry, name, source.repository or str(name), known, releases)

    def identify(
        self, registry: hub.Registry, name: PackName, repository: str, known: str | None, releases: int = 0
    ) -> str | None:
        """Ask for a repository's id, compare it with those that were seen, and remember it; arguments and errors as above."""
        if self.supply.offline or registry.folder is not None:
            return known
        try:
            found = hub.repository_id(registry, repository)
        except OfflineError:
            return known
        except NetworkError as error:  # the digests decide; this only tells a repository that was made anew
            self.notice(f"The identity of {name} was not checked: {error.message}")
            return known
        check_repository_id(registry, name, found, locked=known, releases=releases)
        return found


@dataclass(frozen=True)
class Locking:
    """From what an environment asks for to its lock; what is locked already stays as long as it will do.

    Attributes:
        planner: what to work with.
        environment: whose lock it is.
        project: its rules.
        wanted: its requirements.
        old: the lock so far.
        base: what the packs must fit.
        choice: how the new lock may differ.
    """

    planner: Planner
    environment: Environment
    project: Project
    wanted: Sequence[Wanted]
    old: Lock
    base: Base
    choice: Choice

    def choose(self) -> tuple[Pick, ...]:
        """Return the releases that :meth:`make` would lock; of adapters nothing is said, and only indexes are read.

        Raises:
            SkillhubError: as :meth:`make`.
        """
        packs = [one for one in self.wanted if one.kind == PACK]
        catalog = self.planner.catalog
        catalog.place(packs, self.old)
        self._keep_folders(packs)
        catalog.require([one.name for one in packs])
        return self._resolve(packs) if packs else ()

    def make(self) -> Lock:
        """Return the lock.

        Raises:
            NotFoundError: there is no pack of a required name.
            ResolutionError: no releases will do together.
            WrongBaseError: a pack is not for the base.
            TrustError: an identity changed, or the policy forbids what is wanted.
            SkillhubError: as reading indexes and manifests.
        """
        entries = [self._entry(pick) for pick in self.choose()]
        entries += [self._adapter(one) for one in self.wanted if one.kind == PEFT]
        _refuse_twice(entries)
        base = LockedBase(fingerprint=self.base.fingerprint, repo=self.base.repo, revision=self.base.revision)
        inputs = lock_inputs(self.project, [one.text(self.environment.folder) for one in self.wanted])
        return Lock(inputs, (base,), tuple(sorted(entries, key=lambda entry: entry.name.lower())))

    @cached_property
    def _cut_off(self) -> datetime | None:
        return parse_cut_off(self.project.exclude_newer) if self.project.exclude_newer else None

    @cached_property
    def _asked(self) -> set[str]:
        return {one.key for one in self.choice.asked}

    def _keep_folders(self, packs: Iterable[Wanted]) -> None:
        """Take folders as they were locked, unless the user names them again: they may have changed, or be gone."""
        for one in packs:
            entry = self.old.find(one.name)
            if one.folder is None or entry is None or one.key in self._asked or self.choice.is_unlocked(one.name):
                continue
            if entry.repository == relative_folder(one.folder, self.environment.folder):
                data = fetch_manifest(self.planner.supply, origin_of(entry, self.environment), entry.manifest)
                self.planner.catalog.put(one.name, folder_source(parse_manifest(data), one.folder))

    def _resolve(self, packs: Sequence[Wanted]) -> tuple[Pick, ...]:
        from skillhub.resolver.solving import resolve

        base = BaseClaim(fingerprint=self.base.fingerprint, name=base_text(self.base.fingerprint, self.base.repo))
        problem = Problem(
            requirements=tuple(one.requirement for one in packs),
            base=base,
            locked=self._preferred(packs),
            constraints=parse_rules(self.project.constraints, what="constraint"),
            overrides=parse_rules(self.project.overrides, what="override"),
            allow_pre=self.project.pre_releases,
            with_dependencies=self.choice.with_dependencies,
            screen=self.planner.screen(self._cut_off),
        )
        resolution = resolve(problem, self.planner.catalog.read)
        for note in resolution.notes:
            self.planner.notice(note)
        self._check_precise(resolution.picks, packs)
        return resolution.picks

    def _preferred(self, packs: Sequence[Wanted]) -> dict[PackName, Version]:
        moved = {one.name for one in packs if one.key in self._asked and (one.folder or one.revision)}
        kept = {
            entry.pack_name: parse_version(entry.version)
            for entry in self.old.packs
            if entry.kind == PACK and entry.pack_name not in moved and not self.choice.is_unlocked(entry.pack_name)
        }
        return kept | dict(self.choice.precise)

    def _check_precise(self, picks: Sequence[Pick], packs: Sequence[Wanted]) -> None:
        for pick in picks:
            version = self.choice.precise.get(pick.name)
            if version is not None and version != pick.release.version:
                written = [one.requirement.text for one in packs if one.name.matches(pick.name)]
                why = f"{written[0]} is asked for" if written else "other packs do not allow it"
                raise ResolutionError(
                    f"{pick.name} cannot be {version}: {why}, and the best choice is {pick.release.version}.",
                    hint=f"Ask for it: skillhub install '{pick.name}=={version}'.",
                )

    def _entry(self, pick: Pick) -> LockedPack:
        """Return the lock entry of a release: the old one where nothing about it changed."""
        source, old = self.planner.catalog.source(pick.name), self.old.find(pick.name)
        dependencies = sorted(map(str, pick.dependencies), key=str.lower)
        place = self._place(pick.name, source)
        is_known = old and (old.manifest, old.registry, old.repository) == (pick.release.manifest_digest, *place)
        if old and is_known and not self.choice.is_unlocked(pick.name):
            return msgspec.structs.replace(old, dependencies=dependencies)
        manifest = self.planner.read_manifest(pick.name, pick.release)
        files = [entry for variant in manifest.variants for entry in variant.files]
        if old and is_known:  # files too, which may have been edited by hand
            return msgspec.structs.replace(old, dependencies=dependencies, files=files)
        signer = identity = None
        if source.registry is not None:
            locked = old if old and old.registry == source.registry.name else None
            identity = self.planner.repository_id(pick.name, source, locked.id if locked else None)
            signer = check_signature(
                source.registry, pick.name, pick.release, manifest, locked=locked.signer if locked else None
            )
        return LockedPack(
            name=str(pick.name),
            version=manifest.version,
            manifest=pick.release.manifest_digest,
            registry=place[0],
            repository=place[1],
            id=identity,
            commit=source.commit,
            signer=signer,
            dependencies=dependencies,
            files=files,
        )

    def _place(self, name: PackName, source: Source) -> tuple[str, str]:
        """Return the registry's name and the repository, as a lock says them."""
        if source.registry is None:
            assert source.folder is not None
            return LOCAL, relative_folder(source.folder, self.environment.folder)
        return source.registry.name, source.repository or str(name)

    def _adapter(self, wanted: Wanted) -> LockedPack:
        """Return the lock entry of a PEFT adapter: the old one, unless it is unlocked or another commit is asked for."""
        old = self.old.find(wanted.name)
        is_asked = wanted.key in self._asked
        if old and not self.choice.is_unlocked(wanted.name) and stays_locked(wanted, old, is_asked=is_asked):
            return old

        def identify(registry: hub.Registry, repository: str) -> str | None:
            known = old.id if old and old.registry == registry.name else None
            return self.planner.identify(registry, wanted.name, repository, known)

        return lock_adapter(self.planner.catalog, wanted, self.base, identify, old=old, cut_off=self._cut_off)


def _refuse_twice(entries: Sequence[LockedPack]) -> None:
    names = [entry.name.lower() for entry in entries]
    for name in names:
        if names.count(name) > 1:
            raise ResolutionError(
                f"{name} is asked for as a pack and as an adapter.", hint="Keep one of the two requirements."
            )
