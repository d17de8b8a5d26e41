"""What the client processes of the tests do: each function is run by name, with JSON in and out."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import sys
from pathlib import Path
from typing import Any

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitScheduler,
    HfApi,
    HfFileSystem,
    ModelCard,
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


def use_file_system(repository: str, folder: str) -> dict[str, Any]:
    """Read and change a repository through ``HfFileSystem`` alone."""
    files = HfFileSystem()
    seen: dict[str, Any] = {}
    with files.open(f"{repository}/notes/one.txt", "w") as handle:
        handle.write("first line\nsecond line\n")
    with files.open(f"{repository}/large.bin", "wb") as handle:
        handle.write(bytes(range(256)) * 400)
    with files.open(f"{repository}/large.bin", "rb", block_size=1000) as handle:
        handle.seek(100_000)
        seen["range"] = handle.read(7).hex()
    seen["tail"] = files.cat_file(f"{repository}/large.bin", start=-3).hex()
    seen["head"] = files.head(f"{repository}/notes/one.txt", 5).decode()
    seen["read"] = files.read_text(f"{repository}/notes/one.txt")
    files.cp_file(f"{repository}/notes/one.txt", f"{repository}/notes/two.txt")
    files.cp_file(f"{repository}/large.bin", f"{repository}/again.bin")
    files.mv(f"{repository}/notes/two.txt", f"{repository}/moved/two.txt")
    files.rm(f"{repository}/large.bin")
    seen["globbed"] = files.glob(f"{repository}/**/*.txt")
    seen["found"] = sorted(files.find(repository))
    seen["folder"] = files.info(f"{repository}/notes")["type"]
    info = files.info(f"{repository}/again.bin", refresh=True, expand_info=True)
    seen["info"] = [info["type"], info["size"], info["lfs"].sha256, info["last_commit"].title]
    seen["exists"] = [files.exists(f"{repository}/{path}") for path in ("large.bin", "again.bin", "moved", "no/thing")]
    seen["du"] = files.du(f"{repository}/again.bin")
    files.get_file(f"{repository}/again.bin", f"{folder}/again.bin")
    seen["got"] = hashlib.sha256(Path(folder, "again.bin").read_bytes()).hexdigest()
    files.put_file(f"{folder}/again.bin", f"{repository}/put.bin")
    seen["walked"] = sorted(f"{root}/{name}" for root, _, names in files.walk(repository) for name in names)
    files.rm(f"{repository}/moved", recursive=True)
    seen["left"] = sorted(files.ls(repository, detail=False, refresh=True))
    return seen


def send_in_the_ways_of_the_client(repository: str, folder: str) -> dict[str, Any]:
    """Upload a folder at once, on a schedule, and as a model card; then read it back."""
    api = HfApi()
    api.create_repo(repository)
    api.upload_folder(repo_id=repository, folder_path=folder)
    with CommitScheduler(repo_id=repository, folder_path=Path(folder), path_in_repo="scheduled", every=60) as scheduler:
        scheduler.trigger().result()
    card = ModelCard("---\nlicense: mit\ntags: [sent]\n---\n# Sent\n")
    card.push_to_hub(repository)
    loaded = ModelCard.load(repository)
    return {
        "files": sorted(api.list_repo_files(repository)),
        "license": loaded.data.license,
        "tags": api.model_info(repository).tags,
    }


def push_and_load(folder: str, adapter: str, repository: str) -> dict[str, Any]:
    """Push a model, its tokenizer and an adapter with their own libraries, load them again and say what differs."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tests.support.tiny_models import bits, load_model

    model = load_model(Path(folder))
    model.push_to_hub(repository)
    AutoTokenizer.from_pretrained(folder).push_to_hub(repository)
    loaded = AutoModelForCausalLM.from_pretrained(repository, dtype=next(model.parameters()).dtype)
    tuned = peft.PeftModel.from_pretrained(model, adapter)
    tuned.push_to_hub(f"{repository}-lora")
    again = peft.PeftModel.from_pretrained(load_model(Path(folder)), f"{repository}-lora")
    words = torch.arange(6)[None]
    return {
        "same_weights": bits(load_model(Path(folder))) == bits(loaded),
        "same_words": AutoTokenizer.from_pretrained(repository)("a b").input_ids
        == AutoTokenizer.from_pretrained(folder)("a b").input_ids,
        "same_adapter": bool(torch.equal(tuned(words).logits, again(words).logits)),
        "parameters": HfApi().model_info(repository).safetensors,
    }


def run_commands(commands: list[list[str]]) -> list[str]:
    """Run ``hf`` with each of the arguments, in one process because each start takes a second; return what it printed."""
    from huggingface_hub.cli.hf import app

    printed = []
    for arguments in commands:
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            app(arguments, standalone_mode=False)
        printed.append(output.getvalue())
    return printed


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](**json.loads(sys.argv[2]))))
