"""Large files: listed, deleted for good, copied between repositories, and copied with a whole repository."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import pytest
import requests
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

from tests.support.hub_client import make_content, run_client
from tests.support.registry_process import RegistryProcess


@pytest.fixture(scope="module")
def api(registry: RegistryProcess) -> HfApi:
    return HfApi(endpoint=registry.endpoint, token=registry.token)


def commit(api: HfApi, repository: str, files: dict[str, bytes], **options: object) -> str:
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    return str(api.create_commit(repository, operations, commit_message="files", **options).oid)  # type: ignore[arg-type]


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def chosen(api: HfApi, repository: str, names: Iterable[str]) -> list[object]:
    return [file for file in api.list_lfs_files(repository) if file.filename in names]


def test_large_files_are_listed_with_where_they_came_first(api: HfApi, registry: RegistryProcess) -> None:
    repository = api.create_repo(f"{registry.user}/large-listed").repo_id
    one, two = make_content(21, 3000), make_content(22, 4000)
    commit(api, repository, {"a.safetensors": one, "small.txt": b"1"})
    commit(api, repository, {"b.safetensors": one})
    proposed = api.create_commit(
        repository, [CommitOperationAdd("c.bin", two)], commit_message="propose", create_pr=True
    )
    files = {file.filename: file for file in api.list_lfs_files(repository)}
    assert sorted(files) == ["a.safetensors", "c.bin"]
    assert (files["a.safetensors"].file_oid, files["a.safetensors"].size) == (digest(one), 3000)
    assert files["a.safetensors"].ref == "refs/heads/main"
    assert files["c.bin"].ref == proposed.pr_revision


def test_large_files_are_deleted_from_every_history(api: HfApi, registry: RegistryProcess, tmp_path: Path) -> None:
    repository = api.create_repo(f"{registry.user}/large-deleted").repo_id
    first = commit(api, repository, {"keep.txt": b"1"})
    secret, kept = make_content(23, 3000), make_content(24, 3000)
    named = commit(api, repository, {"deep/er/secret.bin": secret, "kept.bin": kept, "README.md": b"# One"})
    api.create_tag(repository, tag="v1")
    api.create_branch(repository, branch="side")
    proposed = api.create_commit(
        repository, [CommitOperationAdd("more.txt", b"2")], commit_message="propose", create_pr=True
    )
    commit(api, repository, {"later.txt": b"3"})
    api.merge_pull_request(repository, 1)

    api.permanently_delete_lfs_files(repository, chosen(api, repository, ["deep/er/secret.bin"]))  # type: ignore[arg-type]
    for revision in ("main", "v1", "side", str(proposed.pr_revision)):
        files = api.list_repo_files(repository, revision=revision)
        assert "kept.bin" in files
        assert not any("secret" in path for path in files)
        titles = [one.title for one in api.list_repo_commits(repository, revision=revision)]
        assert titles[-3:] == ["files", "files", "initial commit"]
        commits = [one.commit_id for one in api.list_repo_commits(repository, revision=revision)]
        assert first in commits  # what did not have the file is the same commit
        assert named not in commits
    assert [file.filename for file in api.list_lfs_files(repository)] == ["kept.bin"]
    fetched = api.hf_hub_download(repository, "kept.bin", local_dir=tmp_path / "kept")
    assert Path(fetched).read_bytes() == kept
    with pytest.raises(EntryNotFoundError):  # the old commit can be read, but for the file
        api.hf_hub_download(repository, "deep/er/secret.bin", revision=named, local_dir=tmp_path)
    assert Path(api.hf_hub_download(repository, "keep.txt", revision=named, local_dir=tmp_path)).read_bytes() == b"1"
    with pytest.raises(HfHubHTTPError, match="404"):
        lfs = next(iter(api.list_lfs_files(repository)))
        lfs.file_oid = digest(secret)
        api.permanently_delete_lfs_files(repository, [lfs])


def test_pointers_stay_where_history_is_not_rewritten(api: HfApi, registry: RegistryProcess, tmp_path: Path) -> None:
    repository = api.create_repo(f"{registry.user}/large-pointers").repo_id
    content = make_content(25, 3000)
    head = commit(api, repository, {"w.bin": content})
    api.permanently_delete_lfs_files(repository, list(api.list_lfs_files(repository)), rewrite_history=False)
    assert api.model_info(repository).sha == head
    assert "w.bin" in api.list_repo_files(repository)
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download(repository, "w.bin", local_dir=tmp_path)
    with pytest.raises(HfHubHTTPError, match="was uploaded"):  # it cannot come back without being sent
        copy = CommitOperationCopy("w.bin", "copy.bin")
        api.create_commit(repository, [copy], commit_message="Copy")
    commit(api, repository, {"again.bin": content})
    for name in ("again.bin", "w.bin"):
        assert Path(api.hf_hub_download(repository, name, local_dir=tmp_path)).read_bytes() == content


def test_deleted_files_are_sent_again_though_their_pointers_stand(api: HfApi, registry: RegistryProcess) -> None:
    repository = api.create_repo(f"{registry.user}/large-resent").repo_id
    content = make_content(26, 3000)
    commit(api, repository, {"w.bin": content})
    api.permanently_delete_lfs_files(repository, list(api.list_lfs_files(repository)), rewrite_history=False)
    assert not list(api.list_lfs_files(repository))
    asked = {"files": [{"path": "w.bin", "size": len(content), "sample": ""}]}
    answer = requests.post(
        f"{registry.endpoint}/api/models/{repository}/preupload/main",
        json=asked,
        headers={"Authorization": f"Bearer {registry.token}"},
    )
    assert answer.json()["files"] == [{"path": "w.bin", "uploadMode": "lfs", "shouldIgnore": False}]


def test_deleting_takes_an_administrator(api: HfApi, registry: RegistryProcess, guest: HfApi) -> None:
    repository = api.create_repo(f"{registry.user}/large-guarded").repo_id
    commit(api, repository, {"w.bin": make_content(27, 3000)})
    files = list(api.list_lfs_files(repository))
    for refused in (
        lambda: list(guest.list_lfs_files(repository)),
        lambda: guest.permanently_delete_lfs_files(repository, files),
    ):
        with pytest.raises(HfHubHTTPError, match="403"):
            refused()
    assert len(list(api.list_lfs_files(repository))) == 1


@pytest.mark.parametrize("xet", [True, False], ids=["xet", "lfs"])
def test_files_are_copied_between_repositories(
    api: HfApi, registry: RegistryProcess, tmp_path: Path, xet: bool
) -> None:
    source = api.create_repo(f"{registry.user}/copied-from-{xet}", private=True).repo_id
    target = api.create_repo(f"{registry.user}/copied-to-{xet}").repo_id
    large = make_content(28, 5000)
    commit(api, source, {"w.safetensors": large, "config.json": b"{}"})
    run_client(
        registry, tmp_path, "copy_files", xet=xet, source=source, target=target, paths=["w.safetensors", "config.json"]
    )
    fetched = run_client(registry, tmp_path, "download_all", xet=xet, repository=target)
    assert fetched["copied/w.safetensors"] == digest(large)
    assert fetched["copied/config.json"] == digest(b"{}")


def test_copying_needs_to_read_the_source(api: HfApi, registry: RegistryProcess, guest: HfApi) -> None:
    guests = guest.create_repo("guest/copies").repo_id
    content = make_content(29, 5000)
    hidden = api.create_repo(f"{registry.user}/copied-hidden", private=True).repo_id
    gated = api.create_repo(f"{registry.user}/copied-gated").repo_id
    for repository in (hidden, gated):
        commit(api, repository, {"w.bin": content})
    api.update_repo_settings(gated, gated="manual")
    copy = {"target": {"type": "model", "name": guests}, "files": [{"sha256": digest(content), "filename": "w.bin"}]}

    def ask(source: str, token: object, body: object = copy) -> requests.Response:
        return requests.post(
            f"{registry.endpoint}/api/models/{source}/lfs-files/duplicate",
            json=body,
            headers={"Authorization": f"Bearer {token}"},
        )

    with pytest.raises(RepositoryNotFoundError):
        guest.create_commit(
            guests,
            [CommitOperationCopy("w.bin", "w.bin", src_repo_id=hidden, src_repo_type="model")],
            commit_message="x",
        )
    with pytest.raises(GatedRepoError):
        guest.create_commit(
            guests,
            [CommitOperationCopy("w.bin", "w.bin", src_repo_id=gated, src_repo_type="model")],
            commit_message="x",
        )
    missing = ask(f"{registry.user}/nothing-there", guest.token)
    assert (ask(hidden, guest.token).status_code, ask(hidden, guest.token).content) == (404, missing.content)
    assert ask(gated, guest.token).headers["X-Error-Code"] == "GatedRepo"
    # to a private repository of somebody else's, and from one that has no such file
    private = {**copy, "target": {"type": "model", "name": hidden}}
    assert ask(guests, guest.token, private).content == missing.content
    assert ask(guests, guest.token).json()["failed"][0]["sha256"] == digest(content)
    reading = registry.create_token("guest", scope="read")
    assert ask(guests, reading).status_code == 403


def test_a_guest_copies_into_a_proposal_only(api: HfApi, registry: RegistryProcess, guest: HfApi) -> None:
    """What a guest copies is its own until it is merged, like what it uploads."""
    source, target = guest.create_repo("guest/offers").repo_id, api.create_repo(f"{registry.user}/offered").repo_id
    content = make_content(30, 5000)
    commit(guest, source, {"w.bin": content})
    copy = CommitOperationCopy("w.bin", "w.bin", src_repo_id=source, src_repo_type="model")
    with pytest.raises(HfHubHTTPError, match="403"):
        guest.create_commit(target, [copy], commit_message="Offer")
    copy = CommitOperationCopy("w.bin", "w.bin", src_repo_id=source, src_repo_type="model")
    number = guest.create_commit(target, [copy], commit_message="Offer", create_pr=True).pr_num
    assert number is not None
    api.merge_pull_request(target, number)
    assert "w.bin" in api.list_repo_files(target)


def test_a_whole_repository_is_copied(api: HfApi, registry: RegistryProcess, guest: HfApi, tmp_path: Path) -> None:
    source = api.create_repo(f"{registry.user}/whole").repo_id
    content = make_content(31, 5000)
    commit(api, source, {"w.bin": content, "README.md": b"---\ntags: [whole-tag]\n---\n"})
    head = commit(api, source, {"old.txt": b"1"})
    api.create_tag(source, tag="v1")
    api.create_commit(source, [CommitOperationDelete("old.txt")], commit_message="Delete")
    api.create_commit(source, [CommitOperationAdd("p.txt", b"")], commit_message="Propose", create_pr=True)
    copy = guest.duplicate_repo(source, private=True).repo_id
    assert copy == "guest/whole"
    assert guest.model_info(copy).private
    assert guest.model_info(copy).sha == api.model_info(source).sha
    assert guest.model_info(copy, revision="v1").sha == head
    assert [one.id for one in guest.list_models(filter="whole-tag", author="guest")] == [copy]
    assert list(guest.get_repo_discussions(copy)) == []
    assert guest.list_repo_refs(copy, include_pull_requests=True).pull_requests == []
    api.delete_repo(source)
    assert Path(guest.hf_hub_download(copy, "w.bin", local_dir=tmp_path)).read_bytes() == content
    guest.create_commit(copy, [CommitOperationCopy("w.bin", "again.bin")], commit_message="Copy")
    assert sorted(guest.list_repo_files(copy)) == [".gitattributes", "README.md", "again.bin", "w.bin"]
    guest.duplicate_repo(copy, to_id="guest/copies-of-itself")
    with pytest.raises(HfHubHTTPError, match="409"):
        guest.duplicate_repo(copy, to_id="guest/copies-of-itself")
    guest.duplicate_repo(copy, to_id="guest/copies-of-itself", exist_ok=True)
    with pytest.raises(HfHubHTTPError, match="403"):
        guest.duplicate_repo(copy, to_id=f"{registry.user}/not-mine")
