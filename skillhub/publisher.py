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
from skillhub.errors import (
    AuthError,
    DiskError,
    IntegrityError,
    NetworkError,
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
from skillhub.sources import declared_base_files

README = "README.md"

_FAILED_ATTEMPTS = 4
_OVERTAKEN_ATTEMPTS = 40
_HOPELESS = (AuthError, UsageError, DiskError)


def publish(
    pack: Pack | Path | str,
    repo_id: str,
    *,
    registry: hub.Registry | str | None = None,
    token: str | None = None,
    create_pr: bool = False,
    progress: Progress | None = None,
    notice: Notice | None = None,
) -> Release:
    """Publish a pack folder as a release of a repository, which is created if need be.

    A release that is there already, byte for byte, is a success. Afterwards the commit is tagged ``v<version>``, for
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
        The release as the index announces it (as it would, for a pull request).

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
    publication = _Publication(registry, name, opened, notice or (lambda sentence: None))
    return publication.propose() if create_pr else publication.publish()


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
class _Publication:
    """One pack on its way to one repository."""

    registry: hub.Registry
    name: PackName
    pack: Pack
    notice: Notice

    @property
    def event(self) -> Event:
        """The line that announces the release."""
        return release_event(self.pack.manifest, declared_base_files(self.pack.manifest))

    def publish(self) -> Release:
        """Commit until the index holds the release."""
        failed = overtaken = 0
        commit = None
        before = self._read_state(create=True)
        if self._find(before) is not None:
            self.notice(f"{self.name} {self.pack.manifest.version} is published already, with the same content.")
        while self._find(before) is None:
            error: SkillhubError | None = None
            try:
                commit = self._commit(before, create_pull_request=False).commit
            except _HOPELESS:
                raise
            except SkillhubError as caught:
                error = caught
            state = self._read_state(create=False)
            moved = state.head != before.head
            overtaken, failed = overtaken + moved, failed + (not moved)
            before = state
            if self._find(state) is None:
                if failed >= _FAILED_ATTEMPTS or overtaken >= _OVERTAKEN_ATTEMPTS:
                    raise error or self._vanished()
                time.sleep(random.uniform(0, 0.1) + 0.3 * failed)
        self._tag(commit or before.head)
        found = self._find(before)
        assert found is not None
        return found

    def propose(self) -> Release:
        """Make a pull request; whether it becomes a release is for its reviewers to say."""
        state = self._read_state(create=False)
        found = self._find(state)
        if found is not None:
            self.notice(f"{self.name} {self.pack.manifest.version} is published already, with the same content.")
            return found
        result = self._commit(state, create_pull_request=True)
        self.notice(f"Proposed {self.name} {self.pack.manifest.version}: {result.pull_request}.")
        return Release(parse_version(self.pack.manifest.version), self.event)

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
        tag = f"v{self.pack.manifest.version}"
        try:
            hub.create_tag(self.registry, str(self.name), tag, revision=commit or "main")
        except SkillhubError as error:
            self.notice(f"The release is published, but its tag {tag} could not be made: {error.message}")

    def _vanished(self) -> NetworkError:
        return NetworkError(
            f"{self.registry.address} accepted the release and does not show it.", hint="Run the same command again."
        )
