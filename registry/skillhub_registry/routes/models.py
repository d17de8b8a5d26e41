"""What a model is, and finding models."""

from __future__ import annotations

from urllib.parse import urlencode

from starlette.datastructures import QueryParams
from starlette.responses import JSONResponse, Response

from skillhub_registry import limits
from skillhub_registry.calls import Call, is_true
from skillhub_registry.database import Connection
from skillhub_registry.errors import bad_request, entry_not_found, not_supported
from skillhub_registry.models import Model
from skillhub_registry.names import check_path
from skillhub_registry.repositories import Repository, Search, search_repositories
from skillhub_registry.revisions import DEFAULT_BRANCH, resolve_revision
from skillhub_registry.routes.documents import BRIEF, WHOLE, model_document
from skillhub_registry.tensorheaders import read_headers, read_index
from skillhub_registry.trees import File


def show(call: Call) -> Response:
    """Answer ``GET R`` and ``GET R/revision/{rev}``."""
    members = call.request.query_params.getlist("expand") or WHOLE
    with call.registry.database.read() as connection:
        model = _find_model(call, connection, call.target, call.parameters.get("revision", DEFAULT_BRANCH))
        document = model_document(model, members, with_blobs=call.flag("blobs"))
    return JSONResponse(document)


def list_all(call: Call) -> Response:
    """Answer ``GET /api/models``: public repositories and the caller's, filtered, sorted, in pages."""
    query = call.request.query_params
    search = _read_search(call, query)
    members = _choose_members(call, query)
    if query.get("inference") or query.get("inference_provider"):
        return JSONResponse([])  # nothing here runs models
    with call.registry.database.read() as connection:
        page, cursor = search_repositories(connection, search)
        found = [_find_model(call, connection, repository, DEFAULT_BRANCH) for repository in page]
        documents = [model_document(model, members) for model in found]
    headers = {}
    if cursor is not None:
        rest = [(name, value) for name, value in query.multi_items() if name != "cursor"]
        headers["Link"] = f'<{call.endpoint}/api/models?{urlencode([*rest, ("cursor", cursor)])}>; rel="next"'
    return JSONResponse(documents, headers=headers)


def show_tensors(call: Call) -> Response:
    """Answer ``GET R/safetensors-metadata/{path}``: the headers of one file, or of all that an index names, on main."""
    path = check_path(call.parameters["path"])
    with call.registry.database.read() as connection:
        model = _find_model(call, connection, call.target, DEFAULT_BRANCH)
        if path.endswith(".json"):
            index = read_index(call.registry.blobs, _get_file(model, path), path)
            folder = path.rpartition("/")[0]
            shards = sorted({f"{folder}/{shard}".lstrip("/") for shard in index.pop("weight_map").values()})
        else:
            index, folder, shards = {}, "", [path]
        if len(shards) > limits.SHARDS:
            raise bad_request(f"The headers of at most {limits.SHARDS} files are told at once")
        headers = read_headers(call.registry.blobs, {shard: _get_file(model, check_path(shard)) for shard in shards})
    named = {shard.removeprefix(f"{folder}/"): header for shard, header in headers.items()}
    return JSONResponse({"index": index, "headers": named})


def _get_file(model: Model, path: str) -> File:
    file = model.find_file(path)
    if file is None:
        raise entry_not_found(f"{path} does not exist on {DEFAULT_BRANCH}", model.commit.id)
    return file


def _find_model(call: Call, connection: Connection, repository: Repository, revision: str) -> Model:
    commit = resolve_revision(connection, repository.id, revision)
    readable = call.caller.namespace_ids if call.caller else frozenset[int]()
    return Model(connection, call.registry.blobs, repository, commit, readable)


def _read_search(call: Call, query: QueryParams) -> Search:
    for name in ("apps", "num_parameters"):
        if query.get(name):
            raise not_supported(f"This registry does not find models by {name}")
    direction = query.get("direction", "-1")
    if direction not in ("-1", "1"):
        raise bad_request("direction must be -1 or 1")
    search = Search(
        author=query.get("author") or None,
        words=query.get("search", "")[:500],
        tags=tuple(tag for value in query.getlist("filter") for tag in value.split(",") if tag),
        pipeline_tag=query.get("pipeline_tag") or None,
        gated=is_true(query["gated"]) if query.get("gated") else None,
        sort=query.get("sort", "lastModified"),
        ascending=direction == "1",
        limit=_read_limit(query.get("limit")),
        cursor=query.get("cursor"),
        readable=call.caller.namespace_ids if call.caller else frozenset(),
    )
    if len(search.tags) > 50:
        raise bad_request("At most 50 filters")
    return search


def _choose_members(call: Call, query: QueryParams) -> list[str]:
    expand = query.getlist("expand")
    if expand:
        return expand
    members = list(BRIEF)
    members += ["author", "sha", "siblings", "disabled"] if call.flag("full") else []
    members += ["cardData"] if call.flag("cardData") else []
    members += ["config"] if call.flag("config") else []
    return members


def _read_limit(limit: str | None) -> int:
    if limit is None:
        return limits.MODELS_PAGE
    if not limit.isascii() or not limit.isdigit() or len(limit) > 9:
        raise bad_request("limit must be a number")
    return min(max(int(limit), 1), limits.MODELS_PAGE_MAXIMUM)
