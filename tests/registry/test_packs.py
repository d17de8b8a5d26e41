"""Packs on the registry: releases that are whole, found by what they fit, and who requires whom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import requests
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError

from skillhub import hub
from skillhub.publisher import publish
from skillhub.releases import event_line, release_event
from tests.registry.releases import line, manifest
from tests.support.packs import BASE, OTHER_BASE, make_pack
from tests.support.registry_process import RegistryProcess
from tests.support.repositories import append_line

pytestmark = pytest.mark.usefixtures("homes")


@pytest.fixture(scope="module")
def api(registry: RegistryProcess) -> HfApi:
    return HfApi(endpoint=registry.endpoint, token=registry.token)


def ask(registry: RegistryProcess, repository: str, noun: str, token: str | None = None, **query: Any) -> Any:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    answer = requests.get(f"{registry.endpoint}/api/models/{repository}/{noun}", headers=headers, params=query)
    answer.raise_for_status()
    return answer.json()


def release(folder: Path) -> dict[str, bytes]:
    """Return the files of a repository that has one release, 1.0."""
    pack = make_pack(folder, "whole-pack", "1.0")
    files = {
        f"releases/1.0/{path.relative_to(folder).as_posix()}": path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    return {**files, "releases.jsonl": event_line(release_event(pack.manifest, {}))}


def commit(api: HfApi, repository: str, files: dict[str, bytes], **options: Any) -> None:
    operations = [CommitOperationAdd(path, data) for path, data in files.items()]
    api.create_commit(repository, operations, commit_message="Release", **options)


def test_a_release_has_what_its_manifest_says(api: HfApi, registry: RegistryProcess, tmp_path: Path) -> None:
    repository = api.create_repo(f"{registry.user}/whole-pack").repo_id
    files = release(tmp_path / "pack")
    head = api.model_info(repository).sha
    name = next(path for path in files if path.endswith("delta-00001.safetensors"))
    record = next(path for path in files if path.endswith("base.json.zst"))
    manifest_path = "releases/1.0/skillpack.json"

    def without(path: str) -> dict[str, bytes]:
        return {key: value for key, value in files.items() if key != path}

    for broken, words in (
        (without(name), f"{name} is not there"),
        ({**files, name: files[name][:-1] + b"!"}, f"{name} has {len(files[name])} bytes with sha256 "),
        ({**files, record: b"!"}, f"{record} has 1 bytes with sha256 "),
        (without(manifest_path), f"{manifest_path} is not there"),
        ({**files, manifest_path: files[manifest_path].replace(b'"1.0"', b'"2.0"')}, "has digest"),
        ({**files, manifest_path: b"{}"}, "has digest"),
    ):
        for options in ({}, {"create_pr": True}):
            with pytest.raises(HfHubHTTPError) as caught:
                commit(api, repository, broken, **options)
            assert caught.value.response.status_code == 400
            assert caught.value.response.headers["X-Error-Code"] == "ReleaseMismatch"
            assert words in str(caught.value)
    assert api.model_info(repository).sha == head
    assert list(api.get_repo_discussions(repository)) == []
    commit(api, repository, files)
    assert [one["version"] for one in ask(registry, repository, "releases")["releases"]] == ["1.0"]


def test_the_index_and_the_manifest_say_the_same(api: HfApi, registry: RegistryProcess) -> None:
    repository = api.create_repo(f"{registry.user}/says-the-same").repo_id
    path, data = "releases/1.0/skillpack.json", manifest("1.0")
    for announced in (
        line("1.0").replace(b'"version":"1.0"', b'"version":"1.1"'),
        line("1.0").replace(b'"schema":0', b'"requires":["acme/x"],"schema":0'),
    ):
        where = path if b'"1.1"' not in announced else "releases/1.1/skillpack.json"
        with pytest.raises(HfHubHTTPError, match="do not say the same") as caught:
            commit(api, repository, {"releases.jsonl": announced, where: data})
        assert caught.value.response.headers["X-Error-Code"] == "ReleaseMismatch"
    commit(api, repository, {"releases.jsonl": line("1.0"), path: data})


def test_packs_are_found_by_the_bases_that_they_fit(registry: RegistryProcess, tmp_path: Path) -> None:
    owner = hub.Registry("hub", registry.endpoint, registry.token)
    api = HfApi(endpoint=registry.endpoint, token=registry.token)
    name = f"{registry.user}/fitting-pack"
    publish(make_pack(tmp_path / "1", "fitting-pack", "1.0", (BASE,)), name, registry=owner)
    publish(make_pack(tmp_path / "2", "fitting-pack", "1.1", (BASE, OTHER_BASE)), name, registry=owner)

    def found(*tags: str, **more: Any) -> list[str]:
        return [model.id for model in api.list_models(filter=list(tags), author=registry.user, **more)]

    assert name in found(f"skillhub:base:{BASE}")
    assert found(f"skillhub:base:{OTHER_BASE}", "skillpack", "math", search="fitting") == [name]
    assert found("base_model:acme/base-model", search="fitting") == [name]
    append_line(registry, name, "yank", "1.1", "wrong")
    assert name not in found(f"skillhub:base:{OTHER_BASE}")
    append_line(registry, name, "unyank", "1.1", "right")
    assert name in found(f"skillhub:base:{OTHER_BASE}")


def test_releases_are_told_with_what_was_withdrawn(registry: RegistryProcess, tmp_path: Path) -> None:
    owner = hub.Registry("hub", registry.endpoint, registry.token)
    name = f"{registry.user}/told-pack"
    packs = [make_pack(tmp_path / version, "told-pack", version) for version in ("1.0", "1.1", "2.0rc1")]
    for pack in packs:
        publish(pack, name, registry=owner)
    before = ask(registry, name, "releases")
    append_line(registry, name, "yank", "1.1", "it is broken")
    append_line(registry, name, "deprecate", None, "use another")
    told = ask(registry, name, "releases")
    assert (told["name"], told["newest"], told["deprecated"], told["movedTo"]) == (name, "1.0", "use another", None)
    assert [(one["version"], one["yanked"]) for one in told["releases"]] == [
        ("2.0rc1", None),
        ("1.1", "it is broken"),
        ("1.0", None),
    ]
    assert [one["manifest"] for one in told["releases"]] == [pack.digest for pack in reversed(packs)]
    assert told["releases"][0]["variants"] == [
        {"fingerprint": BASE, "bytes": packs[2].manifest.variants[0].size},
    ]
    assert [one["publishedAt"] for one in told["releases"]] == [one["publishedAt"] for one in before["releases"]]
    assert all(one["publishedAt"] for one in told["releases"])


def test_who_requires_whom(api: HfApi, registry: RegistryProcess, guest: HfApi) -> None:
    user = registry.user
    wanted = api.create_repo(f"{user}/wanted-pack").repo_id
    one, two = f"{user}/wanting-one", f"{user}/wanting-two"
    for name, versions in {one: ("1.0", "1.1"), two: ("1.0",)}.items():
        api.create_repo(name, private=name == two)
        index, files = b"", {}
        for version in versions:
            requires = (f"{user}/wanted-pack>={version}", "nobody/nothing")
            index += line(version, requires)
            files[f"releases/{version}/skillpack.json"] = manifest(version, requires)
        commit(api, name, {"releases.jsonl": index, **files})

    def dependents(token: str | None) -> list[tuple[str, str, str]]:
        told = ask(registry, wanted, "dependents", token)["dependents"]
        return [(entry["name"], entry["version"], entry["requirement"]) for entry in told]

    of_one = [(one, version, f"{user}/wanted-pack>={version}") for version in ("1.1", "1.0")]
    assert dependents(None) == of_one
    assert dependents(registry.token) == [*of_one, (two, "1.0", f"{user}/wanted-pack>=1.0")]
    told = ask(registry, one, "dependencies")
    assert told == {
        "version": "1.1",
        "requires": [
            {"name": f"{user}/wanted-pack", "requirement": f"{user}/wanted-pack>=1.1", "isHere": True},
            {"name": "nobody/nothing", "requirement": "nobody/nothing", "isHere": False},
        ],
        "conflicts": [],
    }
    assert ask(registry, one, "dependencies", version="1.0")["requires"][0]["requirement"] == f"{user}/wanted-pack>=1.0"
    for version, status in (("9.9", 404), ("one", 400)):
        with pytest.raises(requests.HTTPError, match=str(status)):
            ask(registry, one, "dependencies", version=version)
    # what is private looks as if it were not there, and a moved pack is still the one that is required
    api.update_repo_settings(wanted, private=True)
    assert not ask(registry, one, "dependencies")["requires"][0]["isHere"]
    assert ask(registry, one, "dependencies", registry.token)["requires"][0]["isHere"]
    api.move_repo(wanted, f"{user}/moved-pack")
    assert len(ask(registry, f"{user}/moved-pack", "dependents", registry.token)["dependents"]) == 3
    append_line(registry, one, "yank", "1.0", "wrong")
    assert len(ask(registry, f"{user}/moved-pack", "dependents", registry.token)["dependents"]) == 2


def test_a_repository_without_releases_has_none(api: HfApi, registry: RegistryProcess) -> None:
    repository = api.create_repo(f"{registry.user}/no-pack").repo_id
    commit(api, repository, {"releases.jsonl": b"no index\n"})
    assert ask(registry, repository, "releases")["releases"] == []
    assert ask(registry, repository, "dependents") == {"dependents": []}
    with pytest.raises(requests.HTTPError, match="404"):
        ask(registry, repository, "dependencies")


def test_files_of_a_release_are_not_deleted_for_good(api: HfApi, registry: RegistryProcess, tmp_path: Path) -> None:
    repository = api.create_repo(f"{registry.user}/undeletable").repo_id
    commit(api, repository, release(tmp_path / "pack"))
    commit(api, repository, {"other.bin": b"\0" * 100})
    files = list(api.list_lfs_files(repository))
    assert {file.filename for file in files} > {"other.bin"}
    head = api.model_info(repository).sha
    for chosen in (files, [file for file in files if file.filename != "other.bin"][:1]):
        with pytest.raises(HfHubHTTPError, match="belongs to a published release") as caught:
            api.permanently_delete_lfs_files(repository, chosen)
        assert caught.value.response.status_code == 409
    assert api.model_info(repository).sha == head
    assert len(list(api.list_lfs_files(repository))) == len(files)
    api.permanently_delete_lfs_files(repository, [file for file in files if file.filename == "other.bin"])
    assert api.model_info(repository).sha != head
    assert len(ask(registry, repository, "releases")["releases"]) == 1


def test_no_release_names_what_was_deleted_for_good(api: HfApi, registry: RegistryProcess, tmp_path: Path) -> None:
    repository = api.create_repo(f"{registry.user}/deleted-first").repo_id
    files = release(tmp_path / "pack")
    index = files.pop("releases.jsonl")
    commit(api, repository, files)
    api.permanently_delete_lfs_files(repository, list(api.list_lfs_files(repository))[:1], rewrite_history=False)
    with pytest.raises(HfHubHTTPError, match="was deleted for good"):
        commit(api, repository, {"releases.jsonl": index})
