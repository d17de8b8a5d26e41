from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import requests
from huggingface_hub import HfApi

from skillhub import hub
from skillhub.adapters import CONFIG_FILE, PICKLE_FILE
from skillhub.checkpointfiles import ADAPTER_FILE
from skillhub.errors import IntegrityError, NetworkError, NotFoundError, UnsafeContentError, UsageError
from skillhub.hub import adapters as hub_adapters
from tests.support.hub_client import client_environment
from tests.support.registry_process import ROOT, RegistryProcess

CONFIG = {"peft_type": "LORA", "base_model_name_or_path": "acme/tiny", "revision": "v1"}


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.support.peft_adapters import make_adapter
    from tests.support.tiny_models import save_model

    folder = tmp_path_factory.mktemp("adapters")
    return make_adapter(save_model("llama", folder / "base"), folder / "lora", target_modules=["q_proj"])


@pytest.fixture
def api(registry: RegistryProcess) -> HfApi:
    return HfApi(endpoint=registry.endpoint, token=registry.token)


@pytest.fixture
def ours(registry: RegistryProcess) -> hub.Registry:
    return hub.Registry("ours", registry.endpoint, registry.token)


@pytest.fixture
def repository(api: HfApi, registry: RegistryProcess, request: pytest.FixtureRequest) -> str:
    """Name of an empty repository for one test."""
    name = hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]
    return str(api.create_repo(f"{registry.user}/adapter-{name}").repo_id)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def put(api: HfApi, repository: str, **files: bytes) -> str:
    """Upload files by their names without dots; returns the commit."""
    names = {"config": CONFIG_FILE, "weights": ADAPTER_FILE, "pickle": PICKLE_FILE}
    commit = ""
    for name, data in files.items():
        path = names.get(name, name.replace("__", "."))
        commit = str(api.upload_file(repo_id=repository, path_in_repo=path, path_or_fileobj=data).oid)
    return commit


def test_what_the_stock_client_uploads_is_pinned_by_commit_and_digests(
    api: HfApi, ours: hub.Registry, repository: str, adapter: Path
):
    first = api.upload_folder(repo_id=repository, folder_path=adapter).oid
    found = hub.find_adapter(ours, repository)
    assert (found.commit, found.base, found.base_revision, found.moved_to) == (first, "acme/tiny", None, None)
    assert {entry.path: entry.sha256 for entry in found.files} == {
        path: sha256(adapter / path) for path in (CONFIG_FILE, ADAPTER_FILE)
    }
    assert [entry.size for entry in found.files] == [
        (adapter / path).stat().st_size for path in (CONFIG_FILE, ADAPTER_FILE)
    ]
    second = put(api, repository, config=json.dumps(CONFIG).encode())
    assert hub.find_adapter(ours, repository).commit == second
    for revision in (first, first[:12]):
        assert hub.find_adapter(ours, repository, revision) == found
    api.create_tag(repository, tag="v1", revision=first)
    assert hub.find_adapter(ours, repository, "v1") == found


PUSH = """
import sys, warnings, peft
from tests.support.tiny_models import load_model
from pathlib import Path
warnings.simplefilter("ignore")
base, adapter, repository = sys.argv[1:]
peft.PeftModel.from_pretrained(load_model(Path(base)), adapter).push_to_hub(repository)
"""


def test_what_peft_pushes_is_found(
    api: HfApi, ours: hub.Registry, registry: RegistryProcess, repository: str, adapter: Path, tmp_path: Path
):
    command = [sys.executable, "-c", PUSH, str(adapter.parent / "base"), str(adapter), repository]
    environment = client_environment(registry, tmp_path, xet=True)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = hub.find_adapter(ours, repository)
    assert found.commit == api.model_info(repository).sha
    assert [entry.path for entry in found.files] == [CONFIG_FILE, ADAPTER_FILE]


def test_a_moved_repository_is_followed_and_told(api: HfApi, ours: hub.Registry, repository: str, adapter: Path):
    commit = api.upload_folder(repo_id=repository, folder_path=adapter).oid
    api.move_repo(repository, f"{repository}-moved")
    found = hub.find_adapter(ours, repository)
    assert (found.commit, found.moved_to) == (commit, f"{repository}-moved")
    assert len(found.files) == 2


def test_what_is_no_adapter_is_told_with_what_it_is(api: HfApi, ours: hub.Registry, repository: str):
    with pytest.raises(NotFoundError, match="There is no repository"):
        hub.find_adapter(ours, f"{repository}-none")
    with pytest.raises(NotFoundError, match=f"is no PEFT adapter: it has no {CONFIG_FILE}"):
        hub.find_adapter(ours, repository)
    put(api, repository, config=json.dumps(CONFIG).encode())
    with pytest.raises(NotFoundError, match="no such revision"):
        hub.find_adapter(ours, repository, "elsewhere")
    with pytest.raises(NotFoundError, match=f"no {ADAPTER_FILE}"):
        hub.find_adapter(ours, repository)
    put(api, repository, pickle=b"\x80\x02" * 10)
    with pytest.raises(UnsafeContentError, match="only as a pickle") as caught:
        hub.find_adapter(ours, repository)
    assert caught.value.exit_code == 12
    assert "save_pretrained" in caught.value.hint


def test_a_pack_is_no_adapter(api: HfApi, ours: hub.Registry, repository: str):
    put(api, repository, releases__jsonl=b"")
    with pytest.raises(NotFoundError, match="is a SkillPack, not a PEFT adapter") as caught:
        hub.find_adapter(ours, repository)
    assert caught.value.hint == f"Leave `peft:` out: skillhub install {repository}."


def test_other_kinds_and_bombs_are_refused_before_anything_is_downloaded(
    api: HfApi, ours: hub.Registry, repository: str
):
    put(api, repository, config=json.dumps({**CONFIG, "use_dora": True}).encode())
    with pytest.raises(UsageError, match="DoRA"):
        hub.find_adapter(ours, repository)
    put(api, repository, config=b"[" * 100_000)
    with pytest.raises(IntegrityError, match=f"{CONFIG_FILE} of {repository} is not a valid config"):
        hub.find_adapter(ours, repository)


def put_outside_lfs(registry: RegistryProcess, repository: str, path: str, data: bytes) -> None:
    """Commit a file as git keeps small texts, which the stock client does with no weights."""
    content = base64.b64encode(data).decode()
    lines = [
        {"key": "header", "value": {"summary": "by hand", "description": ""}},
        {"key": "file", "value": {"path": path, "content": content, "encoding": "base64"}},
    ]
    answer = requests.post(
        f"{registry.endpoint}/api/models/{repository}/commit/main",
        data="\n".join(map(json.dumps, lines)),
        headers={"Authorization": f"Bearer {registry.token}", "Content-Type": "application/x-ndjson"},
        timeout=60,
    )
    answer.raise_for_status()


def test_weights_outside_lfs_are_read_for_their_digest(
    api: HfApi,
    ours: hub.Registry,
    registry: RegistryProcess,
    repository: str,
    adapter: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    put(api, repository, config=json.dumps(CONFIG).encode())
    put_outside_lfs(registry, repository, ADAPTER_FILE, (adapter / ADAPTER_FILE).read_bytes())
    assert api.get_paths_info(repository, [ADAPTER_FILE])[0].lfs is None
    found = hub.find_adapter(ours, repository)
    assert found.files[1].path == ADAPTER_FILE
    assert found.files[1].sha256 == sha256(adapter / ADAPTER_FILE)
    monkeypatch.setattr(hub_adapters, "MAX_PLAIN_BYTES", 100)
    with pytest.raises(NetworkError, match="outside LFS and does not tell its digest"):
        hub.find_adapter(ours, repository)
