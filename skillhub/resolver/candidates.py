"""The releases of one pack, each accepted or rejected for a reason that is kept and printed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from packaging.version import Version

from skillhub.names import Requirement
from skillhub.packs import short_fingerprint
from skillhub.releases import Release, ReleaseIndex, ReleaseVariant

RejectionKind = Literal["constraint", "yanked", "base", "too-new", "policy", "itself"]


_MAX_BASES = 6  # that a message names


@dataclass(frozen=True)
class BaseClaim:
    """The base that packs must fit, as far as it is known.

    Attributes:
        fingerprint: the base's own, where it was computed or given.
        base_files: digest of the files of weights on a registry (see ``fingerprint.base_files_digest``): a variant
            that names the same files claims to be for this base. Such a claim decides about that pack only.
        name: what to call the base in messages.
    """

    fingerprint: str | None = None
    base_files: str | None = None
    name: str = ""

    def __str__(self) -> str:
        return self.name or (short_fingerprint(self.fingerprint) if self.fingerprint else "the base")

    def fits(self, variant: ReleaseVariant) -> bool:
        """Say whether a variant is for this base."""
        if self.fingerprint is not None:
            return variant.fingerprint == self.fingerprint
        return self.base_files is not None and self.base_files in variant.base_files


@dataclass(frozen=True)
class Rejection:
    """Why a release is out of the question.

    Attributes:
        kind: which rule it failed.
        reason: the end of a sentence that begins with the release.
    """

    kind: RejectionKind
    reason: str


@dataclass(frozen=True)
class Candidate:
    """One release of a pack.

    Attributes:
        release: the release.
        fingerprint: of the variant that fits; None when no base was asked for, or when rejected.
        rejection: None when the candidate is accepted.
    """

    release: Release
    fingerprint: str | None = None
    rejection: Rejection | None = None

    @property
    def version(self) -> Version:
        """The release's version."""
        return self.release.version


def find_candidates(
    index: ReleaseIndex,
    *,
    base: BaseClaim | None = None,
    locked: Version | None = None,
    constraints: Sequence[Requirement] = (),
) -> list[Candidate]:
    """Return every release of a pack as a candidate, the oldest first.

    Whether a version is one that somebody asks for, a pre-release among them, is a matter of each requirement and is not
    looked at here.

    Args:
        index: the pack's releases.
        base: what a variant must be for; None takes any.
        locked: a version that is installed already: it may be yanked.
        constraints: versions that the user leaves.
    """
    candidates = []
    for release in sorted(index.releases, key=lambda release: release.version):
        rejection = _reject(release, constraints, is_locked=release.version == locked)
        variant = next((one for one in release.event.variants if base.fits(one)), None) if base else None
        if rejection is None and base is not None and variant is None:
            only = list_bases([release])
            reason = f"has no variant for {base}, only for {only}" if only else f"has no variant for {base} or any base"
            rejection = Rejection("base", reason)
        fingerprint = variant.fingerprint if variant and rejection is None else None
        candidates.append(Candidate(release, fingerprint, rejection))
    return candidates


def _reject(release: Release, constraints: Sequence[Requirement], *, is_locked: bool) -> Rejection | None:
    """Return why a release is out whatever the base, or None."""
    for constraint in constraints:
        if not constraint.specifier.contains(release.version, prereleases=True):
            return Rejection("constraint", f"is left out by the constraint {constraint.text}")
    if release.yanked is not None and not is_locked:
        return Rejection("yanked", f"was yanked ({release.yanked})")
    return None


def list_bases(releases: Iterable[Release]) -> str:
    """Return the bases that releases have variants for, for messages."""
    fingerprints = dict.fromkeys(variant.fingerprint for release in releases for variant in release.event.variants)
    shown = [short_fingerprint(fingerprint) for fingerprint in list(fingerprints)[:_MAX_BASES]]
    return ", ".join(shown) + (
        f" and {len(fingerprints) - len(shown)} others" if len(fingerprints) > len(shown) else ""
    )
