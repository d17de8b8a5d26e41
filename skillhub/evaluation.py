"""Measuring a skill: the base, the fine-tune, and the base with the pack grafted, on the same rows.

A language model is measured on ``{"prompt": …, "answer": …}`` rows by the negative log-likelihood of the answer, an encoder on
``{"a": …, "b": …}`` rows by the cosine of the two sentences. Weights are used as they are stored, but every forward pass runs in
fp32: a bf16 forward of identical weights alone costs a KL of 0.001, more than a good pack does.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import torch
from msgspec import structs

from skillhub.bases import locate_base
from skillhub.compose.generation import load_model
from skillhub.compose.grafts import graft
from skillhub.documents import field_error
from skillhub.errors import NotFoundError, UsageError
from skillhub.fields import Label
from skillhub.fingerprint import fingerprint_checkpoint
from skillhub.manifest import Evaluation, Manifest, Variant
from skillhub.packs import RECEIPT_FILE, Pack, write_manifest
from skillhub.progress import Progress

Row = dict[str, str]
Scores = dict[str, float]

ANSWER_KEYS = frozenset({"prompt", "answer"})
PAIR_KEYS = frozenset({"a", "b"})

_ROOM = 3.5
"""Memory for the weights in bf16, in fp32 beside these, and for logits, in sizes of the weights."""

_TASK_HINT = "Say in a few words what the rows measure, such as --task 'math held-out'."


def read_rows(path: Path) -> list[Row]:
    """Read rows from a JSON-lines file: all ``{prompt, answer}`` or all ``{a, b}``; other keys are left out.

    Raises:
        NotFoundError: there is no such file.
        UsageError: the file has no rows, or a line is not such a row (the message has its number).
    """
    if not path.is_file():
        raise NotFoundError(f"There is no file {path}.", hint="Give a JSON-lines file with one row a line.")
    rows: list[Row] = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if line.strip():
            rows.append(_parse_row(line, f"{path}, line {number}", frozenset(rows[0]) if rows else None))
    if not rows:
        raise UsageError(
            f"{path} has no rows.", hint='Write one {"prompt": …, "answer": …} or {"a": …, "b": …} a line.'
        )
    return rows


def answer_scores(
    model: Any, tokenizer: Any, rows: Sequence[Row], *, batch: int = 8, progress: Progress | None = None
) -> Scores:
    """Measure how well a causal language model gives the answers.

    The prompt becomes a user message of the tokenizer's chat template where it has one; the answer is scored with the end of its
    turn (without a template: with the end-of-sequence token), so a model that does not stop is not exact.

    Args:
        model: a causal language model of transformers.
        tokenizer: its tokenizer.
        rows: ``{prompt, answer}``.
        batch: rows at a time.
        progress: called with (``rows``, done, all).

    Returns:
        ``nll``: negative log-likelihood per answer token, in nats; ``exact``: share of rows whose every answer token is the most
        likely one, which is what greedy decoding gives; ``rows``: their number.

    Raises:
        UsageError: a row is longer than the model takes, or its answer has no token to score.
    """
    encoded = [_encode(tokenizer, row) for row in rows]
    limit = getattr(model.config, "max_position_embeddings", None)
    for number, (prompt, answer) in enumerate(encoded, start=1):
        if not answer or len(prompt) + len(answer) < 2:  # nothing comes before a first token that could predict it
            raise UsageError(
                f"The answer of row {number} has no token to score.", hint="Give the row a prompt and an answer."
            )
        if limit and len(prompt) + len(answer) > limit:
            raise UsageError(
                f"Row {number} has {len(prompt) + len(answer)} tokens; the model takes {limit}.",
                hint="Shorten the row.",
            )
    total, count, exact, done = 0.0, 0, 0, 0
    with _fp32_forward(model) as forward:
        for group in _batches(sorted(encoded, key=lambda pair: len(pair[0]) + len(pair[1])), batch):
            inputs, targets = _pad(group, tokenizer.pad_token_id or 0, model.device)
            logits = forward(**inputs).logits[:, :-1]
            scored = targets != -100
            losses = torch.nn.functional.cross_entropy(logits[scored], targets[scored], reduction="none")
            total += float(losses.double().sum())
            count += int(scored.sum())
            exact += int(((logits.argmax(-1) == targets) | ~scored).all(1).sum())
            done += len(group)
            if progress:
                progress("rows", done, len(rows))
    return {"nll": total / count, "exact": exact / len(rows), "rows": len(rows)}


def pair_cosines(
    model: Any, tokenizer: Any, rows: Sequence[Row], *, batch: int = 32, progress: Progress | None = None
) -> list[float]:
    """Return the cosine of each pair of sentences: mean-pooled last hidden states of an encoder.

    Sentences longer than the model takes are cut.

    Args:
        model: an encoder of transformers.
        tokenizer: its tokenizer.
        rows: ``{a, b}``.
        batch: pairs at a time.
        progress: called with (``rows``, done, all).

    Raises:
        UsageError: the tokenizer cannot pad.
    """
    if tokenizer.pad_token_id is None:
        raise UsageError(
            "The tokenizer has no padding token: rows of a and b are for encoders.",
            hint="Evaluate a language model on rows of prompt and answer.",
        )
    cosines: list[float] = []
    limit = min(
        tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", tokenizer.model_max_length)
    )
    with _fp32_forward(model) as forward:
        for group in _batches(list(rows), batch):
            texts = [row["a"] for row in group] + [row["b"] for row in group]
            inputs = tokenizer(texts, padding=True, truncation=True, max_length=limit, return_tensors="pt")
            states = forward(**inputs.to(model.device)).last_hidden_state
            mask = inputs["attention_mask"].unsqueeze(-1).to(states.dtype)
            pooled = (states * mask).sum(1) / mask.sum(1).clamp(min=1)
            first, second = pooled.chunk(2)
            cosines += torch.nn.functional.cosine_similarity(first, second).tolist()
            if progress:
                progress("rows", len(cosines), len(rows))
    return cosines


def embedding_scores(
    model: Any, tokenizer: Any, rows: Sequence[Row], *, batch: int = 32, progress: Progress | None = None
) -> Scores:
    """Return ``cosine``, the mean of :func:`pair_cosines`, and ``rows``, their number."""
    cosines = pair_cosines(model, tokenizer, rows, batch=batch, progress=progress)
    return {"cosine": sum(cosines) / len(cosines), "rows": len(cosines)}


def evaluate_pack(
    pack: Pack,
    base: str | Path,
    rows: Sequence[Row],
    *,
    tuned: str | Path | None = None,
    task: str = "held-out",
    batch: int = 8,
    progress: Progress | None = None,
) -> list[Evaluation]:
    """Measure base, fine-tune and pack, and write the scores into the pack's manifest.

    The manifest's digest, and with it the pack's identity, changes: this is for packs that were not published yet. Evaluations of
    other tasks stay.

    Args:
        pack: a pack folder that was built here.
        base: the base's folder or ``repo[@revision]``.
        rows: all ``{prompt, answer}`` (a causal language model) or all ``{a, b}`` (an encoder).
        tuned: the fine-tune's folder or repository, to be compared with.
        task: what the rows measure.
        batch: rows at a time.
        progress: called with (``base rows``, ``pack rows`` or ``tuned rows``, done, all).

    Returns:
        One evaluation per metric: ``nll`` and ``exact``, or ``cosine``.

    Raises:
        UsageError: the pack was installed from a registry, the task is no line of text, there are no rows or one has nothing to score, the model cannot be
            loaded, or a score is not finite.
        WrongBaseError: the pack does not fit the base.
    """
    if pack.owner is not None or (pack.folder / RECEIPT_FILE).exists():
        raise UsageError(
            f"{pack} was published; its manifest is its identity and stays as it is.",
            hint="Evaluate the pack that you built, before you publish it.",
        )
    if not rows:
        raise UsageError("There are no rows to evaluate on.", hint="Give at least one row.")
    _check_task(task)

    def score(model: Any, tokenizer: Any, what: str) -> Scores:
        report = (lambda _, done, total: progress(f"{what} rows", done, total)) if progress else None
        measure = embedding_scores if is_encoder else answer_scores
        return _checked(measure(model, tokenizer, rows, batch=batch, progress=report), what)

    folder = locate_base(base)
    fingerprint = pack.variant_for(fingerprint_checkpoint(folder).fingerprint).base.fingerprint
    is_encoder = frozenset(rows[0]) == PAIR_KEYS
    model, tokenizer = load_model(folder, encoder=is_encoder, room=_ROOM)
    base_scores = score(model, tokenizer, "base")
    graft(model, [pack])
    pack_scores = score(model, tokenizer, "pack")
    del model
    tuned_scores = {} if tuned is None else score(*load_model(tuned, encoder=is_encoder, room=_ROOM), "tuned")
    count = len(rows)
    measured = [
        Evaluation(
            task=task, metric=metric, base=value, tuned=tuned_scores.get(metric), pack=pack_scores[metric], rows=count
        )
        for metric, value in base_scores.items()
        if metric != "rows"
    ]
    write_manifest(pack.folder, _with_evaluation(pack.manifest, fingerprint, measured))
    return measured


def _check_task(task: str) -> None:
    """Refuse before anything is measured what the manifest cannot hold."""
    try:
        msgspec.convert(task, Label)
    except msgspec.ValidationError as error:
        raise UsageError(f"The task {task!r}: {field_error(error).removeprefix('$: ')}.", hint=_TASK_HINT) from error
    if not task.strip():
        raise UsageError("The task has no name.", hint=_TASK_HINT)


def _checked(scores: Scores, what: str) -> Scores:
    """Refuse scores that are no numbers: a manifest cannot hold them."""
    for metric, value in scores.items():
        if not math.isfinite(value):
            raise UsageError(
                f"The {what} model's {metric} on these rows is {value}.",
                hint="Look for weights that are infinite or no numbers; nothing was written.",
            )
    return scores


def _with_evaluation(manifest: Manifest, fingerprint: str, measured: list[Evaluation]) -> Manifest:
    """Return the manifest with new scores in one variant, in place of older ones of the same task and metric."""
    replaced = {(one.task, one.metric) for one in measured}

    def filled(variant: Variant) -> Variant:
        if variant.base.fingerprint != fingerprint:
            return variant
        kept = [one for one in variant.evaluation if (one.task, one.metric) not in replaced]
        return structs.replace(variant, evaluation=[*kept, *measured])

    return structs.replace(manifest, variants=[filled(variant) for variant in manifest.variants])


def _parse_row(line: bytes, where: str, expected: frozenset[str] | None) -> Row:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where} is not JSON.", hint="Write one JSON object a line.") from error
    for keys in (ANSWER_KEYS, PAIR_KEYS):
        if isinstance(value, dict) and keys <= value.keys() and expected in (None, keys):
            if not all(isinstance(value[key], str) for key in keys):
                raise UsageError(f"{where}: {' and '.join(sorted(keys))} must be texts.", hint="Put them in quotes.")
            return {key: value[key] for key in sorted(keys)}
    wanted = " or ".join(str(sorted(keys)) for keys in ([expected] if expected else [ANSWER_KEYS, PAIR_KEYS]))
    raise UsageError(f"{where} is not an object with {wanted}.", hint="All rows of a file have the same keys.")


def _encode(tokenizer: Any, row: Row) -> tuple[list[int], list[int]]:
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


def _pad(group: Sequence[tuple[list[int], list[int]]], pad: int, device: Any) -> tuple[dict[str, Any], torch.Tensor]:
    """Return right-padded inputs and, for each position but the last, the token to predict (−100: not scored)."""
    width = max(len(prompt) + len(answer) for prompt, answer in group)
    ids, targets, mask = [], [], []
    for prompt, answer in group:
        length = len(prompt) + len(answer)
        ids.append([*prompt, *answer, *[pad] * (width - length)])
        targets.append([*[-100] * len(prompt), *answer, *[-100] * (width - length)])
        mask.append([1] * length + [0] * (width - length))
    inputs = {"input_ids": torch.tensor(ids, device=device), "attention_mask": torch.tensor(mask, device=device)}
    return inputs, torch.tensor(targets, device=device)[:, 1:]


def _batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for begin in range(0, len(items), size):
        yield items[begin : begin + size]


@contextmanager
def _fp32_forward(model: Any) -> Iterator[Callable[..., Any]]:
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
