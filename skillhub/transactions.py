"""Changing an environment: the one path of install, upgrade, lock and sync.

What is asked for is read and edited; the lock is made from it, or kept; what the lock holds and the environment lacks is
fetched and verified in the store and staged beside its place. Only then are ``skillhub.toml`` and ``skillhub.lock``
written, and the staged packs take their places, each by one rename. A process that is killed anywhere leaves an
environment that lists only whole packs, and running the same command again completes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field

import msgspec

from skillhub.basechoice import environment_base
from skillhub.changes import Outcome, delete, find_changes, remove_folder
from skillhub.configuration import read_configuration
from skillhub.environments import Environment, read_project, unfinished_paths, write_project
from skillhub.errors import IntegrityError, LockStaleError, SkillhubError, UsageError
from skillhub.files import disk_errors
from skillhub.lockchecks import check_entries
from skillhub.lockfile import LOCAL, Lock, read_lock, write_lock
from skillhub.names import PackName
from skillhub.nearmisses import warn_of_near_misses
from skillhub.placement import fetch_pack, staged_pack
from skillhub.plans import Choice, Locking
from skillhub.policy import check_lock, read_policy
from skillhub.progress import Notice
from skillhub.projects import Base, Project
from skillhub.pruning import prune_to_limit
from skillhub.requirements import combine_requirements, merge_requirements, project_requirements, stale_reason
from skillhub.sessions import Session
from skillhub.store import Store
from skillhub.wanted import Wanted


@dataclass(frozen=True)
class Edit:
    """What a command changes about what an environment asks for.

    Attributes:
        add: requirements to add; they take the place of older ones for the same packs.
        constraints: to add.
        overrides: to add.
        owners: to add.
        exclude_newer: the new cut-off; None leaves it.
        pre_releases: whether pre-releases will do; None leaves it.
        base: the environment's new base; None leaves it.
        base_text: the base as the user named it, which must be the environment's own; None names none.
    """

    add: tuple[Wanted, ...] = ()
    constraints: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    owners: tuple[str, ...] = ()
    exclude_newer: str | None = None
    pre_releases: bool | None = None
    base: Base | None = None
    base_text: str | None = None


@dataclass(frozen=True)
class Terms:
    """On what terms an environment may be changed.

    Attributes:
        choice: how the lock may differ from the one before.
        locked: the lock must not change.
        frozen: take the lock as it is, whatever ``skillhub.toml`` says.
        lock_only: write the lock and install nothing.
        inexact: leave packs that nothing asks for.
        dry_run: change nothing.
        reinstall: put every pack in its place anew.
        hashes: digests of manifests that are allowed, by pack; None allows any.
    """

    choice: Choice = field(default_factory=Choice)
    locked: bool = False
    frozen: bool = False
    lock_only: bool = False
    inexact: bool = False
    dry_run: bool = False
    reinstall: bool = False
    hashes: Mapping[PackName, frozenset[str]] | None = None


def change(session: Session, place: Environment, edit: Edit, terms: Terms) -> Outcome:
    """Change an environment; either all of it is done, or running it again completes it.

    Args:
        session: where things come from.
        place: the environment.
        edit: what it asks for from now on.
        terms: how far it may be changed.

    Returns:
        What was changed, or would be.

    Raises:
        LockStaleError: the lock would have to change, and must not.
        SkillhubError: each of the errors in :mod:`skillhub.errors` that its name fits.
    """
    holding: AbstractContextManager[None] = nullcontext() if terms.dry_run else place.hold()
    with holding:
        if not terms.dry_run:
            clear_unfinished(place)
        found, old = read_project(place), read_lock(place.lock_path)
        replaced: list[str] = []
        project, wanted, asked = _edited(session, place, found, old, edit, notice=replaced.append)
        base = edit.base or environment_base(session.planner, project, wanted, edit.base_text)
        project = msgspec.structs.replace(project, base=[base])
        lock = _lock(session, place, project, wanted, old, terms)
        check_lock(read_policy(), lock)
        _check_hashes(lock, terms.hashes)
        changes = find_changes(
            place,
            lock,
            base,
            read_through=[one.name for one in asked],
            reinstall=terms.reinstall,
            inexact=terms.inexact,
        )
        names = tuple(one.name for one in asked) or tuple(entry.pack_name for entry in lock.packs)
        outcome = Outcome(place, base, lock, lock != old, () if terms.lock_only else changes, names)
        for text in replaced:  # not before it is certain that a lock comes of it
            session.notice(text)
        if not terms.dry_run:
            _apply(session, outcome, project, terms)
        return outcome


def clear_unfinished(environment: Environment) -> None:
    """Remove what killed processes left; the environment must be held.

    Raises:
        DiskError: it may not be removed.
    """
    for path in list(unfinished_paths(environment)):
        with disk_errors(path):
            delete(path)


def _edited(
    session: Session, place: Environment, before: Project, lock: Lock | None, edit: Edit, *, notice: Notice
) -> tuple[Project, list[Wanted], list[Wanted]]:
    """Return the project as it will be, all its requirements, and those that the user names now.

    ``notice`` is told which old requirements go.
    """
    project = msgspec.structs.replace(
        before,
        constraints=_joined(before.constraints, edit.constraints),
        overrides=_joined(before.overrides, edit.overrides),
        owners=_joined(before.owners, edit.owners),
        exclude_newer=edit.exclude_newer or before.exclude_newer,
        pre_releases=before.pre_releases if edit.pre_releases is None else edit.pre_releases,
    )
    own = session.complete(
        project_requirements(before, lock or Lock(""), place.folder), [project], lock, beside=edit.add
    )
    # owners that are named now are meant for these packs, whatever pack of their name is wanted already
    meant, known = (Project(owners=[*edit.owners], registry=project.registry), None) if edit.owners else (project, lock)
    asked = combine_requirements(session.complete(edit.add, [meant], known))
    wanted = merge_requirements(own, asked, notice)
    texts = [one.text(place.folder) for one in wanted]
    return msgspec.structs.replace(project, requirements=texts), wanted, asked


def _joined(old: Sequence[str], new: Sequence[str]) -> list[str]:
    return list(dict.fromkeys([*old, *new]))


def _lock(
    session: Session, place: Environment, project: Project, wanted: Sequence[Wanted], old: Lock | None, terms: Terms
) -> Lock:
    """Return the lock to install: the one that is there while it will do, else a new one."""
    if terms.frozen:
        if old is None:
            raise LockStaleError(f"{place.folder} has no lock.", hint="Make one: skillhub lock.")
        return old
    stale = stale_reason(project, wanted, old, place)
    if terms.locked and stale:
        raise LockStaleError(
            f"The lock of {place.folder} is not up to date: {stale}.", hint="Bring it up to date: skillhub lock."
        )
    if old is not None and not stale and not terms.choice.reads_anew:
        return old
    known = session.met_before() | {entry.pack_name for entry in (old.packs if old else ())}
    before = old or Lock("")
    lock = Locking(session.planner(project), place, project, wanted, before, project.base[0], terms.choice).make()
    arriving = [entry.pack_name for entry in lock.packs if entry.registry != LOCAL]
    warn_of_near_misses(arriving, known, session.owners([project]), session.notice)
    if terms.locked and lock != old:
        raise LockStaleError(
            f"The lock of {place.folder} would change.", hint="Leave out --locked, or bring it up to date first."
        )
    return lock


def _check_hashes(lock: Lock, hashes: Mapping[PackName, frozenset[str]] | None) -> None:
    """Refuse what the user gave no digest of, or another one: all or nothing, as pip does."""
    for entry in lock.packs if hashes is not None else ():
        allowed = {one for name, given in (hashes or {}).items() if name.matches(entry.pack_name) for one in given}
        if not allowed:
            raise UsageError(
                f"{entry.name} {entry.version} is needed, and no hash of it is given.",
                hint=f"Add --hash=sha256:{entry.manifest} to its line if you trust it.",
            )
        if entry.manifest not in allowed:
            raise IntegrityError(
                f"{entry.name} {entry.version} has the hash {entry.manifest[:12]}…, which is not among those given.",
                hint="Find out which of the two is right before installing it.",
                expected=sorted(allowed),
                found=entry.manifest,
            )


def _apply(session: Session, outcome: Outcome, project: Project, terms: Terms) -> None:
    """Fetch, stage, write and place; removals come last."""
    place, fingerprint = outcome.environment, outcome.base.fingerprint
    arriving = [entry for one in outcome.changes if one.after and (entry := outcome.lock.find(one.name))]
    with ExitStack() as staged:
        if arriving:
            supply = session.planner(project).supply
            staged.enter_context(supply.store.in_use())
            check_entries(supply, read_policy(), place, arriving)
            for entry in arriving:
                fetch_pack(supply, place, entry, fingerprint)
            for entry in arriving:
                staged.enter_context(staged_pack(supply, place, entry, fingerprint))
        if not terms.frozen:
            write_project(place, project)
            write_lock(place.lock_path, outcome.lock)
    for one in outcome.changes:
        if one.action == "remove":
            remove_folder(one.folder)
    if arriving:
        _prune(session, supply.store)


def _prune(session: Session, store: Store) -> None:
    """Keep the store below the user's limit; what was installed stays, so a failure is told and does not undo it."""
    try:
        limit = read_configuration().cache_limit_bytes
        if limit is not None:
            prune_to_limit(store, limit)
    except SkillhubError as error:
        session.notice(f"The store could not be pruned to its limit: {error.message}")
