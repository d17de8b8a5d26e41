"""Every route as its description tells it, with what fits and what does not: nothing fails, and the description is true.

A long run by hand, of other examples each time: ``SKILLHUB_FUZZ_EXAMPLES=1000 pytest --timeout=0`` with this file.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import BaseSchema, Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from skillhub_registry.routes.table import ENDPOINTS
from tests.registry.fuzzing import CONTENT, READER, REPOSITORIES, SHARD, XORB, World, make_world, narrow, widen
from tests.support.registry_process import running_registry

EXAMPLES = int(os.environ.get("SKILLHUB_FUZZ_EXAMPLES", "0"))
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
DESTRUCTIVE = re.compile(
    r"(DELETE |PUT /api|POST \S+/(move|merge|lfs-files/batch|super-squash/\{revision\}|hide|settings/password)$)"
)
"""Requests after which the next one would find less than there was."""

OPERATIONS = [re.sub(r"\{(\w+):path\}", r"{\1}", f"{one.method} {one.path}") for one in ENDPOINTS]
ELSEWHERE = {
    "/settings/tokens/{number}/revoke number": "token",
    **{f"/lfs/{kind}/{{grant}} grant": kind for kind in ("object", "part", "complete")},
}
"""Parameters whose real values go by another name."""

BODIES: dict[str, Any] = {
    "/objects/verify": {"oid": hashlib.sha256(CONTENT).hexdigest(), "size": len(CONTENT)},
    "/user-access-request/handle": {"user": READER, "status": "accepted"},
    "/commit/{revision}": [
        {"key": "header", "value": {"summary": "Add a file"}},
        {"key": "file", "value": {"path": "new.txt", "content": "bmV3", "encoding": "base64"}},
    ],
}
"""What fits, where hardly anything that is drawn does."""

PAGES = {label for label, one in zip(OPERATIONS, ENDPOINTS, strict=True) if one.sessions}
METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running_registry(tmp_path_factory.mktemp("fuzzed")) as process:
        made = make_world(process, tmp_path_factory.mktemp("packs"))
        yield made
        assert process.process.poll() is None
        assert made.call("GET", "/readyz", "anonymous").text == "ready"
        if EXAMPLES:
            tell(made)
        process.run("fsck")  # raises where it finds something


def tell(world: World) -> None:
    """Print how often each operation was answered how, and what was never let in."""
    print(f"\n{sum(counts.total() for counts in world.seen.values())} requests")
    for label, counts in world.seen.items():
        let_in = any(status.split(" ")[1] < "400" for status in counts)
        print(
            f"{label}: {'' if let_in else 'NEVER LET IN: '}{', '.join(f'{n} × {one}' for one, n in sorted(counts.items()))}"
        )


@pytest.fixture(scope="module")
def document(world: World) -> dict[str, Any]:
    return requests.get(f"{world.registry.endpoint}/openapi.json", timeout=60).json()


@pytest.fixture(scope="module")
def descriptions(document: dict[str, Any], world: World) -> list[tuple[BaseSchema, GenerationMode]]:
    """The description with real values, with odd ones, and what does not fit it."""
    schemathesis.openapi.from_dict(document).validate()
    real, odd = (schemathesis.openapi.from_dict(change(document, world.values)) for change in (narrow, widen))
    return [(real, GenerationMode.POSITIVE), (odd, GenerationMode.POSITIVE), (odd, GenerationMode.NEGATIVE)]


@pytest.fixture
def restored(world: World) -> None:
    """Everything there again before an operation's first case."""
    world.restore()


def lead_somewhere(case: Case, world: World, data: st.DataObject) -> None:
    """Put real values into most of the cases: otherwise next to none would find what it names."""
    parameters, known = {**(case.path_parameters or {})}, world.values
    if "namespace" in parameters and data.draw(st.integers(0, 5)) < 5:
        repository = data.draw(st.sampled_from(list(REPOSITORIES)))
        parameters["namespace"], parameters["name"] = repository.split("/")
        known = known | world.places[repository]
    for name in sorted(parameters.keys() - {"namespace", "name"}):
        if data.draw(st.integers(0, 5)) < 5:
            values = known[ELSEWHERE.get(f"{case.path} {name}", name)]
            parameters[name] = quote(data.draw(st.sampled_from(values)), safe="/" if name in ("path", "rest") else "")
    case.path_parameters = parameters
    if fitting := next((body for end, body in BODIES.items() if case.path.endswith(end)), None):
        case.body = fitting if data.draw(st.booleans()) else case.body
    if case.media_type == "application/octet-stream" and data.draw(st.integers(0, 2)) < 2:
        case.body = data.draw(st.sampled_from([CONTENT, SHARD, XORB, b""]))


def callers(world: World, label: str) -> list[str]:
    """Return who sends each case."""
    if "/xet/v1/" in label:
        return ["anonymous", "owner", "sender"]
    return ["anonymous", "reader", "owner"] + (["browser"] if label in PAGES else [])


@pytest.mark.parametrize("label", OPERATIONS)
@settings(
    max_examples=EXAMPLES or 8,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_every_operation_is_as_it_is_described(
    world: World,
    restored: None,
    descriptions: list[tuple[BaseSchema, GenerationMode]],
    label: str,
    data: st.DataObject,
) -> None:
    description, mode = data.draw(st.sampled_from(descriptions))
    operation = description.find_operation_by_label(label)
    assert operation is not None
    case = data.draw(operation.as_strategy(generation_mode=mode))
    lead_somewhere(case, world, data)
    if DESTRUCTIVE.match(label):
        world.restore()
    for caller in callers(world, label):
        response = world.send(case, caller)
        case.validate_response(response, checks=CHECKS)


def test_other_methods_are_refused_and_the_right_ones_named(
    world: World, restored: None, document: dict[str, Any]
) -> None:
    known = world.values | world.places["fuzz-owner/pack"]
    values = {
        **{name: some[0] for name, some in known.items()},
        "namespace": "fuzz-owner",
        "name": "pack",
        "grant": "x",
    }
    for path, operations in document["paths"].items():
        described = {method.upper() for method in operations}
        described |= {"HEAD"} if "GET" in described else set()
        address = re.sub(r"\{(\w+)\}", lambda match: quote(values[match[1]], safe=""), path)
        for method in METHODS:
            if method in described - {"HEAD"}:
                continue
            answer = requests.request(
                method,
                world.registry.endpoint + address,
                headers=world.callers["owner"],
                allow_redirects=False,
                timeout=60,
            )
            told = (method, path, answer.status_code, dict(answer.headers))
            if method in described:
                assert str(answer.status_code) in operations["get"]["responses"] and not answer.content, told
            elif answer.status_code != 405:
                # The path fits another one with a parameter, of which /api/{rest} is for whatever the API does not have.
                assert method in ("GET", "HEAD") and answer.status_code in (200, 307, 400, 404), told
            else:
                allowed = set(answer.headers["Allow"].split(", "))
                assert described <= allowed and method not in allowed, told
