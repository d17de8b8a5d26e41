"""What a model is."""

from __future__ import annotations

from starlette.responses import JSONResponse, Response

from skillhub_registry.calls import Call
from skillhub_registry.repositories import read_tags
from skillhub_registry.revisions import DEFAULT_BRANCH, resolve_revision
from skillhub_registry.routes.documents import model_document, select_members, sibling_document
from skillhub_registry.trees import describe_entries, walk_tree


def show(call: Call) -> Response:
    """Answer ``GET R`` and ``GET R/revision/{rev}``."""
    query = call.request.query_params
    expand = query.getlist("expand")
    with call.registry.database.read() as connection:
        commit = resolve_revision(connection, call.target.id, call.parameters.get("revision", DEFAULT_BRANCH))
        document = model_document(call.target, read_tags(connection, call.target.id), commit.id)
        files = (item for item in walk_tree(connection, commit.tree) if not item[1].is_folder)
        entries = describe_entries(connection, files)
    document["siblings"] = [sibling_document(entry, call.flag("blobs")) for entry in entries]
    document["usedStorage"] = sum(entry.file.size for entry in entries if entry.file)
    return JSONResponse(select_members(document, expand) if expand else document)
