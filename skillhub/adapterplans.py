"""From a PEFT adapter that is wanted to its entry in a lock; whether one that is locked stays as it is."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from skillhub import hub
from skillhub.catalogs import Catalog
from skillhub.errors import ResolutionError, SkillhubError, TrustError
from skillhub.lockfile import PEFT, LockedPack, files_digest
from skillhub.policy import policy_path, read_policy
from skillhub.projects import Base
from skillhub.wanted import Wanted

_COMMIT = re.compile(r"[0-9a-f]{7,40}")


def stays_locked(wanted: Wanted, entry: LockedPack, *, is_asked: bool) -> bool:
    """Say whether an adapter stays at its locked commit: unless another one is asked for, or its branch or tag is named again.

    Args:
        wanted: the requirement.
        entry: its entry in the lock so far.
        is_asked: the user has just named it.
    """
    if entry.kind != PEFT:
        return False
    if wanted.revision is None or str(entry.commit).startswith(wanted.revision):
        return True
    return not is_asked and _COMMIT.fullmatch(wanted.revision) is None


def lock_adapter(
    catalog: Catalog,
    wanted: Wanted,
    base: Base | None,
    identify: Callable[[hub.Registry, str], str | None],
    *,
    old: LockedPack | None = None,
    cut_off: datetime | None = None,
) -> LockedPack:
    """Return the lock entry of a PEFT adapter as a registry has it now, pinned by its commit and its files' digests.

    Args:
        catalog: where to look.
        wanted: the requirement.
        base: the environment's, where there is one; where the adapter declares another, the user is told.
        identify: returns the id of a repository, compared with those that were seen.
        old: its entry in the lock so far; it stays where what there is now is too new and no revision is asked for.
        cut_off: an adapter that was changed later is left alone; so is one that is too new for the policy.

    Raises:
        ResolutionError: it was changed after the cut-off.
        TrustError: it was changed too short a time ago for the policy.
        SkillhubError: as :meth:`skillhub.catalogs.Catalog.find_adapter`, and what ``identify`` raises.
    """
    registry, found = catalog.find_adapter(wanted)
    too_new = None if registry.folder else _too_new(wanted, found, cut_off)
    if too_new and old and old.kind == PEFT and wanted.revision is None:
        catalog.notice(f"{too_new.message} It stays at {old.version}.")
        return old
    if too_new:
        raise too_new
    if found.base and base and base.repo and found.base.lower() != base.repo.lower():
        catalog.notice(f"{wanted.name} declares {found.base} as its base; this environment is for {base.repo}.")
    repository = found.moved_to or str(wanted.name)
    return LockedPack(
        name=str(wanted.name),
        version=found.commit[:12],
        manifest=files_digest(found.files),
        kind=PEFT,
        registry=registry.name,
        repository=repository,
        id=identify(registry, repository),
        commit=found.commit,
        base=found.base,
        files=found.files,
    )


def _too_new(wanted: Wanted, found: hub.RemoteAdapter, cut_off: datetime | None) -> SkillhubError | None:
    """Return what is wrong with the age of an adapter, or None. Nobody notes when commits are first seen: the registry tells."""
    days = read_policy().cooldown_days
    published = found.published
    when = f"was changed at {published:%Y-%m-%d %H:%M} UTC" if published else "was changed at a time that is not told"
    older = f"Name a commit that is older: peft:{wanted.name}@COMMIT."
    if cut_off is not None and (published is None or published > cut_off):
        return ResolutionError(f"{wanted} {when}, after the cut-off {cut_off:%Y-%m-%d %H:%M} UTC.", hint=older)
    if days and (published is None or published > datetime.now(UTC) - timedelta(days=days)):
        return TrustError(
            f"{wanted} {when}, less than the {days} days ago that the policy asks for.",
            hint=f"{older} The policy is {policy_path()}.",
        )
    return None
