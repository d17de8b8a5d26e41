"""Publish a built pack as a release: one commit that adds its folder and announces it in the index.

The commit names the head that it was made for, so it lands whole on what was read, or not at all. What the server
answers is not believed: after every attempt the index is read again. Our digest in it means that the release is
published, whatever the answer was; the same version with another digest means that somebody else took the version;
neither means that another commit came first or this one was lost, and the next attempt builds on the new head.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from pathlib import Path

from skillhub import hub
from skillhub.catalogs import declared_base_files
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
from skillhub.manifest import MANIFEST_FILE
from skillhub.modelcards import model_card
from skillhub.names import PackName, parse_pack_name, parse_version
from skillhub.packs import Pack, open_pack, verify_pack
from skillhub.progress import Notice, Progress, counting
from skillhub.releases import RELEASES_FILE, Event, Release, append_event, parse_releases, release_event, release_folder

README = "README.md"

_FAILED_ATTEMPTS = 4
_OVERTAKEN_ATTEMPTS = 40
_HOPELESS = (AuthError, UsageError, DiskError, IntegrityError, NewerSchemaError)


@dataclass(frozen=True)
class Publication:
    """What publishing came to.

    Attributes:
        release: the release as the index announces it (as it would, for a pull request).
        repository: full name of its repository.
        commit: the commit that holds it; None where that is not known any more, because others followed.
        pull_request: address of the pull request that proposes it, if one was asked for and made.
        already_there: whether the release was published before, with the same content.
    """

    release: Release
    repository: str
    commit: str | None
    pull_request: str | None = None
    already_there: bool = False


def publish(
    pack: Pack | Path | str,
    repo_id: str,
    *,
    registry: hub.Registry | str | None = None,
    token: str | None = None,
    create_pr: bool = False,
    progress: Progress | None = None,
    notice: Notice | None = None,
) -> Publication:
    """Publish a pack folder as a release of a repository, which is created if need be.

    A release that is there already, byte for byte, is a success. Afterwards its commit is tagged ``v<version>``, for
    people only; a tag that cannot be made is told and does no harm.

    Args:
        pack: the pack, or its folder.
        repo_id: ``owner/name``, or the name alone for one's own account; the name must be the pack's.
        registry: a registry, or its address; None means the configured one.
        token: for that registry; None means the saved one, for the configured registry only.
        create_pr: propose the release as a pull request instead.
        progress: told what of the pack has been read through: the pack, bytes done, bytes in all.
        notice: told sentences for the user.

    Returns:
        The release, and where it is.

    Raises:
        IntegrityError: the pack's files are not what its manifest says, or the version is published with other content.
        AuthError: there is no token, or it may not write there.
        UsageError: the repository's name is not the pack's.
        NetworkError: the registry cannot be reached or went on failing; nothing is visible then, or all of it.
    """
    opened = pack if isinstance(pack, Pack) else open_pack(Path(pack))
    if not isinstance(registry, hub.Registry):
        registry = hub.default_registry(registry, token)
    hub.require_token(registry)
    name = _repository_name(opened, repo_id, registry)
    _check_whole(opened, progress)
    publisher = _Publisher(registry, name, opened, notice or (lambda sentence: None))
    return publisher.propose() if create_pr else publisher.publish()


def _repository_name(pack: Pack, repo_id: str, registry: hub.Registry) -> PackName:
    given = parse_pack_name(repo_id)
    name = given if given.owner else PackName(hub.whoami(registry), given.name)
    if name.name.lower() != pack.manifest.name.lower():
        raise UsageError(
            f"The pack is called {pack.manifest.name}, and its repository would be {name}.",
            hint=f"Publish it as {name.owner}/{pack.manifest.name}, or build it under the other name.",
        )
    return name


def _check_whole(pack: Pack, progress: Progress | None) -> None:
    """Read the whole pack; what is published can never be corrected."""
    total = sum(variant.size for variant in pack.manifest.variants)
    if not pack.manifest.variants:
        raise UsageError(f"{pack} has no variant: it is for no base.", hint="Build it with `skillhub pack`.")
    findings = verify_pack(pack, progress=counting(str(pack), total, progress))
    if findings:
        more = f" ({len(findings) - 1} more files are wrong as well)" if len(findings) > 1 else ""
        raise IntegrityError(
            f"{findings[0].message}{more}", hint="Build the pack again with `skillhub pack`.", path=str(pack.folder)
        )


@dataclass(frozen=True)
class _State:
    """A repository's main: its head and its index, which belong together."""

    head: str | None
    index: bytes


@dataclass(frozen=True)
class _Publisher:
    """One pack on its way to one repository."""

    registry: hub.Registry
    name: PackName
    pack: Pack
    notice: Notice

    @property
    def event(self) -> Event:
        """The line that announces the release."""
        return release_event(self.pack.manifest, declared_base_files(self.pack.manifest))

    def publish(self) -> Publication:
        """Commit until the index holds the release."""
        state = self._read_state(create=True)
        found = self._find(state)
        if found is not None:
            return self._already_there(found, state)
        failed = overtaken = 0
        while True:
            commit, error = self._try_to_commit(state)
            before, state = state, self._read_back(error)
            found = self._find(state)
            if found is not None:
                commit = commit or self._commit_of(state)
                self._tag(commit)
                return Publication(found, str(self.name), commit)
            moved = state.head != before.head
            overtaken, failed = overtaken + moved, failed + (not moved)
            if isinstance(error, _HOPELESS) or failed >= _FAILED_ATTEMPTS or overtaken >= _OVERTAKEN_ATTEMPTS:
                raise error or self._vanished()
            time.sleep(random.uniform(0, 0.1) + 0.3 * failed)

    def propose(self) -> Publication:
        """Make a pull request; whether it becomes a release is for its reviewers to say."""
        state = self._read_state(create=False)
        found = self._find(state)
        if found is not None:
            return self._already_there(found, state)
        result = self._commit(state, create_pull_request=True)
        self.notice(f"Proposed {self.name} {self.pack.manifest.version}: {result.pull_request}.")
        release = Release(parse_version(self.pack.manifest.version), self.event)
        return Publication(release, str(self.name), result.commit, result.pull_request)

    def _already_there(self, found: Release, state: _State) -> Publication:
        self.notice(f"{self.name} {found.version} is published already, with the same content.")
        commit = self._commit_of(state)
        self._tag(commit)
        return Publication(found, str(self.name), commit, already_there=True)

    def _try_to_commit(self, state: _State) -> tuple[str | None, SkillhubError | None]:
        """Return the commit that the server says it made, or the error; neither is believed."""
        try:
            return self._commit(state, create_pull_request=False).commit, None
        except SkillhubError as error:
            return None, error

    def _read_back(self, error: SkillhubError | None) -> _State:
        """Read what is published now, after an attempt that may have ended in an error."""
        try:
            return self._read_state(create=False)
        except SkillhubError as failure:
            if isinstance(error, _HOPELESS):  # it says more than that nothing can be read either
                raise error from failure
            raise

    def _commit_of(self, state: _State) -> str | None:
        """Return the commit that holds the release, where that is certain: its event is the last one."""
        return state.head if state.index.endswith(append_event(b"", self.event)) else None

    def _read_state(self, *, create: bool) -> _State:
        known = remembered_index(self.registry, self.name)
        head = hub.repository_head(self.registry, str(self.name))
        if head is None and create:
            hub.create_repository(self.registry, str(self.name))
            head = hub.repository_head(self.registry, str(self.name))
        elif head is None:
            raise NotFoundError(
                f"There is no repository {self.name} at {self.registry.address}.", hint="Publish without --create-pr."
            )
        read = hub.read_releases(self.registry, str(self.name), revision=head) if head else None
        data = read.data if read else b""
        if data or known:
            remember_index(self.registry, self.name, data, known=known)
        return _State(head, data)

    def _find(self, state: _State) -> Release | None:
        """Return our release in the index, or None."""
        index = parse_releases(state.index, where=f"{RELEASES_FILE} of {self.name}")
        found = index.find(parse_version(self.pack.manifest.version))
        if found is not None and found.manifest_digest != self.pack.digest:
            raise IntegrityError(
                f"{self.name} {found.version} is published already, with other content.",
                hint="A published version never changes: give this pack a new version and build it again.",
                expected=found.manifest_digest,
                found=self.pack.digest,
            )
        return found

    def _commit(self, state: _State, *, create_pull_request: bool) -> hub.CommitResult:
        manifest = self.pack.manifest
        return hub.commit(
            self.registry,
            str(self.name),
            self._files(state.index),
            message=f"Release {manifest.version}",
            parent=state.head,
            create_pull_request=create_pull_request,
        )

    def _files(self, index: bytes) -> dict[str, bytes | Path]:
        """Return everything that the commit adds or renews."""
        manifest, folder = self.pack.manifest, release_folder(self.pack.manifest.version)
        appended = append_event(index, self.event)
        files: dict[str, bytes | Path] = {
            f"{folder}/{entry.path}": self.pack.path_of(entry)
            for variant in manifest.variants
            for entry in variant.files
        }
        files[f"{folder}/{MANIFEST_FILE}"] = manifest.to_bytes()
        files[RELEASES_FILE] = appended
        newest = parse_releases(appended).newest_final()
        is_newest = newest is not None and newest.manifest_digest == self.pack.digest
        if is_newest:
            files[MANIFEST_FILE] = manifest.to_bytes()
        if is_newest or newest is None:  # a first pre-release has a page as well
            files[README] = model_card(manifest, self.name).encode()
        return files

    def _tag(self, commit: str | None) -> None:
        """Tag the release's commit; where that is not known, no tag is better than a wrong one."""
        if commit is None:
            return
        tag = f"v{self.pack.manifest.version}"
        try:
            hub.create_tag(self.registry, str(self.name), tag, revision=commit)
        except SkillhubError as error:
            self.notice(f"The release is published, but its tag {tag} could not be made: {error.message}")

    def _vanished(self) -> NetworkError:
        return NetworkError(
            f"{self.registry.address} accepted the release and does not show it.", hint="Run the same command again."
        )
