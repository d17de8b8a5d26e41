"""Install, uninstall and verify packs in an environment.

Installing goes one way: requirements → releases → candidates → manifest → the fitting variant's files → store → a
folder beside the pack's place → its place. What goes over the network comes first and ends in the store; then, with
everything at hand, ``skillhub.toml`` and ``skillhub.lock`` are written, and last the prepared folders are renamed into
place. Killed at any point, an environment lists only whole packs, and running the same command again completes it.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec

from skillhub import hub, settings
from skillhub.basechoice import claimed_base, named_base, only_base
from skillhub.environments import (
    Environment,
    InstalledPack,
    as_environment,
    find_folder,
    installed_folders,
    name_of_folder,
    read_installed,
    read_project,
    unfinished_paths,
    user_environment,
    user_environments,
    write_project,
)
from skillhub.errors import DiskError, IntegrityError, NotFoundError, SkillhubError, WrongBaseError
from skillhub.files import disk_errors
from skillhub.lockfile import Lock, LockedBase, LockedPack, inputs_digest, read_lock, write_lock
from skillhub.names import PackName, is_folder
from skillhub.packs import short_fingerprint
from skillhub.placement import Supply, fetch_files, fetch_manifest, origin_of, read_variant, staged_pack
from skillhub.plans import Planner, combine_requirements, merge_requirements, plan_packs, project_requirements
from skillhub.progress import Notice, Progress, counting
from skillhub.projects import Base, Project
from skillhub.sources import Wanted, parse_wanted, with_owner
from skillhub.store import default_store


def install(
    requirements: Sequence[str | Path],
    *,
    base: str | Path | None = None,
    environment: Path | str | Environment | None = None,
    registry: hub.Registry | str | None = None,
    token: str | None = None,
    offline: bool = False,
    progress: Progress | None = None,
    notice: Notice | None = None,
) -> list[InstalledPack]:
    """Install packs, and what else the environment asks for.

    Args:
        requirements: names (``acme/math-pack``), names with versions (``acme/math-pack>=1.2``) or folders of built packs
            (``./math-pack``, or a path); none means what ``skillhub.toml`` and the lock ask for already.
        base: folder, ``repo[@revision]`` or fingerprint of the base model; None means the environment's, else the only
            one that fits.
        environment: None means this user's environment for the base.
        registry: a registry, or its address; None means the configured one.
        token: for that registry; None means the saved one, for the configured registry only.
        offline: use only what is remembered and in the store.
        progress: told about downloads: what, bytes done, bytes in all; from any thread.
        notice: told sentences for the user.

    Returns:
        The packs that were asked for, as they are now installed; without requirements, all.

    Raises:
        SkillhubError: each of the errors in :mod:`skillhub.errors` that its name fits; nothing is then half-installed.
    """
    if not isinstance(registry, hub.Registry):
        registry = hub.default_registry(registry, token)
    supply = Supply(registry, default_store(), offline or settings.offline(), progress)
    planner = Planner(supply, notice or (lambda sentence: None))
    wanted = [parse_wanted(text if isinstance(text, str) else str(text.absolute())) for text in requirements]
    named = None if base is None else str(base)
    if environment is None:
        wanted = _with_owners(planner, wanted, [read_project(one) for one in user_environments()])
        wanted = combine_requirements(wanted)
        chosen = _choose_base(planner, wanted, named)
        place = user_environment(chosen.fingerprint)
    else:
        chosen, place = None, as_environment(environment)
    with place.hold():
        return _install_into(planner, place, wanted, chosen, named)


def _install_into(
    planner: Planner, place: Environment, wanted: Sequence[Wanted], chosen: Base | None, named: str | None
) -> list[InstalledPack]:
    """Resolve, fetch, lock and place; the environment is held."""
    _clear_unfinished(place)
    project = read_project(place)
    old = read_lock(place.lock_path) or Lock("")
    asked = combine_requirements(_with_owners(planner, wanted, [project]))
    own = _with_owners(planner, project_requirements(project, old, place), [project], old)
    everything = merge_requirements(own, asked, planner.notice)
    base = chosen or _environment_base(planner, everything, named, project)
    asked = asked or everything
    entries = plan_packs(planner, place, everything, {one.key for one in asked if wanted}, old, base)
    texts = [one.text(place.folder) for one in everything]
    lock = Lock(
        inputs_digest(texts),
        (LockedBase(fingerprint=base.fingerprint, repo=base.repo, revision=base.revision),),
        tuple(entries),
    )
    read_through = {one.key for one in asked if wanted}
    stale = [
        one for one in entries if not _is_installed(place, one, base, read_through=one.name.lower() in read_through)
    ]
    for entry in stale:
        _fetch(planner.supply, place, entry, base)
    with ExitStack() as staged:
        for entry in stale:
            staged.enter_context(staged_pack(planner.supply, place, entry, base.fingerprint))
        write_project(place, msgspec.structs.replace(project, base=project.base or [base], requirements=texts))
        write_lock(place.lock_path, lock)
    _remove_unwanted(place, entries, planner.notice)
    return [read_installed(place.pack_folder(one.name)) for one in asked]


def _fetch(supply: Supply, place: Environment, entry: LockedPack, base: Base) -> None:
    """Bring a locked pack's manifest and the files of its variant into the store."""
    origin = origin_of(entry, place)
    manifest = fetch_manifest(supply, origin, entry.manifest)
    _, variant = read_variant(manifest, origin, base.fingerprint)
    fetch_files(supply, origin, variant.files)


def _with_owners(
    planner: Planner, wanted: Sequence[Wanted], projects: Sequence[Project], locked: Lock | None = None
) -> list[Wanted]:
    """Fill in the owners of short names, from what projects want already or have locked, and from their owners."""
    texts = [text for project in projects for text in project.requirements]
    names = [parse_wanted(text).name for text in texts if not is_folder(text)]
    names += [entry.pack_name for entry in locked.packs] if locked else []
    known = {str(name).lower(): name for name in names}
    owners = list(dict.fromkeys(owner for project in projects for owner in project.owners))
    supply = planner.supply
    return [
        with_owner(one, owners=owners, known=list(known.values()), registry=supply.registry, offline=supply.offline)
        for one in wanted
    ]


def _choose_base(planner: Planner, wanted: Sequence[Wanted], text: str | None) -> Base:
    """Return the base that was named, or the only one that fits what is wanted."""
    claim, known = named_base(text, planner.supply.registry, offline=planner.supply.offline) if text else (None, None)
    if known:
        return known
    if not wanted:
        raise NotFoundError(
            "There is nothing to install: no pack was named, and nothing is asked for here.",
            hint="Name a pack: skillhub install OWNER/NAME.",
        )
    sources = planner.find_sources(wanted)
    if text is None or claim is None:
        return only_base(sources, notice=planner.notice)
    return claimed_base(text, claim, sources, read_manifest=planner.read_manifest, notice=planner.notice)


def _environment_base(planner: Planner, wanted: Sequence[Wanted], text: str | None, project: Project) -> Base:
    """Return the environment's base, which must be the one that was named, if one was."""
    own = project.base[0] if project.base else None
    if own is None:
        return _choose_base(planner, wanted, text)
    own_text = f"{own.repo}@{own.revision}" if own.revision else own.repo
    if text is None or text in (own_text, own.fingerprint):
        return own
    named = _choose_base(planner, wanted, text)
    if named.fingerprint != own.fingerprint:
        raise WrongBaseError(
            f"The environment is for the base {short_fingerprint(own.fingerprint)}, and {text} is another one "
            f"({short_fingerprint(named.fingerprint)}).",
            hint="Use another environment for another base: --environment FOLDER.",
            fingerprint=named.fingerprint,
        )
    return own


def _is_installed(environment: Environment, entry: LockedPack, base: Base, *, read_through: bool) -> bool:
    """Say whether a locked pack is in its place; what was asked for by name is read through, so asking repairs it."""
    folder = environment.pack_folder(entry.pack_name)
    if not folder.is_dir():
        return False
    try:
        installed = read_installed(folder)
        if (installed.receipt.manifest, installed.fingerprint) != (entry.manifest, base.fingerprint):
            return False
        return not (read_through and installed.verify())
    except SkillhubError:  # whatever is wrong with it: it is put there anew
        return False


def _remove_unwanted(environment: Environment, entries: Sequence[LockedPack], notice: Notice) -> None:
    """Remove installed packs that the lock does not hold."""
    kept = {environment.pack_folder(entry.pack_name) for entry in entries}
    for folder in installed_folders(environment):
        if folder not in kept:
            _remove(folder)
            notice(f"Removed {folder.parent.name}/{folder.name}: nothing asks for it any more.")


@dataclass(frozen=True)
class RemovedPack:
    """A pack that was uninstalled.

    Attributes:
        name: the pack.
        version: its version; None when neither the pack nor the lock tells.
        installed: what was installed; None for a damaged pack.
    """

    name: PackName
    version: str | None
    installed: InstalledPack | None


def uninstall(names: Sequence[str], *, environment: Path | str | Environment) -> list[RemovedPack]:
    """Remove packs from an environment, damaged ones as well; the store keeps the bytes.

    Args:
        names: full or short names.
        environment: where.

    Returns:
        What was removed, each pack once.

    Raises:
        NotFoundError: one is not installed; nothing is then removed.
        UsageError: several packs have a short name.
        DiskError: the environment may not be written.
    """
    chosen = as_environment(environment)
    if not chosen.folder.is_dir():
        raise NotFoundError(f"There is no environment in {chosen.folder}.", hint="Name the right folder.")
    with chosen.hold():
        _clear_unfinished(chosen)
        folders = list(dict.fromkeys(find_folder(chosen, name) for name in names))
        project = read_project(chosen)
        lock = read_lock(chosen.lock_path) or Lock("")
        removed = [_describe_removed(folder, lock) for folder in folders]
        gone = [one.name for one in removed]
        wanted = project_requirements(project, lock, chosen)
        requirements = [one.text(chosen.folder) for one in wanted if not any(_asks_for(one, name) for name in gone)]
        left = tuple(entry for entry in lock.packs if entry.pack_name not in gone)
        write_project(chosen, msgspec.structs.replace(project, requirements=requirements))
        write_lock(chosen.lock_path, Lock(inputs_digest(requirements), lock.bases, left))
        for folder in folders:
            _remove(folder)
        return removed


def _describe_removed(folder: Path, lock: Lock) -> RemovedPack:
    try:
        installed = read_installed(folder)
        return RemovedPack(installed.name, installed.version, installed)
    except SkillhubError:  # no reason to keep it
        name = name_of_folder(folder)
        entry = next((entry for entry in lock.packs if entry.pack_name == name), None)
        return RemovedPack(entry.pack_name if entry else name, entry.version if entry else None, None)


def _asks_for(wanted: Wanted, name: PackName) -> bool:
    """Say whether a requirement is for the installed pack ``name``, which has no owner when it came from a folder."""
    return wanted.name == name or (wanted.folder is None and name.owner is not None and wanted.name.matches(name))


def verify(environment: Path | str | Environment, *, progress: Progress | None = None) -> list[IntegrityError]:
    """Read every installed file again and compare it with its manifest and the lock.

    Args:
        environment: where.
        progress: told what is read: the pack, bytes done, bytes in all.

    Returns:
        One error for each missing, altered or unlisted file, for each pack whose manifest or receipt cannot be read,
        and for each pack that is locked and not installed as it is locked; empty when all is well.

    Raises:
        DiskError: a file may not be read.
    """
    chosen = as_environment(environment)
    findings: list[IntegrityError] = []
    installed: dict[str, str] = {}
    for folder in installed_folders(chosen):
        try:
            one = read_installed(folder)
            total = sum(entry.size for entry in one.receipt.files)
            found = one.verify(progress=counting(str(one), total, progress))
        except DiskError:
            raise
        except SkillhubError as error:
            findings.append(IntegrityError(error.message, hint=error.hint, path=str(folder)))
            continue
        installed[str(one.name).lower()] = one.receipt.manifest
        findings += found
    lock = read_lock(chosen.lock_path)
    for entry in lock.packs if lock else ():
        if installed.get(entry.name.lower()) != entry.manifest:
            findings.append(
                IntegrityError(
                    f"{entry.name} {entry.version} is locked and not installed like that.",
                    hint="Run `skillhub install`.",
                )
            )
    return findings


def _remove(folder: Path) -> None:
    """Remove an installed pack: first out of sight by one rename, then from the disk."""
    with disk_errors(folder):
        hidden = folder.with_name(f".{folder.name[:40]}.removed")
        _delete(hidden)
        folder.rename(hidden)
        _delete(hidden)


def _clear_unfinished(environment: Environment) -> None:
    """Remove what killed processes left; the environment is held."""
    for path in list(unfinished_paths(environment)):
        with disk_errors(path):
            _delete(path)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
