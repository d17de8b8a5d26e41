"""The releases of one pack, each accepted or rejected for a reason that is kept and printed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from packaging.version import Version

from skillhub.names import Requirement
from skillhub.packs import short_fingerprint
from skillhub.releases import Release, ReleaseIndex, ReleaseVariant

RejectionKind = Literal["version", "pre-release", "yanked", "base", "too-new", "policy"]


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
    requirement: Requirement,
    index: ReleaseIndex,
    *,
    base: BaseClaim | None,
    locked: Version | None = None,
) -> list[Candidate]:
    """Return every release of a pack as a candidate, the newest first.

    Args:
        requirement: the versions that will do.
        index: the pack's releases.
        base: what a variant must be for; None takes any.
        locked: a version that is installed already: it may be yanked or a pre-release.
    """
    allow_pre = bool(requirement.specifier.prereleases)
    candidates = []
    for release in sorted(index.releases, key=lambda release: release.version, reverse=True):
        is_locked = release.version == locked
        rejection = _reject(requirement, release, allow_pre=allow_pre or is_locked, allow_yanked=is_locked)
        if rejection is None and base is not None:
            variant = next((one for one in release.event.variants if base.fits(one)), None)
            if variant is None:
                rejection = Rejection("base", f"has no variant for {base}, only for {_bases_of(release)}")
            candidates.append(Candidate(release, variant.fingerprint if variant else None, rejection))
        else:
            candidates.append(Candidate(release, None, rejection))
    return candidates


def _reject(requirement: Requirement, release: Release, *, allow_pre: bool, allow_yanked: bool) -> Rejection | None:
    """Return why a release is out whatever the base, or None."""
    if not requirement.specifier.contains(release.version, prereleases=True):
        return Rejection("version", f"does not match {requirement.specifier}")
    if release.version.is_prerelease and not allow_pre:
        return Rejection("pre-release", "is a pre-release, which nobody asked for")
    if release.yanked is not None and not allow_yanked:
        return Rejection("yanked", f"was yanked ({release.yanked})")
    return None


def _bases_of(release: Release) -> str:
    return list_bases([release]) or "no base at all"


def list_bases(releases: Iterable[Release]) -> str:
    """Return the bases that releases have variants for, for messages."""
    fingerprints = dict.fromkeys(variant.fingerprint for release in releases for variant in release.event.variants)
    return ", ".join(short_fingerprint(fingerprint) for fingerprint in fingerprints)
