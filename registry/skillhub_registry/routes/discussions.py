"""Pull requests: opening, listing, commenting on, closing and merging them. Discussions without commits there are none."""

from __future__ import annotations

from html import escape
from typing import Any

from starlette.responses import JSONResponse, Response

from skillhub_registry import limits
from skillhub_registry.calls import Call, parse_json
from skillhub_registry.diffs import diff_pull_request
from skillhub_registry.errors import HubError, bad_request, not_supported
from skillhub_registry.merges import find_conflicts, merge_pull_request
from skillhub_registry.pullrequests import (
    UNDECIDED,
    Event,
    PullRequest,
    add_event,
    change_status,
    get_pull_request,
    list_events,
    list_pull_requests,
    open_pull_request,
    rename,
    require_owner,
)
from skillhub_registry.revisions import DEFAULT_BRANCH
from skillhub_registry.rights import may_download
from skillhub_registry.routes.documents import format_milliseconds

_SETTLED = ("closed", "merged")
_STATUSES = {"all": (*UNDECIDED, *_SETTLED), "open": UNDECIDED, "closed": _SETTLED}


def create(call: Call) -> Response:
    """Answer ``POST R/discussions``: a draft without commits, which its author then commits to."""
    body = call.json()
    if not body.get("pullRequest"):
        raise not_supported("This registry has pull requests, and no discussions without one")
    title, description = _read_title(body), _read_comment(body, "description")
    with call.registry.database.write(call.target.id) as connection:
        made = open_pull_request(
            connection,
            call.target.id,
            call.account,
            title=title,
            description=description,
            branch=DEFAULT_BRANCH,
            status="draft",
        )
    return JSONResponse({"num": made.number, "pullRequest": True, "url": pull_request_url(call, made)})


def list_all(call: Call) -> Response:
    """Answer ``GET R/discussions``, newest first, in pages."""
    query = call.request.query_params
    statuses = _STATUSES.get(query.get("status", "all"))
    if statuses is None:
        raise bad_request(f"status must be one of {', '.join(_STATUSES)}")
    page = query.get("p", "0")
    if not page.isascii() or not page.isdigit() or len(page) > 9:
        raise bad_request("p must be the number of a page")
    found: list[PullRequest] = []
    if query.get("type") != "discussion":
        with call.registry.database.read() as connection:
            found = list_pull_requests(connection, call.target.id, statuses=statuses, author=query.get("author"))
    start = int(page) * limits.PULL_REQUESTS_PAGE
    shown = [_document(call, one) for one in found[start : start + limits.PULL_REQUESTS_PAGE]]
    return JSONResponse({"discussions": shown, "count": len(found), "start": start})


def show(call: Call) -> Response:
    """Answer ``GET R/discussions/{number}``: the pull request, and what happened to it."""
    number = read_number(call)
    with call.registry.database.read() as connection:
        pull_request = get_pull_request(connection, call.target.id, number)
        events = list_events(connection, call.target.id, number)
        undecided = pull_request.status in UNDECIDED
        conflicts = find_conflicts(connection, call.target.id, pull_request) if undecided else []
        shows_diff = call.flag("diff") and may_download(connection, call.caller, call.target)  # it quotes the files
        diff = diff_pull_request(connection, call.registry.blobs, call.target.id, pull_request) if shows_diff else None
    document = _document(call, pull_request)
    document["events"] = [_event_document(event) for event in events]
    document["changes"] = {"base": pull_request.base, "mergeCommitId": pull_request.merge_commit}
    document["filesWithConflicts"] = conflicts
    document["diff"] = diff
    return JSONResponse(document)


def comment(call: Call) -> Response:
    """Answer ``POST R/discussions/{number}/comment``."""
    number, text = read_number(call), _read_comment(call.json(), "comment")
    if not text:
        raise bad_request("The comment is empty")
    with call.registry.database.write(call.target.id) as connection:
        pull_request = get_pull_request(connection, call.target.id, number)
        event = add_event(connection, call.target.id, pull_request, call.account, "comment", {"text": text})
    return JSONResponse({"newMessage": _event_document(event)})


def retitle(call: Call) -> Response:
    """Answer ``POST R/discussions/{number}/title``, for its author and members."""
    number, title = read_number(call), _read_title(call.json())
    with call.registry.database.write(call.target.id) as connection:
        pull_request = get_pull_request(connection, call.target.id, number)
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
        pull_request = get_pull_request(connection, call.target.id, number)
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
        raise HubError(404, "EntryNotFound", f"There is no pull request {ascii(number)[:40]}")
    return int(number)


def _document(call: Call, pull_request: PullRequest) -> dict[str, Any]:
    return {
        "num": pull_request.number,
        "author": {"name": pull_request.author, "type": "user"},
        "repo": {"name": call.target.full_name, "type": "model"},
        "title": pull_request.title,
        "status": pull_request.status,
        "createdAt": format_milliseconds(pull_request.created_at),
        "isPullRequest": True,
    }


def _event_document(event: Event) -> dict[str, Any]:
    author, created_at = {"name": event.author, "type": "user"}, format_milliseconds(event.created_at)
    data = event.data
    if event.kind == "comment":
        html = f"<p>{escape(data['text'])}</p>"
        latest = {"raw": data["text"], "html": html, "updatedAt": created_at, "author": author}
        data = {"edited": False, "hidden": False, "latest": latest, "history": [latest], "numEdits": 0}
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
