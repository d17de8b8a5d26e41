"""Downloading packs and PEFT adapters as folders, verified and not installed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from skillhub.adapterplans import lock_adapter
from skillhub.basechoice import choose_base
from skillhub.errors import SkillhubError, UsageError
from skillhub.files import new_folder, staged_folder
from skillhub.hub import Registry
from skillhub.lockfile import LOCAL, PACK, PEFT, Lock
from skillhub.manifest import MANIFEST_FILE, FileEntry, Manifest
from skillhub.names import PackName
from skillhub.packs import Pack, check_file, open_pack, short_fingerprint
from skillhub.placement import Origin, copy_blobs, fetch_files
from skillhub.plans import Planner
from skillhub.policy import check_owners, read_policy
from skillhub.releases import Release
from skillhub.resolver import BaseClaim, Pick
from skillhub.resolver.problem import Problem
from skillhub.sightings import check_signature
from skillhub.wanted import Wanted


@dataclass(frozen=True)
class Download:
    """A pack or an adapter in a folder of its own.

    Attributes:
        kind: ``pack`` or ``peft``.
        name: with its owner.
        version: of an adapter, the first digits of its commit.
        digest: SHA-256 of the manifest; of an adapter, of its list of files.
        folder: where it is.
    """

    kind: str
    name: PackName
    version: str
    digest: str
    folder: Path

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def download(
    planner: Planner,
    wanted: Sequence[Wanted],
    folder: str | Path,
    *,
    base: str | None = None,
    with_dependencies: bool = True,
) -> list[Download]:
    """Fetch packs and adapters into folders of their bare names; one that is there already and whole is left alone.

    Args:
        planner: what to work with.
        wanted: packs and adapters on registries; of packs the newest releases that will do together are taken.
        folder: where the packs' folders go.
        base: fetch the variants for this base only (folder, ``repo[@revision]`` or fingerprint); None means all.
        with_dependencies: fetch what the packs require as well.

    Returns:
        The packs, sorted by name, then the adapters.

    Raises:
        UsageError: a requirement is a folder, two packs have one bare name, or something else is there.
        ResolutionError: no releases will do together.
        SkillhubError: as reading indexes, manifests and files.
    """
    for one in wanted:
        if one.folder is not None:
            raise UsageError(f"{one} is a folder already.", hint="Name packs on a registry: OWNER/NAME.")
    target = Path(folder).expanduser().absolute()
    fingerprint = choose_base(planner, wanted, base).fingerprint if base else None
    packs, adapters = [one for one in wanted if one.kind == PACK], [one for one in wanted if one.kind == PEFT]
    picks = _choose(planner, packs, fingerprint, with_dependencies=with_dependencies) if packs else ()
    _refuse_same_folder([*(pick.name for pick in picks), *(one.name for one in adapters)])
    with planner.supply.store.in_use():
        fetched = [_fetch(planner, pick.name, pick.release, target / pick.name.name, fingerprint) for pick in picks]
        return [*fetched, *(_fetch_adapter(planner, one, target / one.name.name) for one in adapters)]


def _choose(
    planner: Planner, wanted: Sequence[Wanted], fingerprint: str | None, *, with_dependencies: bool
) -> tuple[Pick, ...]:
    from skillhub.resolver.solving import resolve

    catalog = planner.catalog
    catalog.place(wanted, Lock(""))
    catalog.require([one.name for one in wanted])
    claim = BaseClaim(fingerprint=fingerprint, name=short_fingerprint(fingerprint)) if fingerprint else None
    problem = Problem(
        requirements=tuple(one.requirement for one in wanted),
        base=claim,
        with_dependencies=with_dependencies,
        screen=planner.screen(),
    )
    resolution = resolve(problem, catalog.read)
    for note in resolution.notes:
        planner.notice(note)
    return resolution.picks


def _refuse_same_folder(names: Sequence[PackName]) -> None:
    seen: dict[str, PackName] = {}
    for name in names:
        other = seen.setdefault(name.name.lower(), name)
        if other != name:
            raise UsageError(
                f"{other} and {name} would lie in one folder.", hint="Download one of them into another folder."
            )


def _fetch(planner: Planner, name: PackName, release: Release, folder: Path, fingerprint: str | None) -> Download:
    manifest = planner.read_manifest(name, release)
    source = planner.catalog.source(name)
    repository = source.repository or str(name)
    if source.registry is not None:
        check_owners(read_policy(), name, repository)
        planner.repository_id(name, source, None)
        check_signature(source.registry, name, release, manifest, locked=None)
    files = _files(manifest, name, fingerprint)
    done = Download(PACK, name, manifest.version, release.manifest_digest, folder)
    if _is_whole(folder, release.manifest_digest, files):
        return done
    new_folder(folder)
    place = source.registry.name if source.registry else LOCAL
    fetch_files(planner.supply, Origin(str(name), manifest.version, repository, place, source.commit), files)
    stored = planner.supply.store.path_of(release.manifest_digest)
    root = FileEntry(path=MANIFEST_FILE, size=stored.stat().st_size, sha256=release.manifest_digest)
    with staged_folder(folder) as staged:
        copy_blobs(planner.supply.store, [*files, root], staged)
    return done


def _fetch_adapter(planner: Planner, wanted: Wanted, folder: Path) -> Download:
    def identify(registry: Registry, repository: str) -> str | None:
        return planner.identify(registry, wanted.name, repository, None)

    found = lock_adapter(planner.catalog, wanted, None, identify)
    check_owners(read_policy(), wanted.name, found.repository)
    done = Download(PEFT, wanted.name, found.version, found.manifest, folder)
    if _has_files(folder, found.files):
        return done
    new_folder(folder)
    origin = Origin(found.name, found.version, found.repository, found.registry, found.commit, kind=PEFT)
    fetch_files(planner.supply, origin, found.files)
    with staged_folder(folder) as staged:
        copy_blobs(planner.supply.store, found.files, staged)
    return done


def _files(manifest: Manifest, name: PackName, fingerprint: str | None) -> list[FileEntry]:
    variants = [Pack(Path(), manifest, name.owner).variant_for(fingerprint)] if fingerprint else manifest.variants
    return [entry for variant in variants for entry in variant.files]


def _is_whole(folder: Path, digest: str, files: Sequence[FileEntry]) -> bool:
    """Say whether a folder has these files of the release already."""
    try:
        return open_pack(folder).digest == digest and _has_files(folder, files)
    except SkillhubError:  # nothing is there, or something is wrong with it: the caller says that it is in the way
        return False


def _has_files(folder: Path, files: Sequence[FileEntry]) -> bool:
    try:
        for entry in files:
            check_file(folder / entry.path, entry)
    except SkillhubError:  # as above
        return False
    return True
