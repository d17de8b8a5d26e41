"""Tiny random models on disk, fine-tunes of them, and packs built by hand from both."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from skillhub.checkpoints import open_checkpoint
from skillhub.codecs import exact
from skillhub.deltas import Delta
from skillhub.packs import Pack, write_manifest
from tests.support.handmade_packs import Handmade, write_pack

VOCABULARY = 26
_DECODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}


_ROTARY = {**_DECODER, "head_dim": 4}
_EXPERTS = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_ENCODER = {key: _DECODER[key] for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")}
_LINEAR_ATTENTION = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 4,
    "layer_types": ["linear_attention", "full_attention"],
}
_T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "d_kv": 4,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 4,
    "pad_token_id": 2,
    "eos_token_id": 1,
    "decoder_start_token_id": 2,
}
_VISION = {
    "model_type": "siglip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "image_size": 8,
    "patch_size": 4,
}
_IMAGES = {
    "text_config": {**_ROTARY, "model_type": "gemma3_text", "tie_word_embeddings": True},
    "vision_config": _VISION,
    "mm_tokens_per_image": 4,
    "image_token_index": 5,
    "boi_token_index": 6,
    "eoi_token_index": 7,
}

KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {**_ROTARY, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {**_ROTARY, "tie_word_embeddings": False}),
    "qwen3_5": ("Qwen3_5TextConfig", "Qwen3_5ForCausalLM", {**_ROTARY, **_LINEAR_ATTENTION}),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", {**_ROTARY, "tie_word_embeddings": True}),
    "gemma": ("Gemma3TextConfig", "Gemma3ForCausalLM", {**_ROTARY, "tie_word_embeddings": True}),
    "gemma_images": ("Gemma3Config", "Gemma3ForConditionalGeneration", _IMAGES),
    "bert_mlm": ("BertConfig", "BertForMaskedLM", {**_ENCODER, "num_attention_heads": 4, "pad_token_id": 2}),
    "t5": ("T5Config", "T5ForConditionalGeneration", _T5),
    "t5_untied": ("T5Config", "T5ForConditionalGeneration", {**_T5, "tie_word_embeddings": False}),
    "qwen_moe": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM", {**_ROTARY, **_EXPERTS}),
    "qwen2_moe": (
        "Qwen2MoeConfig",
        "Qwen2MoeForCausalLM",
        {**_ROTARY, **_EXPERTS, "shared_expert_intermediate_size": 24},
    ),
}
"""Further kinds of models: classes of config and model, and the config's fields; another ``tie_word_embeddings`` is a change."""


def make_model(kind: str, *, dtype: torch.dtype = torch.bfloat16, seed: int = 0, **changes: Any) -> Any:
    """Return a random model.

    Args:
        kind: ``llama`` (untied), ``tied`` (a Llama with a tied head), ``gpt2``, ``bert``, ``mixtral``, ``resnet`` or one of ``KINDS``.
        dtype: of its weights.
        seed: of its weights.
        changes: fields of its config.
    """
    import transformers

    torch.manual_seed(seed)
    if kind in KINDS:
        config_class, model_class, fields = KINDS[kind]
        config = getattr(transformers, config_class)(**{**fields, **changes})
        model = getattr(transformers, model_class)(config)
        if kind == "t5_untied":
            model.all_tied_weights_keys.pop("lm_head.weight")
            model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.shared.weight) / 4)
    elif kind in ("llama", "tied"):
        config = transformers.LlamaConfig(**{**_DECODER, "tie_word_embeddings": kind == "tied", **changes})
        model = transformers.LlamaForCausalLM(config)
    elif kind == "mixtral":
        config = transformers.MixtralConfig(**{**_DECODER, "num_local_experts": 3, "num_experts_per_tok": 2, **changes})
        model = transformers.MixtralForCausalLM(config)
    elif kind == "gpt2":
        tokens = {"bos_token_id": 0, "eos_token_id": 1}
        config = transformers.GPT2Config(
            **{
                "vocab_size": VOCABULARY,
                "n_embd": 16,
                "n_layer": 2,
                "n_head": 4,
                "n_positions": 32,
                **tokens,
                **changes,
            }
        )
        model = transformers.GPT2LMHeadModel(config)
    elif kind == "resnet":
        config = transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic")
        model = transformers.ResNetModel(config)
    else:
        sizes = {key: _DECODER[key] for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")}
        config = transformers.BertConfig(
            **{**sizes, "num_attention_heads": 4, "max_position_embeddings": 32, "pad_token_id": 2, **changes}
        )
        model = transformers.BertModel(config)
    return model.to(dtype).eval()


def save_model(kind: str, folder: Path, **options: Any) -> Path:
    """Save a random model; returns its folder."""
    make_model(kind, **options).save_pretrained(folder)
    return folder


def add_tokenizer(folder: Path) -> None:
    """Save a word tokenizer of 24 words beside a tiny model."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<s>", "</s>", "<pad>", "<unk>", *"abcdefghijklmnopqrst"]
    raw = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder)


def load_model(folder: Path) -> Any:
    """Load a saved model in its stored dtype, as the class that its config names."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    loader = getattr(transformers, config.architectures[0])
    return loader.from_pretrained(folder, dtype="auto").eval()


def tune(base: Path, folder: Path, *, seed: int = 1, size: float = 0.003, only: str = "") -> Path:
    """Write a fine-tune of a checkpoint: noise on every float tensor whose name contains ``only``."""
    generator = torch.Generator().manual_seed(seed)

    def noisy(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if only not in name or not tensor.is_floating_point():
            return tensor
        return (tensor.float() + size * torch.randn(tensor.shape, generator=generator)).to(tensor.dtype)

    return rewrite(base, folder, lambda tensors: {name: noisy(name, tensor) for name, tensor in tensors.items()})


def rewrite(base: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Path:
    """Copy a checkpoint with its tensors changed."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in base.iterdir():
        if path.suffix != ".safetensors":
            (folder / path.name).write_bytes(path.read_bytes())
    tensors = change(load_file(base / "model.safetensors"))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def build_pack(
    tuned: Path, base: Path, folder: Path, *, name: str = "tiny-pack", version: str = "1.0.0", lossy: bool = False
) -> Pack:
    """Build a pack by hand with exact parts.

    Args:
        lossy: cut the delta to a few bits, and say so in the manifest.
    """
    delta = Delta(open_checkpoint(base), open_checkpoint(tuned))
    changed = (_handmade(delta, one, lossy) for one in delta.names if not delta.is_unchanged(one))
    return write_pack(folder, base, changed, name=name, version=version)


def build_place(kind: str, folder: Path) -> Path:
    """Fill a folder with ``base``, ``tuned`` and packs: ``one`` (exact, of ``tuned``), ``two``, ``three`` (lossy, of some tensors)."""
    base = save_model(kind, folder / "base")
    build_pack(tune(base, folder / "tuned"), base, folder / "one", name="one")
    build_pack(tune(base, folder / "tuned2", seed=2, size=0.02), base, folder / "two", name="two", lossy=True)
    part = tune(base, folder / "tuned3", seed=3, size=0.05, only="1")
    build_pack(part, base, folder / "three", name="three", lossy=True)
    return folder


def _handmade(delta: Delta, name: str, lossy: bool) -> Handmade:
    change = delta.change(name)
    if change == "removed":
        return Handmade(name, tuple(delta.base.tensors[name].shape), None, change=change)
    error = 0.0
    if delta.is_additive(name):
        values = delta.tensor(name)
        if lossy:
            cut = (values * 512).round() / 512
            error, values = float((values - cut).abs().max()), cut
        encoded = exact.encode(values)
    else:
        encoded = exact.encode(delta.tuned.tensor(name), operation="set")
    return Handmade(name, encoded.shape, encoded, change=change, error=(error, error))


def with_entry(pack: Pack, name: str, **changes: Any) -> Pack:
    """Return a pack whose manifest says something else about one tensor (also on disk)."""
    import msgspec

    variant = pack.manifest.variants[0]
    entry = msgspec.structs.replace(variant.codec.tensors[name], **changes)
    codec = msgspec.structs.replace(variant.codec, tensors={**variant.codec.tensors, name: entry})
    manifest = msgspec.structs.replace(pack.manifest, variants=[msgspec.structs.replace(variant, codec=codec)])
    write_manifest(pack.folder, manifest)
    return dataclasses.replace(pack, manifest=manifest)


def bits(model: Any) -> dict[str, bytes]:
    """Return the bytes of every parameter and buffer of a model."""
    named = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    return {name: raw(tensor) for name, tensor in named.items()}


def raw(tensor: torch.Tensor) -> bytes:
    """Return a tensor's bytes in row-major order."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
