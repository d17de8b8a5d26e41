"""Finding models."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from starlette.responses import JSONResponse, Response

from skillhub_registry import limits
from skillhub_registry.calls import Call, is_true
from skillhub_registry.database import Connection
from skillhub_registry.errors import bad_request
from skillhub_registry.repositories import Repository, Search, read_tags, search_repositories
from skillhub_registry.revisions import DEFAULT_BRANCH, resolve_revision
from skillhub_registry.routes.documents import model_document, select_members, sibling_document
from skillhub_registry.trees import describe_entries, walk_tree

_BRIEF = [
    "_id",
    "id",
    "modelId",
    "createdAt",
    "lastModified",
    "private",
    "gated",
    "downloads",
    "likes",
    "trendingScore",
    "tags",
    "library_name",
    "pipeline_tag",
]


def list_models(call: Call) -> Response:
    """Answer ``GET /api/models``: public repositories and the caller's, filtered, sorted, in pages."""
    query = call.request.query_params
    expand = query.getlist("expand")
    search = Search(
        author=query.get("author") or None,
        words=query.get("search", "")[:500],
        tags=tuple(tag for value in query.getlist("filter") for tag in value.split(",") if tag),
        pipeline_tag=query.get("pipeline_tag") or None,
        gated=is_true(query["gated"]) if query.get("gated") else None,
        sort=query.get("sort", "lastModified"),
        limit=_read_limit(query.get("limit")),
        cursor=query.get("cursor"),
        readable=call.caller.namespace_ids if call.caller else frozenset(),
    )
    if len(search.tags) > 50:
        raise bad_request("At most 50 filters")
    if expand:
        members = expand
    else:
        members = list(_BRIEF)
        members += ["author", "sha", "siblings", "disabled"] if call.flag("full") else []
        members += ["cardData"] if call.flag("cardData") else []
    with call.registry.database.read() as connection:
        page, cursor = search_repositories(connection, search)
        documents = [select_members(_describe(connection, found, members), members) for found in page]
    headers = {}
    if cursor is not None:
        rest = [(name, value) for name, value in query.multi_items() if name != "cursor"]
        headers["Link"] = f'<{call.endpoint}/api/models?{urlencode([*rest, ("cursor", cursor)])}>; rel="next"'
    return JSONResponse(documents, headers=headers)


def _describe(connection: Connection, repository: Repository, members: list[str]) -> dict[str, Any]:
    commit = resolve_revision(connection, repository.id, DEFAULT_BRANCH)
    document = model_document(repository, read_tags(connection, repository.id), commit.id)
    if "siblings" in members:
        files = (item for item in walk_tree(connection, commit.tree) if not item[1].is_folder)
        document["siblings"] = [sibling_document(entry, False) for entry in describe_entries(connection, files)]
    return document


def _read_limit(limit: str | None) -> int:
    if limit is None:
        return limits.MODELS_PAGE
    if not limit.isascii() or not limit.isdigit() or len(limit) > 9:
        raise bad_request("limit must be a number")
    return min(max(int(limit), 1), limits.MODELS_PAGE_MAXIMUM)
