"""The bases that are known on this machine, and giving an environment another one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from skillhub.basechoice import choose_base, require_base
from skillhub.bases import split_repository
from skillhub.changes import Outcome
from skillhub.environments import (
    Environment,
    InstalledPack,
    as_environment,
    installed_packs,
    read_project,
    user_environments,
)
from skillhub.errors import UsageError
from skillhub.lockfile import Lock, read_lock
from skillhub.manifest import BaseInfo
from skillhub.names import PackName
from skillhub.packs import short_fingerprint
from skillhub.plans import Choice
from skillhub.projects import Base, Project
from skillhub.requirements import project_requirements
from skillhub.sessions import Session
from skillhub.transactions import Edit, Terms, change


@dataclass
class KnownBase:
    """A base model as environments and installed packs know it.

    Attributes:
        fingerprint: ``skb1:…``.
        repo: a repository that it is in, where one is known.
        revision: of that repository, where one was named.
        info: what a pack says of it; None where none does.
        environments: those that are for it.
        packs: the packs for it in those environments.
        elsewhere: installed packs that have a variant for it, in environments of other bases.
    """

    fingerprint: str
    repo: str | None = None
    revision: str | None = None
    info: BaseInfo | None = None
    environments: list[Environment] = field(default_factory=list)
    packs: list[InstalledPack] = field(default_factory=list)
    elsewhere: dict[PackName, InstalledPack] = field(default_factory=dict)


def known_bases(environments: Iterable[Environment]) -> list[KnownBase]:
    """Return the bases that environments are for, in their order, then others that their packs have variants for.

    Args:
        environments: where to look; damaged packs are passed over.

    Raises:
        UsageError: a ``skillhub.toml`` is not valid.
        DiskError: an environment may not be read.
    """
    found: dict[str, KnownBase] = {}
    for place in environments:
        own = read_project(place).base
        packs = installed_packs(place)
        for base in own:
            known = found.setdefault(base.fingerprint, KnownBase(base.fingerprint))
            known.repo, known.revision = known.repo or base.repo, known.revision or base.revision
            known.environments.append(place)
        for one, info in _variants(packs):
            known = found.setdefault(info.fingerprint, KnownBase(info.fingerprint))
            known.info = known.info or info
            known.repo = known.repo or info.repo
            if one.fingerprint != info.fingerprint:
                known.elsewhere[one.name] = one
        for one in packs:
            found.setdefault(one.fingerprint, KnownBase(one.fingerprint)).packs.append(one)
    return sorted(found.values(), key=lambda known: not known.environments)


def _variants(packs: Iterable[InstalledPack]) -> Iterator[tuple[InstalledPack, BaseInfo]]:
    for one in packs:
        for variant in one.pack.manifest.variants if one.pack else ():
            yield one, variant.base


def find_known_bases(text: str, known: Sequence[KnownBase]) -> list[KnownBase]:
    """Return the known bases of a fingerprint, which may be shortened to its first digits, or of a repository."""
    if text.startswith("skb1:"):
        return [one for one in known if one.fingerprint.startswith(text)] if len(text) > len("skb1:") else []
    repository = split_repository(text)[0].lower()
    return [one for one in known if one.repo and one.repo.lower() == repository]


def use_base(session: Session, place: Environment, text: str, *, dry_run: bool = False) -> Outcome:
    """Make an environment one for another base, and install the variants for it of what it asks for.

    What is locked stays where it has a variant for the base; otherwise other releases are looked for. When there are none,
    nothing is changed.

    Args:
        session: where things come from.
        place: the environment.
        text: fingerprint, folder, or ``repo[@revision]``; of a repository, the packs must tell which weights are meant.
        dry_run: change nothing.

    Raises:
        UsageError: it is one of this user's own environments, of which there is one for each base.
        WrongBaseError: a pack has no variant for the base, or a repository's weights are not known.
        SkillhubError: as :func:`skillhub.transactions.change`.
    """
    place = as_environment(place)
    project, lock = read_project(place), read_lock(place.lock_path)
    if place.folder in {one.folder.absolute() for one in user_environments()} and project.base:
        raise UsageError(
            f"{place.folder} is your own environment for {short_fingerprint(project.base[0].fingerprint)}, and stays so.",
            hint="Each base has its own: install with --base, or make a project: skillhub init.",
        )
    base = _named_base(session, place, project, lock, text)
    return change(session, place, Edit(base=base), Terms(choice=Choice(resolve=True), dry_run=dry_run))


def _named_base(session: Session, place: Environment, project: Project, lock: Lock | None, text: str) -> Base:
    own = project_requirements(project, lock or Lock(""), place.folder)
    planner = session.planner(project)
    if not own:
        return require_base(planner, text)
    wanted = session.complete(own, [project], lock)
    planner.catalog.place(wanted, lock or Lock(""))
    return choose_base(planner, wanted, text)
