"""How far a model is from the fine-tune: divergence, likelihood and exact answers, row by row.

The fine-tune's own predictions are computed once and kept on disk. All forwards are fp32, whatever the weights were rounded to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from codec_deltas import Row

BATCH_TOKENS = 1536
RESAMPLES = 1000

Floats = npt.NDArray[np.float64]
Scores = Mapping[str, Floats]
"""Name of a figure → its sum in each row that was measured: ``divergence``, and of language models ``nll`` and ``exact``."""


@dataclass
class Reference:
    """Rows and what the fine-tune makes of them.

    Attributes:
        rows: sorted by length.
        store: file for the fine-tune's log-probabilities; None for an encoder.
    """

    rows: Sequence[Row]
    store: Path | None
    _offsets: list[int] = field(default_factory=list)
    _embeddings: list[torch.Tensor] = field(default_factory=list)
    _kept: Any = None

    def __post_init__(self) -> None:
        """Sort the rows, so that batches have little padding."""
        self.rows = sorted(self.rows, key=lambda row: (len(row.prompt) + len(row.answer), row.question))

    @property
    def tokens(self) -> Floats:
        """How much of each row is scored."""
        return np.array([max(len(row.answer), 1) for row in self.rows], dtype=np.float64)

    @torch.inference_mode()
    def remember(self, model: Any) -> None:
        """Keep what the fine-tune predicts."""
        if self.store is None:
            self._embeddings = [embed(model, batch) for batch in _batches(self.rows)]
            return
        shape = (int(self.tokens.sum()), model.config.vocab_size)
        self._kept = np.lib.format.open_memmap(self.store, mode="w+", dtype=np.float32, shape=shape)
        start = 0
        for batch in _batches(self.rows):
            found = log_probabilities(model, batch)
            self._offsets.append(start)
            self._kept[start : start + len(found)] = found.numpy()
            start += len(found)

    @torch.inference_mode()
    def measure(self, model: Any, every: int = 1) -> Scores:
        """Return the scores of the rows in every ``every``-th batch; those of other rows are NaN."""
        columns = ("divergence",) if self.store is None else ("divergence", "nll", "exact")
        scores = {name: np.full(len(self.rows), np.nan) for name in columns}
        row = 0
        for number, batch in enumerate(_batches(self.rows)):
            part = slice(row, row := row + len(batch))
            if number % every:
                continue
            if self.store is None:
                cosines = torch.cosine_similarity(embed(model, batch).double(), self._embeddings[number].double())
                scores["divergence"][part] = 1 - cosines.numpy()
                continue
            found = log_probabilities(model, batch)
            start = self._offsets[number]
            expected = torch.from_numpy(self._kept[start : start + len(found)])
            _score_rows(found, expected, batch, {name: values[part] for name, values in scores.items()})
        return scores


def _score_rows(found: torch.Tensor, expected: torch.Tensor, batch: Sequence[Row], scores: Scores) -> None:
    """Fill in the sums of each row of a batch from log-probabilities (answer tokens, vocabulary)."""
    wanted = torch.tensor([token for row in batch for token in row.answer])
    divergence = (expected.exp() * (expected - found)).sum(1, dtype=torch.float64)
    losses = -found.gather(1, wanted[:, None])[:, 0].double()
    right = found.argmax(1) == wanted
    lengths = [len(row.answer) for row in batch]
    for place, parts in enumerate(zip(*(one.split(lengths) for one in (divergence, losses, right)), strict=True)):
        scores["divergence"][place], scores["nll"][place] = float(parts[0].sum()), float(parts[1].sum())
        scores["exact"][place] = float(parts[2].all())


def _batches(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    """Yield rows of about the same length, as many as a batch's tokens allow."""
    start = 0
    while start < len(rows):
        stop = start + 1
        while stop < len(rows) and (stop + 1 - start) * _length(rows[stop]) <= BATCH_TOKENS:
            stop += 1
        yield rows[start:stop]
        start = stop


def _length(row: Row) -> int:
    return len(row.prompt) + len(row.answer)


def _padded(batch: Sequence[Row]) -> dict[str, torch.Tensor]:
    """Return inputs padded on the right, which no causal model and no masked encoder sees."""
    width = max(map(_length, batch))
    ids = torch.tensor([[*row.prompt, *row.answer, *[0] * (width - _length(row))] for row in batch])
    lengths = torch.tensor(list(map(_length, batch)))
    return {"input_ids": ids, "attention_mask": (torch.arange(width) < lengths[:, None]).long()}


def log_probabilities(model: Any, batch: Sequence[Row]) -> torch.Tensor:
    """Return fp32 (answer tokens of all rows, vocabulary): only the states that predict answers go through the head."""
    states = model.base_model(**_padded(batch), use_cache=False).last_hidden_state
    chosen = [state[len(row.prompt) - 1 : _length(row) - 1] for state, row in zip(states, batch, strict=True)]
    logits: torch.Tensor = model.get_output_embeddings()(torch.cat(chosen))
    return logits.log_softmax(-1)


def embed(model: Any, batch: Sequence[Row]) -> torch.Tensor:
    """Return (rows, width): the mean of an encoder's last hidden states."""
    inputs = _padded(batch)
    mask = inputs["attention_mask"][..., None]
    states: torch.Tensor = model(**inputs).last_hidden_state * mask
    return states.sum(1) / mask.sum(1)


@dataclass(frozen=True)
class Sample:
    """Rows that belong together by their questions, drawn again and again.

    Attributes:
        draws: (resamples + 1, rows): how often each row counts; the first is the sample itself.
    """

    draws: Floats

    def interval(self, figures: Floats) -> tuple[float, float, float]:
        """Return the figure of the sample itself, and where 95 % of those of the resamples lie."""
        low, high = np.percentile(figures[1:], [2.5, 97.5])
        return float(figures[0]), float(low), float(high)


def draw_sample(rows: Sequence[Row]) -> Sample:
    """Resample questions with replacement; one that is drawn brings all of its rows."""
    questions = {question: place for place, question in enumerate(sorted({row.question for row in rows}))}
    chance = np.random.default_rng(0)
    drawn = chance.multinomial(len(questions), np.full(len(questions), 1 / len(questions)), size=RESAMPLES)
    counts = np.concatenate([np.ones((1, len(questions))), drawn])
    return Sample(counts[:, [questions[row.question] for row in rows]])
