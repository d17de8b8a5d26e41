"""A repository's identity: it stays for its life, also under another name, and is never given again."""

from __future__ import annotations

from pathlib import Path

import pytest
import requests
from huggingface_hub import CommitOperationAdd, HfApi, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import RepositoryNotFoundError

from tests.support.registry_process import RegistryProcess


@pytest.fixture
def api(registry: RegistryProcess) -> HfApi:
    return HfApi(endpoint=registry.endpoint, token=registry.token)


def identity(api: HfApi, repository: str) -> str:
    return str(api.model_info(repository, expand=["sha"])._id)  # type: ignore[attr-defined]


def test_an_identity_stays_and_is_never_given_again(api: HfApi, registry: RegistryProcess) -> None:
    name, moved = f"{registry.user}/identity", f"{registry.user}/identity-moved"
    api.create_repo(name)
    first = identity(api, name)
    api.create_commit(name, [CommitOperationAdd("a.txt", b"1")], commit_message="One")
    api.super_squash_history(name)
    api.update_repo_settings(name, private=True)
    api.move_repo(name, moved)
    assert {identity(api, moved), identity(api, name)} == {first}
    assert [model.id for model in api.list_models(search="identity", author=registry.user)] == [moved]
    seen = {first}
    for _ in range(2):
        api.create_repo(name)
        seen.add(identity(api, name))
        api.delete_repo(name)
    assert len(seen) == 3
    assert identity(api, moved) == first


def test_files_of_a_moved_repository_are_found_under_its_new_name(
    api: HfApi, registry: RegistryProcess, tmp_path: Path
) -> None:
    old, new = f"{registry.user}/moving", f"{registry.user}/has-moved"
    api.create_repo(old)
    api.create_commit(old, [CommitOperationAdd("ä b/c#.txt", b"here")], commit_message="One")
    api.create_branch(old, branch="side/work")
    api.move_repo(old, new)
    for revision in ("main", "side/work"):
        url = hf_hub_url(old, "ä b/c#.txt", revision=revision, endpoint=registry.endpoint)
        metadata = get_hf_file_metadata(url, token=registry.token, endpoint=registry.endpoint)
        assert metadata.location == hf_hub_url(new, "ä b/c#.txt", revision=revision, endpoint=registry.endpoint)
        assert metadata.commit_hash == api.model_info(new).sha
        fetched = hf_hub_download(
            old, "ä b/c#.txt", revision=revision, endpoint=registry.endpoint, local_dir=tmp_path / revision
        )
        assert Path(fetched).read_bytes() == b"here"
    # Another case of the present name is no other name.
    answer = requests.head(f"{registry.endpoint}/{new.upper()}/resolve/main/.gitattributes", allow_redirects=False)
    assert answer.status_code == 200
    # Whoever takes the old name has it.
    api.create_repo(old)
    with pytest.raises(Exception, match="404"):
        hf_hub_download(old, "ä b/c#.txt", endpoint=registry.endpoint, local_dir=tmp_path / "taken")


def test_a_moved_repository_that_is_private_is_still_hidden(
    api: HfApi, registry: RegistryProcess, guest: HfApi, tmp_path: Path
) -> None:
    old, new = f"{registry.user}/hidden", f"{registry.user}/hidden-elsewhere"
    api.create_repo(old, private=True)
    api.move_repo(old, new)
    for name in (old, new):
        answer = requests.get(f"{registry.endpoint}/{name}/resolve/main/.gitattributes", allow_redirects=False)
        assert (answer.status_code, answer.headers["X-Error-Code"]) == (404, "RepoNotFound")
        assert "Location" not in answer.headers
        with pytest.raises(RepositoryNotFoundError):
            guest.hf_hub_download(name, ".gitattributes", local_dir=tmp_path)
