"""The registries that packs may come from, in the order in which they are asked.

Those of ``skillhub.toml`` come first, then those of the user's ``config.toml``, then ``HF_ENDPOINT``, which is called ``hub``.
A registry with patterns has only the packs that match one, and nobody else has them: that is how a pack of one's own
cannot be confused with a namesake elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import urlsplit

from skillhub import hub, settings
from skillhub.configuration import read_configuration
from skillhub.errors import NotFoundError, UsageError
from skillhub.lockfile import LOCAL
from skillhub.names import PackName, is_folder
from skillhub.projects import RegistryEntry


@dataclass(frozen=True)
class Registries:
    """Registries in the order in which they are asked.

    Attributes:
        all: those that are asked for packs.
        packs: name of a registry → patterns of the packs that come from it, and from it only.
        elsewhere: more of them, which are asked only for what is locked from them, or pinned to them.
        stand_in: takes the place of registries that are not configured here, whatever locks call them.
    """

    all: tuple[hub.Registry, ...]
    packs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    elsewhere: tuple[hub.Registry, ...] = ()
    stand_in: hub.Registry | None = None

    def for_pack(self, name: PackName, locked: str | None = None) -> Sequence[hub.Registry]:
        """Return where a pack may come from; the first of them that has it is the one.

        Args:
            name: the pack.
            locked: the registry that it is locked from, where it is; unless it is pinned elsewhere, it stays there.

        Raises:
            NotFoundError: the registry that it is locked from is not known here; anyone may have its name on another.
        """
        pinned = self.pinned_to(name)
        if pinned is not None:
            return [one for one in (*self.all, *self.elsewhere) if one.name == pinned]
        if locked is not None:
            self.named(locked)
        open_to_all = [one for one in (*self.all, *self.elsewhere) if not self.packs.get(one.name)]
        return [one for one in open_to_all if one.name == locked] or [one for one in open_to_all if one in self.all]

    def pinned_to(self, name: PackName) -> str | None:
        """Return the name of the only registry that a pack may come from; None where no pattern says so."""
        return next((registry for registry, patterns in self.packs.items() if _matches(name, patterns)), None)

    def named(self, name: str) -> hub.Registry:
        """Return the registry of a name in a lock.

        Raises:
            NotFoundError: none is called so.
        """
        found = {one.name: one for one in (*self.elsewhere, *self.all)}
        if name in found:
            return found[name]
        if self.stand_in is not None:
            return self.stand_in
        raise NotFoundError(
            f"Something is locked from the registry {name}, and none is called so here, only {', '.join(found)}.",
            hint=f"Say where it is: skillhub config registry add {name} URL.",
        )


def _matches(name: PackName, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(str(name).lower(), pattern.lower()) for pattern in patterns)


def single_registry(registry: hub.Registry) -> Registries:
    """Return one registry that everything comes from."""
    return Registries((registry,))


def find_registries(
    project: Sequence[RegistryEntry], *, chosen: str | None = None, token: str | None = None
) -> Registries:
    """Return the registries that a project and the user have configured, or the one that was chosen instead.

    Args:
        project: those of ``skillhub.toml``.
        chosen: a configured name, an address, or a vendored folder. An address stands in for all registries that are not
            configured here, so a mirror serves what is locked from elsewhere: the digests decide. Patterns still hold.
        token: for that registry, or for ``HF_ENDPOINT`` where none is chosen; None means the saved one.

    Raises:
        NotFoundError: no registry has the chosen name, or the folder is no vendored one.
        UsageError: an address is none, or an entry lacks one, or the user's configuration is not valid.
    """
    own = read_configuration().registry
    entries = _joined_entries(project, own)
    pinned = [entry.name for entry in (*own, *entries) if entry.packs]  # what the user has pinned goes first
    packs = {name: next(one.packs for one in entries if one.name == name) for name in pinned}
    if chosen is not None and _names_folder(chosen):
        return _vendored(Path(chosen).expanduser(), entries, packs)
    configured = tuple(_registry(entry, token if chosen == entry.name else None) for entry in entries)
    if hub.HUB not in {one.name for one in configured}:
        configured += (_default(token if chosen in (None, hub.HUB) else None),)
    if chosen is None:
        return Registries(configured, packs)
    named = [one for one in configured if one.name == chosen or one.endpoint == chosen.rstrip("/")]
    if named:
        others = tuple(one for one in configured if one is not named[0])
        return Registries((_with_token(named[0], token),), packs, others)
    if "://" not in chosen:
        raise NotFoundError(
            f"No registry is called {chosen}.",
            hint=f"Write its address (https://…) or ./folder. There are: {', '.join(one.name for one in configured)}.",
        )
    mirror = hub.default_registry(_checked_address(chosen, "--registry"), token)
    return Registries((mirror,), packs, tuple(one for one in configured if one.name in packs), stand_in=mirror)


def find_registry(project: Sequence[RegistryEntry], chosen: str, *, token: str | None = None) -> hub.Registry:
    """Return the one registry that was chosen; at an address that is not configured, nobody else's token is looked up.

    Args:
        project: registries of ``skillhub.toml``.
        chosen: a configured name, an address, or a vendored folder, of which the first registry is meant.
        token: for that registry; None means the saved one.

    Raises:
        SkillhubError: as :func:`find_registries`.
    """
    if chosen.startswith(("http://", "https://")):
        address = _checked_address(chosen, "--registry")
        if address not in {one.endpoint for one in known_registries(project)}:
            return hub.default_registry(address, token)
    return find_registries(project, chosen=chosen, token=token).all[0]


def known_registries(project: Sequence[RegistryEntry]) -> list[hub.Registry]:
    """Return the configured registries that have an address, without tokens: to look up what is remembered of them.

    Raises:
        UsageError: an address is none, or the user's configuration is not valid.
    """
    entries = _joined_entries(project, read_configuration().registry)
    named = {entry.name: _own_address(entry, entry.url) for entry in entries if entry.url and entry.name != hub.HUB}
    named = {hub.HUB: _checked_address(settings.endpoint(), "HF_ENDPOINT"), **named}
    return [hub.Registry(name, address) for name, address in named.items()]


def _joined_entries(project: Sequence[RegistryEntry], own: Sequence[RegistryEntry]) -> list[RegistryEntry]:
    """Return a project's registries and the user's; of one name, the user's address counts, and the patterns of both.

    So no project takes away what the user has pinned.
    """
    mine = {entry.name: entry for entry in own}
    joined: dict[str, RegistryEntry] = {}
    for entry in [*project, *own]:
        if entry.name not in joined:
            same = mine.get(entry.name, entry)
            packs = list(dict.fromkeys([*same.packs, *entry.packs]))
            joined[entry.name] = RegistryEntry(name=entry.name, url=same.url or entry.url, packs=packs)
    return list(joined.values())


def _registry(entry: RegistryEntry, token: str | None) -> hub.Registry:
    if entry.name == hub.HUB:
        if entry.url is not None:
            raise UsageError(
                f"The registry {hub.HUB} is the one that HF_ENDPOINT names, and has no other address.",
                hint="Call the registry something else, or leave its url out.",
            )
        return _default(token)
    if entry.name == LOCAL:
        raise UsageError(f"No registry can be called {LOCAL}: folders are.", hint="Call it something else.")
    if entry.url is None:
        raise UsageError(
            f"The registry {entry.name} has no address here.",
            hint=f"Say where it is: skillhub config registry add {entry.name} URL.",
        )
    found = hub.default_registry(_own_address(entry, entry.url), token)
    return hub.Registry(entry.name, found.endpoint, found.token)


def _own_address(entry: RegistryEntry, url: str) -> str:
    return _checked_address(url, f"the url of the registry {entry.name}")


def _default(token: str | None) -> hub.Registry:
    return hub.default_registry(_checked_address(settings.endpoint(), "HF_ENDPOINT"), token)


def _with_token(registry: hub.Registry, token: str | None) -> hub.Registry:
    return hub.Registry(registry.name, registry.endpoint, token) if token else registry


def _checked_address(text: str, what: str) -> str:
    try:
        parts = urlsplit(text)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or True)
        is_address = is_address or (parts.scheme == "file" and bool(parts.path))
    except ValueError:  # brackets without an IPv6 address between them, or a port that is none
        is_address = False
    if not is_address:
        raise UsageError(
            f"{text!r} is no address ({what}).", hint="Write it with its scheme, such as https://hub.example.com."
        )
    return text.rstrip("/")


def _names_folder(text: str) -> bool:
    return "://" not in text and (is_folder(text) or hub.is_vendored(Path(text).expanduser()))


def _vendored(folder: Path, entries: Sequence[RegistryEntry], packs: Mapping[str, Sequence[str]]) -> Registries:
    """Return what a vendored folder has, in the order of the registries that it stands in for."""
    found = hub.vendored_registries(folder)
    order = [entry.name for entry in entries] + [hub.HUB]
    names = sorted(found, key=lambda name: (order.index(name) if name in order else len(order), name))
    return Registries(tuple(found[name] for name in names), packs)
