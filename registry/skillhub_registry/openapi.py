"""The table of routes as an OpenAPI document (https://spec.openapis.org/oas/v3.1.0)."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator
from http import HTTPStatus
from typing import Any, Final

from skillhub_registry.calls import Endpoint, Permission
from skillhub_registry.contracts import Answer, Body, Schema
from skillhub_registry.sessions import COOKIE

_PARAMETER: Final = re.compile(r"\{(\w+)(:path)?\}")
_OPEN: Final = frozenset([Permission.ANYONE, Permission.READ, Permission.DOWNLOAD, Permission.OPERATE])
"""What may be done without a token, at least to what is public."""

_NAMELESS: Final = frozenset(
    [Permission.ANYONE, Permission.GRANT, Permission.ACCOUNT, Permission.OPERATE, Permission.SESSION]
)
"""What asks for no repository in the path."""

_MIRRORED: Final = frozenset([Permission.READ, Permission.DOWNLOAD])
"""What a mirrored Hub may have to answer first."""

_SEGMENT: Final = {"type": "string", "minLength": 1}
_SEGMENTS: Final = {**_SEGMENT, "description": "May have several parts, with / or %2F between them."}

_REFUSAL: Final = {
    "description": "A refusal: JSON, or a page for whoever accepts HTML.",
    "headers": {name: {"required": True, "schema": {"type": "string"}} for name in ("X-Error-Code", "X-Error-Message")},
    "content": {
        "application/json": {
            "schema": {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
        },
        "text/html": {},
    },
}


def describe_endpoints(endpoints: Iterable[Endpoint]) -> dict[str, Any]:
    """Return the document.

    It tells of each route its parameters, bodies, answers and refusals, and in ``x-permission`` what it asks of its caller.
    A route that answers to GET answers to HEAD as well.
    """
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        operations = paths.setdefault(_PARAMETER.sub(r"{\1}", endpoint.path), {})
        operations[endpoint.method.lower()] = _describe_endpoint(endpoint)
    return {
        "openapi": "3.1.0",
        "info": {"title": "skillhub-registry", "version": "1", "description": "The Hugging Face Hub's protocol."},
        "paths": paths,
        "components": {
            "responses": {"Refusal": _REFUSAL},
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer"},
                "grant": {"type": "http", "scheme": "bearer", "description": "The access token of xet-write-token."},
                "session": {"type": "apiKey", "in": "cookie", "name": COOKIE},
            },
        },
    }


def _describe_endpoint(endpoint: Endpoint) -> dict[str, Any]:
    documented = inspect.getdoc(endpoint.handler) or ""
    contract = endpoint.contract
    described = {
        "operationId": f"{endpoint.method} {endpoint.path}",
        "summary": documented.partition("\n")[0].replace("``", "`"),
        "description": f"Asks for: {endpoint.permission.value}.",
        "x-permission": endpoint.permission.name.lower(),
        "parameters": [
            *(_describe_parameter(match[1], "path", _SEGMENTS if match[2] else _SEGMENT) for match in _find(endpoint)),
            *(_describe_parameter(name, "query", schema) for name, schema in contract.query.items()),
        ],
        "security": list(_describe_security(endpoint)),
        "responses": _describe_answers(contract.answers)
        | {str(status): {"$ref": "#/components/responses/Refusal"} for status in sorted(_list_refusals(endpoint))},
    }
    return described | ({"requestBody": _describe_body(contract.body)} if contract.body else {})


def _find(endpoint: Endpoint) -> Iterator[re.Match[str]]:
    return _PARAMETER.finditer(endpoint.path)


def _describe_parameter(name: str, place: str, schema: Schema) -> dict[str, Any]:
    return {"name": name, "in": place, "required": place == "path", "schema": schema}


def _describe_body(body: Body) -> dict[str, Any]:
    return {
        "required": body.required,
        "content": {media_type: {"schema": body.schema} for media_type in body.media_types},
    }


def _describe_answers(answers: Iterable[Answer]) -> dict[str, Any]:
    described: dict[str, Any] = {}
    for answer in answers:
        told = described.setdefault(str(answer.status), {"description": HTTPStatus(answer.status).phrase})
        if answer.media_type is not None:
            told.setdefault("content", {})[answer.media_type] = {"schema": answer.schema} if answer.schema else {}
    return described


def _list_refusals(endpoint: Endpoint) -> set[int]:
    """Return the statuses of errors that may come: the contract's, and those that follow from all the rest."""
    permission, changing = endpoint.permission, endpoint.method != "GET"
    refusals = {400, 413, 429, 503, *endpoint.contract.refusals}
    if permission is not Permission.GRANT:
        refusals.add(401)
    if permission not in _NAMELESS:
        refusals.add(404)
    if permission not in (*_NAMELESS, Permission.READ) or permission is Permission.SESSION:
        refusals.add(403)
    if endpoint.sessions and changing:
        refusals.add(403)  # a form that no page of ours sent
    if changing:
        refusals.add(507)
    if permission in _MIRRORED:
        refusals |= {403, 502}  # what is gated on the mirrored Hub, and what that did not answer
    return refusals


def _describe_security(endpoint: Endpoint) -> Iterator[dict[str, list[str]]]:
    if endpoint.permission is Permission.GRANT:
        if "{grant}" not in endpoint.path:  # else the link itself is signed
            yield {"grant": []}
        return
    if endpoint.permission in _OPEN:
        yield {}
    if endpoint.permission is not Permission.SESSION:
        yield {"token": []}
    if endpoint.sessions:
        yield {"session": []}
