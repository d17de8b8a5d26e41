"""Merging a pull request: what it changed is put on top of what its branch is by now.

There is always a commit for the merge, also where the branch did not move: its time is when the branch changed, which
for a pack is when a release was published.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from skillhub.releases import RELEASES_FILE
from skillhub_registry.accounts import Caller
from skillhub_registry.blobs import BlobStore
from skillhub_registry.commits import store_trees
from skillhub_registry.database import Connection
from skillhub_registry.errors import HubError, conflict
from skillhub_registry.indexing import index_files
from skillhub_registry.published import check_published
from skillhub_registry.pullrequests import PullRequest, record_merge
from skillhub_registry.repositories import MEMBERS
from skillhub_registry.revisions import BRANCH, DEFAULT_REF, Commit, insert_commit, move_ref, resolve_revision
from skillhub_registry.trees import find_files, read_files
from skillhub_registry.uploads import record_uploads

_SHOWN = 5


@dataclass(frozen=True)
class _Merge:
    """Files as path → blob id: of the branch now, and with the pull request, and the paths that both changed."""

    before: dict[str, str]
    after: dict[str, str]
    conflicts: list[str]


def find_conflicts(connection: Connection, repository_id: int, pull_request: PullRequest) -> list[str]:
    """Return the paths that a pull request and its branch have both changed, each in another way."""
    try:
        branch, proposed = _heads(connection, repository_id, pull_request)
    except HubError:
        return []  # the branch is gone; merging says so
    return _combine(connection, repository_id, pull_request, branch, proposed).conflicts


def merge_pull_request(
    connection: Connection,
    store: BlobStore,
    repository_id: int,
    pull_request: PullRequest,
    caller: Caller,
    message: str = "",
) -> str:
    """Merge a pull request into its branch and return the commit's id. The caller's transaction makes it visible.

    Raises:
        HubError: 404, the branch is gone; 409 where the pull request is not open, contradicts what the branch has become,
            or would change what was published; 400 where a path would be both a file and a folder.
    """
    if pull_request.status != "open":
        advice = ": open it first" if pull_request.status == "draft" else ""
        raise conflict(f"Pull request {pull_request.number} is {_article(pull_request.status)}{advice}")
    branch, proposed = _heads(connection, repository_id, pull_request)
    merge = _combine(connection, repository_id, pull_request, branch, proposed)
    if merge.conflicts:
        raise _conflict(pull_request, merge.conflicts)
    if pull_request.base == DEFAULT_REF:
        check_published(connection, store, repository_id, merge.before, merge.after)
    commit_id = insert_commit(
        connection,
        repository_id,
        tree=store_trees(connection, merge.after),
        parent=branch.id,
        merged=proposed.id,
        author=caller.account.name,
        created_at=max(int(time.time()), branch.created_at, proposed.created_at),
        title=f"{pull_request.title} (#{pull_request.number})",
        message=message,
    )
    move_ref(connection, repository_id, pull_request.base, commit_id)
    if pull_request.base == DEFAULT_REF:
        index_files(connection, store, repository_id, merge.after)
    _adopt_uploads(connection, repository_id, merge)
    record_merge(connection, repository_id, pull_request, caller, commit_id)
    return commit_id


def _heads(connection: Connection, repository_id: int, pull_request: PullRequest) -> tuple[Commit, Commit]:
    branch = resolve_revision(connection, repository_id, pull_request.base)
    return branch, resolve_revision(connection, repository_id, pull_request.ref)


def _combine(
    connection: Connection, repository_id: int, pull_request: PullRequest, branch: Commit, proposed: Commit
) -> _Merge:
    """Take each path from the side that changed it. A branch that was squashed has the same files: nothing changed."""
    start = read_files(connection, resolve_revision(connection, repository_id, pull_request.start).tree)
    ours, theirs = read_files(connection, branch.tree), read_files(connection, proposed.tree)
    after, conflicts = dict(ours), []
    for path in sorted(start.keys() | theirs.keys()):
        old, our, their = start.get(path), ours.get(path), theirs.get(path)
        if their in (old, our):
            continue
        if our != old:
            conflicts.append(path)
        elif their is None:
            del after[path]
        else:
            after[path] = their
    return _Merge(ours, after, conflicts)


def _conflict(pull_request: PullRequest, paths: list[str]) -> HubError:
    branch = pull_request.base.removeprefix(BRANCH)
    if RELEASES_FILE in paths:
        said = f"{branch} has other releases since, so its {RELEASES_FILE} does not extend {branch}'s any more"
    else:
        more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
        said = f"{branch} has changed the same files since: {', '.join(paths[:_SHOWN])}{more}"
    return HubError(
        409, "MergeConflict", f"Pull request {pull_request.number} cannot be merged: {said}. Propose it again"
    )


def _adopt_uploads(connection: Connection, repository_id: int, merge: _Merge) -> None:
    """Let members' commits refer to the large files that came in with the pull request."""
    new = set(merge.after.values()) - set(merge.before.values())
    large = [(file.sha256, file.size) for file in find_files(connection, new).values() if file.lfs]
    record_uploads(connection, repository_id, MEMBERS, large)


def _article(status: str) -> str:
    return "a draft" if status == "draft" else status
