"""Which base an installation is for: the one that was named, the environment's, or the only one that fits.

A base is named by its fingerprint, by a folder (whose weights are fingerprinted) or by ``repo[@revision]``. Of a
repository nothing is downloaded: the registry's tree tells the digests of its files of weights, and a release that
lists them claims to be for this base. Where no release lists them (the weights were packed from other files), a pack
that *declares* this repository as its base is believed, and that is said. Either way it is a claim of that pack; the
weights themselves are checked when a pack is grafted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from skillhub import hub
from skillhub.bases import split_repository
from skillhub.environments import read_project, user_environments
from skillhub.errors import AuthError, NotFoundError, OfflineError, UsageError, WrongBaseError
from skillhub.manifest import Manifest
from skillhub.names import parse_pack_name
from skillhub.packs import base_text, short_fingerprint
from skillhub.progress import Notice
from skillhub.projects import Base
from skillhub.releases import Release
from skillhub.resolver import BaseClaim, Request, resolve
from skillhub.sources import Source

_FINGERPRINT = re.compile(r"skb1:[0-9a-f]{64}")

ReadManifest = Callable[[Source, Release], Manifest]


def named_base(text: str, registry: hub.Registry, *, offline: bool) -> tuple[BaseClaim, Base | None]:
    """Return what is known of a base that a user named, and the base itself where that is enough to know it.

    Args:
        text: fingerprint, folder, or ``repo[@revision]``. A folder that exists wins over a repository.
        registry: whose repositories are meant.
        offline: do not ask for the repository's files.

    Raises:
        UsageError: it is none of these.
        SkillhubError: the folder holds no checkpoint, or the registry cannot be reached.
    """
    if text.startswith("skb1:"):
        if not _FINGERPRINT.fullmatch(text):
            raise UsageError(f"{text!r} is not a fingerprint.", hint="Write skb1: and 64 hex digits.")
        return BaseClaim(fingerprint=text), Base(fingerprint=text)
    folder = Path(text).expanduser()
    if folder.exists() or text.startswith((".", "/", "~")):
        from skillhub.fingerprint import fingerprint_checkpoint

        fingerprint = fingerprint_checkpoint(folder).fingerprint
        return BaseClaim(fingerprint=fingerprint, name=f"{text} ({short_fingerprint(fingerprint)})"), Base(
            fingerprint=fingerprint
        )
    repository, revision = split_repository(text)
    if parse_pack_name(repository).owner is None:
        raise UsageError(
            f"{text!r} is no base: there is no such folder.", hint="Name a folder, OWNER/NAME, or a fingerprint."
        )
    return BaseClaim(base_files=_files_digest(registry, repository, revision, offline), name=text), None


def _files_digest(registry: hub.Registry, repository: str, revision: str | None, offline: bool) -> str | None:
    from skillhub.fingerprint import base_files_digest

    if offline:
        return None
    try:
        digests = hub.base_file_digests(registry, repository, revision=revision)
    except (OfflineError, NotFoundError, AuthError):  # the base may lie on another registry, or be gated
        return None
    return base_files_digest(digests.values()) if digests else None


def claimed_base(
    text: str, claim: BaseClaim, sources: Sequence[Source], *, read_manifest: ReadManifest, notice: Notice
) -> Base:
    """Return the base that packs claim a repository to be.

    Args:
        text: ``repo[@revision]``.
        claim: what is known of the repository's files.
        sources: the wanted packs.
        read_manifest: fetches a release's manifest.
        notice: told when only a declaration speaks for the base.

    Raises:
        WrongBaseError: no release of a pack is for this base, or packs claim different ones.
        ResolutionError: a pack has no release that will do on any base.
    """
    repository, revision = split_repository(text)
    found: dict[str, list[str]] = {}
    for source in sources:
        fingerprint = _claimed_fingerprint(repository, claim, source, read_manifest, notice)
        found.setdefault(fingerprint, []).append(str(source.wanted.name))
    if len(found) > 1:
        said = "; ".join(f"{', '.join(names)}: {short_fingerprint(one)}" for one, names in found.items())
        raise WrongBaseError(
            f"The packs do not agree about what {text} is: {said}.",
            hint="Name the base by its folder: its weights are then looked at.",
        )
    return Base(fingerprint=next(iter(found)), repo=repository, revision=revision)


def _claimed_fingerprint(
    repository: str, claim: BaseClaim, source: Source, read_manifest: ReadManifest, notice: Notice
) -> str:
    request = [Request(source.wanted.requirement, source.index)]
    try:
        return str(resolve(request, base=claim).picks[0].fingerprint)
    except WrongBaseError:
        newest = resolve(request, base=None).picks[0].release
        manifest = read_manifest(source, newest)
        for variant in manifest.variants:
            if variant.base.repo and variant.base.repo.lower() == repository.lower():
                notice(
                    f"{source.wanted.name} declares {repository} as its base, from other files of weights than are "
                    "there now; they are checked when the pack is grafted."
                )
                return variant.base.fingerprint
        raise


def only_base(sources: Sequence[Source], *, notice: Notice) -> Base:
    """Return the base to use when none was named: the one of an environment of this user, else the packs' only one.

    Raises:
        WrongBaseError: the packs fit several bases, or none together.
        ResolutionError: a pack has no release that will do on any base.
    """
    requests = [Request(source.wanted.requirement, source.index) for source in sources]
    picks = resolve(requests, base=None).picks
    names = ", ".join(str(pick.name) for pick in picks)
    fits = [dict.fromkeys(one.fingerprint for one in pick.release.event.variants) for pick in picks]
    common = [fingerprint for fingerprint in fits[0] if all(fingerprint in others for others in fits[1:])]
    if not common:
        raise WrongBaseError(
            f"{names}: there is no base that the newest releases all fit.", hint="Name the base with --base."
        )
    bases = [base for environment in user_environments() for base in read_project(environment).base]
    known = [base for base in bases if base.fingerprint in common]
    if len(known) == 1:
        notice(
            f"Using the base {base_text(known[0].fingerprint, known[0].repo)}: the only one of yours that {names} fits."
        )
        return known[0]
    if len(common) == 1:
        notice(f"Using the base {short_fingerprint(common[0])}: the only one that {names} fits.")
        return Base(fingerprint=common[0])
    several = ", ".join(short_fingerprint(fingerprint) for fingerprint in common)
    raise WrongBaseError(
        f"{names} fits several bases: {several}.",
        hint=f"Choose one: --base {common[0]}, or name a folder or repository.",
        fits=common,
    )
