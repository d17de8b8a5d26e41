"""Contracts: what a route takes and answers with, for whoever reads the description of the routes.

Schemas are JSON Schema (2020-12, as OpenAPI 3.1 has it). Handlers check what comes by themselves: what is told here binds
nobody, and the fuzzer of the tests finds where it is untrue.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

Schema = Mapping[str, Any]

JSON: Final = "application/json"
FORM: Final = "application/x-www-form-urlencoded"
LINES: Final = "application/x-ndjson"
BYTES: Final = "application/octet-stream"
HTML: Final = "text/html"
PLAIN: Final = "text/plain"

TEXT: Final[Schema] = {"type": "string"}
NOT_EMPTY: Final[Schema] = {"type": "string", "minLength": 1}
FLAG: Final[Schema] = {"type": "boolean"}
COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
SHA256: Final[Schema] = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
NUMBER_OF_A_PAGE: Final[Schema] = {"type": "integer", "minimum": 0, "maximum": 999_999_999}


@dataclass(frozen=True)
class Body:
    """What a request may bring: in one of several media types, by one schema."""

    media_types: tuple[str, ...]
    schema: Schema
    required: bool = True


@dataclass(frozen=True)
class Answer:
    """A success: its status, and what comes with it; no media type where nothing does, or only a word."""

    status: int = 200
    media_type: str | None = None
    schema: Schema | None = None


@dataclass(frozen=True)
class Contract:
    """What a route takes and answers with.

    ``refusals`` are the statuses of errors besides those that follow from the route's permission and method.
    """

    answers: tuple[Answer, ...] = (Answer(200, JSON, {"type": "object"}),)
    refusals: tuple[int, ...] = ()
    query: Mapping[str, Schema] = field(default_factory=dict)
    body: Body | None = None


def choice(*values: str) -> Schema:
    """Return the schema of one of several words."""
    return {"type": "string", "enum": list(values)}


def listed(items: Schema) -> Schema:
    """Return the schema of a list."""
    return {"type": "array", "items": items}


def record(required: Mapping[str, Schema] | None = None, **optional: Schema) -> Schema:
    """Return the schema of an object with the members that it must have, and others that it may have."""
    needed = required or {}
    return {"type": "object", "properties": {**needed, **optional}, "required": list(needed)}


def told(*names: str) -> tuple[Answer, ...]:
    """Return the answer of a route that tells a JSON object with these members, and perhaps others."""
    return (Answer(200, JSON, {"type": "object", "required": list(names)}),)


def told_list(*names: str) -> tuple[Answer, ...]:
    """Return the answer of a route that tells a list of objects with these members, and perhaps others."""
    return (Answer(200, JSON, listed({"type": "object", "required": list(names)})),)


DONE: Final = (Answer(),)
PAGE: Final = (Answer(200, HTML),)
SENT_ON: Final = (Answer(303),)
NEVER: Final[tuple[Answer, ...]] = ()


def json_body(schema: Schema, *, required: bool = True) -> Body:
    """Return a body of JSON."""
    return Body((JSON,), schema, required)


def form_body(required: Mapping[str, Schema] | None = None, **optional: Schema) -> Body:
    """Return the form of a page; its token proves that a page of ours sent it, where a browser's session says who did."""
    return Body((FORM,), record(required, **optional, form_token=TEXT))
