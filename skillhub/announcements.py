"""Appending one event to a pack's index: one commit, whatever else happens to the repository meanwhile.

The commit names the head that it was made for, so it lands whole on what was read, or not at all. What the server
answers is not believed: after every attempt the index is read again. What was to be announced is there: then it is
done, whatever the answer was. It is not: then another commit came first or this one was lost, and the next attempt
builds on the new head.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from skillhub import hub
from skillhub.errors import (
    AuthError,
    DiskError,
    IntegrityError,
    NetworkError,
    NewerSchemaError,
    NotFoundError,
    SkillhubError,
    UsageError,
)
from skillhub.indexes import remember_index, remembered_index
from skillhub.modelcards import README_FILE
from skillhub.names import PackName, parse_pack_name
from skillhub.progress import Notice, Progress, counting, silence
from skillhub.projects import RegistryEntry
from skillhub.registries import find_registries, find_registry
from skillhub.releases import RELEASES_FILE, Event, ReleaseIndex, append_event, event_line, parse_releases

_FAILED_ATTEMPTS = 4
_OVERTAKEN_ATTEMPTS = 40
_HOPELESS = (AuthError, UsageError, DiskError, IntegrityError, NewerSchemaError)

Files = Mapping[str, bytes | Path]
"""Path in the repository → what a commit puts there."""


@dataclass(frozen=True)
class State:
    """A repository's main: its head and its index, which belong together.

    Attributes:
        head: the commit that main is at; None where there is no repository yet.
        data: the bytes of the index; empty without one.
        index: the same, parsed.
    """

    head: str | None
    data: bytes
    index: ReleaseIndex


@dataclass(frozen=True)
class Place:
    """A pack's repository at a registry."""

    registry: hub.Registry
    name: PackName

    def read_state(self) -> State:
        """Read what is published now.

        Raises:
            UsageError: the repository has another name now.
            TrustError, IntegrityError: the index is not valid, or not an extension of what was seen before.
            SkillhubError: as :func:`skillhub.hub.failures.hub_failures`.
        """
        known = remembered_index(self.registry, self.name)
        head = hub.repository_head(self.registry, str(self.name))
        read = hub.read_releases(self.registry, str(self.name), revision=head) if head else None
        if read and read.moved_to:
            raise UsageError(
                f"{self.name} has moved to {read.moved_to}.", hint="Write that name: everybody else is led to it."
            )
        data = read.data if read else b""
        if data or known:
            remember_index(self.registry, self.name, data, known=known)
        return State(head, data, parse_releases(data, where=f"{RELEASES_FILE} of {self.name}"))

    def read_existing(self, hint: str) -> State:
        """Read what is published now in a repository that must exist.

        Raises:
            NotFoundError: there is no such repository.
            SkillhubError: as :meth:`read_state`.
        """
        state = self.read_state()
        if state.head is None:
            raise NotFoundError(f"There is no repository {self.name} at {self.registry.address}.", hint=hint)
        return state

    def read_or_create(self) -> State:
        """Read what is published now, after making the repository if there is none.

        Raises:
            AuthError: there is no token, or it may not do this.
            SkillhubError: as :meth:`read_state`.
        """
        state = self.read_state()
        if state.head is None:
            hub.create_repository(self.registry, str(self.name))
            state = self.read_state()
        return state


@dataclass(frozen=True)
class Access:
    """Where something is announced, and as whom.

    Attributes:
        registry: a registry, or its configured name or address. None means the one that the user's patterns pin the pack
            to, else ``HF_ENDPOINT``: what is not pinned anywhere is never sent to a registry that merely comes first.
        token: for that registry; None means the saved one.
        project: registries of the project that the user is in.
        progress: told what is done, bytes done, bytes in all.
        notice: told sentences for the user.
    """

    registry: hub.Registry | str | None = None
    token: str | None = None
    project: Sequence[RegistryEntry] = ()
    progress: Progress | None = None
    notice: Notice = silence

    def find_place(self, repository: str) -> Place:
        """Return a pack's repository.

        Args:
            repository: ``owner/name``, or the name alone for one's own account.

        Raises:
            UsageError: it is no repository's name, or the registry is a vendored folder.
            AuthError: the name has no owner, and there is no token that says whose account is meant.
            NotFoundError: no registry is called so.
        """
        name = parse_pack_name(repository)
        registry = self._registry_for(name)
        if registry.folder is not None:
            raise UsageError(
                f"{registry.folder} is a vendored folder, which nothing can be published to.",
                hint="Name a registry that is on the network: --registry URL.",
            )
        return Place(registry, name if name.owner else PackName(hub.fetch_account(registry).name, name.name))

    def elsewhere(self, name: PackName) -> Sequence[hub.Registry]:
        """Return the configured registries that a pack may come from, besides the one that is written to."""
        return () if isinstance(self.registry, hub.Registry) else find_registries(self.project).for_pack(name)

    def _registry_for(self, name: PackName) -> hub.Registry:
        chosen = self.registry
        if isinstance(chosen, hub.Registry):
            return chosen
        if chosen is not None:
            return find_registry(self.project, chosen, token=self.token)
        registries = find_registries(self.project, token=self.token)
        first = next(iter(registries.for_pack(name)), None)
        return first if first and registries.packs.get(first.name) else registries.named(hub.HUB)


@dataclass(frozen=True)
class Announcement:
    """What is to be appended to the index.

    Attributes:
        event: the line.
        message: of the commit.
        files: what else the commit adds or renews, given the state that it builds on and the index with the event.
        is_done: says whether the index holds what is announced, given the state and the bytes that were appended since
            the first attempt; raises where it never can.
        progress: told the bytes that are sent of each attempt.
        notice: told sentences for the user.
    """

    event: Event
    message: str
    files: Callable[[State, ReleaseIndex], Files]
    is_done: Callable[[State, bytes], bool]
    progress: Progress | None = None
    notice: Notice = silence

    @property
    def line(self) -> bytes:
        """The line as it stands in the index."""
        return event_line(self.event)


def announce(place: Place, announcement: Announcement, state: State) -> tuple[State, str | None]:
    """Commit until the index holds what is announced.

    Args:
        place: the repository, which must exist.
        announcement: what is announced; it is not there yet.
        state: what was read of the repository.

    Returns:
        What is published now, and the commit that holds the announcement; None where that is not known any more,
        because others followed.

    Raises:
        AuthError: there is no token, or it may not write there.
        NetworkError: the registry cannot be reached or went on failing; nothing is visible then, or all of it.
        SkillhubError: what ``announcement.is_done`` raises; as :meth:`Place.read_state`.
    """
    first, failed, overtaken = state, 0, 0
    while True:
        commit, error = _try(place, announcement, state)
        before, state = state, _read_back(place, error)
        if announcement.is_done(state, state.data[len(first.data) :]):
            return state, commit or commit_of(announcement, state)
        moved = state.head != before.head
        overtaken, failed = overtaken + moved, failed + (not moved)
        if isinstance(error, _HOPELESS) or failed >= _FAILED_ATTEMPTS or overtaken >= _OVERTAKEN_ATTEMPTS:
            raise error or _vanished(place)
        time.sleep(random.uniform(0, 0.1) + 0.3 * failed)


def propose(place: Place, announcement: Announcement, state: State) -> hub.CommitResult:
    """Open a pull request; whether it comes true is for its reviewers to say.

    Raises:
        NetworkError: the registry cannot be reached or answered that it failed; nobody can say whether it is open then.
        SkillhubError: as :func:`skillhub.hub.commit`.
    """
    try:
        return _commit(place, announcement, state, create_pull_request=True)
    except NetworkError as error:
        error.hint = "Look at the repository's pull requests before you try again: it may be open. " + error.hint
        raise


def commit_of(announcement: Announcement, state: State) -> str | None:
    """Return the commit that holds an announcement, where that is certain: its event is the last one."""
    return state.head if state.data.endswith(announcement.line) else None


def _try(place: Place, announcement: Announcement, state: State) -> tuple[str | None, SkillhubError | None]:
    """Return the commit that the server says it made, or the error; neither is believed."""
    try:
        return _commit(place, announcement, state).commit, None
    except SkillhubError as error:
        return None, error


def _commit(
    place: Place, announcement: Announcement, state: State, *, create_pull_request: bool = False
) -> hub.CommitResult:
    files = commit_files(announcement, state)
    try:
        return _send(place, announcement, state, files, create_pull_request=create_pull_request)
    except hub.MetadataRefusedError as error:  # a page is no reason to keep a release back, or out
        announcement.notice(f"{README_FILE} stays as it is: {error.message}")
        rest = {path: source for path, source in files.items() if path != README_FILE}
        return _send(place, announcement, state, rest, create_pull_request=create_pull_request)


def _send(
    place: Place, announcement: Announcement, state: State, files: Files, *, create_pull_request: bool
) -> hub.CommitResult:
    return hub.commit(
        place.registry,
        str(place.name),
        files,
        message=announcement.message,
        parent=state.head,
        create_pull_request=create_pull_request,
        progress=counting(f"Sending {place.name}", sum(sizes(files).values()), announcement.progress),
    )


def commit_files(announcement: Announcement, state: State) -> Files:
    """Return everything that a commit of the announcement would add or renew, the index included."""
    appended = append_event(state.data, announcement.event)
    return {**announcement.files(state, parse_releases(appended)), RELEASES_FILE: appended}


def sizes(files: Files) -> dict[str, int]:
    """Return the bytes of each file."""
    return {path: len(source) if isinstance(source, bytes) else source.stat().st_size for path, source in files.items()}


def _read_back(place: Place, error: SkillhubError | None) -> State:
    """Read what is published now, after an attempt that may have ended in an error."""
    try:
        return place.read_existing("Run the same command again.")
    except SkillhubError as failure:
        if isinstance(error, _HOPELESS):  # it says more than that nothing can be read either
            raise error from failure
        raise


def _vanished(place: Place) -> NetworkError:
    return NetworkError(
        f"{place.registry.address} accepted the commit and does not show it.", hint="Run the same command again."
    )
