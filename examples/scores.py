"""How good a model is at a skill, how it reads ordinary text, and which weights it has, to the bit."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from skills import Skill
from torch.nn import functional as F
from training import IGNORED, chat_prompt, tokenized
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from skillhub.halves import quick_products


@dataclass(frozen=True)
class Score:
    """A model's result on held-out rows; teacher forced, the right answer so far is always given."""

    nll: float
    """Negative log-likelihood per answer token, in nats; lower is better."""
    exact: float
    """Share of the rows in which every token of the answer was the likeliest one."""
    tokens: float
    """Share of the answer tokens that were the likeliest one."""
    rows: int


def score(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, skill: Skill, *, rows: int = 128, batch_size: int = 32
) -> Score:
    """Measure ``model`` on ``rows`` held-out rows, asked in the way that was never trained on.

    The model should be in fp32 (``model.float()`` of a bf16 one), so that it is its weights that are measured and not
    the rounding of the arithmetic.
    """
    chosen = random.Random(0).sample(skill.held_out_rows, min(rows, len(skill.held_out_rows)))
    nll, right, count, exact = 0.0, 0, 0, 0
    for start in range(0, len(chosen), batch_size):
        batch = chosen[start : start + batch_size]
        tokens, mask, labels = tokenized(tokenizer, batch, [skill.held_out_prompt] * len(batch))
        answer_length = int((labels != IGNORED).sum(1).max())
        with torch.inference_mode(), quick_products():
            # Only the logits that predict the answers; answers end at the last position (left padding).
            output = model(input_ids=tokens, attention_mask=mask, logits_to_keep=answer_length + 1, use_cache=False)
        logits, expected = output.logits[:, :-1].float(), labels[:, -answer_length:]
        counted = expected != IGNORED
        hits = logits.argmax(-1) == expected
        nll += float(F.cross_entropy(logits[counted], expected[counted], reduction="sum"))
        right += int(hits[counted].sum())
        count += int(counted.sum())
        exact += int((hits | ~counted).all(1).sum())
    return Score(nll=nll / count, exact=exact / len(chosen), tokens=right / count, rows=len(chosen))


def text_nll(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> float:
    """Return the negative log-likelihood per token, in nats, that ``model`` gives to plain texts."""
    total, count = 0.0, 0
    for text in texts:
        tokens = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        with torch.inference_mode(), quick_products():
            logits = model(input_ids=tokens, use_cache=False).logits[0, :-1].float()
        total += float(F.cross_entropy(logits, tokens[0, 1:], reduction="sum"))
        count += tokens.shape[1] - 1
    return total / count


def answer(model: Any, tokenizer: PreTrainedTokenizerBase, prompt: str, *, longest: int = 24) -> str:
    """Return what ``model`` says to ``prompt``: greedily, at most ``longest`` tokens, on one line."""
    asked = tokenizer(chat_prompt(tokenizer, prompt), return_tensors="pt", add_special_tokens=False)
    with torch.inference_mode():
        said = model.generate(**asked, max_new_tokens=longest, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    text = tokenizer.decode(said[0, asked["input_ids"].shape[1] :], skip_special_tokens=True)
    return " ".join(str(text).split())


def weights_digest(model: torch.nn.Module) -> str:
    """Return the sha256 over every parameter and buffer: name, dtype, shape and the very bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
