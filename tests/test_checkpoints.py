from __future__ import annotations

from pathlib import Path

import pytest
import torch

from skillhub.checkpoints import open_checkpoint
from skillhub.errors import IntegrityError, NotFoundError
from skillhub.fingerprint import fingerprint_checkpoint
from tests.checkpoint_examples import Tensors, llama, save


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKILLHUB_CACHE", str(tmp_path_factory.mktemp("cache")))


def tied(dtype: torch.dtype = torch.bfloat16) -> Tensors:
    tensors = llama(dtype=dtype)
    return tensors | {
        "lm_head.weight": tensors["model.embed_tokens.weight"].clone(),
        "model.rotary_emb.inv_freq": torch.ones(2),
    }


@pytest.mark.parametrize("shards", [1, 3])
def test_tensors_come_under_canonical_names(tmp_path: Path, shards: int) -> None:
    tensors = llama()
    checkpoint = open_checkpoint(save(tmp_path, tensors, shards))
    assert checkpoint.names == sorted(name.removeprefix("model.") for name in tensors)
    for name, tensor in tensors.items():
        read = checkpoint.tensor(name.removeprefix("model."))
        assert read.dtype == tensor.dtype and torch.equal(read, tensor)
        assert checkpoint.tensors[name.removeprefix("model.")].name == name
    assert checkpoint.dtype == "BF16"
    assert checkpoint.parameters == sum(tensor.numel() for tensor in tensors.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_names_are_those_of_the_fingerprint(tmp_path: Path, dtype: torch.dtype) -> None:
    for folder, tensors in ((tmp_path / "tied", tied(dtype)), (tmp_path / "untied", llama(dtype=dtype))):
        checkpoint = open_checkpoint(save(folder, tensors))
        assert checkpoint.names == [record.name for record in fingerprint_checkpoint(folder).tensors]


def test_a_repeated_head_is_an_alias(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(save(tmp_path, tied()))
    assert checkpoint.aliases == {"lm_head.weight": "embed_tokens.weight"}
    assert torch.equal(checkpoint.tensor("lm_head.weight"), checkpoint.tensor("embed_tokens.weight"))
    assert "rotary_emb.inv_freq" not in checkpoint.names and "model.rotary_emb.inv_freq" in checkpoint.stored


def test_a_head_in_another_dtype_is_an_alias_if_it_rounds_to_the_embedding(tmp_path: Path) -> None:
    tensors = tied()
    near = tensors | {"lm_head.weight": tensors["lm_head.weight"].float() * (1 + 2**-12)}
    far = tensors | {"lm_head.weight": tensors["lm_head.weight"].float() * (1 + 2**-6)}
    assert "lm_head.weight" in open_checkpoint(save(tmp_path / "near", near)).aliases
    assert "lm_head.weight" in open_checkpoint(save(tmp_path / "far", far)).names


def test_a_tensor_can_be_changed_without_changing_the_file(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(save(tmp_path, llama()))
    before = (tmp_path / "model.safetensors").read_bytes()
    checkpoint.tensor("norm.weight").add_(1)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_facts_from_the_config(tmp_path: Path) -> None:
    save(tmp_path, llama())
    assert open_checkpoint(tmp_path).config == {} and open_checkpoint(tmp_path).architecture is None
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "hidden_size": 4}', "utf-8")
    assert open_checkpoint(tmp_path).architecture == "LlamaForCausalLM"
    assert open_checkpoint(tmp_path / "model.safetensors").config["hidden_size"] == 4
    (tmp_path / "config.json").write_text("{", "utf-8")
    with pytest.raises(IntegrityError, match=r"config\.json"):
        _ = open_checkpoint(tmp_path).config


def test_companions_are_all_but_weights(tmp_path: Path) -> None:
    save(tmp_path, llama(), shards=2)
    kept = [
        "1_Pooling/config.json",
        "LICENSE",
        "config.json",
        "generation_config.json",
        "modeling_own.py",
        "tokenizer.json",
    ]
    dropped = [
        ".gitattributes",
        "README.md",
        "pytorch_model.bin",
        "model.gguf",
        "onnx/model.onnx",
        ".cache/config.json",
    ]
    for name in kept + dropped:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}", "utf-8")
    assert [path.as_posix() for path in open_checkpoint(tmp_path).companions()] == kept


def test_an_unknown_tensor_and_an_unknown_folder_are_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"nothing\.weight"):
        open_checkpoint(save(tmp_path, llama())).tensor("nothing.weight")
    for source in (tmp_path / "absent", str(tmp_path / "absent"), "./absent", "not a name"):
        with pytest.raises(NotFoundError) as caught:
            open_checkpoint(source)
        assert caught.value.hint
