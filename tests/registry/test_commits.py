"""Commits: whole or not at all, one after another, on the parent that was asked for."""

from __future__ import annotations

import hashlib
import json
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi
from huggingface_hub.errors import BadRequestError, EntryNotFoundError, HfHubHTTPError, RevisionNotFoundError

from tests.registry.releases import line, manifest
from tests.support.registry_process import RegistryProcess


@pytest.fixture
def api(registry: RegistryProcess) -> HfApi:
    return HfApi(endpoint=registry.endpoint, token=registry.token)


@pytest.fixture
def repository(api: HfApi, registry: RegistryProcess, request: pytest.FixtureRequest) -> str:
    return api.create_repo(f"{registry.user}/{re.sub('[^a-z0-9]+', '-', request.node.name)[:60].strip('-')}").repo_id


def read(api: HfApi, repository: str, path: str, revision: str = "main") -> bytes:
    answer = requests.get(
        f"{api.endpoint}/{repository}/resolve/{revision}/{path}", headers={"Authorization": f"Bearer {api.token}"}
    )
    answer.raise_for_status()
    return answer.content


def add(path: str, content: bytes = b"x") -> CommitOperationAdd:
    return CommitOperationAdd(path, content)


def test_stale_parent(api: HfApi, repository: str) -> None:
    first = api.create_commit(repository, [add("a.txt")], commit_message="one").oid
    second = api.create_commit(repository, [add("b.txt")], commit_message="two", parent_commit=first).oid
    with pytest.raises(HfHubHTTPError, match="A commit has happened since") as caught:
        api.create_commit(repository, [add("c.txt")], commit_message="late", parent_commit=first)
    assert caught.value.response.status_code == 412
    assert api.model_info(repository).sha == second
    api.create_commit(repository, [add("c.txt")], commit_message="short id", parent_commit=second[:7])


def test_racing_commits(api: HfApi, repository: str) -> None:
    """Of commits on one parent exactly one lands; without a parent all do, one after another."""
    head = api.model_info(repository).sha

    def commit(name: str, parent: str | None) -> str | None:
        try:
            return api.create_commit(repository, [add(name)], commit_message=name, parent_commit=parent).oid
        except HfHubHTTPError as error:
            assert error.response.status_code == 412
            return None

    with ThreadPoolExecutor(8) as threads:
        raced = list(threads.map(lambda number: commit(f"race-{number}.txt", head), range(8)))
        free = list(threads.map(lambda number: commit(f"free-{number}.txt", None), range(8)))
    (winner,) = [number for number, oid in enumerate(raced) if oid]
    files = api.list_repo_files(repository)
    assert sorted(files) == sorted([".gitattributes", f"race-{winner}.txt", *(f"free-{n}.txt" for n in range(8))])
    history = [commit.commit_id for commit in api.list_repo_commits(repository)]
    assert len(history) == 10
    assert set(history) >= {raced[winner], *free}


def test_delete_and_copy(api: HfApi, repository: str) -> None:
    large = b"large" * 1000
    operations = [add("a.txt"), add("d/b.txt"), add("d/e/c.txt"), add("keep/w.safetensors", large)]
    api.create_commit(repository, operations, commit_message="one")
    changes = [
        CommitOperationDelete("a.txt"),
        CommitOperationDelete("d/"),
        CommitOperationCopy("keep/w.safetensors", "copied/w.safetensors"),
        CommitOperationCopy("a.txt", "copied/a.txt"),
        add("d/new.txt", b"new"),
    ]
    api.create_commit(repository, changes, commit_message="two")
    expected = [".gitattributes", "copied/a.txt", "copied/w.safetensors", "d/new.txt", "keep/w.safetensors"]
    assert sorted(api.list_repo_files(repository)) == expected
    assert read(api, repository, "copied/w.safetensors") == large
    with pytest.raises(EntryNotFoundError, match="differentiate file and folder"):
        api.create_commit(repository, [CommitOperationDelete("d")], commit_message="a folder, not a file")
    with pytest.raises(EntryNotFoundError):
        api.create_commit(repository, [CommitOperationDelete("nothing/")], commit_message="no such folder")


def test_bad_commits_change_nothing(api: HfApi, repository: str) -> None:
    head = api.create_commit(repository, [add("a/b.txt")], commit_message="one").oid
    with pytest.raises(BadRequestError, match="both a file and a folder"):
        api.create_commit(repository, [add("fine.txt"), add("a/b.txt/c.txt")], commit_message="clash")
    with pytest.raises(RevisionNotFoundError):
        api.create_commit(repository, [add("x.txt")], commit_message="x", revision="no-such-branch")
    with pytest.raises(BadRequestError, match="both a file and a folder"):
        api.create_commit(repository, [add("a/b.txt/c.txt")], commit_message="clash", create_pr=True)
    assert list(api.get_repo_discussions(repository)) == []
    assert api.model_info(repository).sha == head


def test_what_was_published_stays(api: HfApi, repository: str) -> None:
    """The index of a pack only grows, and the files of its releases never change: not even its owner can do that."""
    path, index = "releases/1.0/skillpack.json", "releases.jsonl"
    files = [add(index, line("1.0")), add(path, manifest("1.0")), add("releases/2.0/w.safetensors"), add("README.md")]
    head = api.create_commit(repository, files, commit_message="Release 1.0").oid
    refused: dict[str, list[Any]] = {
        "may only grow": [add(index, line("0.9") + line("1.0"))],
        "only grow: what was published": [add(index, b"")],
        "cannot be deleted": [CommitOperationDelete(index)],
        "1.0/skillpack.json belongs to a published release": [CommitOperationDelete(path)],
        "belongs to a published release, which never changes": [CommitOperationDelete("releases/")],
        "1.0/skillpack.json belongs": [add(index, line("1.0") + line("2.0")), add(path, b"another")],
    }
    for words, operations in refused.items():
        with pytest.raises(HfHubHTTPError, match=words) as caught:
            api.create_commit(repository, operations, commit_message="Rewrite")
        assert caught.value.response.status_code == 409
        assert caught.value.response.headers["X-Error-Code"] == "ReleasesRewritten"
    assert api.model_info(repository).sha == head
    api.super_squash_history(repository)
    changes = [CommitOperationDelete("releases/2.0/w.safetensors"), CommitOperationDelete("README.md")]
    grown = [
        add(index, line("1.0") + line("1.1")),
        add(path, manifest("1.0")),
        add("releases/1.1/skillpack.json", manifest("1.1")),
    ]
    api.create_commit(repository, [*changes, *grown], commit_message="What was not published may go")
    assert read(api, repository, index) == line("1.0") + line("1.1")
    api.create_branch(repository, branch="draft")
    api.create_commit(repository, [CommitOperationDelete(index)], commit_message="On a branch", revision="draft")
    api.delete_repo(repository)


HEADER = {"key": "header", "value": {"summary": "s"}}
FILE = {"key": "file", "value": {"path": "ok.txt", "content": "b2s=", "encoding": "base64"}}
LARGE = {"key": "lfsFile", "value": {"path": "a", "oid": "0" * 64, "size": 1}}


def with_value(line: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**line, "value": {**line["value"], **changes}}


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [FILE],
        [HEADER, HEADER],
        [HEADER, "text"],
        [HEADER, {"key": "unknown", "value": {}}],
        [HEADER, {"key": "file", "value": []}],
        [HEADER, with_value(FILE, path="../up")],
        [HEADER, with_value(FILE, path="\ud800")],
        [HEADER, with_value(FILE, content="***")],
        [HEADER, with_value(FILE, content=None)],
        [HEADER, with_value(FILE, content="\ud800", encoding="utf-8")],
        [HEADER, with_value(FILE, encoding="rot13")],
        [HEADER, LARGE],
        [HEADER, with_value(LARGE, oid="../../etc/passwd")],
        [HEADER, with_value(LARGE, size="1")],
        [HEADER, {"key": "deletedFolder", "value": {"path": "/"}}],
        [with_value(HEADER, summary=""), FILE],
        [with_value(HEADER, parentCommit="zz"), FILE],
        [with_value(HEADER, summary="a\0b"), FILE],
    ],
    ids=lambda lines: None,
)
def test_malformed_commits(registry: RegistryProcess, api: HfApi, lines: list[Any]) -> None:
    repository = f"{registry.user}/malformed"
    api.create_repo(repository, exist_ok=True)
    head = api.model_info(repository).sha
    body = "".join(json.dumps(line) + "\n" for line in lines)
    url = f"{registry.endpoint}/api/models/{repository}/commit/main"
    answer = requests.post(url, data=body, headers={"Authorization": f"Bearer {registry.token}"})
    assert answer.status_code == 400
    assert answer.json()["error"] == answer.headers["X-Error-Message"]
    assert api.model_info(repository).sha == head


def test_too_large_for_a_commit(registry: RegistryProcess, api: HfApi, repository: str) -> None:
    url = f"{registry.endpoint}/api/models/{repository}/commit/main"
    headers = {"Authorization": f"Bearer {registry.token}"}
    line = json.dumps(with_value(FILE, content="A" * 14_000_000))
    assert requests.post(url, data=json.dumps(HEADER) + "\n" + line, headers=headers).status_code == 413
    assert requests.post(url, data=b"x" * 17 * 1024 * 1024, headers=headers).status_code == 413


def test_interrupted_uploads_leave_nothing(registry: RegistryProcess, api: HfApi, repository: str) -> None:
    """A commit or a blob that stops in the middle is not there at all."""
    head = api.model_info(repository).sha
    content = b"never whole" * 1000
    sha256 = hashlib.sha256(content).hexdigest()
    batch = requests.post(
        f"{registry.endpoint}/{repository}.git/info/lfs/objects/batch",
        json={"operation": "upload", "objects": [{"oid": sha256, "size": len(content)}]},
        headers={"Authorization": f"Bearer {registry.token}"},
    ).json()
    href = batch["objects"][0]["actions"]["upload"]["href"]
    body = json.dumps(HEADER).encode() + b"\n" + json.dumps(FILE).encode() + b"\n"
    address = urlsplit(registry.endpoint)
    assert address.hostname is not None
    for request in [
        f"PUT {urlsplit(href).path} HTTP/1.1\r\nContent-Length: {len(content)}\r\n".encode()
        + b"Host: x\r\n\r\n"
        + content[:500],
        f"POST /api/models/{repository}/commit/main HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n".encode()
        + f"Authorization: Bearer {registry.token}\r\n\r\n".encode()
        + body,
    ]:
        with socket.create_connection((address.hostname, address.port or 80)) as connection:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1000)
    assert api.model_info(repository).sha == head
    assert registry.read_blob(sha256) is None
    # Bytes that are not what was announced are refused as well, and the right ones still welcome.
    assert requests.put(href, data=content[:-1] + b"?").status_code == 400
    assert requests.put(href, data=content + b"?").status_code == 413
    assert requests.put(href, data=content).status_code == 200


def test_refs(api: HfApi, repository: str) -> None:
    first = api.create_commit(repository, [add("a.txt", b"1")], commit_message="one").oid
    second = api.create_commit(repository, [add("a.txt", b"2")], commit_message="two").oid
    api.create_tag(repository, tag="v1.0", revision=first, tag_message="the first")
    api.create_branch(repository, branch="side/work", revision="v1.0")
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_tag(repository, tag="v1.0")
    api.create_tag(repository, tag="v1.0", exist_ok=True)
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_branch(repository, branch="side/work")
    api.create_branch(repository, branch="side/work", exist_ok=True)
    with pytest.raises(RevisionNotFoundError):
        api.create_tag(repository, tag="v2", revision="nowhere")
    with pytest.raises(BadRequestError):
        api.create_tag(repository, tag="not a name")

    third = api.create_commit(repository, [add("side.txt")], commit_message="side", revision="side/work").oid
    refs = api.list_repo_refs(repository, include_pull_requests=True)
    assert {ref.name: ref.target_commit for ref in refs.branches} == {"main": second, "side/work": third}
    assert {ref.ref: ref.target_commit for ref in refs.tags} == {"refs/tags/v1.0": first}
    assert [commit.commit_id for commit in api.list_repo_commits(repository, revision="side/work")][:2] == [
        third,
        first,
    ]
    for revision in ("v1.0", first, first[:10], "refs%2Ftags%2Fv1.0", "side%2Fwork"):
        assert read(api, repository, "a.txt", revision) == b"1"

    api.delete_tag(repository, tag="v1.0")
    api.delete_branch(repository, branch="side/work")
    with pytest.raises(RevisionNotFoundError):
        api.delete_tag(repository, tag="v1.0")
    with pytest.raises(HfHubHTTPError):
        api.delete_branch(repository, branch="main")
    assert read(api, repository, "side.txt", third) == b"x"


def test_squash(api: HfApi, repository: str) -> None:
    old = api.create_commit(repository, [add("a.txt")], commit_message="one").oid
    api.super_squash_history(repository, commit_message="all at once")
    (commit,) = api.list_repo_commits(repository)
    assert commit.title == "all at once"
    assert "a.txt" in api.list_repo_files(repository)
    assert read(api, repository, "a.txt", old) == b"x"


def test_create_move_delete(api: HfApi, registry: RegistryProcess) -> None:
    name = f"{registry.user}/Some-Name"
    url = api.create_repo(name)
    assert (url.repo_id, str(url)) == (name, f"{registry.endpoint}/{name}")
    assert api.create_repo(name.lower(), exist_ok=True).repo_id == name
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo(name)
    with pytest.raises(BadRequestError, match="model repositories only"):
        api.create_repo(name, repo_type="dataset")
    identity = api.model_info(name)._id  # type: ignore[attr-defined]
    moved = f"{registry.user}/other-name"
    api.move_repo(name, moved)
    assert api.model_info(name).id == moved
    assert api.model_info(moved)._id == identity  # type: ignore[attr-defined]
    api.create_repo(name)
    assert api.model_info(name).id == name
    with pytest.raises(HfHubHTTPError, match="409"):
        api.move_repo(moved, name)
    for one in (name, moved):
        api.delete_repo(one)
        assert not api.repo_exists(one)
    api.delete_repo(name, missing_ok=True)
    assert not api.repo_exists(name, repo_type="dataset")


def test_cards_are_checked(api: HfApi, repository: str) -> None:
    for bad in (b"---\na: [\n---\n", b"---\na: &x [1]\nb: *x\n---\n", b"---\n- a\n---\n"):
        with pytest.raises(ValueError, match="Invalid metadata"):
            api.create_commit(repository, [add("README.md", bad)], commit_message="card")
    good = "---\ntags: [skillpack, maths]\nlicense: apache-2.0\nbase_model: acme/base\nwhen: 2024-01-01\n---\n# Hi\n"
    api.create_commit(repository, [add("README.md", good.encode())], commit_message="card")
    info = api.model_info(repository)
    assert info.tags is not None
    assert {"skillpack", "maths", "license:apache-2.0", "base_model:acme/base"} <= set(info.tags)
    assert info.card_data is not None
    assert info.card_data.to_dict()["when"] == "2024-01-01"
