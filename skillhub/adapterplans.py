"""From a PEFT adapter that is wanted to its entry in a lock; whether one that is locked stays as it is."""

from __future__ import annotations

import re
from collections.abc import Callable

from skillhub import hub
from skillhub.catalogs import Catalog
from skillhub.lockfile import PEFT, LockedPack, files_digest
from skillhub.projects import Base
from skillhub.sources import Wanted

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
    catalog: Catalog, wanted: Wanted, base: Base, identify: Callable[[hub.Registry, str], str | None]
) -> LockedPack:
    """Return the lock entry of a PEFT adapter as a registry has it now, pinned by its commit and its files' digests.

    Args:
        catalog: where to look.
        wanted: the requirement.
        base: the environment's; where the adapter declares another one, the user is told.
        identify: returns the id of a repository, compared with those that were seen.

    Raises:
        SkillhubError: as :meth:`skillhub.catalogs.Catalog.find_adapter`, and what ``identify`` raises.
    """
    registry, found = catalog.find_adapter(wanted)
    if found.base and base.repo and found.base.lower() != base.repo.lower():
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
