"""Pull requests: proposals to change a branch, each with commits of its own on ``refs/pr/N`` and a conversation.

A discussion is a conversation alone. It is numbered among the pull requests, and has neither ref nor branch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from skillhub_registry.accounts import Caller
from skillhub_registry.database import Connection
from skillhub_registry.errors import HubError, conflict, forbidden, revision_not_found
from skillhub_registry.names import fold_name
from skillhub_registry.repositories import Repository, now_milliseconds
from skillhub_registry.revisions import (
    BRANCH,
    PULL_REQUEST,
    find_ref,
    move_ref,
    pull_request_number,
    resolve_revision,
    stale_parent,
    walk_history,
)
from skillhub_registry.rights import may_write, require_write

UNDECIDED = ("draft", "open")
"""The statuses in which a pull request still takes commits; the others are ``closed`` and ``merged``."""

_COLUMNS = (
    "p.number, p.author_id, a.name AS author, p.title, p.status, p.base, p.start, p.merge_commit, p.created_at, "
    "p.is_pull_request FROM pull_requests p JOIN accounts a ON a.id = p.author_id"
)


@dataclass(frozen=True)
class PullRequest:
    """A pull request, or a discussion. ``created_at`` is in milliseconds since 1970, UTC.

    Attributes:
        base: full name of the branch that it would change; empty for a discussion.
        start: the commit of that branch which its own commits build on; empty for a discussion.
        merge_commit: the commit that merged it.
        has_commits: 1 for a pull request, 0 for a discussion.
    """

    number: int
    author_id: int
    author: str
    title: str
    status: str
    base: str
    start: str
    merge_commit: str | None
    created_at: int
    has_commits: int

    @property
    def ref(self) -> str:
        """Full name of the ref that its commits are on."""
        return f"{PULL_REQUEST}{self.number}"


@dataclass(frozen=True)
class Event:
    """What happened to a pull request: a ``comment``, ``commit``, ``status-change`` or ``title-change``."""

    id: int
    kind: str
    author: str
    created_at: int
    data: dict[str, Any]


def open_pull_request(
    connection: Connection,
    repository_id: int,
    author: Caller,
    *,
    title: str,
    description: str = "",
    branch: str,
    parent: str | None = None,
    status: str,
) -> PullRequest:
    """Make a pull request without commits of its own.

    Args:
        connection: an open transaction.
        repository_id: the repository's number.
        author: who proposes.
        title: one line.
        description: becomes the first comment, unless it is empty.
        branch: what it would change.
        parent: the commit of the branch to begin at, or the beginning of its id; None for the newest.
        status: ``draft`` or ``open``.

    Raises:
        HubError: 404, there is no such branch; 412, the branch has no such commit.
    """
    start = _find_start(connection, repository_id, branch, parent)
    pull_request = _insert(connection, repository_id, author, title, description, (status, BRANCH + branch, start, 1))
    move_ref(connection, repository_id, pull_request.ref, start)
    return pull_request


def open_discussion(
    connection: Connection, repository_id: int, author: Caller, *, title: str, description: str
) -> PullRequest:
    """Make a discussion; a description that is not empty is its first comment."""
    return _insert(connection, repository_id, author, title, description, ("open", "", "", 0))


def _insert(
    connection: Connection,
    repository_id: int,
    author: Caller,
    title: str,
    description: str,
    kind: tuple[str, str, str, int],
) -> PullRequest:
    """Make a pull request or discussion; ``kind`` is its status, base and start, and whether it is a pull request."""
    (number,) = connection.execute(
        "SELECT coalesce(max(number), 0) + 1 FROM pull_requests WHERE repository_id = ?", (repository_id,)
    ).fetchone()
    connection.execute(
        "INSERT INTO pull_requests (repository_id, number, author_id, title, created_at, status, base, start, "
        "is_pull_request) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (repository_id, number, author.account.id, title, now_milliseconds(), *kind),
    )
    made = get_discussion(connection, repository_id, number)
    if description.strip():
        add_event(connection, repository_id, made, author, "comment", {"text": description.strip()})
    return made


def _find_start(connection: Connection, repository_id: int, branch: str, parent: str | None) -> str:
    head = find_ref(connection, repository_id, BRANCH + branch)
    if head is None:
        raise revision_not_found(branch)
    history = walk_history(connection, repository_id, resolve_revision(connection, repository_id, head.target))
    start = next((commit.id for commit in history if parent is None or commit.id.startswith(parent)), None)
    if start is None:
        raise stale_parent()
    return start


def get_discussion(connection: Connection, repository_id: int, number: int) -> PullRequest:
    """Return the pull request or discussion of that number.

    Raises:
        HubError: 404.
    """
    row = connection.execute(
        f"SELECT {_COLUMNS} WHERE p.repository_id = ? AND p.number = ?", (repository_id, number)
    ).fetchone()
    if row is None:
        raise HubError(404, "EntryNotFound", f"There is no discussion {number}")
    return PullRequest(*row)


def get_pull_request(connection: Connection, repository_id: int, number: int) -> PullRequest:
    """Return the pull request of that number.

    Raises:
        HubError: 404, also for a discussion.
    """
    found = get_discussion(connection, repository_id, number)
    if not found.has_commits:
        raise HubError(404, "EntryNotFound", f"There is no pull request {number}: it is a discussion")
    return found


def list_pull_requests(
    connection: Connection,
    repository_id: int,
    *,
    statuses: tuple[str, ...],
    author: str | None = None,
    has_commits: bool | None = None,
) -> list[PullRequest]:
    """Return pull requests and discussions with one of these statuses, newest first.

    They are of one ``author`` where one is named, and pull requests only or discussions only where ``has_commits`` says.
    """
    condition, values = f"p.status IN ({', '.join('?' * len(statuses))})", [repository_id, *statuses]
    if author is not None:
        condition += " AND lower(a.name) = ?"
        values.append(fold_name(author))
    if has_commits is not None:
        condition += " AND p.is_pull_request = ?"
        values.append(int(has_commits))
    rows = connection.execute(
        f"SELECT {_COLUMNS} WHERE p.repository_id = ? AND {condition} ORDER BY p.number DESC", values
    )
    return [PullRequest(*row) for row in rows]


def count_undecided(connection: Connection, repository_id: int) -> int:
    """Return how many pull requests and discussions are drafts or open."""
    (count,) = connection.execute(
        "SELECT count(*) FROM pull_requests WHERE repository_id = ? AND status IN (?, ?)", (repository_id, *UNDECIDED)
    ).fetchone()
    return int(count)


def add_event(
    connection: Connection,
    repository_id: int,
    pull_request: PullRequest,
    author: Caller,
    kind: str,
    data: dict[str, Any],
) -> Event:
    """Note what somebody did to a pull request."""
    now = now_milliseconds()
    (event_id,) = connection.execute(
        "INSERT INTO pull_request_events (repository_id, number, kind, author_id, created_at, data) "
        "VALUES (?, ?, ?, ?, ?, ?) RETURNING id",
        (repository_id, pull_request.number, kind, author.account.id, now, json.dumps(data)),
    ).fetchone()
    return Event(event_id, kind, author.account.name, now, data)


def list_events(connection: Connection, repository_id: int, number: int) -> list[Event]:
    """Return what happened to a pull request, in order."""
    rows = connection.execute(
        "SELECT e.id, e.kind, a.name, e.created_at, e.data FROM pull_request_events e "
        "JOIN accounts a ON a.id = e.author_id WHERE e.repository_id = ? AND e.number = ? ORDER BY e.id",
        (repository_id, number),
    )
    return [Event(row[0], row[1], row[2], row[3], json.loads(row[4])) for row in rows]


def find_comment(connection: Connection, repository_id: int, number: int, event_id: int) -> tuple[Event, int]:
    """Return a comment, and the account that wrote it.

    Raises:
        HubError: 404.
    """
    row = connection.execute(
        "SELECT e.id, e.kind, a.name, e.created_at, e.data, e.author_id FROM pull_request_events e "
        "JOIN accounts a ON a.id = e.author_id "
        "WHERE e.repository_id = ? AND e.number = ? AND e.id = ? AND e.kind = 'comment'",
        (repository_id, number, event_id),
    ).fetchone()
    if row is None:
        raise HubError(404, "EntryNotFound", f"Discussion {number} has no such comment")
    return Event(row[0], row[1], row[2], row[3], json.loads(row[4])), row[5]


def edit_comment(connection: Connection, comment: Event, text: str) -> Event:
    """Give a comment another text."""
    edits = comment.data.get("edits", 0) + 1
    return _change_event(connection, comment, {"text": text, "edits": edits, "edited_at": now_milliseconds()})


def hide_comment(connection: Connection, comment: Event) -> Event:
    """Take a comment's text away, for good."""
    return _change_event(connection, comment, {"text": "", "hidden": True})


def _change_event(connection: Connection, event: Event, data: dict[str, Any]) -> Event:
    connection.execute("UPDATE pull_request_events SET data = ? WHERE id = ?", (json.dumps(data), event.id))
    return replace(event, data=data)


def change_status(
    connection: Connection, repository_id: int, pull_request: PullRequest, author: Caller, status: str
) -> Event:
    """Open or close a pull request.

    Raises:
        HubError: 409, it is merged.
    """
    if pull_request.status == "merged":
        raise conflict(f"Pull request {pull_request.number} is merged")
    connection.execute(
        "UPDATE pull_requests SET status = ? WHERE repository_id = ? AND number = ?",
        (status, repository_id, pull_request.number),
    )
    return add_event(connection, repository_id, pull_request, author, "status-change", {"status": status})


def rename(connection: Connection, repository_id: int, pull_request: PullRequest, author: Caller, title: str) -> Event:
    """Give a pull request another title."""
    connection.execute(
        "UPDATE pull_requests SET title = ? WHERE repository_id = ? AND number = ?",
        (title, repository_id, pull_request.number),
    )
    change = {"from": pull_request.title, "to": title}
    return add_event(connection, repository_id, pull_request, author, "title-change", change)


def record_merge(
    connection: Connection, repository_id: int, pull_request: PullRequest, author: Caller, commit: str
) -> None:
    """Note that a commit merged a pull request."""
    change_status(connection, repository_id, pull_request, author, "merged")
    connection.execute(
        "UPDATE pull_requests SET merge_commit = ? WHERE repository_id = ? AND number = ?",
        (commit, repository_id, pull_request.number),
    )


def require_owner(caller: Caller, repository: Repository, pull_request: PullRequest) -> None:
    """Refuse whoever is neither the pull request's author nor a member.

    Raises:
        HubError: 403.
    """
    if pull_request.author_id != caller.account.id and not may_write(caller, repository):
        what = "Pull request" if pull_request.has_commits else "Discussion"
        raise forbidden(f"{what} {pull_request.number} is {pull_request.author}'s: open one of your own")


def require_committer(
    connection: Connection, caller: Caller, repository: Repository, revision: str, *, proposes: bool
) -> None:
    """Refuse whoever may not commit to a revision: members may to all, everybody to pull requests of their own.

    Args:
        connection: an open transaction.
        caller: whom PROPOSE let in.
        repository: the one that the caller may read.
        revision: branch or pull request.
        proposes: the commit would make a pull request against the branch.

    Raises:
        HubError: 403; 404, there is no such pull request; 409, it takes no commits any more.
    """
    number = pull_request_number(revision)
    if number is None:
        if not proposes:
            require_write(caller, repository)
        return
    pull_request = get_pull_request(connection, repository.id, number)
    require_owner(caller, repository, pull_request)
    if pull_request.status not in UNDECIDED:
        raise conflict(f"Pull request {number} is {pull_request.status}: open another one")
