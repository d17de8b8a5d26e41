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
from skillhub.catalogs import Catalog
from skillhub.environments import read_project, user_environments
from skillhub.errors import AuthError, NotFoundError, OfflineError, UsageError, WrongBaseError
from skillhub.lockfile import PACK, Lock
from skillhub.manifest import Manifest
from skillhub.names import PackName, is_bare_name, parse_pack_name
from skillhub.packs import base_text, short_fingerprint
from skillhub.plans import Planner
from skillhub.projects import Base, Project
from skillhub.registries import Registries
from skillhub.releases import Release
from skillhub.resolver import BaseClaim, Pick
from skillhub.resolver.problem import Problem
from skillhub.wanted import Wanted

_FINGERPRINT = re.compile(r"skb1:[0-9a-f]{64}")

ReadManifest = Callable[[PackName, Release], Manifest]
"""Fetches the manifest of a pack's release."""


def named_base(text: str, registries: Registries, *, offline: bool) -> tuple[BaseClaim, Base | None]:
    """Return what is known of a base that a user named, and the base itself where that is enough to know it.

    Args:
        text: fingerprint, folder, or ``repo[@revision]``. A folder that exists wins over a repository.
        registries: whose repositories are meant: the first of them that has it.
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
    parts = repository.split("/")
    if len(parts) != 2 or not all(map(is_bare_name, parts)):
        raise UsageError(
            f"{text!r} is no base: there is no such folder.", hint="Name a folder, OWNER/NAME, or a fingerprint."
        )
    digest = None if offline else _files_digest(registries, repository, revision)
    return BaseClaim(base_files=digest, name=text), None


def _files_digest(registries: Registries, repository: str, revision: str | None) -> str | None:
    from skillhub.fingerprint import base_files_digest

    for registry in registries.for_pack(parse_pack_name(repository)):
        try:
            digests = hub.base_file_digests(registry, repository, revision=revision)
        except (OfflineError, NotFoundError, AuthError):  # the base may lie on another registry, or be gated
            continue
        return base_files_digest(digests.values()) if digests else None
    return None


def claimed_base(
    text: str, claim: BaseClaim, wanted: Sequence[Wanted], catalog: Catalog, *, read_manifest: ReadManifest
) -> Base:
    """Return the base that packs claim a repository to be.

    Args:
        text: ``repo[@revision]``.
        claim: what is known of the repository's files.
        wanted: the wanted packs.
        catalog: reads their releases, and is told when only a declaration speaks for the base.
        read_manifest: fetches a release's manifest.

    Raises:
        WrongBaseError: no release of a pack is for this base, or packs claim different ones, or there is no pack.
        ResolutionError: a pack has no release that will do on any base.
    """
    repository, revision = split_repository(text)
    found: dict[str, list[str]] = {}
    for one in _packs(wanted, hint="Name the base by its folder or fingerprint."):
        fingerprint = _claimed_fingerprint(repository, claim, one, catalog, read_manifest)
        found.setdefault(fingerprint, []).append(str(one.name))
    if len(found) > 1:
        said = "; ".join(f"{', '.join(names)}: {short_fingerprint(one)}" for one, names in found.items())
        raise WrongBaseError(
            f"The packs do not agree about what {text} is: {said}.",
            hint="Name the base by its folder: its weights are then looked at.",
        )
    return Base(fingerprint=next(iter(found)), repo=repository, revision=revision)


def choose_base(planner: Planner, wanted: Sequence[Wanted], text: str | None) -> Base:
    """Return the base that was named, or the only one that fits what is wanted.

    Args:
        planner: reads releases and manifests.
        wanted: the wanted packs, with owners.
        text: the base as the user named it, or None.

    Raises:
        NotFoundError: nothing is wanted, or a pack is not there.
        WrongBaseError: as :func:`claimed_base` and :func:`only_base`.
    """
    catalog, offline = planner.catalog, planner.supply.offline
    claim, known = named_base(text, catalog.registries, offline=offline) if text else (None, None)
    if known:
        return known
    if not wanted:
        raise NotFoundError(
            "There is nothing to install: no pack was named, and nothing is asked for here.",
            hint="Name a pack: skillhub install OWNER/NAME.",
        )
    catalog.place(wanted, Lock(""))
    if text is None or claim is None:
        return only_base(wanted, catalog)
    return claimed_base(text, claim, wanted, catalog, read_manifest=planner.read_manifest)


def require_base(planner: Planner, text: str) -> Base:
    """Return the base that a user named, where its name alone is enough to know it.

    Raises:
        WrongBaseError: it is a repository, and no pack is there to say which weights are meant.
        SkillhubError: as :func:`named_base`.
    """
    known = named_base(text, planner.catalog.registries, offline=planner.supply.offline)[1]
    if known is None:
        raise WrongBaseError(
            f"{text} is a repository, whose weights would have to be downloaded to know its fingerprint.",
            hint="Name its folder or fingerprint (`skillhub base fingerprint`), or install a pack for it with --base.",
        )
    return known


def environment_base(
    planner: Callable[[Project], Planner], project: Project, wanted: Sequence[Wanted], text: str | None
) -> Base:
    """Return the environment's base, which must be the one that was named, if one was.

    Args:
        planner: makes what reads releases; called only when the base has to be found.
        project: of the environment.
        wanted: all that it asks for.
        text: the base as the user named it, or None.

    Raises:
        WrongBaseError: the environment is for another base.
        SkillhubError: as :func:`choose_base`.
    """
    own = project.base[0] if project.base else None
    if own is None:
        return choose_base(planner(project), wanted, text)
    own_text = f"{own.repo}@{own.revision}" if own.revision else own.repo
    if text is None or text in (own_text, own.fingerprint):
        return own
    named = choose_base(planner(project), wanted, text)
    if named.fingerprint != own.fingerprint:
        raise WrongBaseError(
            f"The environment is for the base {short_fingerprint(own.fingerprint)}, and {text} is another one "
            f"({short_fingerprint(named.fingerprint)}).",
            hint=f"Use another environment for another base (--environment FOLDER), or: skillhub base use {text}.",
            fingerprint=named.fingerprint,
        )
    return own


def _packs(wanted: Sequence[Wanted], *, hint: str) -> list[Wanted]:
    """Return the packs among what is wanted; adapters say nothing that could be relied on."""
    packs = [one for one in wanted if one.kind == PACK]
    if not packs:
        raise WrongBaseError(
            f"An adapter only declares its base, so {', '.join(map(str, wanted))} cannot tell which one is meant.",
            hint=hint,
        )
    return packs


def _pick(catalog: Catalog, wanted: Sequence[Wanted], base: BaseClaim | None) -> tuple[Pick, ...]:
    from skillhub.resolver.solving import resolve  # a solver, which an environment that has its base need not load

    catalog.require([one.name for one in wanted])
    problem = Problem(tuple(one.requirement for one in wanted), base=base, with_dependencies=False)
    return resolve(problem, catalog.read).picks


def _claimed_fingerprint(
    repository: str, claim: BaseClaim, wanted: Wanted, catalog: Catalog, read_manifest: ReadManifest
) -> str:
    try:
        return str(_pick(catalog, [wanted], claim)[0].fingerprint)
    except WrongBaseError:
        newest = _pick(catalog, [wanted], None)[0].release
        manifest = read_manifest(wanted.name, newest)
        for variant in manifest.variants:
            if variant.base.repo and variant.base.repo.lower() == repository.lower():
                catalog.notice(
                    f"{wanted.name} declares {repository} as its base, from other files of weights than are "
                    "there now; they are checked when the pack is grafted."
                )
                return variant.base.fingerprint
        raise


def only_base(wanted: Sequence[Wanted], catalog: Catalog) -> Base:
    """Return the base to use when none was named: the one of an environment of this user, else the packs' only one.

    Args:
        wanted: the wanted packs.
        catalog: reads their releases, and is told which base it is.

    Raises:
        WrongBaseError: the packs fit several bases, or none together, or there is no pack.
        ResolutionError: a pack has no release that will do on any base.
    """
    picks = _pick(catalog, _packs(wanted, hint="Name the base: --base FOLDER, or its fingerprint."), None)
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
        catalog.notice(
            f"Using the base {base_text(known[0].fingerprint, known[0].repo)}: the only one of yours that {names} fits."
        )
        return known[0]
    if len(common) == 1:
        catalog.notice(f"Using the base {short_fingerprint(common[0])}: the only one that {names} fits.")
        return Base(fingerprint=common[0])
    several = ", ".join(short_fingerprint(fingerprint) for fingerprint in common)
    raise WrongBaseError(
        f"{names} fits several bases: {several}.",
        hint=f"Choose one: --base {common[0]}, or name a folder or repository.",
        fits=common,
    )
