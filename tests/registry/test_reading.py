"""Reading: downloads with ranges, trees in pages, models found and sorted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from huggingface_hub import CommitOperationAdd, HfApi, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile, RepoFolder

from skillhub_registry.git import object_id
from tests.support.hub_client import make_content
from tests.support.registry_process import RegistryProcess, running_registry

CONTENT = bytes(range(256)) * 10


@pytest.fixture(scope="module")
def api(registry: RegistryProcess) -> HfApi:
    return HfApi(endpoint=registry.endpoint, token=registry.token)


@pytest.fixture(scope="module")
def repository(api: HfApi, registry: RegistryProcess) -> str:
    name = api.create_repo(f"{registry.user}/reading").repo_id
    operations = [
        CommitOperationAdd("w.safetensors", CONTENT),
        CommitOperationAdd("page.html", b"<script>alert(1)</script>"),
        CommitOperationAdd("config.json", b"{}"),
        CommitOperationAdd("ä b/ü?#%.txt", b"odd"),
        CommitOperationAdd("empty.txt", b""),
    ]
    api.create_commit(name, operations, commit_message="files")
    return name


@pytest.mark.parametrize(
    ("asked", "status", "expected"),
    [
        (None, 200, CONTENT),
        ("bytes=0-9", 206, CONTENT[:10]),
        ("bytes=100-", 206, CONTENT[100:]),
        ("bytes=-7", 206, CONTENT[-7:]),
        ("bytes=2550-99999", 206, CONTENT[2550:]),
        ("bytes=0-0", 206, CONTENT[:1]),
        ("bytes=-99999", 206, CONTENT),
        ("bytes=2560-", 416, None),
        ("bytes=99999-100000", 416, None),
        ("bytes=9-0", 200, CONTENT),
        ("bytes=-", 200, CONTENT),
        ("bytes=0-1,5-6", 200, CONTENT),
        ("lines=0-1", 200, CONTENT),
    ],
)
def test_ranges(
    registry: RegistryProcess, repository: str, asked: str | None, status: int, expected: bytes | None
) -> None:
    url = f"{registry.endpoint}/{repository}/resolve/main/w.safetensors"
    answer = requests.get(url, headers={"Range": asked} if asked else {})
    assert answer.status_code == status
    if expected is None:
        assert answer.headers["Content-Range"] == f"bytes */{len(CONTENT)}"
        return
    assert answer.content == expected
    assert answer.headers["Content-Length"] == str(len(expected))
    if status == 206:
        start = (
            CONTENT.rindex(expected)
            if asked and asked.startswith("bytes=-")
            else int((asked or "").split("=")[1].split("-")[0])
        )
        assert answer.headers["Content-Range"] == f"bytes {start}-{start + len(expected) - 1}/{len(CONTENT)}"


@pytest.fixture(scope="module")
def large(api: HfApi, repository: str) -> bytes:
    """A file so large that the kernel sends it."""
    content = make_content(5, 3_000_001)
    api.create_commit(repository, [CommitOperationAdd("large.bin", content)], commit_message="A large file")
    return content


@pytest.mark.parametrize(
    ("first", "last"), [(0, 65_534), (0, 65_535), (1, 1_048_577), (2_900_000, 3_000_000), (3_000_000, 3_000_000)]
)
def test_ranges_of_a_large_file(
    registry: RegistryProcess, repository: str, large: bytes, first: int, last: int
) -> None:
    url = f"{registry.endpoint}/{repository}/resolve/main/large.bin"
    with requests.Session() as session:  # one connection: what comes after an answer must be the next answer
        assert session.get(url).content == large
        part = session.get(url, headers={"Range": f"bytes={first}-{last}"})
        assert (part.status_code, part.content) == (206, large[first : last + 1])
        assert part.headers["Content-Range"] == f"bytes {first}-{last}/{len(large)}"
        assert session.head(url).headers["Content-Length"] == str(len(large))
        assert session.get(url).content == large


def test_a_range_of_another_content_is_not_sent(registry: RegistryProcess, repository: str) -> None:
    url = f"{registry.endpoint}/{repository}/resolve/main/w.safetensors"
    etag = requests.head(url).headers["ETag"]
    for condition, status in ((etag, 206), ('"another"', 200)):
        assert requests.get(url, headers={"Range": "bytes=5-", "If-Range": condition}).status_code == status


def test_empty_file_has_no_ranges(registry: RegistryProcess, repository: str) -> None:
    url = f"{registry.endpoint}/{repository}/resolve/main/empty.txt"
    assert requests.get(url).content == b""
    assert requests.get(url, headers={"Range": "bytes=0-"}).status_code == 416


def test_metadata(registry: RegistryProcess, repository: str, api: HfApi, tmp_path: Path) -> None:
    head = api.model_info(repository).sha
    small = get_hf_file_metadata(hf_hub_url(repository, "config.json", endpoint=registry.endpoint))
    assert (small.commit_hash, small.etag, small.size) == (head, object_id("blob", b"{}"), 2)
    large = get_hf_file_metadata(hf_hub_url(repository, "w.safetensors", endpoint=registry.endpoint))
    (entry,) = api.get_paths_info(repository, "w.safetensors")
    assert isinstance(entry, RepoFile)
    assert entry.lfs is not None
    assert (large.etag, large.size, large.xet_file_data) == (entry.lfs.sha256, len(CONTENT), None)
    fetched = hf_hub_download(repository, "ä b/ü?#%.txt", endpoint=registry.endpoint, local_dir=tmp_path)
    assert Path(fetched).read_bytes() == b"odd"


def test_files_are_harmless_in_a_browser(registry: RegistryProcess, repository: str) -> None:
    answer = requests.get(f"{registry.endpoint}/{repository}/resolve/main/page.html")
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "sandbox" in answer.headers["Content-Security-Policy"]


def test_what_is_not_there(registry: RegistryProcess, repository: str) -> None:
    with pytest.raises(EntryNotFoundError) as missing:
        hf_hub_download(repository, "no.txt", endpoint=registry.endpoint)
    assert missing.value.response is not None
    assert missing.value.response.headers["X-Repo-Commit"]
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download(repository, "config.json", revision="no", endpoint=registry.endpoint)
    for name in ("nobody/nothing", "single"):
        with pytest.raises(RepositoryNotFoundError):
            hf_hub_download(name, "config.json", endpoint=registry.endpoint)
        with pytest.raises(RepositoryNotFoundError):
            HfApi(endpoint=registry.endpoint, token=False).model_info(name)
    for path in ("..%2F..%2Fetc%2Fpasswd", "%2e%2e/%2e%2e/etc/passwd", "a%00b", "%ff", "a%5Cb", ".git%2Fconfig"):
        answer = requests.get(f"{registry.endpoint}/{repository}/resolve/main/{path}")
        assert answer.status_code in (400, 404)
        assert answer.headers["X-Error-Code"]


def test_trees_come_in_pages(api: HfApi, registry: RegistryProcess) -> None:
    name = api.create_repo(f"{registry.user}/pages").repo_id
    paths = [f"d{number % 3}/f{number:04}.txt" for number in range(1200)]
    api.create_commit(name, [CommitOperationAdd(path, b"same") for path in paths], commit_message="many")
    entries = list(api.list_repo_tree(name, recursive=True))
    files = [entry.path for entry in entries if isinstance(entry, RepoFile)]
    assert sorted(files) == sorted([*paths, ".gitattributes"])
    assert [entry.path for entry in entries if isinstance(entry, RepoFolder)] == ["d0", "d1", "d2"]
    expanded = list(api.list_repo_tree(name, "d1", expand=True))
    assert [entry.path for entry in expanded] == sorted(path for path in paths if path.startswith("d1/"))
    assert {entry.last_commit.title for entry in expanded if entry.last_commit} == {"many"}
    assert [entry.path for entry in api.list_repo_tree(name)] == [".gitattributes", "d0", "d1", "d2"]
    found = api.get_paths_info(name, ["d0", "d1/f0001.txt", "no", "d0/no"], expand=True)
    assert {entry.path: type(entry) for entry in found} == {"d0": RepoFolder, "d1/f0001.txt": RepoFile}
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(name, "no/where"))


def test_long_histories_come_in_pages(api: HfApi, registry: RegistryProcess) -> None:
    name = api.create_repo(f"{registry.user}/history-pages").repo_id
    for number in range(52):
        api.create_commit(name, [CommitOperationAdd("n.txt", str(number).encode())], commit_message=f"number {number}")
    titles = [commit.title for commit in api.list_repo_commits(name)]
    assert titles == [*(f"number {number}" for number in reversed(range(52))), "initial commit"]


CARDS = {
    "acme/math-pack": "tags: [skillpack, maths]\npipeline_tag: text-generation\nbase_model: acme/base",
    "acme/code-pack": "tags: [skillpack, code]\nlibrary_name: skillhub",
    "acme-two/math-notes": "license: mit",
}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryProcess]:
    """A registry with three models and nothing else."""
    with running_registry(tmp_path_factory.mktemp("shelf")) as registry:
        api = HfApi(endpoint=registry.endpoint, token=registry.token)
        registry.add_organization("acme", registry.user)
        registry.add_organization("acme-two", registry.user)
        for name, card in CARDS.items():
            api.create_repo(name)
            readme = CommitOperationAdd("README.md", f"---\n{card}\n---\n".encode())
            api.create_commit(name, [readme, CommitOperationAdd("config.json", b"{}")], commit_message="card")
        yield registry


def test_models_are_found(shelf: RegistryProcess) -> None:
    api = HfApi(endpoint=shelf.endpoint, token=False)

    def names(**options: object) -> list[str]:
        return [model.id for model in api.list_models(**options)]  # type: ignore[arg-type]

    newest_first = list(reversed(CARDS))
    assert names() == newest_first
    assert names(limit=2) == newest_first[:2]
    assert names(sort="created_at") == newest_first
    assert names(author="ACME") == ["acme/code-pack", "acme/math-pack"]
    assert names(search="MATH") == ["acme-two/math-notes", "acme/math-pack"]
    assert names(search="pack acme math") == ["acme/math-pack"]
    assert names(search="100%") == []
    assert names(filter="skillpack") == ["acme/code-pack", "acme/math-pack"]
    assert names(filter=["skillpack", "maths"]) == ["acme/math-pack"]
    assert names(filter="base_model:acme/base") == ["acme/math-pack"]
    assert names(filter="skillhub") == ["acme/code-pack"]
    assert names(pipeline_tag="text-generation") == ["acme/math-pack"]


def test_models_come_in_pages(shelf: RegistryProcess) -> None:
    first = requests.get(f"{shelf.endpoint}/api/models?limit=1&sort=createdAt&filter=skillpack")
    second = requests.get(first.links["next"]["url"])
    assert [model["id"] for model in first.json() + second.json()] == ["acme/code-pack", "acme/math-pack"]
    assert "next" not in second.links
    for bad in ("cursor=x", "cursor=OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTo=", "limit=many", "sort=beauty"):
        assert requests.get(f"{shelf.endpoint}/api/models?{bad}").status_code == 400


def test_models_are_described(shelf: RegistryProcess) -> None:
    api = HfApi(endpoint=shelf.endpoint, token=False)
    (full,) = api.list_models(search="code", full=True, cardData=True)
    assert full.siblings is not None
    assert [sibling.rfilename for sibling in full.siblings] == [".gitattributes", "README.md", "config.json"]
    assert full.card_data is not None
    assert full.card_data.library_name == "skillhub"
    info = api.model_info("acme/code-pack", expand=["downloads", "tags"])
    assert (info.sha, info.siblings, info.downloads) == (None, None, 0)
    assert "All 2 packs" in requests.get(shelf.endpoint).text


def test_downloads_are_counted(tmp_path: Path) -> None:
    """Counts are written at the latest when the process ends; the newest commit sorts first."""
    with running_registry(tmp_path / "data") as registry:
        api = HfApi(endpoint=registry.endpoint, token=registry.token)
        for name in ("used", "unused"):
            api.create_repo(f"{registry.user}/{name}")
            api.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id=f"{registry.user}/{name}")
        assert [model.id for model in api.list_models()] == [f"{registry.user}/unused", f"{registry.user}/used"]
        for path in ("config.json", ".gitattributes"):
            hf_hub_download(f"{registry.user}/used", path, endpoint=registry.endpoint, local_dir=tmp_path / "fetched")
        api.upload_file(path_or_fileobj=b"1", path_in_repo="n.txt", repo_id=f"{registry.user}/used")
        assert [model.id for model in api.list_models()] == [f"{registry.user}/used", f"{registry.user}/unused"]
    with running_registry(tmp_path / "data", token=registry.token) as again:
        models = list(HfApi(endpoint=again.endpoint, token=again.token).list_models(sort="downloads"))
        assert [(model.id.split("/")[1], model.downloads) for model in models] == [("used", 1), ("unused", 0)]
