"""Names, refs and paths: what is let in."""

from __future__ import annotations

import subprocess

import pytest
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from hypothesis import given, settings
from hypothesis import strategies as st

from skillhub_registry.errors import HubError
from skillhub_registry.names import check_account_name, check_path, check_ref_name, check_repository_name

BAD_PATHS = ["", "/a", "a/", "a//b", "..", "a/../b", "./a", "a/.", "a\\b", "a\0b", "a\nb", ".git/config", "a/.GIT/x"]
BAD_PATHS += ["a\ud800", "a\x7fb", "a\u2028b", "x" * 256, "/".join(["abc"] * 300)]


@pytest.mark.parametrize("path", [*BAD_PATHS, None, 7, ["a"]])
def test_bad_paths(path: object) -> None:
    with pytest.raises(HubError) as caught:
        check_path(path)
    assert caught.value.status == 400


@pytest.mark.parametrize("path", ["a", "a/b/c.txt", ".gitattributes", "…/ü.bin", "a..b", "con", "a b", "-x", "~"])
def test_good_paths(path: str) -> None:
    assert check_path(path) == path


@settings(max_examples=60, deadline=None)
@given(st.text(st.sampled_from("ab./-@{~^:?*[\\ \x7f\u00e9_"), min_size=1, max_size=8))
def test_refs_are_good_for_git(name: str) -> None:
    """Whatever we take, git takes."""
    try:
        check_ref_name(name)
    except HubError:
        return
    subprocess.run(["git", "check-ref-format", f"refs/heads/{name}"], check=True)


@pytest.mark.parametrize("name", ["v1.2.0", "main", "feature/x", "release-1", "ü"])
def test_good_refs(name: str) -> None:
    assert check_ref_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "a b", "a..b", "-a", "a.lock", ".a", "a/", "refs/heads/a", "0" * 40, "HEAD", None, "a\0"]
)
def test_bad_refs(name: object) -> None:
    with pytest.raises(HubError):
        check_ref_name(name)


@given(st.text(st.sampled_from("aZ0-._/ é"), min_size=1, max_size=6))
def test_repository_names_are_good_for_the_client(name: str) -> None:
    try:
        check_repository_name(name)
    except HubError:
        return
    try:
        validate_repo_id(f"ann/{name}")
    except HFValidationError as error:
        pytest.fail(str(error))


@pytest.mark.parametrize("name", ["api", "LFS", "xet", "a/b", "", "-a", "a--b", "x" * 97, None])
def test_bad_accounts(name: object) -> None:
    with pytest.raises(HubError):
        check_account_name(name)
