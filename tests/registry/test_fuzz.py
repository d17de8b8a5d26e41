"""Odd input to every route: the answer may be a refusal, never a failure of the server."""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import quote

import pytest
import requests
from huggingface_hub import HfApi
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skillhub_registry.routes.table import ENDPOINTS
from tests.support.registry_process import RegistryProcess

KEYS = [
    "name",
    "organization",
    "type",
    "visibility",
    "private",
    "gated",
    "fromRepo",
    "toRepo",
    "content",
    "files",
    "path",
    "size",
    "sample",
    "tag",
    "message",
    "startingPoint",
    "paths",
    "expand",
    "operation",
    "transfers",
    "objects",
    "oid",
    "hash_algo",
    "key",
    "value",
    "summary",
    "description",
    "parentCommit",
    "title",
    "pullRequest",
    "comment",
    "status",
]
QUERY = [
    "recursive",
    "expand",
    "cursor",
    "limit",
    "sort",
    "filter",
    "search",
    "author",
    "blobs",
    "full",
    "create_pr",
    "p",
]
TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        [
            "main",
            "fuzzer",
            "fuzzer/odd",
            "fuzzer/other",
            "a.txt",
            "0" * 40,
            "0" * 64,
            "refs/heads/main",
            "refs/pr/1",
            "closed",
            "\ud800",
            "a/../b",
            "\0",
            "9" * 30,
        ]
    ),
)
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(KEYS), inner, max_size=5)),
    max_leaves=8,
)
BODIES = st.one_of(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=6), VALUES)


@pytest.fixture(scope="module")
def fuzzer(registry: RegistryProcess) -> str:
    token = registry.add_user("fuzzer")
    api = HfApi(endpoint=registry.endpoint, token=token)
    api.upload_file(path_or_fileobj=b"x", path_in_repo="a.txt", repo_id=api.create_repo("fuzzer/odd").repo_id)
    api.create_pull_request("fuzzer/odd", title="Odd changes")
    return token


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_nothing_breaks_the_server(registry: RegistryProcess, fuzzer: str, data: st.DataObject) -> None:
    endpoint = data.draw(st.sampled_from(ENDPOINTS))
    known = {"namespace": "fuzzer", "name": "odd", "revision": "main", "path": "a.txt", "number": "1"}
    path = re.sub(
        r"\{(\w+)(?::path)?\}",
        lambda match: quote(
            data.draw(st.one_of(st.just(known.get(match[1], "x")), TEXTS)), safe="", errors="surrogatepass"
        ),
        endpoint.path,
    )
    query = data.draw(
        st.dictionaries(st.sampled_from(QUERY), st.text(st.characters(codec="utf-8"), max_size=9), max_size=3)
    )
    body = data.draw(BODIES)
    lines: list[Any] = body if isinstance(body, list) else [body]
    text = "\n".join(map(json.dumps, lines)) if "commit" in endpoint.path else json.dumps(body)
    answer = requests.request(
        endpoint.method,
        registry.endpoint + path,
        params=query,
        data=text,
        headers={"Authorization": f"Bearer {fuzzer}"},
        allow_redirects=False,
        timeout=30,
    )
    assert answer.status_code < 500, (endpoint.method, answer.url, text, answer.text)
    assert answer.status_code < 400 or answer.headers["X-Error-Code"]
