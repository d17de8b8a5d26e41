"""PEFT adapters on a registry: which commit, which files, which base they declare; no weights are downloaded for that."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from skillhub.adapters import (
    CONFIG_FILE,
    FILES,
    MAX_CONFIG_BYTES,
    PICKLE_FILE,
    AdapterConfig,
    missing_weights,
    parse_config,
)
from skillhub.checkpointfiles import ADAPTER_FILE
from skillhub.errors import IntegrityError, NetworkError, NotFoundError
from skillhub.files import sha256_of_bytes
from skillhub.hub import folders
from skillhub.hub.downloads import read_file
from skillhub.hub.failures import hub_failures
from skillhub.hub.registries import Registry, client
from skillhub.hub.waits import retried
from skillhub.manifest import MANIFEST_FILE, FileEntry
from skillhub.releases import RELEASES_FILE

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile

MAX_PLAIN_BYTES = 64 << 20
"""Longest file of weights that is read for its digest, where a registry does not keep it in LFS."""


@dataclass(frozen=True)
class RemoteAdapter:
    """An adapter in a repository.

    Attributes:
        commit: what it is pinned by.
        files: its files, sorted by path; paths are those in the repository.
        config: its config.
        published: when its files last changed, as far as the registry tells; a vendored folder tells nothing.
        moved_to: full name of the repository that answered, where the registry sent us on to another one.
    """

    commit: str
    files: list[FileEntry]
    config: AdapterConfig
    published: datetime | None = None
    moved_to: str | None = None

    @property
    def base(self) -> str | None:
        """Repository of the base model that it declares."""
        return self.config.base

    @property
    def base_revision(self) -> str | None:
        """Branch, tag or commit of that base, where it says."""
        return self.config.base_revision


def find_adapter(registry: Registry, repository: str, revision: str = "main") -> RemoteAdapter:
    """Find out what an adapter's repository holds at a revision: three small requests, and none for its weights.

    Args:
        registry: where to look.
        repository: ``owner/name``.
        revision: branch, tag or commit; the result names the commit.

    Raises:
        NotFoundError: there is no such repository or revision, or no adapter in it.
        UnsafeContentError: its weights are a pickle only.
        UsageError: it is an adapter of a kind that is not read (see :func:`skillhub.adapters.parse_config`).
        IntegrityError: its config is not valid, or a vendored folder does not say which commit it is.
        SkillhubError: as :func:`skillhub.hub.failures.hub_failures`.
    """
    read = read_file(registry, repository, CONFIG_FILE, revision=revision, limit=MAX_CONFIG_BYTES)
    if read is None:
        raise _no_adapter(registry, repository, revision)
    config = parse_config(read.data, where=f"{CONFIG_FILE} of {repository}")
    if read.commit is None:
        raise IntegrityError(
            f"{registry.folder} does not say which commit of {repository} it has.",
            hint="Make the folder again with `skillhub vendor`, and copy all of it.",
        )
    where = read.moved_to or repository
    written = FileEntry(path=CONFIG_FILE, size=len(read.data), sha256=sha256_of_bytes(read.data))
    published = None
    if registry.folder is not None:
        weights = _vendored_weights(registry, where, read.commit)
    else:
        listed = _listed(registry, where, read.commit, [CONFIG_FILE, ADAPTER_FILE, PICKLE_FILE])
        if ADAPTER_FILE not in listed:
            raise missing_weights(where, is_pickled=PICKLE_FILE in listed)
        weights = _weights_entry(registry, where, read.commit, listed[ADAPTER_FILE])
        published = _last_change(listed[path] for path in FILES if path in listed)
    files = sorted([written, weights], key=lambda one: one.path)
    return RemoteAdapter(read.commit, files, config, published, read.moved_to)


def _last_change(files: Iterable[RepoFile]) -> datetime | None:
    """Return when the newest of some files was committed; None where that is not told of each."""
    commits = [file.last_commit for file in files]
    dates = [commit.date.astimezone(UTC) for commit in commits if commit is not None]
    return max(dates) if len(dates) == len(commits) else None


def _vendored_weights(registry: Registry, repository: str, commit: str) -> FileEntry:
    entries = {entry.path: entry for entry in folders.list_files(registry, repository, revision=commit)}
    if ADAPTER_FILE not in entries:
        raise missing_weights(repository, is_pickled=PICKLE_FILE in entries)
    return entries[ADAPTER_FILE]


def _weights_entry(registry: Registry, repository: str, commit: str, listed: RepoFile) -> FileEntry:
    if listed.lfs is not None:
        return FileEntry(path=ADAPTER_FILE, size=listed.lfs.size, sha256=listed.lfs.sha256)
    if listed.size > MAX_PLAIN_BYTES:
        raise NetworkError(
            f"{registry.address} keeps {ADAPTER_FILE} of {repository} outside LFS and does not tell its digest.",
            hint="Tell the adapter's publisher: files of weights belong into LFS.",
        )
    read = read_file(registry, repository, ADAPTER_FILE, revision=commit, limit=MAX_PLAIN_BYTES)
    if read is None:
        raise missing_weights(repository, is_pickled=False)
    return FileEntry(path=ADAPTER_FILE, size=len(read.data), sha256=sha256_of_bytes(read.data))


def _listed(registry: Registry, repository: str, revision: str, paths: list[str]) -> dict[str, RepoFile]:
    """Return those of some files that a repository has, as the registry lists them."""
    from huggingface_hub.hf_api import RepoFile

    with hub_failures(registry, repository):
        entries = retried(
            registry, lambda: client(registry).get_paths_info(repository, paths, expand=True, revision=revision)
        )
        return {entry.path: entry for entry in entries if isinstance(entry, RepoFile) and entry.path in paths}


def _no_adapter(registry: Registry, repository: str, revision: str) -> NotFoundError:
    """Return the error for a repository without an adapter's config; what it holds instead decides the hint."""
    paths = [RELEASES_FILE, MANIFEST_FILE]
    if registry.folder is not None:
        found = {entry.path for entry in folders.list_files(registry, repository, revision=revision)}
    else:
        found = set(_listed(registry, repository, revision, paths))
    if found & set(paths):
        return NotFoundError(
            f"{repository} at {registry.address} is a SkillPack, not a PEFT adapter.",
            hint=f"Leave `peft:` out: skillhub install {repository}.",
        )
    return NotFoundError(
        f"{repository} at {registry.address} is no PEFT adapter: it has no {CONFIG_FILE}.",
        hint=f"Name a repository that has {' and '.join(FILES)} at its top.",
    )
