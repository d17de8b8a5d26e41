"""Downloading packs as pack folders, verified and not installed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from skillhub.basechoice import choose_base
from skillhub.errors import SkillhubError, UsageError
from skillhub.files import new_folder, staged_folder
from skillhub.hub import Registry
from skillhub.lockfile import LOCAL, PEFT, Lock
from skillhub.manifest import MANIFEST_FILE, FileEntry, Manifest
from skillhub.names import PackName
from skillhub.packs import Pack, check_file, open_pack, short_fingerprint
from skillhub.placement import Origin, fetch_files
from skillhub.plans import Planner
from skillhub.policy import read_policy
from skillhub.releases import Release
from skillhub.resolver import BaseClaim, Pick
from skillhub.resolver.problem import Problem
from skillhub.screening import make_screen
from skillhub.sightings import check_signature
from skillhub.sources import Wanted
from skillhub.vendoring import copy_blobs


def download(
    planner: Planner,
    wanted: Sequence[Wanted],
    folder: str | Path,
    *,
    base: str | None = None,
    with_dependencies: bool = True,
) -> list[Pack]:
    """Fetch packs into folders of their bare names; one that is there already and whole is left alone.

    Args:
        planner: what to work with.
        wanted: packs on registries; the newest releases that will do together are taken.
        folder: where the packs' folders go.
        base: fetch the variants for this base only (folder, ``repo[@revision]`` or fingerprint); None means all.
        with_dependencies: fetch what the packs require as well.

    Returns:
        The packs, sorted by name.

    Raises:
        UsageError: a requirement is a folder or an adapter, two packs have one bare name, or something else is there.
        ResolutionError: no releases will do together.
        SkillhubError: as reading indexes, manifests and files.
    """
    for one in wanted:
        if one.folder is not None or one.kind == PEFT:
            what = "is a folder already" if one.folder else "is a PEFT adapter, not a pack"
            raise UsageError(f"{one} {what}.", hint="Name packs on a registry: OWNER/NAME.")
    target = Path(folder).expanduser().absolute()
    fingerprint = choose_base(planner, wanted, base).fingerprint if base else None
    picks = _choose(planner, wanted, fingerprint, with_dependencies=with_dependencies)
    _refuse_same_folder([pick.name for pick in picks])
    with planner.supply.store.in_use():
        return [_fetch(planner, pick.name, pick.release, target / pick.name.name, fingerprint) for pick in picks]


def _choose(
    planner: Planner, wanted: Sequence[Wanted], fingerprint: str | None, *, with_dependencies: bool
) -> tuple[Pick, ...]:
    from skillhub.resolver.solving import resolve

    catalog = planner.catalog
    catalog.place(wanted, Lock(""))
    catalog.read([one.name for one in wanted])
    for one in wanted:
        catalog.source(one.name)  # raises for what no registry has

    def registry_of(name: PackName) -> Registry | None:
        return catalog.source(name).registry

    claim = BaseClaim(fingerprint=fingerprint, name=short_fingerprint(fingerprint)) if fingerprint else None
    problem = Problem(
        requirements=tuple(one.requirement for one in wanted),
        base=claim,
        with_dependencies=with_dependencies,
        screen=make_screen(read_policy(), None, registry_of, offline=planner.supply.offline),
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


def _fetch(planner: Planner, name: PackName, release: Release, folder: Path, fingerprint: str | None) -> Pack:
    manifest = planner.read_manifest(name, release)
    source = planner.catalog.source(name)
    if source.registry is not None:
        check_signature(source.registry, name, release, manifest, locked=None)
    files = _files(manifest, name, fingerprint)
    if _is_whole(folder, release.manifest_digest, files):
        return open_pack(folder, owner=name.owner)
    new_folder(folder)
    repository = source.repository or str(name)
    place = source.registry.name if source.registry else LOCAL
    fetch_files(planner.supply, Origin(str(name), manifest.version, repository, place, source.commit), files)
    stored = planner.supply.store.path_of(release.manifest_digest)
    root = FileEntry(path=MANIFEST_FILE, size=stored.stat().st_size, sha256=release.manifest_digest)
    with staged_folder(folder) as staged:
        copy_blobs(planner.supply.store, [*files, root], staged)
    return open_pack(folder, owner=name.owner)


def _files(manifest: Manifest, name: PackName, fingerprint: str | None) -> list[FileEntry]:
    variants = [Pack(Path(), manifest, name.owner).variant_for(fingerprint)] if fingerprint else manifest.variants
    return [entry for variant in variants for entry in variant.files]


def _is_whole(folder: Path, digest: str, files: Sequence[FileEntry]) -> bool:
    """Say whether a folder has these files of the release already."""
    try:
        if open_pack(folder).digest != digest:
            return False
        for entry in files:
            check_file(folder / entry.path, entry)
    except SkillhubError:  # nothing is there, or something is wrong with it: the caller says that it is in the way
        return False
    return True
