"""Pages of discussions and pull requests, and the forms on them.

A form is what the route of the API takes, in other words: the handlers of those check and do everything.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator

from starlette.responses import RedirectResponse, Response

from skillhub_registry import limits
from skillhub_registry.calls import Call
from skillhub_registry.diffs import diff_pull_request
from skillhub_registry.errors import bad_request
from skillhub_registry.forms import read_form
from skillhub_registry.merges import find_conflicts
from skillhub_registry.pages.markup import render_comment
from skillhub_registry.pages.rendering import render
from skillhub_registry.pullrequests import UNDECIDED, get_discussion, list_events, list_pull_requests
from skillhub_registry.revisions import BRANCH
from skillhub_registry.rights import may_download, may_write
from skillhub_registry.routes import discussions
from skillhub_registry.routes.discussions import HIDDEN, read_number
from skillhub_registry.routes.paging import read_start
from skillhub_registry.routes.repositorypages import describe_repository

_SETTLED = ("closed", "merged")


def list_all(call: Call) -> Response:
    """Answer ``GET /{repository}/discussions``, newest first, in pages."""
    start = read_start(call)
    closed = call.request.query_params.get("status") == "closed"
    statuses = _SETTLED if closed else UNDECIDED
    with call.registry.database.read() as connection:
        found = list_pull_requests(connection, call.target.id, statuses=statuses)
        values = describe_repository(call, connection)
    end = start + limits.PULL_REQUESTS_PAGE
    state = "closed" if closed else "open"
    path = f"/{call.target.full_name}/discussions"
    following = f"{path}?status={state}&cursor={end}" if end < len(found) else None
    return render(call, "discussions.html", found=found[start:end], state=state, following=following, **values)


def show(call: Call) -> Response:
    """Answer ``GET /{repository}/discussions/{number}``: what the address leads to that the client shows."""
    number = read_number(call)
    with call.registry.database.read() as connection:
        shown = get_discussion(connection, call.target.id, number)
        events = list_events(connection, call.target.id, number)
        shows_diff = bool(shown.has_commits) and may_download(connection, call.caller, call.target)
        diff = diff_pull_request(connection, call.registry.blobs, call.target.id, shown) if shows_diff else ""
        undecided = shown.has_commits and shown.status in UNDECIDED
        conflicts = find_conflicts(connection, call.target.id, shown) if undecided else []
        values = describe_repository(call, connection)
    caller = call.caller
    return render(
        call,
        "discussion.html",
        shown=shown,
        branch=shown.base.removeprefix(BRANCH),
        events=events,
        hidden=HIDDEN,
        as_html=lambda text: render_comment(text, call.target.full_name),
        shows_diff=shows_diff,
        diff=list(_color(diff)),
        conflicts=conflicts,
        may_comment=caller is not None and caller.may_write,
        may_change=caller is not None and (caller.account.id == shown.author_id or may_write(caller, call.target)),
        **values,
    )


def _color(diff: str) -> Iterator[tuple[str, str]]:
    """Yield the lines of a diff, each with the class of its looks; lines of one kind that follow each other together."""
    kind, lines = "", list[str]()
    for line in diff.split("\n"):
        if line.startswith(("diff ", "index ", "--- ", "+++ ", "new file", "deleted file", "Binary files", "# ")):
            now = "head"
        else:
            now = {"+": "added", "-": "removed", "@": "place"}.get(line[:1], "same")
        if now != kind and lines:
            yield kind, "\n".join(lines) + "\n"
            lines = []
        kind = now
        lines.append(line)
    if any(lines):
        yield kind, "\n".join(lines)


def create(call: Call) -> Response:
    """Answer ``POST /{repository}/discussions``: begin a discussion, or the draft of a pull request."""
    form = read_form(call)
    fields = {"title": form.get("title", ""), "description": form.get("description", "")}
    answer = _pass_on(call, discussions.create, {**fields, "pullRequest": form.get("kind") == "pull request"})
    return RedirectResponse(
        f"/{call.target.full_name}/discussions/{json.loads(bytes(answer.body))['num']}", status_code=303
    )


def comment(call: Call) -> Response:
    """Answer ``POST /{repository}/discussions/{number}/comment``."""
    _pass_on(call, discussions.comment, {"comment": read_form(call).get("comment", "")})
    return _return_to(call)


def change_status(call: Call) -> Response:
    """Answer ``POST /{repository}/discussions/{number}/status``: open, or close."""
    _pass_on(call, discussions.set_status, {"status": read_form(call).get("status", "")})
    return _return_to(call)


def merge(call: Call) -> Response:
    """Answer ``POST /{repository}/discussions/{number}/merge``, for members."""
    _pass_on(call, discussions.merge, {"comment": read_form(call).get("comment", "")})
    return _return_to(call)


def _pass_on(call: Call, handler: Callable[[Call], Response], fields: dict[str, str | bool]) -> Response:
    if any("\0" in value for value in fields.values() if isinstance(value, str)):
        raise bad_request("The form cannot be read")
    lines = {name: value.replace("\r\n", "\n") if isinstance(value, str) else value for name, value in fields.items()}
    return handler(dataclasses.replace(call, body=json.dumps(lines).encode()))


def _return_to(call: Call) -> Response:
    return RedirectResponse(f"/{call.target.full_name}/discussions/{read_number(call)}", status_code=303)
