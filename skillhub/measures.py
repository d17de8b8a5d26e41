"""What is measured of models when a skill is evaluated: on its rows, and on unrelated texts as the control."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from skillhub.calibration.texts import GENERAL_TOKENS, Row, control_texts
from skillhub.errors import UsageError
from skillhub.progress import Progress
from skillhub.scoring import Reference, answer_rows, embed, embedding_distance, pair_cosines, score_rows

CONTROL = "unrelated text"
"""What the manifest calls the control: texts that ship with skillhub, none of which calibrates."""


@dataclass(frozen=True)
class Figure:
    """One figure of one model.

    Attributes:
        task: what it was measured on.
        metric: what was measured.
        value: the figure.
        rows: how many rows it is of.
    """

    task: str
    metric: str
    value: float
    rows: int


class Measure(Protocol):
    """Measures models one after another, the fine-tune first where there is one."""

    def score(self, model: Any, *, is_tuned: bool, progress: Progress | None) -> list[Figure]:
        """Return the same figures of every model, in the same order; progress is told of ``rows``."""


@dataclass(frozen=True, eq=False)
class AnswerMeasure:
    """Measures language models: ``nll`` in nats an answer token, ``exact``, and ``kl`` from the fine-tune in nats a token.

    Attributes:
        task: what the rows measure.
        rows: of the task.
        control: unrelated texts.
        references: what the fine-tune predicts of both; None without a fine-tune.
    """

    task: str
    rows: list[Row]
    control: list[Row]
    references: tuple[Reference, Reference] | None

    def score(self, model: Any, *, is_tuned: bool, progress: Progress | None) -> list[Figure]:
        """Return ``nll`` and ``exact``, and where there is a fine-tune ``kl``, also that of the control."""
        reference, of_control = self.references or (None, None)
        found = score_rows(model, self.rows, reference=reference, is_tuned=is_tuned, progress=progress)
        figures = [Figure(self.task, metric, found[metric], len(self.rows)) for metric in ("nll", "exact")]
        if of_control is None:
            return figures
        control = score_rows(model, self.control, reference=of_control, is_tuned=is_tuned)
        pairs = ((self.task, found), (CONTROL, control))
        return figures + [Figure(task, "kl", scores["kl"], int(scores["kl_rows"])) for task, scores in pairs]


def measure_answers(
    tokenizer: Any, rows: Sequence[dict[str, str]], task: str, spool: Path | None, limit: int | None
) -> AnswerMeasure:
    """Return the measure of ``{prompt, answer}`` rows.

    Args:
        tokenizer: by which all models read.
        rows: prompts and answers.
        task: what they measure.
        spool: a folder for what the fine-tune predicts; None where there is no fine-tune.
        limit: tokens that the models take.

    Raises:
        UsageError: as :func:`skillhub.scoring.answer_rows`.
    """
    encoded = answer_rows(tokenizer, rows, limit=limit)
    longest = min(GENERAL_TOKENS, limit or GENERAL_TOKENS)
    control = [Row(tuple(tokenizer(text).input_ids[:longest]), 1) for text in control_texts()]
    control = [row for row in control if len(row.tokens) > 1]
    references = None
    if spool is not None:
        references = Reference(spool / "rows", encoded), Reference(spool / "control", control)
    return AnswerMeasure(task, encoded, control, references)


@dataclass(frozen=True, eq=False)
class PairMeasure:
    """Measures encoders: ``cosine`` of the sentences of a pair, and ``distance``, 1 − cosine of embeddings to the fine-tune's.

    Attributes:
        tokenizer: by which all models read.
        task: what the rows measure.
        rows: ``{a, b}``.
        compares: whether there is a fine-tune.
    """

    tokenizer: Any
    task: str
    rows: Sequence[dict[str, str]]
    compares: bool
    _expected: dict[str, torch.Tensor] = field(default_factory=dict)

    def score(self, model: Any, *, is_tuned: bool, progress: Progress | None) -> list[Figure]:
        """Return ``cosine``, and where there is a fine-tune ``distance``, also that of the control."""
        cosines = pair_cosines(model, self.tokenizer, self.rows, progress=progress)
        figures = [Figure(self.task, "cosine", sum(cosines) / len(cosines), len(cosines))]
        if not self.compares:
            return figures
        sentences = [row[side] for row in self.rows for side in ("a", "b")]
        for task, texts, rows in (
            (self.task, sentences, len(self.rows)),
            (CONTROL, control := control_texts(), len(control)),
        ):
            found = embed(model, self.tokenizer, texts)
            if is_tuned:
                self._expected[task] = found
            figures.append(Figure(task, "distance", embedding_distance(found, self._expected[task]), rows))
        return figures


def check_figures(figures: Sequence[Figure], what: str) -> None:
    """Refuse figures that are no numbers: a manifest cannot hold them.

    Raises:
        UsageError: one is not finite.
    """
    for one in figures:
        if not math.isfinite(one.value):
            raise UsageError(
                f"The {what} model's {one.metric} on these rows is {one.value}.",
                hint="Look for weights that are infinite or no numbers; nothing was written.",
            )
