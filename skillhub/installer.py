"""Installing packs into environments, and taking them out again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
from packaging.version import Version

from skillhub import hub
from skillhub.basechoice import choose_base
from skillhub.changes import Change, Outcome, removal, remove_folder
from skillhub.environments import (
    Environment,
    InstalledPack,
    as_environment,
    find_folder,
    read_installed,
    read_project,
    user_environment,
    user_environments,
    write_project,
)
from skillhub.errors import NotFoundError, UsageError
from skillhub.graphs import dependencies, dependents, find_locked, key_of, reached
from skillhub.lockfile import Lock, LockedPack, read_lock, write_lock
from skillhub.names import PackName, parse_version
from skillhub.plans import Choice
from skillhub.progress import Notice, Progress
from skillhub.projects import Project
from skillhub.requirements import asks_for, combine_requirements, lock_inputs, project_requirements, stale_reason
from skillhub.sessions import Session
from skillhub.transactions import Edit, Terms, change, clear_unfinished
from skillhub.wanted import Wanted, parse_wanted


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
    """Install packs with what they require, and what else the environment asks for.

    Args:
        requirements: names (``acme/math-pack``), names with versions (``acme/math-pack>=1.2``) or at a commit
            (``acme/math-pack@COMMIT``), PEFT adapters (``peft:acme/lora``), or folders of built packs (``./math-pack``, or a
            path); none means what ``skillhub.toml`` and the lock ask for already.
        base: folder, ``repo[@revision]`` or fingerprint of the base model; None means the environment's, else the only
            one that fits.
        environment: None means this user's environment for the base.
        registry: a registry, its configured name, its address, or a vendored folder; None means the configured ones.
        token: for that registry; None means the one that belongs to it.
        offline: use only what is remembered and in the store.
        progress: told about downloads: what, bytes done, bytes in all; from any thread.
        notice: told sentences for the user.

    Returns:
        The packs that were asked for, as they are now installed; without requirements, all.

    Raises:
        SkillhubError: each of the errors in :mod:`skillhub.errors` that its name fits; nothing is then half-installed.
    """
    session = Session(registry, token, offline, progress=progress)
    if notice is not None:
        session.notice = notice
    edit = Edit(add=read_wanted(requirements), base_text=None if base is None else str(base))
    outcome = install_into(session, None if environment is None else as_environment(environment), edit, Terms())
    return [read_installed(outcome.environment.pack_folder(name)) for name in outcome.asked]


def read_wanted(requirements: Sequence[str | Path]) -> tuple[Wanted, ...]:
    """Read requirements as a call or a command line gives them; relative folders are relative to the working folder.

    Raises:
        SkillhubError: as :func:`skillhub.wanted.parse_wanted`.
    """
    return tuple(parse_wanted(text if isinstance(text, str) else str(text.absolute())) for text in requirements)


def install_into(session: Session, place: Environment | None, edit: Edit, terms: Terms) -> Outcome:
    """Add requirements to an environment and install what it then asks for.

    Args:
        session: where things come from.
        place: the environment; None means this user's for the base that is named, or the only one that fits.
        edit: what to add.
        terms: how far the environment may be changed.

    Raises:
        SkillhubError: as :func:`skillhub.transactions.change`.
    """
    session.met_before()
    if place is None:
        projects = [read_project(one) for one in user_environments()]
        wanted = combine_requirements(session.complete(edit.add, projects, None))
        base = choose_base(session.planner(Project()), wanted, edit.base_text)
        place = user_environment(base.fingerprint)
        own = read_project(place).base
        edit = replace(edit, add=tuple(wanted), base=own[0] if own else base)
    terms = replace(terms, choice=replace(terms.choice, asked=edit.add))
    return change(session, as_environment(place), edit, terms)


def sync(session: Session, place: Environment, terms: Terms) -> Outcome:
    """Make an environment hold what its lock says, after bringing the lock up to date with ``skillhub.toml``.

    Raises:
        LockStaleError: the lock is not up to date, and ``terms`` do not let it change.
        SkillhubError: as :func:`skillhub.transactions.change`.
    """
    return change(session, as_environment(place), Edit(), terms)


def lock(session: Session, place: Environment, terms: Terms) -> Outcome:
    """Bring an environment's lock up to date by asking what has been published; nothing is installed.

    Versions that are locked stay while they will do.

    Raises:
        LockStaleError: the lock would change, and ``terms`` do not let it.
        SkillhubError: as :func:`skillhub.transactions.change`.
    """
    choice = replace(terms.choice, resolve=True)
    return change(session, as_environment(place), Edit(), replace(terms, lock_only=True, choice=choice))


def upgrade(
    session: Session,
    place: Environment,
    names: Sequence[str],
    terms: Terms,
    *,
    precise: str | None = None,
) -> Outcome:
    """Move packs to newer releases; the others stay where they are locked, unless a newer release needs them to move.

    Args:
        session: where things come from.
        place: the environment.
        names: full or short names of locked packs; none means all.
        terms: how far the environment may be changed.
        precise: the version to move the one named pack to, which may be an older one.

    Raises:
        NotFoundError: a name is not locked here.
        UsageError: ``precise`` with any number of names but one, or a version that cannot be read.
        ResolutionError: the precise version will not do.
        SkillhubError: as :func:`skillhub.transactions.change`.
    """
    place = as_environment(place)
    locked = read_lock(place.lock_path) or Lock("")
    found = [find_locked(locked, name.removeprefix("peft:")) for name in names]
    versions: dict[PackName, Version] = {}
    if precise is not None:
        if len(found) != 1:
            raise UsageError(
                "--precise needs exactly one pack.", hint="Write: skillhub upgrade PACK --precise VERSION."
            )
        versions[found[0].pack_name] = parse_version(precise)
    unlocked = frozenset(entry.pack_name for entry in found) if names else None
    choice = Choice(unlocked=unlocked, precise=versions)
    return change(session, place, Edit(), replace(terms, choice=choice))


def uninstall(names: Sequence[str], *, environment: Path | str | Environment) -> list[Change]:
    """Remove packs from an environment with what only they required, damaged ones as well; the store keeps the bytes.

    Args:
        names: full or short names.
        environment: where.

    Returns:
        What was removed, each pack once: those that were named first.

    Raises:
        NotFoundError: one is not installed; nothing is then removed.
        UsageError: several packs have a short name, or another pack requires one.
        DiskError: the environment may not be written.
    """
    chosen = as_environment(environment)
    if not chosen.folder.is_dir():
        raise NotFoundError(f"There is no environment in {chosen.folder}.", hint="Name the right folder.")
    with chosen.hold():
        clear_unfinished(chosen)
        folders = list(dict.fromkeys(find_folder(chosen, name.removeprefix("peft:")) for name in names))
        removed = [removal(folder) for folder in folders]
        project, lock = read_project(chosen), read_lock(chosen.lock_path) or Lock("")
        wanted = project_requirements(project, lock, chosen.folder)
        was_fresh = stale_reason(project, wanted, lock, chosen) is None
        left = [one for one in wanted if not any(asks_for(one, gone.name) for gone in removed)]
        kept = _still_needed(lock, left)
        _refuse_required(kept, removed, lock)
        texts = [one.text(chosen.folder) for one in left]
        project = msgspec.structs.replace(project, requirements=texts)
        inputs = lock_inputs(project, texts) if was_fresh else lock.inputs
        orphans = [entry for entry in lock.packs if entry not in kept]
        write_project(chosen, project)
        write_lock(chosen.lock_path, Lock(inputs, lock.bases, tuple(kept)))
        for entry in orphans:
            folder = chosen.pack_folder(entry.pack_name)
            if folder.is_dir() and folder not in folders:
                removed.append(removal(folder))
        for one in removed:
            remove_folder(one.folder)
        return removed


def _still_needed(lock: Lock, roots: Sequence[Wanted]) -> list[LockedPack]:
    """Return the locked packs that are asked for, and what those require, in the lock's order."""
    needed = reached((one.key for one in roots if lock.find(one.name)), dependencies(lock))
    return [entry for entry in lock.packs if key_of(entry) in needed]


def _refuse_required(kept: Sequence[LockedPack], removed: Sequence[Change], lock: Lock) -> None:
    for entry in kept:
        if any(entry.pack_name == gone.name for gone in removed):
            needing = [one.name for one in dependents(lock)[key_of(entry)] if one in kept]
            raise UsageError(
                f"{entry.name} is required by {', '.join(needing)}.",
                hint=f"Uninstall that first: skillhub uninstall {needing[0]}.",
            )
