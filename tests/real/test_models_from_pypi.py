from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]

SMOLLM2_SHA256 = "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b"
"""Of the bf16 checkpoint that the GGUF file gives: packs for this model are bound to these weights."""


def test_smollm2_is_the_very_base_that_packs_were_made_for(smollm2: Path) -> None:
    with (smollm2 / "model.safetensors").open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == SMOLLM2_SHA256


def test_every_model_has_its_tokenizer(smollm2: Path, minilm: Path, sre_minilm: Path) -> None:
    for folder in (smollm2, minilm, sre_minilm):
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in folder.iterdir()}
        assert not list(folder.glob("*.part"))
