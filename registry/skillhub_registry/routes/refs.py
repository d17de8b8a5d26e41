"""Branches and tags, and the list of all refs."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse, Response

from skillhub_registry.calls import Call, parse_json
from skillhub_registry.errors import bad_request
from skillhub_registry.names import check_ref_name
from skillhub_registry.revisions import (
    BRANCH,
    DEFAULT_BRANCH,
    PULL_REQUEST,
    TAG,
    create_ref,
    delete_ref,
    list_refs,
    resolve_revision,
)


def list_all(call: Call) -> Response:
    """Answer ``GET R/refs``."""
    with call.registry.database.read() as connection:
        listed = {
            kind: [
                {"name": ref.name.removeprefix(prefix), "ref": ref.name, "targetCommit": ref.target}
                for ref in list_refs(connection, call.target.id, prefix)
            ]
            for kind, prefix in (("branches", BRANCH), ("tags", TAG))
        }
        proposed = list_refs(connection, call.target.id, PULL_REQUEST)
    answer: dict[str, Any] = {**listed, "converts": []}
    if call.flag("include_prs"):
        # newest first, and called by their full names, as the Hub does
        proposed.sort(key=lambda ref: -int(ref.name.removeprefix(PULL_REQUEST)))
        answer["pullRequests"] = [{"name": ref.name, "ref": ref.name, "targetCommit": ref.target} for ref in proposed]
    return JSONResponse(answer)


def create_tag(call: Call) -> Response:
    """Answer ``POST R/tag/{rev}``: 409 where the tag exists."""
    body = call.json()
    tag, message = check_ref_name(body.get("tag")), body.get("message")
    if message is not None and (not isinstance(message, str) or len(message) > 100_000):
        raise bad_request("message must be text")
    with call.registry.database.write(call.target.id) as connection:
        commit = resolve_revision(connection, call.target.id, call.parameters["revision"])
        create_ref(connection, call.target.id, TAG, tag, commit.id, message)
    return Response("OK")


def delete_tag(call: Call) -> Response:
    """Answer ``DELETE R/tag/{tag}``."""
    with call.registry.database.write(call.target.id) as connection:
        delete_ref(connection, call.target.id, TAG, call.parameters["revision"])
    return Response("OK")


def create_branch(call: Call) -> Response:
    """Answer ``POST R/branch/{branch}``: from ``startingPoint`` or main; 409 where it exists."""
    body = parse_json(call.body) if call.body else {}
    start = body.get("startingPoint") or DEFAULT_BRANCH
    if not isinstance(start, str):
        raise bad_request("startingPoint must be a revision")
    with call.registry.database.write(call.target.id) as connection:
        commit = resolve_revision(connection, call.target.id, start)
        create_ref(connection, call.target.id, BRANCH, call.parameters["branch"], commit.id)
    return Response("OK")


def delete_branch(call: Call) -> Response:
    """Answer ``DELETE R/branch/{branch}``."""
    with call.registry.database.write(call.target.id) as connection:
        delete_ref(connection, call.target.id, BRANCH, call.parameters["branch"])
    return Response("OK")
