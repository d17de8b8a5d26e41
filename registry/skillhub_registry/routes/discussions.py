"""Discussions and pull requests: opening, listing, commenting on, closing and merging them."""

from __future__ import annotations

import re
from html import escape
from typing import Any

from starlette.responses import JSONResponse, Response

from skillhub_registry import limits
from skillhub_registry.calls import Call, parse_json
from skillhub_registry.database import Connection
from skillhub_registry.diffs import diff_pull_request
from skillhub_registry.errors import HubError, bad_request, conflict, forbidden
from skillhub_registry.merges import find_conflicts, merge_pull_request
from skillhub_registry.pullrequests import (
    UNDECIDED,
    Event,
    PullRequest,
    add_event,
    change_status,
    edit_comment,
    find_comment,
    get_discussion,
    get_pull_request,
    hide_comment,
    list_events,
    list_pull_requests,
    open_discussion,
    open_pull_request,
    rename,
    require_owner,
)
from skillhub_registry.revisions import DEFAULT_BRANCH
from skillhub_registry.rights import may_download, may_write
from skillhub_registry.routes.documents import format_milliseconds

HIDDEN = "This comment has been hidden"
"""What is told of a comment whose text was taken away."""

_COMMENT_ID = re.compile(r"[0-9a-f]{24}")
_SETTLED = ("closed", "merged")
_STATUSES = {"all": (*UNDECIDED, *_SETTLED), "open": UNDECIDED, "closed": _SETTLED}


def create(call: Call) -> Response:
    """Answer ``POST R/discussions``: a discussion, or the draft of a pull request, which its author then commits to."""
    body = call.json()
    title, description = _read_title(body), _read_comment(body, "description")
    with call.registry.database.write(call.target.id) as connection:
        if body.get("pullRequest"):
            made = open_pull_request(
                connection,
                call.target.id,
                call.account,
                title=title,
                description=description,
                branch=DEFAULT_BRANCH,
                status="draft",
            )
        else:
            made = open_discussion(connection, call.target.id, call.account, title=title, description=description)
    return JSONResponse(
        {"num": made.number, "pullRequest": bool(made.has_commits), "url": pull_request_url(call, made)}
    )


def list_all(call: Call) -> Response:
    """Answer ``GET R/discussions``, newest first, in pages."""
    query = call.request.query_params
    statuses = _STATUSES.get(query.get("status", "all"))
    if statuses is None:
        raise bad_request(f"status must be one of {', '.join(_STATUSES)}")
    page = query.get("p", "0")
    if not page.isascii() or not page.isdigit() or len(page) > 9:
        raise bad_request("p must be the number of a page")
    kinds = {"all": None, "discussion": False, "pull_request": True}
    kind = query.get("type", "all")
    if kind not in kinds:
        raise bad_request(f"type must be one of {', '.join(kinds)}")
    with call.registry.database.read() as connection:
        found = list_pull_requests(
            connection, call.target.id, statuses=statuses, author=query.get("author"), has_commits=kinds[kind]
        )
    start = int(page) * limits.PULL_REQUESTS_PAGE
    shown = [_document(call, one) for one in found[start : start + limits.PULL_REQUESTS_PAGE]]
    return JSONResponse({"discussions": shown, "count": len(found), "start": start})


def show(call: Call) -> Response:
    """Answer ``GET R/discussions/{number}``: what it is, and what happened to it."""
    number = read_number(call)
    with call.registry.database.read() as connection:
        found = get_discussion(connection, call.target.id, number)
        document = _document(call, found)
        document["events"] = [_event_document(event) for event in list_events(connection, call.target.id, number)]
        if found.has_commits:
            document.update(_describe_changes(call, connection, found))
    return JSONResponse(document)


def _describe_changes(call: Call, connection: Connection, pull_request: PullRequest) -> dict[str, Any]:
    undecided = pull_request.status in UNDECIDED
    shows_diff = call.flag("diff") and may_download(connection, call.caller, call.target)  # it quotes the files
    return {
        "changes": {"base": pull_request.base, "mergeCommitId": pull_request.merge_commit},
        "filesWithConflicts": find_conflicts(connection, call.target.id, pull_request) if undecided else [],
        "diff": diff_pull_request(connection, call.registry.blobs, call.target.id, pull_request)
        if shows_diff
        else None,
    }


def comment(call: Call) -> Response:
    """Answer ``POST R/discussions/{number}/comment``."""
    number, text = read_number(call), _read_comment(call.json(), "comment")
    if not text:
        raise bad_request("The comment is empty")
    with call.registry.database.write(call.target.id) as connection:
        pull_request = get_discussion(connection, call.target.id, number)
        event = add_event(connection, call.target.id, pull_request, call.account, "comment", {"text": text})
    return JSONResponse({"newMessage": _event_document(event)})


def edit(call: Call) -> Response:
    """Answer ``POST R/discussions/{number}/comment/{comment}/edit``, for its author."""
    number, text = read_number(call), _read_comment(call.json(), "content")
    if not text:
        raise bad_request("The comment is empty")
    with call.registry.database.write(call.target.id) as connection:
        found, author_id = find_comment(connection, call.target.id, number, _read_comment_id(call))
        if author_id != call.account.account.id:
            raise forbidden(f"The comment is {found.author}'s")
        if found.data.get("hidden"):
            raise conflict("The comment is hidden, for good")
        changed = edit_comment(connection, found, text)
    return JSONResponse({"updatedComment": _event_document(changed)})


def hide(call: Call) -> Response:
    """Answer ``POST R/discussions/{number}/comment/{comment}/hide``, for its author and members who may write."""
    number = read_number(call)
    with call.registry.database.write(call.target.id) as connection:
        found, author_id = find_comment(connection, call.target.id, number, _read_comment_id(call))
        if author_id != call.account.account.id and not may_write(call.account, call.target):
            raise forbidden(f"The comment is {found.author}'s")
        changed = hide_comment(connection, found)
    return JSONResponse({"updatedComment": _event_document(changed)})


def _read_comment_id(call: Call) -> int:
    """Return a comment's number from its id, which is 24 hexadecimal digits as on the Hub."""
    text = call.parameters["comment"]
    if not _COMMENT_ID.fullmatch(text) or int(text, 16) >= 2**63:
        raise HubError(404, "EntryNotFound", f"There is no comment {ascii(text)[:40]}")
    return int(text, 16)


def retitle(call: Call) -> Response:
    """Answer ``POST R/discussions/{number}/title``, for its author and members."""
    number, title = read_number(call), _read_title(call.json())
    with call.registry.database.write(call.target.id) as connection:
        pull_request = get_discussion(connection, call.target.id, number)
        require_owner(call.account, call.target, pull_request)
        event = rename(connection, call.target.id, pull_request, call.account, title)
    return JSONResponse({"newTitle": _event_document(event)})


def set_status(call: Call) -> Response:
    """Answer ``POST R/discussions/{number}/status``: open (a draft too, or again) or close, for its author and members."""
    body = call.json()
    number, status, text = read_number(call), body.get("status"), _read_comment(body, "comment")
    if status not in ("open", "closed"):
        raise bad_request("status must be open or closed")
    with call.registry.database.write(call.target.id) as connection:
        pull_request = get_discussion(connection, call.target.id, number)
        require_owner(call.account, call.target, pull_request)
        if text:
            add_event(connection, call.target.id, pull_request, call.account, "comment", {"text": text})
        event = change_status(connection, call.target.id, pull_request, call.account, status)
    return JSONResponse({"newStatus": _event_document(event)})


def merge(call: Call) -> Response:
    """Answer ``POST R/discussions/{number}/merge``, for members."""
    number, text = read_number(call), _read_comment(parse_json(call.body) if call.body else {}, "comment")
    with call.registry.database.write(call.target.id) as connection:
        pull_request = get_pull_request(connection, call.target.id, number)
        if text:
            add_event(connection, call.target.id, pull_request, call.account, "comment", {"text": text})
        commit = merge_pull_request(
            connection, call.registry.blobs, call.target.id, pull_request, call.account, message=text
        )
    return JSONResponse({"commitOid": commit})


def pull_request_url(call: Call, pull_request: PullRequest) -> str:
    """Return a pull request's address. The client reads its number from the end."""
    return f"{call.endpoint}/{call.target.full_name}/discussions/{pull_request.number}"


def read_number(call: Call) -> int:
    """Return the number of the pull request in the path.

    Raises:
        HubError: 404, it is no number.
    """
    number = call.parameters["number"]
    if not number.isascii() or not number.isdigit() or len(number) > 9:
        raise HubError(404, "EntryNotFound", f"There is no discussion {ascii(number)[:40]}")
    return int(number)


def _document(call: Call, pull_request: PullRequest) -> dict[str, Any]:
    return {
        "num": pull_request.number,
        "author": {"name": pull_request.author, "type": "user"},
        "repo": {"name": call.target.full_name, "type": "model"},
        "title": pull_request.title,
        "status": pull_request.status,
        "createdAt": format_milliseconds(pull_request.created_at),
        "isPullRequest": bool(pull_request.has_commits),
    }


def _event_document(event: Event) -> dict[str, Any]:
    author, created_at = {"name": event.author, "type": "user"}, format_milliseconds(event.created_at)
    data = event.data
    if event.kind == "comment":
        hidden, edits = bool(data.get("hidden")), data.get("edits", 0)
        text = HIDDEN if hidden else data["text"]
        changed_at = format_milliseconds(data.get("edited_at", event.created_at))
        latest = {"raw": text, "html": f"<p>{escape(text)}</p>", "updatedAt": changed_at, "author": author}
        data = {"edited": edits > 0, "hidden": hidden, "latest": latest, "history": [latest], "numEdits": edits}
    return {"id": f"{event.id:024x}", "type": event.kind, "author": author, "createdAt": created_at, "data": data}


def _read_title(body: dict[str, Any]) -> str:
    title = body.get("title")
    if not isinstance(title, str) or not 3 <= len(title.strip()) <= limits.TITLE or not title.strip().isprintable():
        raise bad_request(f"title must be one line of 3 to {limits.TITLE} characters")
    return title.strip()


def _read_comment(body: dict[str, Any], name: str) -> str:
    text = body.get(name) or ""
    if not isinstance(text, str) or len(text) > limits.COMMENT or "\0" in text:
        raise bad_request(f"{name} must be text of at most {limits.COMMENT} characters")
    return text.strip()
