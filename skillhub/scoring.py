"""How well a model does on rows of text, and how far what it says is from what another says.

Of a language model: the likelihood of answers, which of them are exact, and the divergence of its predictions from a fine-tune's. Of an
encoder: cosines. Weights are used as they are stored, but every forward pass runs in fp32: a bf16 forward of identical weights
alone costs a divergence of 0.001 nats, more than a good pack does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from skillhub.calibration.texts import Row, padded
from skillhub.errors import UsageError
from skillhub.files import disk_errors
from skillhub.interop.modules import check_tokens
from skillhub.progress import Progress

Scores = dict[str, float]

ROOM = 3.5
"""Memory that scoring takes, in sizes of the model's weights: for these in bf16, in fp32 beside them, and for logits."""

MOST_REMEMBERED = 4 << 30
"""Bytes that the predictions of a fine-tune may take on disk; of more rows, every second one is remembered, or every third …"""


def answer_rows(tokenizer: Any, rows: Sequence[dict[str, str]], *, limit: int | None = None) -> list[Row]:
    """Return rows of ``{prompt, answer}`` as tokens, the answers with the end of their turns.

    The prompt becomes a user message of the tokenizer's chat template where it has one; without one the answer ends with the
    end-of-sequence token. So a model that does not stop is not exact.

    Args:
        tokenizer: of transformers.
        rows: prompts and answers.
        limit: tokens that the model takes.

    Raises:
        UsageError: a row is longer than the model takes, or its answer has no token to score.
    """
    encoded = []
    for number, row in enumerate(rows, start=1):
        prompt, answer = _encode(tokenizer, row)
        if not answer or len(prompt) + len(answer) < 2:  # nothing comes before a first token that could predict it
            raise UsageError(
                f"The answer of row {number} has no token to score.", hint="Give the row a prompt and an answer."
            )
        if limit and len(prompt) + len(answer) > limit:
            raise UsageError(
                f"Row {number} has {len(prompt) + len(answer)} tokens; the model takes {limit}.",
                hint="Shorten the row.",
            )
        encoded.append(Row((*prompt, *answer), max(len(prompt), 1)))
    return encoded


def _encode(tokenizer: Any, row: dict[str, str]) -> tuple[list[int], list[int]]:
    """Return the token ids of a prompt and of the answer with the end of its turn."""
    prompt, answer = row["prompt"], row["answer"]
    end = tokenizer.eos_token or ""
    if not tokenizer.chat_template:
        return list(tokenizer(prompt).input_ids), list(tokenizer(answer + end, add_special_tokens=False).input_ids)
    question = [{"role": "user", "content": prompt}]
    before = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template([*question, {"role": "assistant", "content": answer}], tokenize=False)
    after = whole[len(before) :] if whole.startswith(before) else answer + end
    ids = [list(tokenizer(text, add_special_tokens=False).input_ids) for text in (before, after)]
    return ids[0], ids[1]


@dataclass(eq=False)
class Reference:
    """What a fine-tune predicts for the scored tokens of rows, kept in a file of at most :data:`MOST_REMEMBERED` bytes.

    Attributes:
        path: of the file, which must not exist yet.
        rows: as tokens.
    """

    path: Path
    rows: Sequence[Row]
    _places: dict[int, tuple[int, tuple[int, int]]] = field(default_factory=dict)

    def remember(self, row: int, logits: torch.Tensor) -> None:
        """Keep the predictions of a row, (tokens, vocabulary) fp32, if it is one of those that there is room for."""
        size = 4 * logits.shape[1] * sum(len(one.tokens) - one.answer for one in self.rows)
        if row % max(1, math.ceil(size / MOST_REMEMBERED)) == 0:
            with disk_errors(self.path), self.path.open("ab") as stream:
                self._places[row] = (stream.tell(), (logits.shape[0], logits.shape[1]))
                stream.write(logits.cpu().numpy().tobytes())

    def __contains__(self, row: int) -> bool:
        """Say whether a row was remembered."""
        return row in self._places

    def divergence(self, row: int, logits: torch.Tensor) -> float:
        """Return the sum over a row's tokens of KL(fine-tune ‖ model) in nats.

        Where one of the two has more tokens in its vocabulary, those that both have are compared.
        """
        offset, shape = self._places[row]
        stored = np.fromfile(self.path, np.float32, shape[0] * shape[1], offset=offset)
        width = min(shape[1], logits.shape[1])
        expected = torch.from_numpy(stored).reshape(shape)[:, :width].to(logits.device).log_softmax(-1)
        found = logits[:, :width].log_softmax(-1)
        return float((expected.exp() * (expected - found)).sum(1, dtype=torch.float64).sum())


def answer_scores(
    model: Any, tokenizer: Any, rows: Sequence[dict[str, str]], *, batch: int = 8, progress: Progress | None = None
) -> Scores:
    """Measure how well a causal language model gives answers, as :func:`score_rows` does.

    Args:
        model: a causal language model of transformers.
        tokenizer: its tokenizer.
        rows: ``{prompt, answer}``, as for :func:`answer_rows`.
        batch: rows at a time.
        progress: called with (``rows``, done, all).

    Raises:
        UsageError: as :func:`answer_rows`.
    """
    encoded = answer_rows(tokenizer, rows, limit=getattr(model.config, "max_position_embeddings", None))
    return score_rows(model, encoded, batch=batch, progress=progress)


def score_rows(
    model: Any,
    rows: Sequence[Row],
    *,
    reference: Reference | None = None,
    is_tuned: bool = False,
    batch: int = 8,
    progress: Progress | None = None,
) -> Scores:
    """Measure what a causal language model predicts for the tokens of rows from ``row.answer`` on.

    Args:
        model: a causal language model of transformers.
        rows: as tokens.
        reference: what a fine-tune predicts for them.
        is_tuned: the model is that fine-tune: its predictions are remembered.
        batch: rows at a time.
        progress: called with (``rows``, done, all).

    Returns:
        ``nll``: negative log-likelihood a token, in nats; ``exact``: share of rows whose every token is the most likely one, which is
        what greedy decoding gives; ``rows``: their number. With a reference ``kl``: KL(fine-tune ‖ model) a token, in nats, over
        ``kl_rows`` rows.

    Raises:
        UsageError: the model does not embed one of the tokens.
    """
    check_tokens(model, [row.tokens for row in rows])
    nll, divergence, exact, done = 0.0, 0.0, 0, 0
    tokens, compared, compared_rows = 0, 0, 0
    for row, logits in predict(model, rows, batch=batch):
        wanted = torch.tensor(rows[row].tokens[rows[row].answer :], device=logits.device)
        nll += float(torch.nn.functional.cross_entropy(logits, wanted, reduction="none").double().sum())
        exact += int((logits.argmax(-1) == wanted).all())
        tokens, done = tokens + len(wanted), done + 1
        if reference is not None and is_tuned:
            reference.remember(row, logits)
        if reference is not None and row in reference:
            divergence += 0.0 if is_tuned else reference.divergence(row, logits)
            compared, compared_rows = compared + len(wanted), compared_rows + 1
        if progress:
            progress("rows", done, len(rows))
    scores = {"nll": nll / tokens, "exact": exact / len(rows), "rows": len(rows)}
    return scores if reference is None else {**scores, "kl": divergence / compared, "kl_rows": compared_rows}


def predict(model: Any, rows: Sequence[Row], *, batch: int = 8) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield, row by row, its number and the fp32 logits (tokens, vocabulary) of its tokens from ``row.answer`` on."""
    order = sorted(range(len(rows)), key=lambda number: len(rows[number].tokens))  # little padding
    with fp32_forward(model) as forward:
        for group in _batches(order, batch):
            ids, mask = padded([rows[number].tokens for number in group], 0)
            outputs = forward(input_ids=ids.to(model.device), attention_mask=mask.to(model.device))
            for number, logits in zip(group, outputs.logits, strict=True):
                row = rows[number]
                yield number, logits[row.answer - 1 : len(row.tokens) - 1]


def pair_cosines(
    model: Any,
    tokenizer: Any,
    rows: Sequence[dict[str, str]],
    *,
    batch: int = 32,
    progress: Progress | None = None,
) -> list[float]:
    """Return the cosine of each pair of sentences: mean-pooled last hidden states of an encoder.

    Args:
        model: an encoder of transformers.
        tokenizer: its tokenizer.
        rows: ``{a, b}``.
        batch: pairs at a time.
        progress: called with (``rows``, done, all).

    Raises:
        UsageError: the tokenizer cannot pad.
    """
    report = (lambda what, done, total: progress(what, done // 2, total // 2)) if progress else None
    texts = [row[side] for row in rows for side in ("a", "b")]
    found = embed(model, tokenizer, texts, batch=2 * batch, progress=report)
    cosines: list[float] = torch.nn.functional.cosine_similarity(found[::2], found[1::2]).tolist()
    return cosines


def embed(
    model: Any, tokenizer: Any, texts: Sequence[str], *, batch: int = 64, progress: Progress | None = None
) -> torch.Tensor:
    """Return (texts, width) fp32: the mean of an encoder's last hidden states. Texts longer than the model takes are cut.

    Raises:
        UsageError: the tokenizer cannot pad.
    """
    if tokenizer.pad_token_id is None:
        raise UsageError(
            "The tokenizer has no padding token: rows of a and b are for encoders.",
            hint="Evaluate a language model on rows of prompt and answer.",
        )
    limit = min(
        tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", tokenizer.model_max_length)
    )
    found: list[torch.Tensor] = []
    with fp32_forward(model) as forward:
        for group in _batches(texts, batch):
            inputs = tokenizer(list(group), padding=True, truncation=True, max_length=limit, return_tensors="pt")
            states = forward(**inputs.to(model.device)).last_hidden_state
            mask = inputs["attention_mask"].unsqueeze(-1).to(states.dtype)
            found += ((states * mask).sum(1) / mask.sum(1).clamp(min=1)).cpu()
            if progress:
                progress("rows", len(found), len(texts))
    return torch.stack(found)


def embedding_distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the mean of 1 − cosine between the embeddings that two models have of the same texts, (texts, width)."""
    return float((1 - torch.nn.functional.cosine_similarity(found.double(), expected.double())).mean())


def _batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for begin in range(0, len(items), size):
        yield items[begin : begin + size]


@contextmanager
def fp32_forward(model: Any) -> Iterator[Callable[..., Any]]:
    """Yield the model's forward as a function that computes in fp32 with the stored weights, without changing the model."""
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    narrow = {name for name, tensor in named.items() if tensor.is_floating_point() and tensor.dtype != torch.float32}
    wide = {name: named[name].detach().float() for name in sorted(narrow)}
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield lambda **inputs: torch.func.functional_call(model, wide, (), inputs)
    finally:
        model.train(was_training)
