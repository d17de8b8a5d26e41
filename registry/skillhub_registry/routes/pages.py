"""The home page, the page of a discussion or pull request, and a sign of life."""

from __future__ import annotations

from html import escape

from starlette.responses import HTMLResponse, PlainTextResponse, Response

from skillhub_registry.calls import Call
from skillhub_registry.database import Connection
from skillhub_registry.diffs import diff_pull_request
from skillhub_registry.pullrequests import Event, PullRequest, get_discussion, list_events
from skillhub_registry.repositories import Search, search_repositories
from skillhub_registry.revisions import BRANCH
from skillhub_registry.rights import may_download
from skillhub_registry.routes.discussions import HIDDEN, read_number
from skillhub_registry.routes.documents import format_milliseconds

_HEAD = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 40rem; margin: 3rem auto; padding: 0 1rem }}
pre {{ overflow-x: auto }}
blockquote {{ white-space: pre-wrap }}
</style>
<h1>{title}</h1>
"""
_HOME = """
<p>{count}</p>
<p>It speaks the Hugging Face Hub's protocol. Point a client at it:</p>
<pre>export HF_ENDPOINT={endpoint}
export HF_TOKEN=hf_…   # from `skillhub-registry token create USER`</pre>
</html>
"""
_PULL_REQUEST = """
<p>Pull request {number} of {repository}, by {author}: <strong>{status}</strong></p>
<pre>hf download {repository} --revision {ref}    # try it
hf discussions merge {repository} {number}    # into {base}, for members</pre>
"""
_DISCUSSION = """
<p>Discussion {number} of {repository}, by {author}: <strong>{status}</strong></p>
"""


def home(call: Call) -> Response:
    """Answer ``GET /``."""
    with call.registry.database.read() as connection:
        found, _ = search_repositories(connection, Search(limit=1000))
    count = f"{len(found)} public repositor{'y' if len(found) == 1 else 'ies'}"
    return _answer("skillhub registry", _HOME.format(count=count, endpoint=escape(call.endpoint)))


def discussion(call: Call) -> Response:
    """Answer ``GET /{repository}/discussions/{number}``: what the address leads to that the client shows."""
    number = read_number(call)
    with call.registry.database.read() as connection:
        shown = get_discussion(connection, call.target.id, number)
        events = "".join(map(_describe, list_events(connection, call.target.id, number)))
        diff = _show_diff(call, connection, shown) if shown.has_commits else ""
    head = (_PULL_REQUEST if shown.has_commits else _DISCUSSION).format(
        repository=escape(call.target.full_name),
        number=number,
        status=shown.status,
        author=escape(shown.author),
        ref=shown.ref,
        base=escape(shown.base.removeprefix(BRANCH)),
    )
    return _answer(escape(shown.title), f"{head}{events}{diff}</html>\n")


def _show_diff(call: Call, connection: Connection, shown: PullRequest) -> str:
    if not may_download(connection, call.caller, call.target):
        return "<p>What it changes is shown to whoever has access to this gated repository.</p>"
    return f"<pre>{escape(diff_pull_request(connection, call.registry.blobs, call.target.id, shown))}</pre>"


def _describe(event: Event) -> str:
    data, who = event.data, escape(event.author)
    when = format_milliseconds(event.created_at)[:16].replace("T", " ")
    if event.kind == "comment":
        text = HIDDEN if data.get("hidden") else data["text"]
        return f"<p>{when} {who}:</p><blockquote>{escape(text)}</blockquote>"
    if event.kind == "commit":
        what = f"commits <code>{data['oid'][:10]}</code> {escape(data['subject'])}"
    elif event.kind == "status-change":
        what = {"open": "opens it", "closed": "closes it", "merged": "merges it"}[data["status"]]
    else:
        what = f"calls it “{escape(data['to'])}”, not “{escape(data['from'])}”"
    return f"<p>{when} {who} {what}</p>"


def _answer(title: str, body: str) -> Response:
    """Return a page; nothing on it is a program, whoever wrote its texts."""
    page = _HEAD.format(title=title) + body
    return HTMLResponse(page, headers={"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"})


def healthy(call: Call) -> Response:
    """Answer ``GET /healthz``: the process runs and its database answers."""
    with call.registry.database.read() as connection:
        connection.execute("SELECT 1 FROM accounts LIMIT 1").fetchone()
    return PlainTextResponse("ok")
