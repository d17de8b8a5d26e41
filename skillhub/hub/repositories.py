"""Writing to a registry: repositories, commits and tags."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from skillhub import settings
from skillhub.errors import AuthError, NotFoundError, UsageError
from skillhub.hub.failures import hub_failures, offline_error
from skillhub.hub.registries import Registry, client
from skillhub.hub.uploads import UploadCount, addition, xet_uploads_told

_REFUSED_METADATA = re.compile(r"Invalid metadata in README\.md\.\n(?:- )?(.*)", re.DOTALL)


class MetadataRefusedError(UsageError):
    """The registry does not take the metadata at the top of a README; nothing of the commit was sent."""


@dataclass(frozen=True)
class CommitResult:
    """What the server answered to a commit; it is no proof that the commit is there.

    Attributes:
        commit: id of the commit.
        pull_request: address of the pull request, if one was asked for.
    """

    commit: str
    pull_request: str | None = None


def require_token(registry: Registry) -> None:
    """Refuse to go on without a token.

    Raises:
        AuthError: the registry has none.
        OfflineError: the network may not be used.
    """
    if settings.offline():
        raise offline_error(registry.address)
    if not registry.token:
        raise AuthError(
            f"There is no token for {registry.address}.",
            hint=f"Log in: {registry.login_command}. HF_TOKEN is for the registry that HF_ENDPOINT names.",
        )


def repository_head(registry: Registry, repository: str) -> str | None:
    """Return the commit that ``main`` is at, or None when there is no such repository.

    Raises:
        SkillhubError: as :func:`skillhub.hub.failures.hub_failures`.
    """
    if settings.offline():
        raise offline_error(repository)
    try:
        with hub_failures(registry, repository):
            return client(registry).model_info(repository, revision="main").sha
    except NotFoundError:
        return None


def create_repository(registry: Registry, repository: str) -> None:
    """Create a model repository unless it exists.

    Raises:
        AuthError: there is no token, or it may not do this.
        SkillhubError: as :func:`skillhub.hub.failures.hub_failures`.
    """
    require_token(registry)
    with hub_failures(registry, repository):
        client(registry).create_repo(repository, exist_ok=True)


def commit(
    registry: Registry,
    repository: str,
    files: Mapping[str, bytes | Path],
    *,
    message: str,
    parent: str | None,
    create_pull_request: bool = False,
    progress: Callable[[int], None] | None = None,
) -> CommitResult:
    """Add files in one commit: all of them become visible at once, or none.

    The request is sent once. An answer is no proof: a 500 may hide a commit that landed, so read back.

    Args:
        registry: where to commit.
        repository: ``owner/name``, which must exist.
        files: path in the repository → bytes, or a file on disk.
        message: first line of the commit's message.
        parent: the commit that ``main`` must be at; None for a repository without commits.
        create_pull_request: propose the commit instead.
        progress: called from any thread with numbers of bytes, which add up to those of all files when all is done.

    Raises:
        AuthError: there is no token, or it may not do this.
        MetadataRefusedError: the registry refuses the metadata of README.md.
        NetworkError: also when ``main`` has moved on from ``parent``.
        SkillhubError: as :func:`skillhub.hub.failures.hub_failures`.
    """
    require_token(registry)
    from huggingface_hub.utils.tqdm import disable_progress_bars

    sizes = [len(source) if isinstance(source, bytes) else source.stat().st_size for source in files.values()]
    count = UploadCount(sum(sizes), progress)
    operations = [addition(path, source, count) for path, source in sorted(files.items())]
    with (
        hub_failures(registry, repository),
        _metadata_checked(registry),
        disable_progress_bars(),
        xet_uploads_told(count),
    ):
        done = client(registry).create_commit(
            repository,
            operations=operations,
            commit_message=message,
            parent_commit=parent,
            create_pr=create_pull_request,
        )
        count.finish()
        return CommitResult(done.oid, done.pr_url)


@contextmanager
def _metadata_checked(registry: Registry) -> Iterator[None]:
    """Say it when the registry refuses a README's metadata, which the client asks before it sends a commit."""
    try:
        yield
    except ValueError as error:
        found = _REFUSED_METADATA.fullmatch(str(error))
        if found is None:
            raise
        raise MetadataRefusedError(
            f"{registry.address} does not take the metadata at the top of README.md: {'; '.join(found[1].split(chr(10)))}.",
            hint="Correct it on the repository's page, or in skillpack.toml where it comes from there.",
        ) from error


def create_tag(registry: Registry, repository: str, tag: str, *, revision: str) -> None:
    """Tag a commit, for people only: tags can move. A tag that exists is left alone.

    Raises:
        AuthError: there is no token, or it may not do this.
        SkillhubError: as :func:`skillhub.hub.failures.hub_failures`.
    """
    require_token(registry)
    with hub_failures(registry, repository):
        client(registry).create_tag(repository, tag=tag, revision=revision, exist_ok=True)
