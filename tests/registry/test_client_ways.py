"""Everything else that the unmodified client does with a Hub: its file system, its ways of uploading, and its command."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from tests.support.hub_client import make_content, run_client
from tests.support.registry_process import RegistryProcess


@pytest.mark.parametrize("xet", [True, False], ids=["xet", "lfs"])
def test_the_file_system(registry: RegistryProcess, tmp_path: Path, xet: bool) -> None:
    repository = f"{registry.user}/filesystem-{xet}"
    HfApi(endpoint=registry.endpoint, token=registry.token).create_repo(repository)
    (tmp_path / "local").mkdir()
    seen = run_client(
        registry, tmp_path / "home", "use_file_system", xet=xet, repository=repository, folder=str(tmp_path / "local")
    )
    large = bytes(range(256)) * 400
    digest = hashlib.sha256(large).hexdigest()
    assert seen == {
        "range": large[100_000:100_007].hex(),
        "tail": large[-3:].hex(),
        "head": "first",
        "read": "first line\nsecond line\n",
        "globbed": [f"{repository}/moved/two.txt", f"{repository}/notes/one.txt"],
        "found": [f"{repository}/{path}" for path in (".gitattributes", "again.bin", "moved/two.txt", "notes/one.txt")],
        "folder": "directory",
        "info": ["file", len(large), digest, f"Copy {repository}/large.bin to {repository}/again.bin"],
        "exists": [False, True, True, False],
        "du": len(large),
        "got": digest,
        "walked": [
            f"{repository}/{path}"
            for path in (".gitattributes", "again.bin", "moved/two.txt", "notes/one.txt", "put.bin")
        ],
        "left": [f"{repository}/{path}" for path in (".gitattributes", "again.bin", "notes", "put.bin")],
    }


@pytest.mark.parametrize("xet", [True, False], ids=["xet", "lfs"])
def test_large_folders_schedules_and_cards(registry: RegistryProcess, tmp_path: Path, xet: bool) -> None:
    repository = f"{registry.user}/ways-{xet}"
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "w.safetensors").write_bytes(make_content(40, 50_000))
    (folder / "config.json").write_bytes(b"{}")
    (folder / "many").mkdir()
    for number in range(300):  # more than the client sends in one commit
        (folder / "many" / f"{number}.txt").write_text(str(number))
    arguments = {"repository": repository, "folder": str(folder)}
    seen = run_client(registry, tmp_path / "home", "send_in_the_ways_of_the_client", xet=xet, **arguments)
    assert seen["license"] == "mit"
    assert {"sent", "license:mit"} <= set(seen["tags"])
    sent = {"README.md", "config.json", "deep/w.safetensors", "scheduled/config.json", "scheduled/deep/w.safetensors"}
    assert sent <= set(seen["files"])
    assert len([path for path in seen["files"] if path.startswith("many/")]) == 300
    fetched = run_client(registry, tmp_path / "home", "download_all", xet=xet, repository=repository)
    for path in ("deep/w.safetensors", "scheduled/deep/w.safetensors"):
        assert fetched[path] == hashlib.sha256(make_content(40, 50_000)).hexdigest()


def test_the_command(registry: RegistryProcess, tmp_path: Path) -> None:
    """What ``hf`` does with repositories, models, discussions and its cache, one after the other."""
    repository, copy = f"{registry.user}/commanded", f"{registry.user}/commanded-copy"
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "w.safetensors").write_bytes(make_content(41, 5000))
    (tmp_path / "model" / "notes.txt").write_text("words")
    steps: list[tuple[str, Callable[[str], bool] | None]] = [
        (f"repos create {repository}", None),
        (f"upload {repository} {tmp_path / 'model'}", None),
        (f"models info {repository} --format json", lambda text: json.loads(text)["id"] == repository),
        (f"models ls --author {registry.user} --search comm --format json", lambda text: repository in text),
        ("repos ls --format json", lambda text: repository in [one["id"] for one in json.loads(text)]),
        (f"repos branch create {repository} dev", None),
        (f"repos tag create {repository} v1 --revision dev", None),
        (f"repos tag list {repository}", lambda text: "v1" in text),
        (f"repos tag delete {repository} v1 --yes", None),
        (f"repos branch delete {repository} dev", None),
        (f"repos delete-files {repository} notes.txt", None),
        (f"repos settings {repository} --gated manual", None),
        (f"models info {repository} --format json", lambda text: "notes.txt" not in text),
        (f"models info {repository} --format json", lambda text: json.loads(text)["gated"] == "manual"),
        (f"repos duplicate {repository} {copy}", None),
        (f"repos move {copy} {copy}-moved", None),
        (f"discussions create {repository} --title Question --body How?", None),
        (f"discussions comment {repository} 1 --body So.", None),
        (f"discussions list {repository} --format json", lambda text: [one["num"] for one in json.loads(text)] == [1]),
        (f"discussions close {repository} 1 --yes", None),
        (f"download {copy}-moved w.safetensors", None),
        ("cache ls", lambda text: f"{copy}-moved" in text),
        (f"repos delete {copy}-moved --yes", None),
        ("auth whoami", lambda text: registry.user in text),
    ]
    commands = [step.split() for step, _ in steps]
    printed = run_client(registry, tmp_path / "home", "run_commands", xet=True, commands=commands)
    for (step, is_right), text in zip(steps, printed, strict=True):
        assert is_right is None or is_right(text), f"{step}: {text}"


def test_what_transformers_and_peft_push_is_what_they_load(registry: RegistryProcess, tmp_path: Path) -> None:
    from tests.support.peft_adapters import make_adapter
    from tests.support.tiny_models import add_tokenizer, load_model, save_model

    base = save_model("llama", tmp_path / "base")
    add_tokenizer(base)
    adapter = make_adapter(base, tmp_path / "adapter")
    arguments = {"folder": str(base), "adapter": str(adapter), "repository": f"{registry.user}/pushed"}
    seen = run_client(registry, tmp_path / "home", "push_and_load", xet=True, **arguments)
    parameters = seen.pop("parameters")
    assert seen == {"same_weights": True, "same_words": True, "same_adapter": True}
    assert parameters["total"] == sum(one.numel() for one in load_model(base).parameters())
