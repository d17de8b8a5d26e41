"""What the client processes of the tests do: each function is run by name, with JSON in and out."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    HfApi,
    HfFileSystem,
    hf_hub_download,
    snapshot_download,
)

from tests.support.hub_client import make_file


def upload_files(repository: str, files: dict[str, tuple[int, int]], message: str = "upload") -> dict[str, Any]:
    """Send files, given as path → (seed, size), in one commit."""
    api = HfApi()
    operations = [CommitOperationAdd(path, make_file(path, seed, size)) for path, (seed, size) in files.items()]
    commit = api.create_commit(repository, operations, commit_message=message)
    return {"commit": commit.oid}


def propose_files(repository: str, files: dict[str, tuple[int, int]], revision: str | None = None) -> dict[str, Any]:
    """Send files in one commit to a pull request: a new one, or the one of that revision."""
    operations = [CommitOperationAdd(path, make_file(path, seed, size)) for path, (seed, size) in files.items()]
    commit = HfApi().create_commit(
        repository, operations, commit_message="propose", revision=revision, create_pr=revision is None
    )
    return {"revision": commit.pr_revision, "number": commit.pr_num}


def upload_folder(repository: str, folder: str) -> dict[str, Any]:
    """Send a folder in one commit."""
    return {"commit": HfApi().upload_folder(repo_id=repository, folder_path=folder).oid}


def copy_files(source: str, target: str, paths: list[str]) -> dict[str, Any]:
    """Copy files from one repository to another, under ``copied/``, in one commit."""
    copies = [CommitOperationCopy(path, f"copied/{path}", src_repo_id=source, src_repo_type="model") for path in paths]
    return {"commit": HfApi().create_commit(target, copies, commit_message="copy").oid}


def upload_in_turn(repository: str, versions: list[str], path: str) -> dict[str, Any]:
    """Send several versions of a file, one commit each, in one process."""
    api = HfApi()
    commits = [
        api.upload_file(path_or_fileobj=version, path_in_repo=path, repo_id=repository).oid for version in versions
    ]
    return {"commits": commits}


def download_all(repository: str, revision: str | None = None) -> dict[str, str]:
    """Fetch a snapshot; return the sha256 of each file."""
    folder = Path(snapshot_download(repository, revision=revision))
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def look_around(repository: str, folder: str) -> dict[str, Any]:
    """Read a repository through the file system, the tree and the model's information."""
    api, files = HfApi(), HfFileSystem()
    info = api.model_info(repository, files_metadata=True)
    assert info.siblings is not None
    with files.open(f"{repository}/large/weights.safetensors", "rb") as handle:
        handle.seek(1000)
        middle = handle.read(16)
    hf_hub_download(repository, "config.json", local_dir=folder)
    return {
        "user": api.whoami()["name"],
        "files": sorted(api.list_repo_files(repository)),
        "listed": sorted(files.ls(repository, detail=False)),
        "found": sorted(files.find(f"{repository}/large")),
        "lfs": sorted(sibling.rfilename for sibling in info.siblings if sibling.lfs),
        "middle": middle.hex(),
        "config": (Path(folder) / "config.json").read_bytes().hex(),
    }


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](**json.loads(sys.argv[2]))))
