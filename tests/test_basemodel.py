from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from skillhub.basemodel import base_info, tokenizer_digest
from skillhub.errors import IntegrityError
from skillhub.fingerprint import fingerprint_checkpoint
from tests.checkpoint_examples import llama, save


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKILLHUB_CACHE", str(tmp_path / "cache"))


def tokenizer() -> Tokenizer:
    made = Tokenizer(BPE(vocab={"a": 0, "b": 1, "ab": 2, "é": 3}, merges=[("a", "b")]))
    made.pre_tokenizer = ByteLevel()
    made.add_special_tokens(["<end>"])
    return made


def digest(folder: Path, made: Tokenizer, **changes: Any) -> str | None:
    folder.mkdir(exist_ok=True)
    content = json.loads(made.to_str()) | changes
    (folder / "tokenizer.json").write_text(json.dumps(content, indent=4), "utf-8")
    return tokenizer_digest(folder)


def test_padding_and_truncation_do_not_change_a_tokenizer(tmp_path: Path) -> None:
    plain, padded = tokenizer(), tokenizer()
    padded.enable_padding(pad_id=4, pad_token="<end>")
    padded.enable_truncation(128)
    assert digest(tmp_path, plain) == digest(tmp_path, padded)


def test_whatever_decides_about_ids_changes_it(tmp_path: Path) -> None:
    more, bare = tokenizer(), tokenizer()
    more.add_tokens(["new"])
    bare.pre_tokenizer = ByteLevel(add_prefix_space=False)
    digests = [digest(tmp_path, made) for made in (tokenizer(), more, bare)]
    for part in ("normalizer", "post_processor", "decoder"):
        digests.append(digest(tmp_path, tokenizer(), **{part: {"type": "Other"}}))
    assert len(set(digests)) == len(digests)


def test_merges_count_the_same_in_both_notations(tmp_path: Path) -> None:
    content = json.loads(tokenizer().to_str())
    texts = {**content["model"], "merges": ["a b"]}
    pairs = {**content["model"], "merges": [["a", "b"]]}
    assert digest(tmp_path, tokenizer(), model=texts) == digest(tmp_path, tokenizer(), model=pairs)


def test_no_tokenizer_and_a_damaged_one(tmp_path: Path) -> None:
    assert tokenizer_digest(tmp_path) is None
    for text in ("", "[]", '{"model": NaN}', '{"model": "\\ud800"}'):
        (tmp_path / "tokenizer.json").write_text(text, "utf-8")
        with pytest.raises(IntegrityError, match=r"tokenizer\.json"):
            tokenizer_digest(tmp_path)


def test_facts_of_a_base(tmp_path: Path) -> None:
    tensors = llama() | {"model.norm.weight": torch.ones(4)}
    save(tmp_path, tensors, shards=2)
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}', "utf-8")
    info = base_info(tmp_path, fingerprint_checkpoint(tmp_path), repository="org/base", revision="c0ffee")
    assert info.fingerprint == fingerprint_checkpoint(tmp_path).fingerprint
    assert (info.repo, info.revision, info.architecture, info.dtype) == (
        "org/base",
        "c0ffee",
        "LlamaForCausalLM",
        "BF16",
    )
    assert info.parameters == sum(tensor.numel() for tensor in tensors.values())
    assert info.vocabulary_size == 6 and info.tokenizer is None
    expected = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in tmp_path.glob("*.safetensors")}
    assert info.files == [expected]


def test_facts_without_a_config(tmp_path: Path) -> None:
    save(tmp_path, {"w": torch.ones(2, 2)})
    info = base_info(tmp_path, fingerprint_checkpoint(tmp_path))
    assert (info.architecture, info.vocabulary_size, info.dtype, info.repo) == (None, None, "F32", None)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}', "utf-8")
    assert base_info(tmp_path, fingerprint_checkpoint(tmp_path)).architecture == "bert"
