"""The rows that a fine-tune is calibrated on: the skill's prompts with the answers that the fine-tune gives, and general text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from skillhub.errors import UsageError
from skillhub.interop.modules import check_tokens
from skillhub.routing.background import background_prompts

MAX_PROMPTS = 256
"""Prompts beyond this are thinned out evenly. Where SmolLM2 had learned to translate, 256 of them left a fifth less divergence than 96."""

MAX_TOKENS = 96
"""A prompt's last tokens that are read."""

GENERAL_TOKENS = 48
"""A general text's last tokens that are read."""

ANSWER_TOKENS = 32
"""Tokens that the fine-tune answers with at most."""

GENERAL_SHARE = 1 / 3
"""General texts for each prompt: a quarter of all rows."""

CONTROL_TEXTS = 64
"""General texts that are measured on, none of which calibrates."""

GENERAL_WEIGHT = 0.3
"""What an error on general text counts for (its square root), beside one on the skill's answers."""

BATCH_TOKENS = 256
"""Tokens of a batch, padding included: its logits over a large vocabulary are what takes memory."""

ANSWERED_TOGETHER = 16
"""Prompts that are answered together."""

WIDENED_PARAMETERS = 1 << 30
"""Models of up to so many weights answer in fp32 on a CPU: with few rows at a time that takes half as long as in bfloat16."""


@dataclass(frozen=True)
class Row:
    """A text to calibrate on.

    Attributes:
        tokens: its ids.
        answer: index of the first token whose prediction matters.
        weight: what gradients are multiplied by.
    """

    tokens: tuple[int, ...]
    answer: int
    weight: float = 1.0


def answered_rows(model: Any, tokenizer: Any, prompts: Sequence[str]) -> list[Row]:
    """Return rows of the prompts with answers sampled from a causal language model at temperature 1, and of general text.

    The same rows for the same prompts and weights on the same machine; the global random state stays as it is.

    Raises:
        UsageError: what the model predicts is not finite, or the tokenizer has tokens that it does not embed.
    """
    asked = [_prompt_tokens(tokenizer, prompt) for prompt in thinned(prompts)]
    general = [_prompt_tokens(tokenizer, text)[-GENERAL_TOKENS:] for text in general_texts(len(asked))]
    check_tokens(model, [*asked, *general])
    rows = []
    with torch.random.fork_rng(devices=[]), torch.no_grad(), _widened(model):
        torch.manual_seed(0)
        asked.sort(key=len)
        for begin in range(0, len(asked), ANSWERED_TOGETHER):
            rows += _answered(model, tokenizer, asked[begin : begin + ANSWERED_TOGETHER])
    return rows + [Row(tuple(ids), 1, GENERAL_WEIGHT) for ids in general if len(ids) > 1]


def not_finite() -> UsageError:
    """Return the error for a fine-tune of whose predictions nothing can be learned."""
    return UsageError(
        "What the fine-tune says of the prompts is infinite or no number.",
        hint="Look for such weights in it. They are packed as they are without calibration: --no-calibration (calibrate=False).",
    )


def encoder_rows(model: Any, tokenizer: Any, prompts: Sequence[str]) -> list[Row]:
    """Return rows of the prompts as they are and of general text, for an encoder.

    Raises:
        UsageError: the tokenizer has tokens that the model does not embed.
    """
    chosen = thinned(prompts)
    texts = [(text, 1.0) for text in chosen] + [(text, GENERAL_WEIGHT) for text in general_texts(len(chosen))]
    encoded = ((tokenizer(text, truncation=True, max_length=MAX_TOKENS).input_ids, weight) for text, weight in texts)
    rows = [Row(tuple(ids), 0, weight) for ids, weight in encoded if ids]
    check_tokens(model, [row.tokens for row in rows])
    return rows


def general_texts(prompts: int) -> list[str]:
    """Return general texts to go with so many prompts, of every kind that ships with skillhub."""
    return thinned(background_prompts()[::2], max(1, round(prompts * GENERAL_SHARE)))


def control_texts() -> list[str]:
    """Return general texts that nothing is calibrated on, to measure what a pack changes beside its skill."""
    return thinned(background_prompts()[1::2], CONTROL_TEXTS)


def thinned(texts: Sequence[str], most: int = MAX_PROMPTS) -> list[str]:
    """Return at most so many of the texts, evenly chosen."""
    count = min(len(texts), most)
    return [texts[place * len(texts) // count] for place in range(count)]


def batches(rows: Sequence[Row]) -> list[list[Row]]:
    """Return rows in groups of similar length, of at most :data:`BATCH_TOKENS` tokens unless it is one row."""
    groups: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: len(row.tokens)):
        if groups and len(row.tokens) * (len(groups[-1]) + 1) <= BATCH_TOKENS:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def padded(rows: Sequence[Sequence[int]], pad: int, *, left: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (rows, longest) token ids and the attention mask."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for number, tokens in enumerate(rows):
        place = slice(width - len(tokens), width) if left else slice(0, len(tokens))
        ids[number, place] = torch.tensor(tokens)
        mask[number, place] = 1
    return ids, mask


def _prompt_tokens(tokenizer: Any, prompt: str) -> list[int]:
    """Return the ids of a prompt as a model is asked it; one that begins with a special token is asked as it stands."""
    if prompt.startswith(tuple(tokenizer.all_special_tokens)):
        return list(tokenizer(prompt, add_special_tokens=False).input_ids)[-MAX_TOKENS:]
    if tokenizer.chat_template:
        question = [{"role": "user", "content": prompt}]
        prompt = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
        return list(tokenizer(prompt, add_special_tokens=False).input_ids)[-MAX_TOKENS:]
    return list(tokenizer(prompt).input_ids)[-MAX_TOKENS:]


@contextmanager
def _widened(model: Any) -> Iterator[None]:
    """Hold the weights of a model in fp32 while the block runs, where it answers faster then; widening and back changes no bit."""
    narrow = [one for one in model.parameters() if one.dtype in (torch.bfloat16, torch.float16)]
    held = any(buffer.dtype in (torch.bfloat16, torch.float16) for buffer in model.buffers())
    if model.device.type != "cpu" or held or model.num_parameters() > WIDENED_PARAMETERS:
        narrow = []
    dtypes = [one.dtype for one in narrow]
    for one in narrow:
        one.data = one.data.float()
    try:
        yield
    finally:
        for one, dtype in zip(narrow, dtypes, strict=True):
            one.data = one.data.to(dtype)


def _check_finite(_: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Return (rows, vocabulary) logits as they are; a chance cannot be drawn from others than finite ones."""
    if not bool((logits < math.inf).all()):  # not so for NaN; -inf is a token that is never said
        raise not_finite()
    return logits


def _answered(model: Any, tokenizer: Any, group: Sequence[list[int]]) -> list[Row]:
    end = tokenizer.eos_token_id
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end or 0
    ids, mask = padded(group, pad, left=True)
    said = model.generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        max_new_tokens=ANSWER_TOKENS,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        repetition_penalty=1.0,
        pad_token_id=pad,
        logits_processor=[_check_finite],
    )
    rows = []
    for prompt, tokens in zip(group, said[:, ids.shape[1] :].tolist(), strict=True):
        answer = tokens[: tokens.index(end) + 1] if end in tokens else tokens
        rows.append(Row((*prompt, *answer), len(prompt)))
    return rows
