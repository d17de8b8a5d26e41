"""Where a required pack comes from: a repository of a registry, or a folder of this machine.

Both are seen by the resolver as an index of releases; a folder's index has the one release that lies in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from packaging.specifiers import SpecifierSet

from skillhub import hub
from skillhub.errors import NotFoundError, SkillhubError
from skillhub.indexes import read_index, read_indexes
from skillhub.lockfile import relative_folder
from skillhub.manifest import Manifest
from skillhub.names import PackName, Requirement, is_folder, parse_requirement, parse_version
from skillhub.packs import open_pack
from skillhub.releases import Release, ReleaseIndex, release_event


@dataclass(frozen=True)
class Wanted:
    """A requirement that was read, before its source was looked at.

    Attributes:
        requirement: the pack and the versions that will do; the name of a folder's pack has no owner.
        folder: the folder, or None for a pack from a registry.
    """

    requirement: Requirement
    folder: Path | None = None

    @property
    def name(self) -> PackName:
        """The pack's name."""
        return self.requirement.pack

    @property
    def key(self) -> str:
        """What tells packs of one environment apart."""
        return str(self.name).lower()

    def text(self, start: Path) -> str:
        """Return how ``skillhub.toml`` in the folder ``start`` says this."""
        if self.folder is None:
            return str(self.requirement)
        relative = relative_folder(self.folder, start)
        return relative if relative.startswith(".") else f"./{relative}"


@dataclass(frozen=True)
class Source:
    """A wanted pack and its releases.

    Attributes:
        wanted: the requirement.
        index: the pack's releases.
        commit: the commit that the index was read at, where known.
    """

    wanted: Wanted
    index: ReleaseIndex
    commit: str | None = None


def parse_wanted(text: str, *, start: Path | None = None) -> Wanted:
    """Read a requirement: a name with or without versions, or a folder (``./dir``, ``../dir``, ``/dir``, ``~/dir``).

    Args:
        text: the requirement.
        start: what a relative folder is relative to; None means the working folder.

    Raises:
        UsageError: it is neither.
        NotFoundError: the folder is no pack.
    """
    if not is_folder(text):
        return Wanted(parse_requirement(text))
    folder = ((start or Path.cwd()) / Path(text).expanduser()).resolve()
    pack = open_pack(folder)
    return Wanted(Requirement(PackName(None, pack.manifest.name), SpecifierSet(), text), folder)


def find_sources(wanted: Sequence[Wanted], registry: hub.Registry, *, offline: bool) -> list[Source]:
    """Read the releases of wanted packs, those of registries in parallel.

    Raises:
        SkillhubError: as :func:`skillhub.indexes.read_index`, and as opening a folder's pack.
    """
    indexes = read_indexes(registry, [one.name for one in wanted if one.folder is None], offline=offline)
    return [
        _folder_source(one) if one.folder else Source(one, indexes[one.name].index, indexes[one.name].commit)
        for one in wanted
    ]


def _folder_source(wanted: Wanted) -> Source:
    assert wanted.folder is not None
    manifest = open_pack(wanted.folder).manifest
    event = release_event(manifest, declared_base_files(manifest))
    return Source(wanted, ReleaseIndex((Release(parse_version(manifest.version), event),)))


def declared_base_files(manifest: Manifest) -> dict[str, list[str]]:
    """Return fingerprint → digests of the known packagings of that base, as a release's event lists them."""
    from skillhub.fingerprint import base_files_digest

    return {
        variant.base.fingerprint: sorted({base_files_digest(files.values()) for files in variant.base.files})
        for variant in manifest.variants
        if variant.base.files
    }


def with_owner(
    wanted: Wanted, *, owners: Sequence[str], known: Sequence[PackName], registry: hub.Registry, offline: bool
) -> Wanted:
    """Return the requirement with its pack's owner, which must not be guessed.

    Args:
        wanted: the requirement.
        owners: configured ones; the first that has such a pack is taken.
        known: packs that the environment wants already; a short name means the one of that name.
        registry: where to look.
        offline: look at what is remembered only.

    Raises:
        NotFoundError: no owner has such a pack, or none is configured; the hint has the full commands.
    """
    if wanted.folder or wanted.name.owner:
        return wanted
    here = [name for name in known if name.owner and name.name.lower() == wanted.name.name.lower()]
    if len(here) == 1:
        return _owned(wanted, str(here[0].owner))
    for owner in owners:
        try:
            read_index(registry, PackName(owner, wanted.name.name), offline=offline)
        except NotFoundError:
            continue
        return _owned(wanted, owner)
    raise _unknown_owner(wanted, owners, registry, offline=offline)


def _owned(wanted: Wanted, owner: str) -> Wanted:
    requirement = wanted.requirement
    return replace(wanted, requirement=replace(requirement, pack=PackName(owner, requirement.pack.name)))


def _unknown_owner(wanted: Wanted, owners: Sequence[str], registry: hub.Registry, *, offline: bool) -> NotFoundError:
    name, versions = wanted.name.name, str(wanted.requirement.specifier)
    looked = f"none of {', '.join(owners)} has such a pack" if owners else "no owners are configured"
    try:
        candidates = [] if offline else hub.search_packs(registry, name)
    except SkillhubError:  # the search only helps with the hint
        candidates = []
    quote = "'" if versions else ""
    commands = [f"skillhub install {quote}{candidate}{versions}{quote}" for candidate in candidates[:5]]
    if commands:
        hint = f"Give the full name: {' or '.join(commands)}."
    else:
        hint = f"Give the full name: skillhub install OWNER/{name}."
    return NotFoundError(f"{name} has no owner, and {looked}.", hint=hint, candidates=candidates)
