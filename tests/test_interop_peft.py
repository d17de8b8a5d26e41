from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from skillhub.adapters import open_adapter
from skillhub.compose.fusion import fuse
from skillhub.compose.grafts import graft, grafted_packs, ungraft
from skillhub.errors import IntegrityError, NotFoundError, SkillhubError, UsageError, WrongBaseError
from tests.support.peft_adapters import make_adapter, merged_model, with_arrays, with_config
from tests.support.tiny_models import VOCABULARY, bits, build_pack, load_model, make_model, save_model, tune

ATTENTION = ["q_proj", "v_proj"]
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"target_modules": "all-linear"}),
    "llama, tied": ("tied", {"target_modules": ATTENTION}),
    "llama, rank and alpha patterns": (
        "llama",
        {
            "target_modules": [*ATTENTION, "down_proj"],
            "rank_pattern": {"v_proj": 3, "layers.1.mlp.down_proj": 2},
            "alpha_pattern": {"v_proj": 5, r"^model\.layers\.\d+\.mlp.*": 11, "layers.0.self_attn.q_proj": 2},
        },
    ),
    "llama, rank-stabilized": ("llama", {"target_modules": ATTENTION, "use_rslora": True}),
    "llama, head trained as a whole": ("llama", {"target_modules": ATTENTION, "modules_to_save": ["lm_head", "norm"]}),
    "llama, embeddings and head": ("llama", {"target_modules": ["embed_tokens", "lm_head", "o_proj"]}),
    "gpt2": ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"]}),
    "gpt2, square layers only": ("gpt2", {"target_modules": r".*attn\.c_proj"}),
    "gpt2, all biases": ("gpt2", {"target_modules": ["c_attn"], "bias": "all"}),
    "gpt2, positions": ("gpt2", {"target_modules": ["wpe", "c_attn"]}),
    "bert": ("bert", {"target_modules": ["query", "value", "dense"]}),
    "bert, biases of its own": ("bert", {"target_modules": ["query", "value"], "lora_bias": True}),
    "bert, biases of its layers": ("bert", {"target_modules": ["query", "value"], "bias": "lora_only"}),
    "bert, embeddings": ("bert", {"target_modules": ["word_embeddings", "query"]}),
    "bert, pooler trained as a whole": ("bert", {"target_modules": ["query"], "modules_to_save": ["pooler"]}),
    "mixtral": ("mixtral", {"target_modules": ATTENTION}),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Kind → folder of an fp32 base model."""
    root = tmp_path_factory.mktemp("bases")
    return functools.cache(lambda kind: save_model(kind, root / kind, dtype=torch.float32))


def outputs(model: Any) -> torch.Tensor:
    """Return logits, or the states and the pooled ones of an encoder, for some tokens."""
    tokens = torch.arange(2 * 12).reshape(2, 12) % VOCABULARY
    with torch.inference_mode():
        result = model(input_ids=tokens)
    pooled = result.get("pooler_output")
    return torch.cat([result[0].flatten(), *([] if pooled is None else [pooled.flatten()])])


@pytest.mark.parametrize("case", KINDS)
def test_a_grafted_adapter_computes_what_peft_merges(case: str, bases: Callable[[str], Path], tmp_path: Path):
    kind, settings = KINDS[case]
    base = bases(kind)
    adapter = make_adapter(base, tmp_path / "lora", **settings)
    model = load_model(base)
    before, plain = bits(model), outputs(model)
    assert graft(model, [adapter]) is model
    expected = outputs(merged_model(base, adapter))
    assert (expected - plain).abs().max() > 1e-2
    torch.testing.assert_close(outputs(model), expected, rtol=1e-5, atol=1e-5)
    ungraft(model)
    assert bits(model) == before


@pytest.mark.parametrize("case", KINDS)
def test_a_fused_checkpoint_is_what_grafting_gives(case: str, bases: Callable[[str], Path], tmp_path: Path):
    kind, settings = KINDS[case]
    adapter = make_adapter(bases(kind), tmp_path / "lora", **settings)
    fused = load_model(fuse(bases(kind), [adapter], tmp_path / "fused"))
    grafted = graft(load_model(bases(kind)), [adapter])
    assert torch.equal(outputs(fused), outputs(grafted))
