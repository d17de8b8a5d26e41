"""Releases that must not be chosen although they would do: the policy forbids them, or they are too new.

When a release was published nobody can prove. It counts as published when this user first saw it, where that is early
enough; otherwise the registry is asked, once a pack. A registry can lie about what is new to this user, never about
what was seen here before.

Packs from folders on this machine are exempt from all of it. A vendored folder has no times: what is in it was chosen
when it was made, so only the rules about owners and signatures hold there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from skillhub import hub
from skillhub.errors import UsageError
from skillhub.names import PackName
from skillhub.policy import Policy
from skillhub.releases import Release
from skillhub.resolver.candidates import Rejection, RejectionKind
from skillhub.resolver.problem import Screen
from skillhub.sightings import first_seen

RegistryOf = Callable[[PackName], hub.Registry | None]
"""From a pack to the registry that it comes from; None for a pack from a folder."""

_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


def parse_cut_off(text: str) -> datetime:
    """Return the time that ``--exclude-newer`` means: RFC 3339, or a date, which begins at midnight UTC.

    Raises:
        UsageError: it is neither; a time needs its offset from UTC.
    """
    try:
        moment = datetime.fromisoformat(text.strip().upper())
        if _DATE.fullmatch(text.strip()):
            moment = moment.replace(tzinfo=UTC)
        if moment.tzinfo is None:
            raise ValueError("no offset")
        return moment.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise UsageError(
            f"{text!r} is not a time.",
            hint="Write a date, such as 2026-11-01, or a time with its offset, such as 2026-11-01T12:00:00Z.",
        ) from error


@dataclass(frozen=True)
class _CutOff:
    """A time after which releases are left alone, which rule says so, and the words for it."""

    moment: datetime
    kind: RejectionKind
    words: str


def make_screen(
    policy: Policy,
    exclude_newer: datetime | None,
    registry_of: RegistryOf,
    *,
    offline: bool,
    now: datetime | None = None,
) -> Screen | None:
    """Return what the resolver asks about releases, or None where nothing is forbidden.

    Args:
        policy: the user's rules.
        exclude_newer: releases that were published later are left alone; with an offset from UTC.
        registry_of: where packs come from.
        offline: do not ask registries when something was published.
        now: the time that the cool-down counts back from; None means the present.

    The screen itself raises what :func:`skillhub.hub.release_times` does.
    """
    cut_offs = []
    if exclude_newer is not None:
        cut_offs.append(_CutOff(exclude_newer, "too-new", f"after the cut-off {_text(exclude_newer)}"))
    if policy.cooldown_days:
        begin = (now or datetime.now(UTC)) - timedelta(days=policy.cooldown_days)
        cut_offs.append(
            _CutOff(begin, "policy", f"less than the {policy.cooldown_days} days ago that the policy asks for")
        )
    if not cut_offs and not policy.allowed_owners and not policy.require_signatures:
        return None
    times = _Times(offline)

    def screen(name: PackName, release: Release) -> Rejection | None:
        registry = registry_of(name)
        if registry is None:
            return None
        rejection = _forbidden(policy, name, release)
        for cut_off in cut_offs if registry.folder is None else ():
            rejection = rejection or times.reject(registry, name, release, cut_off)
        return rejection

    return screen


def _forbidden(policy: Policy, name: PackName, release: Release) -> Rejection | None:
    if not policy.allows_owner(name):
        return Rejection("policy", f"is not by {' or '.join(policy.allowed_owners)}, the owners that the policy allows")
    if release.event.signature is None and policy.requires_signature(name):
        return Rejection("policy", "is not signed, which the policy requires")
    return None


class _Times:
    """When releases were published; each pack's are read once, and asked of the registry only when it matters."""

    def __init__(self, offline: bool) -> None:
        self._offline = offline
        self._seen: dict[PackName, Mapping[str, datetime]] = {}
        self._told: dict[PackName, Mapping[str, datetime]] = {}

    def reject(self, registry: hub.Registry, name: PackName, release: Release, cut_off: _CutOff) -> Rejection | None:
        """Return why a release is too new, or None."""
        if name not in self._seen:
            self._seen[name] = first_seen(registry, name)
        seen = self._seen[name].get(str(release.version))
        if seen is not None and seen <= cut_off.moment:
            return None
        if self._offline:
            here = f"was first seen here on {_text(seen)}" if seen else "was never seen here"
            return Rejection(cut_off.kind, f"{here}, not known to be old enough while offline")
        if name not in self._told:
            self._told[name] = hub.release_times(registry, str(name))
        told = self._told[name].get(str(release.version))
        if told is None:
            return Rejection(
                cut_off.kind, f"was published when {registry.address} does not say, and first seen here late"
            )
        if told <= cut_off.moment:
            return None
        return Rejection(cut_off.kind, f"was published on {_text(told)}, {cut_off.words}")


def _text(moment: datetime) -> str:
    moment = moment.astimezone(UTC)
    return moment.strftime("%Y-%m-%d" if moment.hour == moment.minute == moment.second == 0 else "%Y-%m-%d %H:%M UTC")
