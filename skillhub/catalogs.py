"""The releases of packs, read from where each may come from: a registry, a repository at a commit, or a folder.

A pack on a registry is looked for in the configured registries in their order, and the first that has it is the one; its
releases are never mixed with those of a namesake elsewhere. What is locked stays with the registry it is locked from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from skillhub import hub
from skillhub.errors import NotFoundError, OfflineError, SkillhubError
from skillhub.indexes import read_index
from skillhub.lockfile import LOCAL, PACK, Lock
from skillhub.manifest import Manifest
from skillhub.names import PackName, parse_pack_name, parse_version
from skillhub.packs import open_pack
from skillhub.progress import Notice
from skillhub.registries import Registries
from skillhub.releases import Release, ReleaseIndex, release_event
from skillhub.wanted import Wanted

_PARALLEL_READS = 8


@dataclass(frozen=True)
class Source:
    """A pack's releases, and where they are.

    Attributes:
        index: the releases.
        registry: the registry that has them; None for a folder.
        commit: the commit that they were read at, where known.
        folder: the folder of a pack on this machine.
        repository: full name of the repository, where it is another one than the pack's: it moved.
    """

    index: ReleaseIndex
    registry: hub.Registry | None = None
    commit: str | None = None
    folder: Path | None = None
    repository: str | None = None


@dataclass
class Catalog:
    """Reads the releases of packs, each once in its life.

    Attributes:
        registries: where packs may come from.
        offline: use what is remembered only.
        notice: told sentences for the user.
        refresh: read again what has not changed.
    """

    registries: Registries
    offline: bool
    notice: Notice
    refresh: bool = False
    _places: dict[PackName, Wanted] = field(default_factory=dict)
    _locked: dict[PackName, str] = field(default_factory=dict)
    _found: dict[PackName, Source] = field(default_factory=dict)
    _missing: dict[PackName, NotFoundError] = field(default_factory=dict)

    def place(self, wanted: Iterable[Wanted], lock: Lock) -> None:
        """Note where packs come from: the folders and revisions that are asked for, and the registries in the lock."""
        for one in wanted:
            if one.kind == PACK and (one.folder or one.revision):
                self._places[one.name] = one
        self._locked.update({entry.pack_name: entry.registry for entry in lock.packs if entry.registry != LOCAL})

    def put(self, name: PackName, source: Source) -> None:
        """Take a pack's releases from here instead of reading them."""
        self._found[name] = source

    def read(self, names: Sequence[PackName]) -> Mapping[PackName, ReleaseIndex]:
        """Return the releases of packs; a pack that no registry has is missing in the answer.

        Raises:
            SkillhubError: as :func:`skillhub.indexes.read_index`, except that there is no such pack.
        """
        new = [name for name in dict.fromkeys(names) if name not in self._found and name not in self._missing]
        if len(new) > 1:
            with ThreadPoolExecutor(min(_PARALLEL_READS, len(new))) as pool:
                list(pool.map(self._read, new))
        else:
            for name in new:
                self._read(name)
        return {name: self._found[name].index for name in names if name in self._found}

    def require(self, names: Sequence[PackName]) -> None:
        """Read the releases of packs that must be there: what no registry has is not found, rather than without solution.

        Raises:
            NotFoundError: there is no pack of one of the names.
            SkillhubError: as :meth:`read`.
        """
        self.read(names)
        for name in names:
            self.source(name)

    def source(self, name: PackName) -> Source:
        """Return where a pack's releases are.

        Raises:
            NotFoundError: there is no such pack.
            SkillhubError: as :meth:`read`.
        """
        self.read([name])
        if name not in self._found:
            raise self._missing[name]
        return self._found[name]

    def _read(self, name: PackName) -> None:
        try:
            self._found[name] = self._source(name)
        except NotFoundError as error:
            self._missing[name] = error

    def _source(self, name: PackName) -> Source:
        wanted = self._places.get(name)
        if wanted is not None and wanted.folder is not None:
            return folder_source(open_pack(wanted.folder).manifest, wanted.folder)
        revision = wanted.revision if wanted else None
        error = NotFoundError(f"No registry is configured for {name}.", hint="See `skillhub config list`.")
        for registry in self._registries_for(name):
            try:
                seen = read_index(registry, name, offline=self.offline, revision=revision, refresh=self.refresh)
            except NotFoundError as missing:
                error = missing
                continue
            if seen.moved_to is not None:
                self.notice(f"{name} has moved to {seen.moved_to}: write that name instead.")
            return Source(seen.index, registry, seen.commit, repository=seen.moved_to)
        raise error

    def find_adapter(self, wanted: Wanted) -> tuple[hub.Registry, hub.RemoteAdapter]:
        """Return a PEFT adapter, and the first registry that has it.

        Raises:
            NotFoundError: no registry has it, or it is no adapter.
            SkillhubError: as :func:`skillhub.hub.find_adapter`.
        """
        error = NotFoundError(f"No registry is configured for {wanted}.", hint="See `skillhub config list`.")
        for registry in self._registries_for(wanted.name):
            if self.offline and registry.folder is None:
                raise OfflineError(
                    f"{wanted} is not locked, and the network may not be used.",
                    hint="Run the command once with the network: without --offline and with HF_HUB_OFFLINE unset.",
                )
            try:
                found = hub.find_adapter(registry, str(wanted.name), revision=wanted.revision or "main")
            except NotFoundError as missing:
                error = missing
                continue
            if found.moved_to is not None:
                self.notice(f"{wanted.name} has moved to {found.moved_to}: write that name instead.")
            return registry, found
        raise error

    def _registries_for(self, name: PackName) -> Sequence[hub.Registry]:
        return self.registries.for_pack(name, self._locked.get(name))


def folder_source(manifest: Manifest, folder: Path) -> Source:
    """Return the one release of a pack in a folder."""
    event = release_event(manifest, declared_base_files(manifest))
    return Source(ReleaseIndex((Release(parse_version(manifest.version), event),)), folder=folder)


def declared_base_files(manifest: Manifest) -> dict[str, list[str]]:
    """Return fingerprint → digests of the known packagings of that base, as a release's event lists them."""
    from skillhub.fingerprint import base_files_digest

    return {
        variant.base.fingerprint: sorted({base_files_digest(files.values()) for files in variant.base.files})
        for variant in manifest.variants
        if variant.base.files
    }


Choose = Callable[[Wanted, Sequence[str]], str | None]
"""Asks the user which of several full names is meant; None where there is nobody to ask, or no answer."""


def with_owner(
    wanted: Wanted,
    catalog: Catalog,
    *,
    owners: Sequence[str],
    known: Sequence[PackName],
    choose: Choose,
) -> Wanted:
    """Return the requirement with its pack's owner, which must not be guessed.

    Args:
        wanted: the requirement.
        catalog: where to look.
        owners: configured ones; the first that has such a pack is taken.
        known: packs that the environment wants already; a short name means the one of that name.
        choose: asked when all of that tells no owner.

    Raises:
        NotFoundError: no owner has such a pack, or none is configured; the hint has the full commands.
    """
    if wanted.folder or wanted.name.owner:
        return wanted
    here = [name for name in known if name.owner and name.name.lower() == wanted.name.name.lower()]
    if len(here) == 1:
        return wanted.with_owner(str(here[0].owner))
    for owner in owners:
        candidate = PackName(owner, wanted.name.name)
        if catalog.read([candidate]):
            return wanted.with_owner(owner)
    candidates = [] if catalog.offline else _search(wanted.name.name, catalog.registries)
    chosen = choose(wanted, candidates) if candidates else None
    if chosen is not None:
        return wanted.with_owner(str(parse_pack_name(chosen).owner))
    raise _unknown_owner(wanted, owners, candidates)


def _unknown_owner(wanted: Wanted, owners: Sequence[str], candidates: Sequence[str]) -> NotFoundError:
    name, versions = wanted.name.name, str(wanted.requirement.specifier)
    looked = f"none of {', '.join(owners)} has such a pack" if owners else "no owners are configured"
    quote = "'" if versions else ""
    commands = [f"skillhub install {quote}{candidate}{versions}{quote}" for candidate in candidates[:5]]
    if commands:
        hint = f"Give the full name: {' or '.join(commands)}."
    else:
        hint = f"Give the full name: skillhub install OWNER/{name}."
    return NotFoundError(f"{name} has no owner, and {looked}.", hint=hint, candidates=list(candidates))


def _search(name: str, registries: Registries) -> list[str]:
    found: list[str] = []
    for registry in registries.all:
        try:
            found += hub.find_namesakes(registry, name)
        except SkillhubError:  # the search only helps with the hint
            continue
    return list(dict.fromkeys(found))
