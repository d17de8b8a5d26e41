"""What only a registry can say of a pack's repository: which one it is, and when its releases were published."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import islice

from skillhub import settings
from skillhub.errors import NetworkError
from skillhub.hub import folders
from skillhub.hub.failures import hub_failures, offline_error
from skillhub.hub.registries import Registry, client

_RELEASES = "releases"
_MOST = 10_000  # a registry that lists without end tells us that many


def repository_id(registry: Registry, repository: str) -> str:
    """Return a repository's own id, which stays when it is renamed, and which no other ever has; one request.

    Raises:
        NotFoundError: there is no such repository.
        NetworkError: the registry does not tell.
        SkillhubError: as :func:`skillhub.hub.failures.hub_failures`.
    """
    if registry.folder is not None:
        found = folders.read_repository(registry, repository).id
    else:
        if settings.offline():
            raise offline_error(f"The identity of {repository}")
        with hub_failures(registry, repository):
            found = getattr(client(registry).model_info(repository, expand=["sha"]), "_id", None)
    if not isinstance(found, str) or not found:
        raise NetworkError(
            f"{registry.address} does not tell which repository {repository} is.", hint="Ask its operator."
        )
    return found


def release_times(registry: Registry, repository: str) -> dict[str, datetime]:
    """Return when the releases of a pack were published, as far as the registry tells: version → time, UTC.

    It is the time of the last commit that touched a release's folder: after a repository's history was squashed, that
    of the squash. A vendored folder tells nothing.

    Raises:
        NotFoundError: there is no such repository.
        SkillhubError: as :func:`skillhub.hub.failures.hub_failures`.
    """
    if registry.folder is not None:
        return {}
    if settings.offline():
        raise offline_error(f"When the releases of {repository} were published")
    from huggingface_hub.errors import RemoteEntryNotFoundError

    with hub_failures(registry, repository):
        try:
            entries = list(islice(client(registry).list_repo_tree(repository, _RELEASES, expand=True), _MOST))
        except RemoteEntryNotFoundError:
            return {}
    return {
        entry.path.rpartition("/")[2]: entry.last_commit.date.astimezone(UTC)
        for entry in entries
        if entry.last_commit is not None
    }
