"""Taking back what cannot be changed: yank a release, unyank it, deprecate a pack.

Nothing is removed. A yanked release still installs for whoever has it locked, and is chosen for nobody else; a
deprecated pack goes on working, and everybody who resolves it is told. Each is one event in the index, in one commit
that renews the front page as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec
from packaging.version import InvalidVersion, Version

from skillhub import hub
from skillhub.announcements import Access, Announcement, Files, Place, State, announce
from skillhub.documents import field_error
from skillhub.errors import NotFoundError, SkillhubError, UsageError
from skillhub.frontpages import described_release, front_page, read_manifest
from skillhub.names import PackName, parse_pack_name, parse_requirement
from skillhub.progress import Notice
from skillhub.releases import RELEASES_SCHEMA, Event, ReleaseIndex


@dataclass(frozen=True)
class Withdrawal:
    """What withdrawing came to.

    Attributes:
        place: the pack's repository.
        event: the line in the index.
        commit: the commit that holds it; None where that is not known any more, or nothing had to be done.
        already_so: whether it was so before.
    """

    place: Place
    event: Event
    commit: str | None
    already_so: bool = False


def yank(release: str, access: Access, *, reason: str | None = None) -> Withdrawal:
    """Withdraw a release: locks that have it keep it, nothing else chooses it any more.

    Args:
        release: ``owner/name==version``, or without the owner for one's own account.
        access: where, and as whom.
        reason: for people. Of a release that is yanked already, another one takes the place of the one before.

    Raises:
        UsageError: no single version is named, or the reason holds what no text may.
        NotFoundError: there is no such pack or version.
        AuthError: there is no token, or it may not write there.
        NetworkError: the registry cannot be reached or went on failing; the event is then there, or not at all.
    """
    return _change_release("yank", release, access, reason, lambda old: old is not None and reason in (None, old))


def unyank(release: str, access: Access) -> Withdrawal:
    """Let a yanked release be chosen again; arguments and errors are those of :func:`yank`."""
    return _change_release("unyank", release, access, None, lambda old: old is None)


def deprecate(name: str, access: Access, *, reason: str | None = None) -> Withdrawal:
    """Tell everybody who resolves a pack that it should not be used any more.

    The format knows no way back; another reason takes the place of the one before.

    Args:
        name: ``owner/name``, or without the owner for one's own account.
        access: where, and as whom.
        reason: for people, such as what to use instead.

    Raises:
        SkillhubError: as :func:`yank`.
    """
    event = _event("deprecate", None, reason)
    place, state = _read(parse_pack_name(name), access)
    old = state.index.deprecated
    if old is not None and reason in (None, old):
        return Withdrawal(place, event, None, already_so=True)
    return _announce(place, state, event, access.notice, f"Deprecate {place.name}")


def _change_release(
    verb: str, release: str, access: Access, reason: str | None, is_so: Callable[[str | None], bool]
) -> Withdrawal:
    """Yank or unyank a release, unless ``is_so`` says of why it is yanked so far that nothing needs to be done."""
    name, version = _parse_release(release, verb)
    _event(verb, str(version), reason)  # what is wrong with the reason is said before anything is asked for
    place, state = _read(name, access)
    found = state.index.find(version)
    if found is None:
        newest = sorted((one.version for one in state.index.releases), reverse=True)[:5]
        listed = ", ".join(str(one) for one in newest)
        there = f"The newest there: {listed}." if newest else "Nothing is published there."
        raise NotFoundError(f"There is no release {version} of {place.name} at {place.registry.address}.", hint=there)
    event = _event(verb, str(found.version), reason)
    if is_so(found.yanked):
        return Withdrawal(place, event, None, already_so=True)
    return _announce(place, state, event, access.notice, f"{verb.capitalize()} {found.version}")


def _parse_release(text: str, verb: str) -> tuple[PackName, Version]:
    requirement = parse_requirement(text)
    only = list(requirement.specifier)
    try:
        if len(only) == 1 and only[0].operator == "==":
            return requirement.pack, Version(only[0].version)
    except InvalidVersion:  # ==1.*
        pass
    raise UsageError(f"{text!r} names no single version.", hint=f"Write skillhub {verb} {requirement.pack}==VERSION.")


def _event(verb: str, version: str | None, reason: str | None) -> Event:
    """Return the line; reading it back checks the reason as every reader will."""
    event = Event(schema=RELEASES_SCHEMA, event=verb, version=version, reason=reason)
    try:
        return msgspec.convert(msgspec.to_builtins(event), Event)
    except msgspec.MsgspecError as error:
        raise UsageError(
            f"{field_error(error).removeprefix('$.')}.",
            hint="Write the reason as a plain text of at most 10,000 letters.",
        ) from error


def _read(name: PackName, access: Access) -> tuple[Place, State]:
    place = access.find_place(str(name))
    hub.require_token(place.registry)
    return place, place.read_existing("Check the name, and whether the registry is the right one (--registry).")


def _announce(place: Place, state: State, event: Event, notice: Notice, message: str) -> Withdrawal:
    def is_done(state: State, appended: bytes) -> bool:
        # Whether it is so now says nothing: somebody may have undone it since. That our line came in is what counts.
        return announcement.line in appended.splitlines(keepends=True)

    def files(state: State, index: ReleaseIndex) -> Files:
        return _renewed_page(place, state, index, notice)

    announcement = Announcement(event, message, files, is_done, notice=notice)
    _, commit = announce(place, announcement, state)
    return Withdrawal(place, event, commit)


def _renewed_page(place: Place, state: State, index: ReleaseIndex, notice: Notice) -> Files:
    """Return the front page as it is once a release does not stand any more, or stands again."""
    described = described_release(index)
    if described is None:
        return {}
    try:
        return front_page(place, state, index, read_manifest(place, state, described), notice)
    except SkillhubError as error:
        notice(f"The repository's page stays as it is: {error.message}")
        return {}
