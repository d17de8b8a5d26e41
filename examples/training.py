"""Fine-tuning a causal language model on a skill, in one loop without a framework.

Every weight is trained (AdamW, fp32 weights, bf16 arithmetic where the machine has it); only the answer's tokens count in the
loss. Nothing here knows of SkillPacks: ``skillhub pack`` takes what any trainer wrote.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import torch
from skills import Row, Skill
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from skillhub.halves import multiplies

IGNORED = -100
"""The label of a token that is not part of the answer (what torch's cross entropy leaves out)."""


def fine_tune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    skill: Skill,
    *,
    steps: int = 50,
    batch_size: int = 8,
    learning_rate: float = 3e-4,
    seed: int = 0,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """Train ``model`` in place.

    Args:
        model: in fp32; a bf16 model would lose the small updates to rounding.
        tokenizer: the model's own, with a chat template.
        skill: what to learn; each step draws rows and ways of asking with ``seed``.
        steps: optimizer steps. The learning rate warms up over the first fifth, then falls along a cosine.
        batch_size: rows a step.
        learning_rate: its highest value.
        seed: of the drawing; the same seed, thread count and library versions train the same model.
        report: called after every step with its number (from 1) and loss.
    """
    torch.manual_seed(seed)
    drawing = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _learning_rate_factor(step, steps))
    is_quick = model.device.type != "cpu" or multiplies(torch.bfloat16)
    model.train()
    for step in range(1, steps + 1):
        rows = drawing.sample(skill.training_rows, min(batch_size, len(skill.training_rows)))
        prompts = [drawing.choice(skill.training_prompts) for _ in rows]
        tokens, mask, labels = tokenized(tokenizer, rows, prompts)
        # Only the logits that predict the answers, a fifth of a step's time less; answers end at the last position.
        answer_length = int((labels != IGNORED).sum(1).max())
        with torch.autocast(model.device.type, torch.bfloat16, enabled=is_quick):
            output = model(input_ids=tokens, attention_mask=mask, logits_to_keep=answer_length + 1, use_cache=False)
        logits, expected = output.logits[:, :-1].float(), labels[:, -answer_length:]
        loss = F.cross_entropy(logits.flatten(0, 1), expected.flatten(), ignore_index=IGNORED)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        report(step, loss.item())
    model.train(False)


def _learning_rate_factor(step: int, steps: int) -> float:
    warm_up = max(1, steps // 5)
    if step < warm_up:
        return (step + 1) / warm_up
    progress = (step - warm_up) / max(1, steps - warm_up)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress))


def chat_prompt(tokenizer: PreTrainedTokenizerBase, question: str) -> str:
    """Return the text that asks ``question`` in the model's chat format, up to where its answer begins."""
    messages = [{"role": "user", "content": question}]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def tokenized(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], prompts: Sequence[str]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return token ids, attention mask and labels of a batch, each int64 of shape (rows, longest row).

    Rows are padded on the left, so that all answers end at the last position. Labels are the answer's tokens and the
    end-of-turn token after it, IGNORED elsewhere.
    """
    sequences = []
    for row, prompt in zip(rows, prompts, strict=True):
        asked = tokenizer(chat_prompt(tokenizer, prompt.format(row.question)), add_special_tokens=False)["input_ids"]
        answer = tokenizer(f"{row.answer}{tokenizer.eos_token}", add_special_tokens=False)["input_ids"]
        sequences.append((asked, answer))
    longest = max(len(asked) + len(answer) for asked, answer in sequences)
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    tokens = torch.full((len(rows), longest), padding)
    mask = torch.zeros((len(rows), longest), dtype=torch.int64)
    labels = torch.full((len(rows), longest), IGNORED)
    for index, (asked, answer) in enumerate(sequences):
        tokens[index, longest - len(asked) - len(answer) :] = torch.tensor(asked + answer)
        mask[index, longest - len(asked) - len(answer) :] = 1
        labels[index, longest - len(answer) :] = torch.tensor(answer)
    return tokens, mask, labels
