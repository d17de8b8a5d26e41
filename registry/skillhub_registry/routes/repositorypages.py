"""Pages of a repository: what it is, its files, its history, and who asks for access."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Any

from starlette.responses import RedirectResponse, Response

from skillhub_registry import limits
from skillhub_registry.calls import Call
from skillhub_registry.database import Connection
from skillhub_registry.errors import bad_request, entry_not_found
from skillhub_registry.forms import read_form
from skillhub_registry.gates import ask_access, find_request, handle_request, list_requests
from skillhub_registry.largefiles import is_deleted
from skillhub_registry.names import check_path
from skillhub_registry.pages.overviews import describe_pack, read_card
from skillhub_registry.pages.rendering import render
from skillhub_registry.pullrequests import count_undecided
from skillhub_registry.repositories import read_tags
from skillhub_registry.revisions import (
    BRANCH,
    DEFAULT_REF,
    TAG,
    Commit,
    list_refs,
    resolve_revision,
    walk_history,
)
from skillhub_registry.rights import may_download, may_write
from skillhub_registry.routes.pages import is_skill
from skillhub_registry.trees import describe_entries, find_entry, find_files, read_files, walk_tree


def show(call: Call) -> Response:
    """Answer ``GET /{repository}``; a former name leads to the present one."""
    asked = f"{call.parameters['namespace']}/{call.parameters['name']}"
    if asked.lower() != call.target.full_name.lower():
        return RedirectResponse(f"/{call.target.full_name}", status_code=307)
    store = call.registry.blobs
    with call.registry.database.read() as connection:
        commit = resolve_revision(connection, call.target.id, DEFAULT_REF)
        shows_files = may_download(connection, call.caller, call.target)
        pack = describe_pack(connection, store, call.target, commit, call.caller, shows_files=shows_files)
        told = pack is not None and pack.manifest is not None
        card = read_card(connection, store, call.target, commit, without_generated=told)
        values = {
            "tags": [tag for tag in read_tags(connection, call.target.id) if is_skill(tag)],
            "request": None
            if shows_files or call.caller is None
            else find_request(connection, call.target, call.caller.account),
            **describe_repository(call, connection),
        }
    return render(call, "pack.html" if pack else "model.html", pack=pack, card=card, shows_files=shows_files, **values)


def describe_repository(call: Call, connection: Connection) -> dict[str, Any]:
    """Return what the head of each of a repository's pages needs."""
    return {
        "repository": call.target,
        "open_discussions": count_undecided(connection, call.target.id),
        "is_writer": call.caller is not None and may_write(call.caller, call.target),
    }


def show_tree(call: Call) -> Response:
    """Answer ``GET /{repository}/tree/{revision}/{path}``: a folder of a revision."""
    revision, folder = call.parameters["revision"], call.parameters.get("path", "")
    if folder:
        check_path(folder)
    with call.registry.database.read() as connection:
        commit = resolve_revision(connection, call.target.id, revision)
        entry = find_entry(connection, commit.tree, folder)
        if entry is None or not entry.is_folder:
            raise entry_not_found("There is no such folder", commit.id)
        prefix = f"{folder}/" if folder else ""
        entries = describe_entries(connection, walk_tree(connection, entry.id, prefix, recursive=False))
        refs = [list_refs(connection, call.target.id, kind) for kind in (BRANCH, TAG)]
        values = describe_repository(call, connection)
    return render(
        call,
        "tree.html",
        revision=revision,
        folder=folder,
        commit=commit,
        entries=sorted(entries, key=lambda one: (one.file is not None, one.path)),
        branches=[ref.name.removeprefix(BRANCH) for ref in refs[0]],
        versions=[ref.name.removeprefix(TAG) for ref in refs[1]],
        **values,
    )


def show_file(call: Call) -> Response:
    """Answer ``GET /{repository}/blob/{revision}/{path}``: what is known of a file, and its text where it has some."""
    revision, path = call.parameters["revision"], check_path(call.parameters["path"])
    with call.registry.database.read() as connection:
        commit = resolve_revision(connection, call.target.id, revision)
        entry = find_entry(connection, commit.tree, path)
        if entry is None or entry.is_folder:
            raise entry_not_found("There is no such file", commit.id)
        file = find_files(connection, [entry.id])[entry.id]
        if is_deleted(connection, call.target.id, file) and not call.target.upstream:
            raise entry_not_found("The file was deleted for good", commit.id)
        values = describe_repository(call, connection)
    text = None
    if not file.lfs and file.size <= limits.SHOWN_TEXT:
        text = _decode(call.registry.blobs.read(file.sha256))
    return render(call, "file.html", revision=revision, path=path, file=file, text=text, **values)


def _decode(data: bytes) -> str | None:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text


def list_commits(call: Call) -> Response:
    """Answer ``GET /{repository}/commits/{revision}``, newest first, in pages."""
    with call.registry.database.read() as connection:
        start = resolve_revision(connection, call.target.id, call.parameters["revision"])
        found = list(islice(walk_history(connection, call.target.id, start), limits.COMMITS_PAGE + 1))
        values = describe_repository(call, connection)
    page = found[: limits.COMMITS_PAGE]
    following = f"/{call.target.full_name}/commits/{found[-1].id}" if len(found) > len(page) else None
    revision = call.parameters["revision"]
    return render(call, "commits.html", revision=revision, commits=page, following=following, **values)


@dataclass(frozen=True)
class Change:
    """A file that a commit ``added``, ``changed`` or ``removed``."""

    kind: str
    path: str


def show_commit(call: Call) -> Response:
    """Answer ``GET /{repository}/commit/{revision}``: a commit, and which files it changed."""
    with call.registry.database.read() as connection:
        commit = resolve_revision(connection, call.target.id, call.parameters["revision"])
        changes = _find_changes(connection, call.target.id, commit)
        values = describe_repository(call, connection)
    shown = changes[: limits.SHOWN_CHANGES]
    return render(call, "commit.html", commit=commit, changes=shown, more=len(changes) - len(shown), **values)


def _find_changes(connection: Connection, repository_id: int, commit: Commit) -> list[Change]:
    after = read_files(connection, commit.tree)
    before: dict[str, str] = {}
    if commit.parent is not None:
        before = read_files(connection, resolve_revision(connection, repository_id, commit.parent).tree)
    kinds = {(False, True): "added", (True, True): "changed", (True, False): "removed"}
    paths = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
    return [Change(kinds[path in before, path in after], path) for path in paths]


def ask(call: Call) -> Response:
    """Answer ``POST /{repository}/access``: whoever has signed in asks for access."""
    with call.registry.database.write(call.target.id) as connection:
        ask_access(connection, call.target, call.account.account)
    return RedirectResponse(f"/{call.target.full_name}", status_code=303)


def list_access_requests(call: Call) -> Response:
    """Answer ``GET /{repository}/access-requests``, for whoever decides on them."""
    requests: dict[str, Any] = {}
    with call.registry.database.read() as connection:
        if call.target.gated:
            for status in ("pending", "accepted", "rejected"):
                limit = limits.ACCESS_REQUESTS_PAGE
                requests[status] = list_requests(connection, call.target, status, start=0, limit=limit)
        values = describe_repository(call, connection)
    return render(call, "access.html", requests=requests, **values)


def decide_access(call: Call) -> Response:
    """Answer ``POST /{repository}/access-requests``: accept or reject what somebody asked for."""
    form = read_form(call)
    user, status = form.get("user", ""), form.get("status", "")
    if status not in ("accepted", "rejected"):
        raise bad_request("status must be accepted or rejected")
    with call.registry.database.write(call.target.id) as connection:
        handle_request(connection, call.target, status, user=user, public_id=None)
    return RedirectResponse(f"/{call.target.full_name}/access-requests", status_code=303)
