"""The unmodified client uploads, lists and downloads, with Xet and without."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import requests
from huggingface_hub import HfApi

from tests.support.hub_client import client_environment, make_content, make_file, run_client
from tests.support.registry_process import RegistryProcess, running_registry

FILES = {
    "README.md": (0, 0),
    "config.json": (1, 300),
    "large/weights.safetensors": (2, 300_000),
    "large/second.safetensors": (3, 70_000),
    "deep/er/data.txt": (4, 10_500_000),
}


def digest(path: str, seed: int, size: int) -> str:
    return hashlib.sha256(make_file(path, seed, size)).hexdigest()


def xorb_bytes(registry: RegistryProcess) -> int:
    """Return the bytes of all xorbs that a registry keeps."""
    digests = [row[0] for row in registry.query("SELECT DISTINCT sha256 FROM xorbs")]
    return sum(len(registry.read_blob(sha256) or b"") for sha256 in digests)


@pytest.mark.parametrize("xet", [True, False], ids=["xet", "lfs"])
def test_upload_list_and_download(registry: RegistryProcess, tmp_path: Path, xet: bool) -> None:
    repository = f"{registry.user}/story-{'xet' if xet else 'lfs'}"
    api = HfApi(endpoint=registry.endpoint, token=registry.token)
    api.create_repo(repository)
    before = xorb_bytes(registry)
    commit = run_client(registry, tmp_path, "upload_files", xet=xet, repository=repository, files=FILES)["commit"]
    assert (xorb_bytes(registry) > before) == xet
    assert api.model_info(repository).sha == commit

    seen = run_client(registry, tmp_path, "look_around", xet=xet, repository=repository, folder=str(tmp_path / "local"))
    assert seen == {
        "user": registry.user,
        "files": sorted([*FILES, ".gitattributes"]),
        "listed": sorted(
            f"{repository}/{name}" for name in (".gitattributes", "README.md", "config.json", "deep", "large")
        ),
        "found": [f"{repository}/large/second.safetensors", f"{repository}/large/weights.safetensors"],
        "lfs": ["deep/er/data.txt", "large/second.safetensors", "large/weights.safetensors"],
        "middle": make_content(2, 300_000)[1000:1016].hex(),
        "config": make_file("config.json", 1, 300).hex(),
    }
    fetched = run_client(registry, tmp_path, "download_all", xet=xet, repository=repository)
    del fetched[".gitattributes"]
    assert fetched == {path: digest(path, *content) for path, content in FILES.items()}

    # Nothing changed: nothing is committed.
    again = run_client(registry, tmp_path, "upload_files", xet=xet, repository=repository, files=FILES)
    assert again["commit"] == commit


def test_multipart_upload(tmp_path: Path) -> None:
    with running_registry(tmp_path / "data", ["--part-size", "1"]) as registry:
        repository = f"{registry.user}/parts"
        HfApi(endpoint=registry.endpoint, token=registry.token).create_repo(repository)
        files = {"a.safetensors": (5, 3_500_000), "exact.bin": (6, 2 * 1024 * 1024), "small.bin": (7, 10)}
        run_client(registry, tmp_path / "home", "upload_files", xet=False, repository=repository, files=files)
        fetched = run_client(registry, tmp_path / "home", "download_all", xet=False, repository=repository)
        assert {path: fetched[path] for path in files} == {
            path: digest(path, *content) for path, content in files.items()
        }
        assert registry.arriving() == []


def test_no_parts_stay_of_a_file_that_came_another_way(tmp_path: Path) -> None:
    """Parts of one file, sent to two repositories at once: the second upload finds the file there."""
    with running_registry(tmp_path / "data", ["--part-size", "1"]) as registry:
        api = HfApi(endpoint=registry.endpoint, token=registry.token)
        content = make_content(11, 2_500_000)
        oid = hashlib.sha256(content).hexdigest()
        asked = {"operation": "upload", "transfers": ["multipart"], "objects": [{"oid": oid, "size": len(content)}]}
        actions = []
        for name in ("first", "second"):
            repository = api.create_repo(f"{registry.user}/{name}").repo_id
            url = f"{registry.endpoint}/{repository}.git/info/lfs/objects/batch"
            answer = requests.post(url, json=asked, headers={"Authorization": f"Bearer {registry.token}"})
            actions.append(answer.json()["objects"][0]["actions"]["upload"])
        for action in actions:
            size = int(action["header"]["chunk_size"])
            for start in range(0, len(content), size):
                part = content[start : start + size]
                requests.put(action["header"][str(start // size + 1)], data=part).raise_for_status()
        for action in actions:
            requests.post(action["href"], json={"oid": oid, "parts": []}).raise_for_status()
        assert registry.arriving() == []


def test_chunks_are_sent_once(registry: RegistryProcess, tmp_path: Path) -> None:
    """Versions of a file share their chunks: within a process, across processes and across repositories."""
    first, second = f"{registry.user}/chunks", f"{registry.user}/chunks-again"
    api = HfApi(endpoint=registry.endpoint, token=registry.token)
    api.create_repo(first)
    api.create_repo(second)
    base = make_content(8, 3_000_000)
    contents = [base, base[:1_000_000] + b"inserted" + base[1_000_000:], base + make_content(9, 100_000)]
    paths = []
    for number, content in enumerate(contents):
        paths.append(tmp_path / f"{number}.safetensors")
        paths[-1].write_bytes(content)

    before = xorb_bytes(registry)
    arguments = {"repository": first, "versions": [str(path) for path in paths[:2]], "path": "w.safetensors"}
    commits = run_client(registry, tmp_path / "home", "upload_in_turn", xet=True, **arguments)["commits"]
    after_two = xorb_bytes(registry)
    assert 3_000_000 <= after_two - before < 3_500_000

    arguments = {"repository": second, "versions": [str(paths[2])], "path": "w.safetensors"}
    commits += run_client(registry, tmp_path / "home", "upload_in_turn", xet=True, **arguments)["commits"]
    assert xorb_bytes(registry) - after_two < 500_000

    for repository, commit, content in zip((first, first, second), commits, contents, strict=True):
        fetched = api.hf_hub_download(repository, "w.safetensors", revision=commit, local_dir=tmp_path / commit)
        assert Path(fetched).read_bytes() == content


def test_compressible_tensors(registry: RegistryProcess, tmp_path: Path) -> None:
    """Text and small floats are sent as LZ4, plain and by byte planes."""
    folder = tmp_path / "folder"
    folder.mkdir()
    numbers = b"".join((index % 97).to_bytes(4, "little") for index in range(150_001))
    (folder / "text.safetensors").write_bytes(b"the same words again and again\n" * 20_000)
    (folder / "floats.safetensors").write_bytes(numbers + b"xyz")
    repository = f"{registry.user}/compressible"
    HfApi(endpoint=registry.endpoint, token=registry.token).create_repo(repository)
    before = xorb_bytes(registry)
    run_client(registry, tmp_path / "home", "upload_folder", xet=True, repository=repository, folder=str(folder))
    assert 0 < xorb_bytes(registry) - before < 600_000
    fetched = run_client(registry, tmp_path / "home", "download_all", xet=True, repository=repository)
    for path in folder.iterdir():
        assert fetched[path.name] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_hf_command(registry: RegistryProcess, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "adapter.safetensors").write_bytes(make_content(10, 5000))
    environment = client_environment(registry, tmp_path / "home", xet=True)
    repository = f"{registry.user}/by-command"

    def hf(*arguments: str) -> str:
        program = Path(sys.executable).with_name("hf")
        done = subprocess.run([program, *arguments], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert registry.user in hf("auth", "whoami")
    hf("repos", "create", repository)
    hf("upload", repository, str(tmp_path / "model"))
    hf("repos", "tag", "create", repository, "v1")
    hf("download", repository, "--revision", "v1", "--local-dir", str(tmp_path / "fetched"))
    assert (tmp_path / "fetched" / "adapter.safetensors").read_bytes() == make_content(10, 5000)
