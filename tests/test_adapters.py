from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skillhub.adapters import (
    CONFIG_FILE,
    MAX_CONFIG_BYTES,
    MAX_PATTERNS,
    PICKLE_FILE,
    AdapterConfig,
    adapter_files,
    is_adapter,
    open_adapter,
    parse_config,
)
from skillhub.checkpointfiles import ADAPTER_FILE
from skillhub.errors import IntegrityError, NotFoundError, SkillhubError, UnsafeContentError, UsageError
from skillhub.lockfile import files_digest
from skillhub.manifest import MANIFEST_FILE
from skillhub.names import PackName

PLAIN = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]}


def parsed(**settings: Any) -> AdapterConfig:
    return parse_config(json.dumps({**PLAIN, **settings}).encode())


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter as peft saves it."""
    from tests.support.peft_adapters import make_adapter
    from tests.support.tiny_models import save_model

    folder = tmp_path_factory.mktemp("adapters")
    base = save_model("llama", folder / "base")
    return make_adapter(base, folder / "lora", target_modules=["q_proj"], revision="v1.0")


def test_what_peft_saves_is_opened_without_reading_the_weights(saved: Path):
    adapter = open_adapter(saved, name=PackName("acme", "lora"), version="0123456789ab")
    assert is_adapter(saved)
    assert str(adapter) == "acme/lora 0123456789ab"
    assert (adapter.config.base, adapter.config.base_revision) == ("acme/tiny", "v1.0")
    assert adapter.declared_base == "acme/tiny at v1.0"
    assert [entry.path for entry in adapter_files(saved)] == [CONFIG_FILE, ADAPTER_FILE]
    assert adapter.digest == files_digest(adapter_files(saved))
    assert str(open_adapter(saved)) == "lora"


def test_a_folder_of_a_pack_is_none_of_an_adapter(saved: Path, tmp_path: Path):
    assert not is_adapter(tmp_path)
    with pytest.raises(NotFoundError, match=r"is not an adapter: it has no adapter_config\.json"):
        open_adapter(tmp_path)
    (tmp_path / CONFIG_FILE).write_bytes((saved / CONFIG_FILE).read_bytes())
    assert is_adapter(tmp_path)
    with pytest.raises(NotFoundError, match=r"no adapter_model\.safetensors") as missing:
        open_adapter(tmp_path)
    assert "save_pretrained" in missing.value.hint
    (tmp_path / PICKLE_FILE).write_bytes(b"\x80\x02")
    with pytest.raises(UnsafeContentError, match="only as a pickle") as unsafe:
        open_adapter(tmp_path)
    assert unsafe.value.exit_code == 12
    assert "save_pretrained" in unsafe.value.hint
    (tmp_path / MANIFEST_FILE).touch()
    assert not is_adapter(tmp_path)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"use_qalora": True}, "QALoRA"),
        ({"alora_invocation_tokens": [1, 2]}, "activated LoRA"),
        ({"layer_replication": [[0, 4], [2, 5]]}, "replicated layers"),
        ({"megatron_config": {"size": 2}}, "Megatron"),
        ({"target_parameters": ["mlp.experts.down_proj"]}, "LoRA on parameters"),
        ({"trainable_token_indices": [3]}, "single trainable tokens"),
        ({"arrow_config": {"top_k": 3}}, "Arrow"),
        ({"use_bdlora": {"nblocks": 2}}, "block-diagonal"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"init_lora_weights": "olora"}, "init_lora_weights='olora'"),
        ({"init_lora_weights": ["a"]}, "init_lora_weights"),
        ({"use_something_new": True}, "use_something_new that is not known"),
        ({"peft_type": "IA3"}, "type IA3; only LoRA"),
        ({"peft_type": "PROMPT_TUNING"}, "type PROMPT_TUNING"),
        ({"alpha_pattern": {"(q|k)_proj": 3}}, "alpha_pattern of more than"),
        ({"alpha_pattern": {"(a+)+b": 3}}, "alpha_pattern of more than"),
        ({"alpha_pattern": {"a{1,9999999}": 3}}, "alpha_pattern of more than"),
        ({"alpha_pattern": {"x" * 201 + ".*": 3}}, "alpha_pattern of more than"),
        ({"alpha_pattern": {f".*{number}": 1 for number in range(17)}}, "alpha_pattern of more than"),
        ({"alpha_pattern": {str(number): 1 for number in range(MAX_PATTERNS + 1)}}, "alpha_pattern of more than"),
    ],
)
def test_another_kind_of_adapter_is_refused_by_its_name(settings: dict[str, Any], name: str):
    with pytest.raises(UsageError, match=f"config.json is of an adapter .*{name}".replace("(", r"\(")) as caught:
        parsed(**settings)
    cannot_be_merged = name in ("activated LoRA", "type PROMPT_TUNING")
    assert ("train a" if cannot_be_merged else "merge_and_unload") in caught.value.hint


@pytest.mark.parametrize(
    "settings",
    [
        {"use_dora": False, "use_qalora": None, "alora_invocation_tokens": None, "layer_replication": []},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "eva", "eva_config": {"rho": 2.0}},
        {"rank_pattern": {"(a+)+b": 4}, "target_modules": "(.*)*$"},
        {"lora_dropout": 0.1, "inference_mode": True, "auto_mapping": None, "lora_bias": True, "a key of tomorrow": 1},
    ],
)
def test_what_does_not_change_the_difference_is_no_matter(settings: dict[str, Any]):
    assert parsed(**settings).scale("q_proj", 8) == 2


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a valid config"),
        (b"[]", "not a valid config"),
        (b"{}", "not a valid config"),
        (b"{" * 100_000, "not a valid config"),
        (b'{"peft_type": "LORA", "lora_alpha": 1e999}', "not a valid config"),
        (b'{"peft_type": "LORA", "lora_alpha": NaN}', "not a valid config"),
        (b'{"peft_type": "LORA", "lora_alpha": "8"}', r"lora_alpha"),
        (b'{"peft_type": "LORA", "alpha_pattern": {"q_proj": 1e300}}', r"alpha_pattern"),
        (b'{"peft_type": "LORA", "alpha_pattern": ["q_proj"]}', r"alpha_pattern"),
        (b'{"peft_type": "LO\\u202eRA"}', "not a valid config"),
        (b'{"peft_type": "LORA", "base_model_name_or_path": "a\\nb"}', "base_model_name_or_path"),
        (b'{"peft_type": "LORA", "x": "' + b"x" * MAX_CONFIG_BYTES + b'"}', "more than 1048576 bytes"),
    ],
)
def test_a_config_that_is_none_or_a_bomb_is_one_kind_of_error(data: bytes, message: str):
    with pytest.raises(IntegrityError, match=message) as caught:
        parse_config(data)
    assert "save_pretrained" in caught.value.hint


@given(st.binary(max_size=200) | st.recursive(st.none() | st.text(), st.lists).map(json.dumps).map(str.encode))
def test_no_bytes_do_more_than_fail(data: bytes):
    with pytest.raises(SkillhubError):
        parse_config(data)


@pytest.mark.parametrize(
    ("name", "revision", "expected"),
    [
        ("acme/tiny", "main", ("acme/tiny", "main")),
        ("gpt2", None, ("gpt2", None)),
        ("/home/someone/models/base", "main", (None, None)),
        (r"C:\models\base", None, (None, None)),
        ("../base", None, (None, None)),
        ("", "main", (None, None)),
        ("a/b/c", None, (None, None)),
        ("acme/tiny", "two words", ("acme/tiny", None)),
        (None, None, (None, None)),
    ],
)
def test_a_base_is_named_by_its_repository_only(name: str | None, revision: str | None, expected: tuple[str, str]):
    config = parsed(base_model_name_or_path=name, revision=revision)
    assert (config.base, config.base_revision) == expected


def test_the_scale_is_that_of_peft_for_ranks_and_patterns():
    config = parsed(alpha_pattern={"v_proj": 4, "layers.1.q_proj": 3, "q_proj": 2})
    assert config.scale("model.layers.0.k_proj", 8) == 2.0
    assert config.scale("model.layers.0.v_proj", 4) == 1.0
    assert config.scale("model.layers.1.q_proj", 1) == 3.0
    assert config.scale("model.layers.11.q_proj", 1) == 2.0
    assert config.scale("model.layers.1.mv_proj", 16) == 1.0
    assert parsed(use_rslora=True).scale("q_proj", 4) == 8.0


PIECES = st.sampled_from([*"ab.", ".*", "a+", "b?", r"\d", r"\d+", r"\.", "-", "1", "a*"])


@given(
    pieces=st.lists(PIECES, min_size=1, max_size=6),
    anchor=st.sampled_from(["", "^"]),
    end=st.sampled_from(["", "$"]),
    module=st.text("ab1.-", min_size=1, max_size=8),
)
def test_expressions_mean_what_they_mean_to_peft(pieces: list[str], anchor: str, end: str, module: str):
    from peft.utils.other import get_pattern_key

    pattern = anchor + "".join(pieces) + end
    try:
        config = parsed(alpha_pattern={pattern: 3})
    except UsageError:
        assert "*" in pattern or "+" in pattern or "?" in pattern  # such as a**, which is not read
        return
    expected = get_pattern_key([pattern], module) == pattern and pattern != module
    if any(letter in pattern for letter in "*+?\\$"):  # a plain name means itself, dots and all
        assert (config.scale(module, 1) == 3) == (expected or pattern == module)


def test_no_pattern_takes_ages():
    config = parsed(alpha_pattern={f"{'.*a' * 60}{number}": 3 for number in range(16)})
    for layer in range(100):
        assert config.scale(f"model.layers.{layer}.{'a' * 60}.q_proj", 8) == 2  # re would not be done tomorrow
