"""Publishing against a real registry."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub import CommitInfo, HfApi
from huggingface_hub.errors import HfHubHTTPError

from skillhub import hub
from skillhub.errors import AuthError, IntegrityError, NetworkError, NotFoundError, TrustError, UsageError
from skillhub.manifest import parse_manifest
from skillhub.publisher import publish
from skillhub.releases import parse_releases
from tests.support.packs import BASE, OTHER_BASE, make_pack
from tests.support.registry_process import RegistryProcess
from tests.support.tampering import put_unchecked

pytestmark = pytest.mark.usefixtures("homes")


@pytest.fixture(scope="module")
def owner(registry: RegistryProcess) -> hub.Registry:
    return hub.Registry("hub", registry.endpoint, registry.add_user("publisher"))


def api(owner: hub.Registry) -> HfApi:
    return HfApi(endpoint=owner.endpoint, token=owner.token)


def released(owner: hub.Registry, name: str) -> list[str]:
    """Return the versions in the index, after checking that each one's files are there and as announced."""
    read = hub.read_releases(owner, name)
    if read is None:
        return []
    for release in parse_releases(read.data).releases:
        found = hub.read_file(owner, name, f"{release.folder}/skillpack.json", limit=1 << 20)
        assert found is not None
        manifest = parse_manifest(found.data)
        assert manifest.digest == release.manifest_digest
        sizes = {
            entry.path: entry.size
            for entry in api(owner).list_repo_tree(name, recursive=True)
            if hasattr(entry, "size")
        }
        for variant in manifest.variants:
            for entry in variant.files:
                assert sizes[f"{release.folder}/{entry.path}"] == entry.size
    return [str(release.version) for release in parse_releases(read.data).releases]


def test_one_commit_makes_a_release(owner: hub.Registry, tmp_path: Path) -> None:
    pack = make_pack(tmp_path / "pack", "first-pack", "1.0", [BASE, OTHER_BASE])
    read: list[tuple[str, int, int]] = []
    done = publish(pack, "publisher/first-pack", registry=owner, progress=lambda *step: read.append(step))
    release = done.release
    assert (done.repository, done.pull_request, done.already_there) == ("publisher/first-pack", None, False)
    assert (str(release.version), release.manifest_digest) == ("1.0", pack.digest)
    payload = sum(variant.size for variant in pack.manifest.variants)
    assert (f"Checking {pack}", payload, payload) in read  # read through before anything is sent
    assert read[-1][0] == "Sending publisher/first-pack" and read[-1][1] == read[-1][2] > payload
    assert released(owner, "publisher/first-pack") == ["1.0"]
    titles = [commit.title for commit in api(owner).list_repo_commits("publisher/first-pack")]
    assert titles[0] == "Release 1.0"
    assert "Release" not in " ".join(titles[1:])
    tags = api(owner).list_repo_refs("publisher/first-pack").tags
    head = hub.repository_head(owner, "publisher/first-pack")
    assert [(tag.name, tag.target_commit) for tag in tags] == [("v1.0", head)]
    assert done.commit == head
    assert hub.find_namesakes(owner, "first-pack") == ["publisher/first-pack"]
    root = hub.read_file(owner, "publisher/first-pack", "skillpack.json", limit=1 << 20)
    assert root is not None
    assert root.data == pack.manifest.to_bytes()


def test_publishing_the_same_again_is_a_success(owner: hub.Registry, tmp_path: Path) -> None:
    pack = make_pack(tmp_path / "pack", "again-pack", "1.0")
    first = publish(pack.folder, "publisher/again-pack", registry=owner)
    head = hub.repository_head(owner, "publisher/again-pack")
    notes: list[str] = []
    again = publish(pack, "Publisher/Again-Pack", registry=owner, notice=notes.append)
    assert (again.release, again.commit, again.already_there) == (first.release, first.commit, True)
    assert again.repository == "Publisher/Again-Pack"
    assert hub.repository_head(owner, "publisher/again-pack") == head
    assert "published already" in notes[0]


def tags_of(owner: hub.Registry, name: str) -> dict[str, str]:
    return {tag.name: tag.target_commit for tag in api(owner).list_repo_refs(name).tags}


def test_a_tag_is_on_its_own_release_or_not_there(owner: hub.Registry, tmp_path: Path) -> None:
    name = "publisher/tagged-pack"
    old, new = (make_pack(tmp_path / version, "tagged-pack", version) for version in ("1.0", "1.1"))
    first = publish(old, name, registry=owner)
    assert first.commit is not None
    api(owner).delete_tag(name, tag="v1.0")
    assert publish(old, name, registry=owner).commit == first.commit
    assert tags_of(owner, name) == {"v1.0": first.commit}
    api(owner).delete_tag(name, tag="v1.0")
    second = publish(new, name, registry=owner)
    again = publish(old, name, registry=owner)
    assert (again.already_there, again.commit) == (True, None)
    assert tags_of(owner, name) == {"v1.1": second.commit}


def refused() -> HfHubHTTPError:
    request = httpx2.Request("POST", "https://registry.example/commit")
    return HfHubHTTPError("No", response=httpx2.Response(403, request=request))


def test_even_a_refusal_may_hide_a_commit_that_landed(
    owner: hub.Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = HfApi.create_commit

    def land_and_refuse(*arguments: Any, **options: Any) -> None:
        send(*arguments, **options)
        raise refused()

    def refuse(*_: Any, **__: Any) -> None:
        raise refused()

    monkeypatch.setattr(HfApi, "create_commit", land_and_refuse)
    done = publish(make_pack(tmp_path / "1", "landed-pack", "1.0"), "publisher/landed-pack", registry=owner)
    assert done.commit == hub.repository_head(owner, "publisher/landed-pack")
    assert tags_of(owner, "publisher/landed-pack") == {"v1.0": done.commit}
    monkeypatch.setattr(HfApi, "create_commit", refuse)
    with pytest.raises(AuthError, match="refused this with 403"):
        publish(make_pack(tmp_path / "2", "landed-pack", "1.1"), "publisher/landed-pack", registry=owner)
    assert released(owner, "publisher/landed-pack") == ["1.0"]


def test_a_name_that_nobody_has_is_refused_with_what_to_do(owner: hub.Registry, tmp_path: Path) -> None:
    with pytest.raises(AuthError, match="org add nobodys --member publisher") as caught:
        publish(make_pack(tmp_path, "some-pack", "1.0"), "nobodys/some-pack", registry=owner)
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("Do what it says, or ")


def test_a_commit_that_vanished_is_not_tagged(
    owner: hub.Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first attempt is answered with a commit that nobody sees again; the second lands and is answered with 500."""
    send, sent = HfApi.create_commit, list[str]()

    def lose(*arguments: Any, **options: Any) -> CommitInfo:
        sent.append("commit")
        if len(sent) == 1:
            url = f"{owner.endpoint}/publisher/lost-pack/commit/{'0' * 40}"
            return CommitInfo(commit_url=url, commit_message="Lost", commit_description="", oid="0" * 40)
        send(*arguments, **options)
        raise httpx2.ReadTimeout("lost")

    monkeypatch.setattr(HfApi, "create_commit", lose)
    done = publish(make_pack(tmp_path / "1", "lost-pack", "1.0"), "publisher/lost-pack", registry=owner)
    assert done.commit == hub.repository_head(owner, "publisher/lost-pack")
    assert tags_of(owner, "publisher/lost-pack") == {"v1.0": done.commit}


def test_a_version_never_changes(owner: hub.Registry, tmp_path: Path) -> None:
    publish(make_pack(tmp_path / "1", "fixed-pack", "1.0"), "publisher/fixed-pack", registry=owner)
    with pytest.raises(IntegrityError, match="published already, with other content") as caught:
        publish(make_pack(tmp_path / "2", "fixed-pack", "1.0", seed="x"), "publisher/fixed-pack", registry=owner)
    assert caught.value.exit_code == 6
    assert "new version" in caught.value.hint
    assert released(owner, "publisher/fixed-pack") == ["1.0"]


def test_the_page_shows_the_newest_final_release(owner: hub.Registry, tmp_path: Path) -> None:
    name = "publisher/life-pack"

    def shown() -> tuple[str | None, str]:
        root = hub.read_file(owner, name, "skillpack.json", limit=1 << 20)
        card = hub.read_file(owner, name, "README.md", limit=1 << 20)
        assert card is not None
        version = card.data.decode().partition("describes version ")[2].partition(":")[0]
        return (parse_manifest(root.data).version if root else None), version

    publish(make_pack(tmp_path / "a", "life-pack", "1.0rc1"), name, registry=owner)
    assert shown() == (None, "1.0rc1")
    publish(make_pack(tmp_path / "b", "life-pack", "2.0"), name, registry=owner)
    assert shown() == ("2.0", "2.0")
    publish(make_pack(tmp_path / "c", "life-pack", "1.5"), name, registry=owner)
    publish(make_pack(tmp_path / "d", "life-pack", "3.0.dev1"), name, registry=owner)
    assert shown() == ("2.0", "2.0")
    assert released(owner, name) == ["1.0rc1", "2.0", "1.5", "3.0.dev1"]


def test_what_must_not_be_published_is_refused_before_anything_is_sent(owner: hub.Registry, tmp_path: Path) -> None:
    pack = make_pack(tmp_path / "pack", "bad-pack", "1.0")
    with pytest.raises(UsageError, match="is called bad-pack"):
        publish(pack, "publisher/other-pack", registry=owner)
    path = pack.path_of(pack.manifest.variants[0].files[0])
    data = path.read_bytes()
    path.write_bytes(data[:-1] + b"!")
    with pytest.raises(IntegrityError, match="altered"):
        publish(pack, "publisher/bad-pack", registry=owner)
    path.write_bytes(data)
    (pack.folder / "extra").write_text("x")
    with pytest.raises(IntegrityError, match="not listed"):
        publish(pack, "publisher/bad-pack", registry=owner)
    (pack.folder / "extra").unlink()
    with pytest.raises(UsageError, match="no variant"):
        publish(make_pack(tmp_path / "none", "bad-pack", "1.0", []), "publisher/bad-pack", registry=owner)
    with pytest.raises(NotFoundError):
        publish(tmp_path / "nothing", "publisher/bad-pack", registry=owner)
    assert hub.repository_head(owner, "publisher/bad-pack") is None


def test_without_the_right_to_publish(owner: hub.Registry, registry: RegistryProcess, tmp_path: Path) -> None:
    pack = make_pack(tmp_path / "pack", "foreign-pack", "1.0")
    with pytest.raises(AuthError, match="no token") as caught:
        publish(pack, "publisher/foreign-pack", registry=registry.endpoint)
    assert caught.value.exit_code == 9
    reader = hub.Registry("hub", registry.endpoint, registry.create_token("publisher", scope="read"))
    stranger = hub.Registry("hub", registry.endpoint, registry.add_user("publishing-stranger"))
    for someone in (reader, stranger):
        with pytest.raises(AuthError):
            publish(pack, "publisher/foreign-pack", registry=someone)
    assert hub.repository_head(owner, "publisher/foreign-pack") is None


def test_a_name_without_owner_is_ones_own(owner: hub.Registry, tmp_path: Path) -> None:
    done = publish(make_pack(tmp_path / "pack", "own-pack", "1.0"), "own-pack", registry=owner)
    assert done.repository == "publisher/own-pack"
    assert released(owner, "publisher/own-pack") == ["1.0"]


def test_an_unreachable_registry(tmp_path: Path) -> None:
    pack = make_pack(tmp_path / "pack", "own-pack", "1.0")
    with pytest.raises(NetworkError) as caught:
        publish(pack, "a/own-pack", registry=hub.Registry("hub", "http://127.0.0.1:1", "hf_secret"))
    assert caught.value.exit_code == 8
    assert "hf_secret" not in str(caught.value.to_json())


def test_nothing_is_proposed_to_a_repository_that_is_not_there(owner: hub.Registry, tmp_path: Path) -> None:
    pack = make_pack(tmp_path / "pack", "reviewed-pack", "1.1")
    with pytest.raises(NotFoundError, match="no repository"):
        publish(pack, "publisher/reviewed-pack", registry=owner, create_pr=True)
    assert hub.repository_head(owner, "publisher/reviewed-pack") is None


def test_nothing_is_added_to_a_rewritten_index(registry: RegistryProcess, owner: hub.Registry, tmp_path: Path) -> None:
    name = "publisher/rewritten-pack"
    first = make_pack(tmp_path / "1", "rewritten-pack", "1.0")
    publish(first, name, registry=owner)
    read = hub.read_releases(owner, name)
    assert read is not None
    changed = read.data.replace(first.digest.encode(), b"0" * 64)
    with pytest.raises(IntegrityError, match=r"refuses to change what was published \(releases.jsonl may only grow"):
        hub.commit(owner, name, {"releases.jsonl": changed}, message="Tamper", parent=read.commit)
    api(owner).delete_repo(name)
    hub.create_repository(owner, name)
    with pytest.raises(IntegrityError, match="rewritten"):
        publish(make_pack(tmp_path / "2", "rewritten-pack", "1.1"), name, registry=owner)
    put_unchecked(registry, owner.token, name, {"releases.jsonl": changed})
    with pytest.raises(TrustError):
        publish(make_pack(tmp_path / "3", "rewritten-pack", "1.1"), name, registry=owner)


CODE = """
import sys
from skillhub import hub
from skillhub.publisher import publish
publish(sys.argv[1], "publisher/busy-pack", registry=hub.Registry("hub", sys.argv[2], sys.argv[3]))
"""


def test_concurrent_publishers_both_end_up_right(owner: hub.Registry, tmp_path: Path) -> None:
    versions = ["1.0", "1.1", "1.2", "2.0rc1"]
    packs = [make_pack(tmp_path / version, "busy-pack", version) for version in versions]
    assert owner.token is not None
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CODE, str(pack.folder), owner.endpoint, owner.token],
            env={**os.environ, "SKILLHUB_STATE": str(tmp_path / "state")},
        )
        for pack in packs
    ]
    assert [process.wait() for process in processes] == [0] * len(packs)
    assert sorted(released(owner, "publisher/busy-pack")) == sorted(versions)
    root = hub.read_file(owner, "publisher/busy-pack", "skillpack.json", limit=1 << 20)
    assert root is not None
    assert parse_manifest(root.data).version == "1.2"
