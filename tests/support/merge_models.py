"""Tiny models for merging, the same bits everywhere and forever: their weights come from NumPy's frozen generator, by name.

Only NumPy, safetensors, tokenizers and transformers are needed, so that the script which makes golden files can run beside mergekit.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

HIDDEN, INNER, HEADS, LAYERS, VOCABULARY = 8, 12, 2, 4, 26
SPECIAL = ["<s>", "</s>", "<pad>", "<unk>"]
LETTERS = list("abcdefghijklmnopqrst")

_TOKENS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
_LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-6,
    "dtype": "float32",
    **_TOKENS,
}
_GPT2 = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "n_embd": HIDDEN,
    "n_inner": INNER,
    "n_layer": LAYERS,
    "n_head": HEADS,
    "n_positions": 16,
    "dtype": "float32",
    **_TOKENS,
}


def write_models(root: Path) -> None:
    """Write all models below a folder: ``llama``, ``tied`` and ``gpt2``, each a base and three fine-tunes, and four vocabularies."""
    for kind in ("llama", "tied", "gpt2"):
        for number, name in enumerate(("base", "one", "two", "three")):
            _write(root / kind / name, kind, tuned=number)
            write_tokenizer(root / kind / name, SPECIAL + LETTERS)
    vocabularies: dict[str, tuple[int, list[str], list[str]]] = {
        "base": (26, SPECIAL + LETTERS, []),  # two rows more than tokens
        "turned": (24, SPECIAL + LETTERS[::-1], []),
        "added": (28, [*SPECIAL, *LETTERS, "u", "v"], ["<|im_start|>", "w"]),
        "other": (27, [*SPECIAL, *LETTERS[:18], "u", "v"], ["y", "<|im_start|>", "w"]),
    }
    for kind in ("llama", "tied"):
        for number, (name, (size, words, added)) in enumerate(vocabularies.items()):
            folder = root / f"{kind}-vocabularies" / name
            _write(folder, kind, tuned=number, size=size)
            write_tokenizer(folder, words, added)


def shapes_of(kind: str, size: int) -> dict[str, tuple[int, ...]]:
    """Return name → shape of the tensors of a kind of model."""
    if kind == "gpt2":
        shapes: dict[str, tuple[int, ...]] = {
            "transformer.wte.weight": (size, HIDDEN),
            "transformer.wpe.weight": (16, HIDDEN),
        }
        for layer in range(LAYERS):
            inner = {
                "ln_1.weight": (HIDDEN,),
                "ln_1.bias": (HIDDEN,),
                "attn.c_attn.weight": (HIDDEN, 3 * HIDDEN),
                "attn.c_attn.bias": (3 * HIDDEN,),
                "attn.c_proj.weight": (HIDDEN, HIDDEN),
                "attn.c_proj.bias": (HIDDEN,),
                "ln_2.weight": (HIDDEN,),
                "ln_2.bias": (HIDDEN,),
                "mlp.c_fc.weight": (HIDDEN, INNER),
                "mlp.c_fc.bias": (INNER,),
                "mlp.c_proj.weight": (INNER, HIDDEN),
                "mlp.c_proj.bias": (HIDDEN,),
            }
            shapes |= {f"transformer.h.{layer}.{name}": shape for name, shape in inner.items()}
        return {**shapes, "transformer.ln_f.weight": (HIDDEN,), "transformer.ln_f.bias": (HIDDEN,)}
    shapes = {"model.embed_tokens.weight": (size, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        inner = {
            "input_layernorm.weight": (HIDDEN,),
            "post_attention_layernorm.weight": (HIDDEN,),
            "self_attn.q_proj.weight": (HIDDEN, HIDDEN),
            "self_attn.k_proj.weight": (4, HIDDEN),
            "self_attn.v_proj.weight": (4, HIDDEN),
            "self_attn.o_proj.weight": (HIDDEN, HIDDEN),
            "mlp.gate_proj.weight": (INNER, HIDDEN),
            "mlp.up_proj.weight": (INNER, HIDDEN),
            "mlp.down_proj.weight": (HIDDEN, INNER),
        }
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in inner.items()}
    return shapes if kind == "tied" else {**shapes, "lm_head.weight": (size, HIDDEN)}


def _write(folder: Path, kind: str, *, tuned: int, size: int = VOCABULARY) -> None:
    folder.mkdir(parents=True)
    tensors = {}
    for name, shape in shapes_of(kind, size).items():
        base, shared = _numbers(name, 0, shape), _numbers(name, 9, shape)  # all fine-tunes have something in common
        tensors[name] = base if not tuned else base + np.float32(0.1) * (shared + _numbers(name, tuned, shape))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config: dict[str, Any] = {**(_GPT2 if kind == "gpt2" else _LLAMA), "vocab_size": size}
    config["tie_word_embeddings"] = kind != "llama"
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _numbers(name: str, tuned: int, shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.float32]]:
    generator = np.random.RandomState(zlib.crc32(f"{name} {tuned} {list(shape)}".encode()))
    return generator.standard_normal(shape).astype(np.float32)


def write_tokenizer(folder: Path, words: list[str], added: list[str] | None = None) -> None:
    """Write a tokenizer of words; those added that look like ``<|…|>`` are special."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AddedToken, PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    for word in added or []:
        tokenizer.add_tokens(AddedToken(word, special=word.startswith("<|")))
    tokenizer.save_pretrained(folder)
