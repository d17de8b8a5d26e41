"""What the resolver answers: the releases to install, and what their users should know about them."""

from __future__ import annotations

from dataclasses import dataclass

from skillhub.names import PackName
from skillhub.releases import Release, ReleaseIndex


@dataclass(frozen=True)
class Pick:
    """The chosen release of a pack.

    Attributes:
        name: the pack.
        release: the release.
        fingerprint: of the variant to install; None when no base was asked for.
        dependencies: the packs that the release requires, by the names it gives them, sorted.
    """

    name: PackName
    release: Release
    fingerprint: str | None
    dependencies: tuple[PackName, ...] = ()


@dataclass(frozen=True)
class Resolution:
    """What to install.

    Attributes:
        picks: the chosen releases, sorted by name.
        notes: sentences for the user: yanked releases that stay, deprecated and moved packs.
    """

    picks: tuple[Pick, ...]
    notes: tuple[str, ...] = ()


def notes_on(name: PackName, release: Release, index: ReleaseIndex) -> list[str]:
    """Return what a user should know about a release that was chosen.

    Args:
        name: the pack.
        release: the chosen release.
        index: the pack's releases.
    """
    notes = []
    if release.yanked is not None:
        notes.append(f"{name} {release.version} was yanked ({release.yanked}); it stays because it is locked.")
    if index.deprecated:
        notes.append(f"{name} is deprecated: {index.deprecated}.")
    if index.moved_to:
        notes.append(f"{name} has moved to {index.moved_to}.")
    return [*notes, *index.notes]
