"""How guests send what they propose: large files, with Xet and without, the command line; and whose uploads are whose."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import requests
from huggingface_hub import CommitOperationCopy, HfApi, hf_hub_download

from tests.support.hub_client import client_environment, make_content, make_file, run_client
from tests.support.registry_process import RegistryProcess


@pytest.fixture
def api(registry: RegistryProcess) -> HfApi:
    return HfApi(endpoint=registry.endpoint, token=registry.token)


@pytest.fixture
def repository(api: HfApi, registry: RegistryProcess, request: pytest.FixtureRequest) -> str:
    return api.create_repo(f"{registry.user}/{re.sub('[^a-z]+', '-', request.node.name)[5:60].strip('-')}").repo_id


@pytest.mark.parametrize("xet", [True, False], ids=["xet", "lfs"])
def test_guests_propose_large_files(
    api: HfApi, guest_token: str, repository: str, registry: RegistryProcess, tmp_path: Path, xet: bool
) -> None:
    files = {"w.safetensors": (21, 300_000), "n/config.json": (22, 300)}
    as_guest = replace(registry, token=guest_token)
    seen = run_client(as_guest, tmp_path, "propose_files", xet=xet, repository=repository, files=files)
    assert seen == {"revision": "refs/pr/1", "number": 1}
    more = {"v.safetensors": (23, 100_000)}
    options = {"repository": repository, "files": more, "revision": "refs/pr/1"}
    run_client(as_guest, tmp_path, "propose_files", xet=xet, **options)
    api.merge_pull_request(repository, 1)
    for path, content in {**files, **more}.items():
        fetched = hf_hub_download(repository, path, endpoint=registry.endpoint, local_dir=tmp_path / "fetched")
        assert Path(fetched).read_bytes() == make_file(path, *content)
    # By now they are the repository's own.
    copy = CommitOperationCopy("w.safetensors", "copied.safetensors")
    api.create_commit(repository, [copy], commit_message="Copy")
    assert "copied.safetensors" in api.list_repo_files(repository)


def test_a_digest_gives_no_access_to_what_others_sent(
    api: HfApi, guest_token: str, repository: str, registry: RegistryProcess
) -> None:
    """What members sent and did not commit is not there for guests who know its sha256, nor the other way round."""

    def send(token: str, content: bytes) -> str:
        oid = hashlib.sha256(content).hexdigest()
        asked = {"operation": "upload", "objects": [{"oid": oid, "size": len(content)}]}
        url = f"{registry.endpoint}/{repository}.git/info/lfs/objects/batch"
        answer = requests.post(url, json=asked, headers={"Authorization": f"Bearer {token}"}).json()
        requests.put(answer["objects"][0]["actions"]["upload"]["href"], data=content).raise_for_status()
        return oid

    def refer(token: str, oid: str, size: int) -> requests.Response:
        lines = [
            {"key": "header", "value": {"summary": "Guess"}},
            {"key": "lfsFile", "value": {"path": "guessed.bin", "algo": "sha256", "oid": oid, "size": size}},
        ]
        return requests.post(
            f"{registry.endpoint}/api/models/{repository}/commit/main?create_pr=1",
            data="".join(json.dumps(line) + "\n" for line in lines),
            headers={"Authorization": f"Bearer {token}"},
        )

    members = send(registry.token, make_content(31, 5000))
    guests = send(guest_token, make_content(32, 5000))
    for token, oid in ((guest_token, members), (registry.token, guests)):
        answer = refer(token, oid, 5000)
        assert (answer.status_code, answer.headers["X-Error-Code"]) == (400, "LfsObjectMissing")
    assert list(api.get_repo_discussions(repository)) == []
    assert refer(guest_token, guests, 5000).json()["pullRequestUrl"].endswith("/discussions/1")
    assert refer(registry.token, members, 5000).ok


def test_the_hf_command(
    api: HfApi, repository: str, registry: RegistryProcess, guest_token: str, tmp_path: Path
) -> None:
    (tmp_path / "c.txt").write_text("by command")

    def hf(token: str, *arguments: str) -> str:
        environment = client_environment(registry, tmp_path / "home", xet=True, token=token)
        command = [Path(sys.executable).with_name("hf"), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    hf(
        guest_token,
        "upload",
        repository,
        str(tmp_path / "c.txt"),
        "c.txt",
        "--create-pr",
        "--commit-message",
        "By hand",
    )
    assert "By hand" in hf(guest_token, "discussions", "list", repository)
    if api.get_discussion_details(repository, 1).status == "draft":
        hf(guest_token, "discussions", "reopen", repository, "1", "--yes")
    hf(registry.token, "discussions", "merge", repository, "1", "--yes")
    assert "c.txt" in api.list_repo_files(repository)
