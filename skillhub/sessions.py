"""What one command works with: its registries, store and catalog, each made when it is first needed.

Making them looks tokens up and loads the Hub's client, which a command that has nothing to fetch must not pay for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from skillhub import hub, settings
from skillhub.catalogs import Catalog, Choose, with_owner
from skillhub.configuration import read_configuration
from skillhub.lockfile import Lock
from skillhub.names import PackName, is_folder
from skillhub.nearmisses import seen_names
from skillhub.placement import Supply
from skillhub.plans import Planner
from skillhub.progress import Notice, Progress, silence
from skillhub.projects import Project, RegistryEntry
from skillhub.registries import Registries, find_registries, single_registry
from skillhub.store import default_store
from skillhub.wanted import Wanted, parse_wanted


def _nobody(wanted: Wanted, candidates: Sequence[str]) -> None:
    """Leave open which pack is meant."""


@dataclass
class Session:
    """What one command was told about where things come from.

    Attributes:
        registry: a registry, its configured name, its address, or a vendored folder; None means the configured ones.
        token: for that registry; None means the one that belongs to it.
        offline: use only what is remembered and in the store.
        refresh: read again what the registry says has not changed.
        progress: told about downloads.
        notice: told sentences for the user.
        choose: asked which pack a name without an owner means, where nothing else tells.
    """

    registry: hub.Registry | str | None = None
    token: str | None = None
    offline: bool = False
    refresh: bool = False
    progress: Progress | None = None
    notice: Notice = silence
    choose: Choose = _nobody
    _planner: Planner | None = field(default=None, init=False)
    _configured: list[RegistryEntry] = field(default_factory=list, init=False)
    _met: frozenset[PackName] | None = field(default=None, init=False)

    def planner(self, project: Project) -> Planner:
        """Return what planning for a project works with; the same as long as the registries are.

        Raises:
            NotFoundError: there is no such registry.
            UsageError: an address is none, or the user's configuration is not valid.
        """
        if self._planner is None or project.registry != self._configured:
            offline = self.offline or settings.offline()
            registries = self._registries(project)
            supply = Supply(registries, default_store(), offline, self.progress)
            catalog = Catalog(registries, offline, self.notice, self.refresh)
            self._planner = Planner(supply, catalog, self.notice)
            self._configured = project.registry
        return self._planner

    def _registries(self, project: Project) -> Registries:
        if isinstance(self.registry, hub.Registry):
            return single_registry(self.registry)
        return find_registries(project.registry, chosen=self.registry, token=self.token)

    def met_before(self) -> frozenset[PackName]:
        """Return the packs that this user had read about when this was first asked: what is read later is new.

        Raises:
            DiskError: the state folder may not be looked at.
        """
        if self._met is None:
            self._met = frozenset(seen_names())
        return self._met

    def complete(
        self,
        wanted: Sequence[Wanted],
        projects: Sequence[Project],
        lock: Lock | None,
        *,
        beside: Sequence[Wanted] = (),
    ) -> list[Wanted]:
        """Fill in the owners of short names: from what is wanted or locked already, then from configured owners.

        Args:
            wanted: what is asked for.
            projects: what they ask for is wanted already; their owners are looked through.
            lock: what it has is wanted already.
            beside: more that is wanted already.

        Raises:
            NotFoundError: a name has no owner, and none of the configured ones has such a pack.
        """
        if all(one.folder or one.name.owner for one in wanted):
            return list(wanted)
        texts = [text for project in projects for text in project.requirements if not is_folder(text)]
        names = [
            *(parse_wanted(text).name for text in texts),
            *(entry.pack_name for entry in (lock.packs if lock else ())),
            *(one.name for one in beside if one.folder is None),
        ]
        known = list({str(name).lower(): name for name in names}.values())
        catalog = self.planner(projects[0] if projects else Project()).catalog
        owners = self.owners(projects)
        return [with_owner(one, catalog, owners=owners, known=known, choose=self.choose) for one in wanted]

    def owners(self, projects: Sequence[Project]) -> list[str]:
        """Return the configured owners, each once: the projects' before the user's own.

        Raises:
            UsageError: the user's configuration is not valid.
        """
        own = read_configuration().owners
        return list(dict.fromkeys([*(owner for project in projects for owner in project.owners), *own]))
