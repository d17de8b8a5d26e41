from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from skillhub.checkpointfiles import checkpoint_files, read_tensors
from skillhub.errors import IntegrityError, NotFoundError, SkillhubError, UnsafeContentError, UsageError


def save(folder: Path, **names: list[str]) -> None:
    for stem, tensors in names.items():
        file = folder / f"{stem.replace('__', '-')}.safetensors"
        save_file({name: torch.zeros(2) for name in tensors}, file)


def write_index(folder: Path, weight_map: Any) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}), "utf-8")


def test_one_file_wins_over_an_index(tmp_path: Path) -> None:
    save(tmp_path, model=["a"], other=["b"])
    write_index(tmp_path, {"b": "other.safetensors"})
    assert checkpoint_files(tmp_path) == [tmp_path / "model.safetensors"]
    assert checkpoint_files(tmp_path / "other.safetensors") == [tmp_path / "other.safetensors"]


def test_shards_come_from_the_index(tmp_path: Path) -> None:
    save(tmp_path, shard2=["a"], shard1=["b"], consolidated=["c"])
    write_index(tmp_path, {"a": "shard2.safetensors", "b": "shard1.safetensors"})
    files = checkpoint_files(tmp_path)
    assert [file.name for file in files] == ["shard1.safetensors", "shard2.safetensors"]
    assert set(read_tensors(files)) == {"a", "b"}


def test_shards_may_be_links_to_blobs_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    save(tmp_path / "blobs", one=["a"])
    (tmp_path / "snapshot" / "model-1.safetensors").symlink_to(tmp_path / "blobs" / "one.safetensors")
    write_index(tmp_path / "snapshot", {"a": "model-1.safetensors"})
    assert set(read_tensors(checkpoint_files(tmp_path / "snapshot"))) == {"a"}


def test_the_only_file_is_taken(tmp_path: Path) -> None:
    save(tmp_path, weights=["a"])
    assert checkpoint_files(tmp_path) == [tmp_path / "weights.safetensors"]


@pytest.mark.parametrize(
    ("files", "kind", "words"),
    [
        (["config.json"], NotFoundError, ["no weights"]),
        (["pytorch_model.bin", "training_args.bin"], UnsafeContentError, ["pytorch_model.bin", "save_pretrained"]),
        (["pytorch_model-00001-of-00002.bin"], UnsafeContentError, ["pickle"]),
        (["training_args.bin", "optimizer.pt"], NotFoundError, ["no weights"]),
        (["adapter_model.safetensors"], UsageError, ["merge_and_unload"]),
        (["model.gguf"], UsageError, ["GGUF", "gguf_file"]),
        (["a.safetensors", "b.safetensors"], UsageError, ["2 safetensors files"]),
    ],
)
def test_other_folders_are_refused_with_the_remedy(
    tmp_path: Path, files: list[str], kind: type[SkillhubError], words: list[str]
) -> None:
    for name in files:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(kind) as caught:
        checkpoint_files(tmp_path)
    for word in words:
        assert word in caught.value.message + caught.value.hint


def test_a_missing_folder_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="absent"):
        checkpoint_files(tmp_path / "absent")


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    save(tmp_path, one=["a"])
    write_index(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    with pytest.raises(NotFoundError, match=r"two\.safetensors"):
        checkpoint_files(tmp_path)


@pytest.mark.parametrize("name", ["../x.safetensors", "/x.safetensors", "..\\x.safetensors", "a/../../x", "pickle.bin"])
def test_an_index_may_not_leave_its_folder_nor_name_pickles(tmp_path: Path, name: str) -> None:
    write_index(tmp_path, {"a": name})
    with pytest.raises(UnsafeContentError, match="index"):
        checkpoint_files(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "[" * 99_999])
def test_a_bad_index_is_an_integrity_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content, "utf-8")
    with pytest.raises(IntegrityError, match="index"):
        checkpoint_files(tmp_path)


def test_a_tensor_in_two_shards_or_in_none_is_refused(tmp_path: Path) -> None:
    save(tmp_path, one=["a", "b"], two=["b"])
    write_index(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    with pytest.raises(IntegrityError, match="'b'"):
        read_tensors(checkpoint_files(tmp_path))
    save(tmp_path, one=["a"], two=["c"])
    with pytest.raises(IntegrityError, match="'b'"):
        read_tensors(checkpoint_files(tmp_path))
