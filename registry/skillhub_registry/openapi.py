"""The table of routes as an OpenAPI document (https://spec.openapis.org/oas/v3.1.0)."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from typing import Any, Final

from skillhub_registry.calls import Endpoint, Permission

_PARAMETER: Final = re.compile(r"\{(\w+)(:path)?\}")
_OPEN: Final = frozenset([Permission.ANYONE, Permission.READ, Permission.DOWNLOAD, Permission.OPERATE])
"""What may be done without a token, at least to what is public."""

_ERROR: Final = {
    "description": "A refusal; X-Error-Code and X-Error-Message say why.",
    "content": {
        "application/json": {
            "schema": {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
        }
    },
}


def describe_endpoints(endpoints: Iterable[Endpoint]) -> dict[str, Any]:
    """Return the document: for each route its parameters, and in ``x-permission`` what it asks of its caller."""
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        operations = paths.setdefault(_PARAMETER.sub(r"{\1}", endpoint.path), {})
        operations[endpoint.method.lower()] = _describe_endpoint(endpoint)
    return {
        "openapi": "3.1.0",
        "info": {"title": "skillhub-registry", "version": "1", "description": "The Hugging Face Hub's protocol."},
        "paths": paths,
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
    }


def _describe_endpoint(endpoint: Endpoint) -> dict[str, Any]:
    documented = inspect.getdoc(endpoint.handler) or ""
    return {
        "operationId": f"{endpoint.method} {endpoint.path}",
        "summary": documented.partition("\n")[0].replace("``", "`"),
        "description": f"Asks for: {endpoint.permission.value}.",
        "x-permission": endpoint.permission.name.lower(),
        "parameters": [
            {"name": match[1], "in": "path", "required": True, "schema": {"type": "string"}}
            for match in _PARAMETER.finditer(endpoint.path)
        ],
        "security": _describe_security(endpoint.permission),
        "responses": {"200": {"description": "It is done."}, "default": _ERROR},
    }


def _describe_security(permission: Permission) -> list[dict[str, list[str]]]:
    if permission is Permission.GRANT:
        return []
    return [{}, {"token": []}] if permission in _OPEN else [{"token": []}]
