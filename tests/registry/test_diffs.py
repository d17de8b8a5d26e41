"""What pull requests change, as the client, git and a browser show it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import requests
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from hypothesis import given
from hypothesis import strategies as st

from skillhub_registry import limits
from skillhub_registry.diffs import _make_hunk
from tests.support.registry_process import RegistryProcess

LINES = st.lists(st.sampled_from(["a\n", "b\n", "c\n"]), max_size=12)
ENDS = st.sampled_from(["", "without an end"])


@pytest.fixture
def api(registry: RegistryProcess) -> HfApi:
    return HfApi(endpoint=registry.endpoint, token=registry.token)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("diffs")


def apply_diff(folder: Path, diff: str) -> None:
    command = ["git", "apply", "--verbose", "--whitespace=nowarn", "-"]
    done = subprocess.run(command, cwd=folder, input=diff.encode(), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


@given(old=LINES, old_end=ENDS, new=LINES, new_end=ENDS)
def test_a_hunk_leads_from_old_to_new(folder: Path, old: list[str], old_end: str, new: list[str], new_end: str) -> None:
    before, after = ([*lines, *([end] if end else [])] for lines, end in ((old, old_end), (new, new_end)))
    hunk = _make_hunk(before, after)
    assert bool(hunk) == (before != after)
    if hunk and before and after:
        (folder / "x").write_text("".join(before))
        apply_diff(folder, f"--- a/x\n+++ b/x\n{hunk}")
        assert (folder / "x").read_text() == "".join(after)


def test_git_applies_what_a_pull_request_changes(api: HfApi, registry: RegistryProcess, tmp_path: Path) -> None:
    repository = api.create_repo(f"{registry.user}/diffs").repo_id
    files = {
        "index.jsonl": b"".join(b"line %d\n" % number for number in range(5000)),
        "gone.txt": b"gone\n",
        "with space/ä.txt": b"one\ntwo\nthree",
        "crlf.txt": b"one\r\ntwo\x0b\r\n",
        "data.bin": b"\0old",
    }
    for path, content in files.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(content)
    api.create_commit(repository, [CommitOperationAdd(*file) for file in files.items()], commit_message="Begin")
    changed = {
        "index.jsonl": files["index.jsonl"] + b"line 5000\n",
        "with space/ä.txt": b"one\n2\nthree\n",
        "crlf.txt": b"one\r\n2\x0b\r\n",
        "new.txt": b"new\n",
        "empty.txt": b"",
    }
    additions = [CommitOperationAdd(*file) for file in changed.items()]
    operations = [*additions, CommitOperationDelete("gone.txt")]
    api.create_commit(repository, operations, commit_message="Change", create_pr=True)
    diff = api.get_discussion_details(repository, 1).diff
    assert diff is not None
    assert diff.count("line 4999") == 1
    assert "line 4990" not in diff
    apply_diff(tmp_path, diff)
    for path, content in changed.items():
        assert (tmp_path / path).read_bytes() == content
    assert not (tmp_path / "gone.txt").exists()


def test_what_is_no_text_or_too_long_is_named_only(api: HfApi, registry: RegistryProcess) -> None:
    repository = api.create_repo(f"{registry.user}/no-diffs").repo_id
    files = {
        "a.safetensors": b"large" * 1000,
        "b.txt": b"latin \xe9\n",
        "c.txt": b"x\n" * limits.DIFF,
        "d.txt": b"d" * (limits.DIFF // 2),
        "e.txt": b"e" * (limits.DIFF // 2),
        "f.txt": b"not shown\n",
    }
    additions = [CommitOperationAdd(*file) for file in files.items()]
    api.create_commit(repository, additions, commit_message="Much", create_pr=True)
    diff = api.get_discussion_details(repository, 1).diff or ""
    assert "+version https://git-lfs.github.com/spec/v1\n+oid sha256:" in diff
    for path in ("b.txt", "c.txt"):
        assert f"Binary files /dev/null and b/{path} differ\n" in diff
    assert diff.endswith("# 1 more files are not shown\n")
    assert len(diff) < limits.DIFF + 10_000


def test_the_page_of_a_pull_request_is_harmless_and_private_like_its_repository(
    api: HfApi, guest: HfApi, registry: RegistryProcess
) -> None:
    repository = api.create_repo(f"{registry.user}/page").repo_id
    script = "<script>alert(1)</script>"
    url = guest.create_commit(
        repository,
        [CommitOperationAdd("a.html", script.encode())],
        commit_message=script,
        commit_description=script,
        create_pr=True,
    ).pr_url
    assert url is not None
    guest.rename_discussion(repository, 1, f"{script} again")
    api.merge_pull_request(repository, 1)
    answer = requests.get(url)
    assert answer.status_code == 200
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert answer.text.count("<script") == 1  # ours
    assert answer.text.count("&lt;script&gt;") >= 5
    assert "merges it" in answer.text
    assert requests.get(url.removesuffix("1") + "2").status_code == 404
    api.update_repo_settings(repository, private=True)
    assert requests.get(url).status_code == 404
    assert requests.get(url, headers={"Authorization": f"Bearer {registry.token}"}).status_code == 200
