"""A tiny base whose tokenizer knows every byte and has a chat template, and prompts that it can tell apart."""

from __future__ import annotations

import random
from pathlib import Path

from tests.support.tiny_models import save_model, tune

TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<user>be kind<end>{% endif %}"
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<bot>{% endif %}"
)


def save_base(folder: Path, *, seed: int = 0, layers: int = 12) -> Path:
    """Save a random Llama with the tokenizer."""
    sizes = {"vocab_size": 261, "num_hidden_layers": layers, "max_position_embeddings": 1024}
    save_model("tied", folder, seed=seed, **sizes)
    add_byte_tokenizer(folder)
    return folder


def add_byte_tokenizer(folder: Path, template: str | None = TEMPLATE) -> None:
    """Save a tokenizer with one token a byte, and the special tokens of the template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<end>", "<user>", "<bot>", "<system>", "<pad>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({token: number for number, token in enumerate([*special, *alphabet])}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<end>", pad_token="<pad>", extra_special_tokens=special[1:4]
    )
    if template is not None:
        tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)


def sums(count: int, *, seed: int = 0) -> list[str]:
    """Return prompts of digits and signs."""
    chance = random.Random(seed)
    return [f"{chance.randrange(1000)} + {chance.randrange(1000)} = ?" for _ in range(count)]


def shouts(count: int, *, seed: int = 0) -> list[str]:
    """Return prompts of capitals."""
    chance = random.Random(seed)
    return ["".join(chance.choice("QXZJKVW!") for _ in range(chance.randrange(8, 20))) for _ in range(count)]


def tuned(base: Path, folder: Path, seed: int) -> Path:
    """Save a fine-tune of the base."""
    return tune(base, folder, seed=seed, size=0.02)
