"""Listing the files and folders of a revision."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any
from urllib.parse import parse_qs, quote, urlencode

from starlette.responses import JSONResponse, Response

from skillhub_registry import limits
from skillhub_registry.calls import Call, is_true, parse_json
from skillhub_registry.database import Connection
from skillhub_registry.errors import bad_request, entry_not_found
from skillhub_registry.git import TreeEntry
from skillhub_registry.names import check_path
from skillhub_registry.revisions import Commit, resolve_revision
from skillhub_registry.routes.documents import entry_document
from skillhub_registry.trees import describe_entries, find_entry, find_last_commits, walk_tree


def list_tree(call: Call) -> Response:
    """Answer ``GET R/tree/{rev}[/{path}]``, in pages.

    The link to the next page names the commit, so pages agree with each other while the branch moves on.
    """
    recursive, expand = call.flag("recursive"), call.flag("expand")
    path = call.parameters.get("path", "").strip("/")
    start = _read_cursor(call.request.query_params.get("cursor"))
    size = limits.TREE_PAGE_EXPANDED if expand else limits.TREE_PAGE
    with call.registry.database.read() as connection:
        commit = resolve_revision(connection, call.target.id, call.parameters["revision"])
        folder = find_entry(connection, commit.tree, check_path(path) if path else "")
        if folder is None or not folder.is_folder:
            raise entry_not_found(f"{path} does not exist on {call.parameters['revision']}", commit.id)
        found = walk_tree(connection, folder.id, f"{path}/" if path else "", recursive)
        listed = list(islice(found, start, start + size + 1))
        page = _describe(connection, call.target.id, commit, listed[:size], expand)
    headers = {"X-Repo-Commit": commit.id}
    if len(listed) > size:
        query = urlencode({"recursive": recursive, "expand": expand, "cursor": start + size})
        location = f"tree/{commit.id}" + (f"/{quote(path, safe='')}" if path else "")
        headers["Link"] = f'<{call.endpoint}/api/models/{call.target.full_name}/{location}?{query}>; rel="next"'
    return JSONResponse(page, headers=headers)


def list_paths(call: Call) -> Response:
    """Answer ``POST R/paths-info/{rev}``: those of the paths that exist."""
    paths, expand = _read_paths(call)
    with call.registry.database.read() as connection:
        commit = resolve_revision(connection, call.target.id, call.parameters["revision"])
        found = []
        for path in paths:
            entry = find_entry(connection, commit.tree, path)
            if entry is not None and path:
                found.append((path, entry))
        return JSONResponse(_describe(connection, call.target.id, commit, found, expand, for_copying=True))


def _read_paths(call: Call) -> tuple[list[str], bool]:
    """Return the paths asked for, from a form or from JSON, and whether to expand them."""
    if call.request.headers.get("content-type", "").startswith("application/json"):
        body = parse_json(call.body)
        paths, expand = body.get("paths", []), bool(body.get("expand"))
        paths = [paths] if isinstance(paths, str) else paths
    else:
        try:
            form = parse_qs(call.body.decode("ascii"), errors="strict", max_num_fields=limits.PATHS_INFO + 10)
        except ValueError as error:
            raise bad_request("The form is malformed or too long") from error
        paths, expand = form.get("paths", []), is_true(form.get("expand", [""])[-1])
    if not isinstance(paths, list) or len(paths) > limits.PATHS_INFO:
        raise bad_request(f"paths must be a list of at most {limits.PATHS_INFO} paths")
    if not all(isinstance(path, str) for path in paths):
        raise bad_request("Each path must be text")
    return [path.strip("/") for path in paths], expand


def _describe(
    connection: Connection,
    repository_id: int,
    commit: Commit,
    entries: Iterable[tuple[str, TreeEntry]],
    expand: bool,
    *,
    for_copying: bool = False,
) -> list[dict[str, Any]]:
    described = describe_entries(connection, entries)
    paths = [entry.path for entry in described]
    last = find_last_commits(connection, repository_id, commit, paths) if expand else {}
    return [entry_document(entry, last.get(entry.path), for_copying=for_copying) for entry in described]


def _read_cursor(cursor: str | None) -> int:
    if cursor is None:
        return 0
    if not cursor.isascii() or not cursor.isdigit() or len(cursor) > 9:
        raise bad_request("The cursor is malformed")
    return int(cursor)
