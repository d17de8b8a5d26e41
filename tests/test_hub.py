"""The boundary to huggingface_hub, against a real registry."""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from skillhub import hub
from skillhub.checkpointfiles import checkpoint_files
from skillhub.errors import (
    AuthError,
    DiskError,
    NetworkError,
    NotFoundError,
    OfflineError,
    UnsafeContentError,
    UsageError,
)
from skillhub.releases import RELEASES_FILE
from tests.support.registry_process import RegistryProcess

pytestmark = pytest.mark.usefixtures("homes")

INDEX = b'{"schema":0}\n'


@pytest.fixture(scope="module")
def repository(registry: RegistryProcess) -> str:
    """A repository with an index, a large file and a base model."""
    name = f"{registry.user}/hub-tests"
    api = HfApi(endpoint=registry.endpoint, token=registry.token)
    api.create_repo(name)
    for path, data in {
        RELEASES_FILE: INDEX,
        "deep/file.safetensors": b"z" * 300_000,
        "model.safetensors": b"w" * 1000,
        "config.json": b"{}",
        "notes.txt": b"not a part of the model",
    }.items():
        api.upload_file(path_in_repo=path, path_or_fileobj=data, repo_id=name)
    return name


@pytest.fixture
def mine(registry: RegistryProcess) -> hub.Registry:
    return hub.Registry("hub", registry.endpoint, registry.token)


@pytest.fixture
def nobody(registry: RegistryProcess) -> hub.Registry:
    return hub.Registry("hub", registry.endpoint)


@pytest.fixture
def closed() -> hub.Registry:
    """An address where nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return hub.Registry("hub", f"http://127.0.0.1:{taken.getsockname()[1]}", "hf_secret")


def test_importing_the_boundary_does_not_import_the_client() -> None:
    code = "import sys, skillhub.hub; print(any(m in sys.modules for m in ('huggingface_hub', 'torch', 'httpx2')))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_the_ambient_token_goes_to_the_configured_endpoint_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_ambient")
    monkeypatch.setenv("HF_ENDPOINT", "https://own.example/")
    assert hub.default_registry() == hub.Registry("hub", "https://own.example", "hf_ambient")
    assert hub.default_registry("https://own.example").token == "hf_ambient"
    assert hub.default_registry("https://other.example") == hub.Registry("other.example", "https://other.example")
    assert hub.default_registry("https://other.example", "hf_given").token == "hf_given"
    assert "hf_ambient" not in repr(hub.default_registry())


def test_the_index_is_read_with_its_commit(nobody: hub.Registry, repository: str) -> None:
    read = hub.read_releases(nobody, repository)
    assert read is not None
    assert read.data == INDEX
    assert read.commit == hub.repository_head(nobody, repository)
    assert hub.read_releases(nobody, repository, known=INDEX) == read
    assert hub.read_releases(nobody, repository, known=b"older") == read
    assert hub.read_file(nobody, repository, "missing.txt", limit=10) is None


def test_a_file_over_the_limit_is_refused(nobody: hub.Registry, repository: str) -> None:
    with pytest.raises(NetworkError, match="more than 5 bytes"):
        hub.read_file(nobody, repository, RELEASES_FILE, limit=5)


def test_a_download_arrives_and_reports_its_bytes(nobody: hub.Registry, repository: str, tmp_path: Path) -> None:
    pieces: list[int] = []
    path = hub.download_file(
        nobody, repository, "deep/file.safetensors", into=tmp_path / "staging", progress=pieces.append
    )
    assert path.read_bytes() == b"z" * 300_000
    assert sum(pieces) == 300_000


def test_what_is_missing_is_said(nobody: hub.Registry, repository: str, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no repository nobody/nothing"):
        hub.read_releases(nobody, "nobody/nothing")
    with pytest.raises(NotFoundError, match="no such revision or file"):
        hub.download_file(nobody, repository, "missing", into=tmp_path)
    with pytest.raises(NotFoundError, match="no such revision or file"):
        hub.read_releases(nobody, repository, revision="0" * 40)
    assert hub.repository_head(nobody, "nobody/nothing") is None
    with pytest.raises(UsageError):
        hub.read_releases(nobody, "not/a/name")


def test_nothing_listening_is_a_network_error(closed: hub.Registry, repository: str) -> None:
    with pytest.raises(NetworkError, match="cannot be reached") as caught:
        hub.read_releases(closed, repository)
    assert closed.endpoint in caught.value.message
    assert caught.value.exit_code == 8
    assert "hf_secret" not in str(caught.value.to_json())


@pytest.mark.parametrize(
    "body", [b"[]", b"{}", b"3", b'{"name": null, "auth": []}', b'{"id": 1, "siblings": 2}', b"<p>Hi"]
)
def test_answers_of_something_else_are_a_network_error(body: bytes) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        stranger = hub.Registry("hub", f"http://127.0.0.1:{server.server_port}", "token-of-mine")
        calls: list[Callable[[], object]] = [
            lambda: hub.fetch_account(stranger),
            lambda: hub.repository_head(stranger, "acme/x"),
            lambda: hub.repository_id(stranger, "acme/x"),
            lambda: hub.release_times(stranger, "acme/x"),
            lambda: hub.find_packs(stranger, "x"),
            lambda: hub.base_file_digests(stranger, "acme/x"),
        ]
        for call in calls:
            with suppress(NetworkError):
                call()
        server.shutdown()
        thread.join()


def test_without_a_token_nothing_is_written(nobody: hub.Registry, repository: str) -> None:
    for write in (
        lambda: hub.fetch_account(nobody),
        lambda: hub.create_repository(nobody, "acme/x"),
        lambda: hub.commit(nobody, repository, {"x": b"x"}, message="x", parent=None),
        lambda: hub.create_tag(nobody, repository, "v1", revision="main"),
    ):
        with pytest.raises(AuthError, match="no token") as caught:
            write()
        assert caught.value.exit_code == 9
        assert "skillhub login" in caught.value.hint


def test_a_wrong_token_and_a_foreign_repository_are_refused(registry: RegistryProcess, repository: str) -> None:
    wrong = hub.Registry("hub", registry.endpoint, "hf_wrong_token")
    with pytest.raises(AuthError) as caught:
        hub.fetch_account(wrong)
    assert "hf_wrong_token" not in str(caught.value.to_json())
    stranger = hub.Registry("hub", registry.endpoint, registry.add_user("stranger-hub"))
    with pytest.raises(AuthError):
        hub.commit(stranger, repository, {"x": b"x"}, message="x", parent=None)


def test_a_commit_is_made_on_the_parent_only(mine: hub.Registry, repository: str, tmp_path: Path) -> None:
    (tmp_path / "large.safetensors").write_bytes(b"l" * 100_000)
    parent = hub.repository_head(mine, repository)
    files: dict[str, bytes | Path] = {"a/large.safetensors": tmp_path / "large.safetensors", "small": b"s"}
    done = hub.commit(mine, repository, files, message="Add files", parent=parent)
    assert done.commit == hub.repository_head(mine, repository)
    with pytest.raises(NetworkError):
        hub.commit(mine, repository, {"other": b"o"}, message="Add another", parent=parent)
    read = hub.read_file(mine, repository, "a/large.safetensors", limit=1 << 20)
    assert read is not None
    assert read.data == b"l" * 100_000
    hub.create_tag(mine, repository, "v1.0", revision=done.commit)
    hub.create_tag(mine, repository, "v1.0", revision=done.commit)
    assert hub.read_file(mine, repository, "small", revision="v1.0", limit=10) is not None


def test_whoami_and_search(mine: hub.Registry, registry: RegistryProcess) -> None:
    assert hub.fetch_account(mine).name == registry.user
    name = f"{registry.user}/Findable"
    hub.create_repository(mine, name)
    hub.create_repository(mine, name)
    assert hub.find_namesakes(mine, "findable") == []
    hub.commit(mine, name, {"README.md": b"---\ntags: [skillpack]\n---\n"}, message="Tag it", parent=None)
    assert hub.find_namesakes(mine, "findable") == [name]


def test_a_base_is_fetched_without_what_is_no_part_of_it(nobody: hub.Registry, repository: str) -> None:
    digests = hub.base_file_digests(nobody, repository)
    assert digests == {"model.safetensors": hashlib.sha256(b"w" * 1000).hexdigest()}
    folder = hub.fetch_base(nobody, repository)
    assert (folder / "model.safetensors").read_bytes() == b"w" * 1000
    assert (folder / "config.json").is_file()
    assert not (folder / "notes.txt").exists()
    assert hub.fetch_base(nobody, repository, offline=True) == folder


def make_base(mine: hub.Registry, name: str, files: dict[str, bytes]) -> str:
    hub.create_repository(mine, name)
    hub.commit(mine, name, dict(files), message="Add", parent=None)
    return name


SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def test_only_the_weights_themselves_are_fetched(mine: hub.Registry, registry: RegistryProcess) -> None:
    """Other exports of the same model lie in folders, or beside the shards under other names."""
    index = {"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}}
    files = {
        **dict.fromkeys(SHARDS, b"shard"),
        "model.safetensors.index.json": json.dumps(index).encode(),
        "model-old.safetensors": b"another",
        "consolidated.safetensors": b"another",
        "onnx/model.safetensors": b"another",
        "original/consolidated.00.safetensors": b"another",
        "onnx/tokenizer.json": b"{}",
        "1_Pooling/config.json": b"{}",
        "tokenizer.json": b"{}",
        "config.json": b"{}",
    }
    name = make_base(mine, f"{registry.user}/sharded-base", files)
    assert hub.base_file_digests(mine, name) == {shard: hashlib.sha256(b"shard").hexdigest() for shard in SHARDS}
    folder = hub.fetch_base(mine, name)
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()) == [
        "1_Pooling/config.json",
        "config.json",
        *SHARDS,
        "model.safetensors.index.json",
        "tokenizer.json",
    ]
    assert [path.name for path in checkpoint_files(folder)] == list(SHARDS)
    assert hub.fetch_base(mine, name, offline=True) == folder
    (folder / SHARDS[1]).unlink()
    with pytest.raises(OfflineError):
        hub.fetch_base(mine, name, offline=True)


def test_several_files_without_an_index_are_no_base(mine: hub.Registry, registry: RegistryProcess) -> None:
    files = {"a.safetensors": b"a", "b.safetensors": b"b"}
    name = make_base(mine, f"{registry.user}/no-index", files)
    assert hub.base_file_digests(mine, name) == {}
    with pytest.raises(UsageError, match="2 safetensors files and no model"):
        hub.fetch_base(mine, name)


def test_a_cache_that_cannot_be_written_is_a_disk_error(
    nobody: hub.Registry, repository: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    with pytest.raises(DiskError) as caught:
        hub.fetch_base(nobody, repository)
    assert caught.value.exit_code == 14


def test_pickles_are_refused_with_the_remedy(mine: hub.Registry, registry: RegistryProcess) -> None:
    name = f"{registry.user}/pickles"
    hub.create_repository(mine, name)
    with pytest.raises(NotFoundError, match="no safetensors"):
        hub.fetch_base(mine, name)
    hub.commit(mine, name, {"pytorch_model.bin": b"\x80"}, message="Add weights", parent=None)
    with pytest.raises(UnsafeContentError, match="pickles") as caught:
        hub.fetch_base(mine, name)
    assert "save_pretrained" in caught.value.hint


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "SKILLHUB_OFFLINE"])
def test_offline_nothing_is_asked(
    mine: hub.Registry, repository: str, monkeypatch: pytest.MonkeyPatch, variable: str, tmp_path: Path
) -> None:
    monkeypatch.setenv(variable, "1")
    for call in (
        lambda: hub.read_releases(mine, repository),
        lambda: hub.download_file(mine, repository, "config.json", into=tmp_path),
        lambda: hub.fetch_base(mine, repository),
        lambda: hub.repository_head(mine, repository),
        lambda: hub.fetch_account(mine),
        lambda: hub.find_namesakes(mine, "x"),
        lambda: hub.base_file_digests(mine, repository),
    ):
        with pytest.raises(OfflineError) as caught:
            call()
        assert caught.value.exit_code == 8
