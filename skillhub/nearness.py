"""The smallest pack whose predictions stay as near to the fine-tune's as asked.

Nearness is measured, not estimated: each trial is a pack, grafted as users will graft it, and the divergence is that of the predictions on
answers which the fine-tune gave to prompts that nothing was calibrated on. Between two sizes it falls much like a power of
the size, so the next size is where a straight line through the logarithms meets the bound.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skillhub.calibration.texts import Row, answered_rows
from skillhub.codecs.allocation import choose_lambda
from skillhub.compose.generation import choose_tokenizer, load_model, predicts_tokens
from skillhub.compose.grafts import graft, ungraft
from skillhub.deltaencoding import DeltaEncoder
from skillhub.deltafiles import DeltaWriter
from skillhub.errors import UsageError
from skillhub.goals import SIZES, stored_bytes
from skillhub.manifest import Evaluation, TensorEntry
from skillhub.measures import Figure, check_figures
from skillhub.packs import Pack
from skillhub.progress import Notice
from skillhub.scoring import ROOM, Reference, score_rows

TASK = "held-out prompts"
"""What the manifest calls that which is measured on."""

ANSWERS = 96
"""Answers that are measured on, at least: where there are fewer prompts, each is answered several times."""

MOST_TRIALS = 6

MARGIN = 0.97
"""Of the bound: rounding the weights takes random bits from the pack's digest, and what is written in the end has another one."""

NEAR_ENOUGH = 0.86
"""Of the bound: a pack that diverges so much is not worth another trial."""

AIM, LAST_AIM = 0.92, 0.85
"""Of the bound: what a trial is to reach. The last one has to stay within it."""

USUAL_SLOPE = -1.25
"""Of the logarithm of the divergence over that of the size, on real fine-tunes between 1/100 and 1/20 of the weights."""

CLIMBS = 1.1, 1.5, 2.5, 4.0
"""By which factor the size grows at least while no trial has met the bound: the more of them there were, the less a line through them tells."""

LARGEST_JUMP = 4.0
"""By which factor one trial's size may differ from another's."""


@dataclass(frozen=True)
class Trial:
    """A pack that was tried.

    Attributes:
        size: bytes of its payload.
        divergence: KL(fine-tune ‖ pack) in nats a predicted token.
    """

    size: int
    divergence: float


@dataclass(frozen=True, eq=False)
class Gauge:
    """Measures how far packs are from the fine-tune.

    Attributes:
        model: the base.
        rows: held-out prompts with the fine-tune's answers.
        reference: what the fine-tune predicts of them.
        base: KL(fine-tune ‖ base).
    """

    model: Any
    rows: list[Row]
    reference: Reference
    base: float

    def measure(self, pack: Pack) -> float:
        """Return KL(fine-tune ‖ base with the pack) in nats a predicted token.

        Raises:
            UsageError: it is not finite.
        """
        graft(self.model, [pack])
        try:
            return _divergence(self.model, self.rows, self.reference, "pack")
        finally:
            ungraft(self.model)

    def evaluation(self, divergence: float) -> Evaluation:
        """Return what the manifest says of a pack that diverges so much."""
        return Evaluation(task=TASK, metric="kl", base=self.base, tuned=0.0, pack=divergence, rows=len(self.rows))


def open_gauge(tuned: Path, base: Path, prompts: Sequence[str], spool: Path) -> Gauge:
    """Let the fine-tune answer prompts, and remember what it predicts.

    Args:
        tuned: folder of the fine-tune.
        base: folder of its base.
        prompts: that nothing is calibrated on.
        spool: a folder for the predictions, to be kept as long as the gauge.

    Raises:
        UsageError: one of the two cannot be loaded as a language model, or predicts no finite numbers.
        DiskError: there is no room for the predictions.
    """
    tokenizer, _ = choose_tokenizer(base, tuned)
    model, _ = load_model(tuned, room=ROOM, tokenizer_of=base)
    asked = list(prompts) * math.ceil(ANSWERS / len(prompts))
    rows = [row for row in answered_rows(model, tokenizer, asked) if row.weight == 1 and len(row.tokens) > row.answer]
    reference = Reference(spool / "predictions", rows)
    score_rows(model, rows, reference=reference, is_tuned=True)
    del model
    model, _ = load_model(base, room=ROOM)
    return Gauge(model, rows, reference, _divergence(model, rows, reference, "base"))


def _divergence(model: Any, rows: Sequence[Row], reference: Reference, what: str) -> float:
    """Return KL(fine-tune ‖ model), which is a number that trials can be compared by and a manifest can hold."""
    found = score_rows(model, rows, reference=reference)["kl"]
    check_figures([Figure(TASK, "kl", found, len(rows))], what)
    return found


def check_generates(folder: Path) -> None:
    """Refuse a base that predicts no tokens.

    Raises:
        UsageError: it is an encoder.
    """
    if not predicts_tokens(folder):
        raise UsageError(
            f"A bound on the divergence is one on predicted tokens, and {folder} is an encoder, which predicts none.",
            hint="Choose a preset or a budget instead.",
        )


def write_near(
    encoder: DeltaEncoder,
    folder: Path,
    bound: float,
    gauge: Callable[[Path], Gauge],
    make_pack: Callable[[Path, dict[str, TensorEntry]], Pack],
    tell: Notice,
) -> tuple[dict[str, TensorEntry], Evaluation]:
    """Write the smallest delta files that were found to stay within a bound.

    Under ``torchrun`` the first process measures.

    Args:
        encoder: of the fine-tune.
        folder: the variant's, for the files.
        bound: largest KL in nats a predicted token.
        gauge: opens what measures packs, given a folder for what it remembers.
        make_pack: makes a pack, in a folder, of the delta files in its variant's folder and of what the manifest says of the tensors.
        tell: told of each trial.

    Returns:
        What the manifest says of each tensor, and of the divergence.

    Raises:
        UsageError: not even the largest pack stays within the bound.
    """
    ranks = encoder.ranks
    opened = list[Gauge]()

    def measure(place: Path, entries: dict[str, TensorEntry]) -> float:
        return ranks.share(lambda: opened[0].measure(make_pack(place, entries)) if ranks.leads else 0.0)[0]

    with tempfile.TemporaryDirectory(dir=encoder.partial.folder) as spool:
        ranks.share(lambda: opened.append(gauge(Path(spool))) if ranks.leads else None)
        search = _Search(encoder, bound)
        while (budget := search.propose()) is not None:
            place = Path(spool) / f"trial-{len(search.trials) + 1}"
            (variant := place / folder.parent.name / folder.name).mkdir(parents=True)
            entries, files = search.encode(budget, variant)
            found = measure(place, entries)
            trial = Trial(sum(entry.bytes for entry in entries.values()), found)
            search.add(trial, entries, files)
            tell(f"Trial {len(search.trials)}: {trial.size / 1e6:.2f} MB, a divergence of {found:.2g} nats a token.")
        best = search.best
        if best is None:
            raise _unreachable(bound, search.trials)
        for file in best.files:
            file.rename(folder / file.name)
    evaluation = ranks.share(lambda: opened[0].evaluation(best.trial.divergence) if ranks.leads else None)[0]
    assert evaluation is not None  # the first process leads
    return best.entries, evaluation


@dataclass(frozen=True)
class _Candidate:
    """A pack that stays within the bound."""

    trial: Trial
    entries: dict[str, TensorEntry]
    files: list[Path]


@dataclass(eq=False)
class _Search:
    """The trials so far, and what the next one may be.

    Attributes:
        encoder: of the fine-tune.
        bound: largest divergence.
    """

    encoder: DeltaEncoder
    bound: float
    trials: list[Trial] = field(default_factory=list)
    best: _Candidate | None = None

    def __post_init__(self) -> None:
        """Find out what the bits of every tensor would buy."""
        self._analyses, self._set_bytes = self.encoder.analyse()
        whole = stored_bytes(self.encoder.delta.base)
        self._floor = self._set_bytes + sum(analysis.fixed_bytes for analysis in self._analyses.values())
        self._ceiling = max(whole, self._floor)
        self._first = max(whole // SIZES["near"], self._floor)

    def propose(self) -> int | None:
        """Return the bytes of the next trial; None where there is to be none."""
        return propose_budget(self.trials, self.bound, self._floor, self._ceiling) if self.trials else self._first

    def encode(self, budget: int, folder: Path) -> tuple[dict[str, TensorEntry], list[Path]]:
        """Write delta files of about so many bytes; return what the manifest says of the tensors, and the files."""
        price = choose_lambda(list(self._analyses.values()), budget, set_bytes=self._set_bytes)
        writer = DeltaWriter(folder)
        return self.encoder.encode(self._analyses, price, writer), writer.files

    def add(self, trial: Trial, entries: dict[str, TensorEntry], files: list[Path]) -> None:
        """Note a trial; of those within the bound the smallest stays, the files of the others go."""
        self.trials.append(trial)
        is_within = trial.divergence <= MARGIN * self.bound
        if is_within and (self.best is None or trial.size < self.best.trial.size):
            self.best, gone = _Candidate(trial, entries, files), self.best.files if self.best else []
        else:
            gone = files
        for file in gone:
            file.unlink()


def propose_budget(trials: Sequence[Trial], bound: float, floor: int, ceiling: int) -> int | None:
    """Return the size to try next; None where that is not worth it.

    Args:
        trials: so far, at least one.
        bound: largest divergence.
        floor: bytes of the smallest pack.
        ceiling: bytes of the largest that is tried.
    """
    within = min((one for one in trials if one.divergence <= MARGIN * bound), key=lambda one: one.size, default=None)
    beyond = max((one for one in trials if one.divergence > MARGIN * bound), key=lambda one: one.size, default=None)
    if within is None:
        assert beyond is not None  # there is a trial
        if len(trials) >= MOST_TRIALS or beyond.size >= 0.9 * ceiling:
            return None
        if len(trials) == MOST_TRIALS - 1:
            return ceiling
        least = CLIMBS[min(len(trials), len(CLIMBS)) - 1]
        return min(max(_meet(trials, bound, beyond), math.ceil(least * beyond.size)), ceiling)
    if len(trials) >= MOST_TRIALS or within.divergence >= NEAR_ENOUGH * bound or within.size <= 1.02 * floor:
        return None
    lowest = floor if beyond is None else math.ceil(1.03 * beyond.size)
    highest = math.floor(0.96 * within.size)
    return min(max(_meet(trials, bound, within, beyond), lowest), highest) if lowest < highest else None


def _meet(trials: Sequence[Trial], bound: float, nearest: Trial, opposite: Trial | None = None) -> int:
    """Return the size where a straight line in logarithms meets a bound.

    Args:
        trials: so far.
        bound: largest divergence.
        nearest: the trial nearest to the bound, of those on one side of it.
        opposite: that of those on the other side: the line is through both. Without one it is through the two nearest.
    """
    target = math.log((LAST_AIM if len(trials) == MOST_TRIALS - 1 else AIM) * bound)
    size, divergence = _logarithms(nearest)
    if opposite is not None:
        slope = _slope(nearest, opposite)
    else:
        other = min(
            (one for one in trials if one.size != nearest.size),
            key=lambda one: abs(_logarithms(one)[1] - target),
            default=None,
        )
        slope = USUAL_SLOPE if other is None else min(max(_slope(nearest, other), 3 * USUAL_SLOPE), USUAL_SLOPE / 3)
    wanted = math.exp(size + (target - divergence) / slope)
    return round(min(max(wanted, nearest.size / LARGEST_JUMP), nearest.size * LARGEST_JUMP))


def _slope(one: Trial, other: Trial) -> float:
    """Return how fast the divergence's logarithm changes with the size's between two trials of different sizes."""
    (size, divergence), (other_size, other_divergence) = _logarithms(one), _logarithms(other)
    return (divergence - other_divergence) / (size - other_size)


def _logarithms(trial: Trial) -> tuple[float, float]:
    return math.log(max(trial.size, 1)), math.log(max(trial.divergence, 1e-12))


def _unreachable(bound: float, trials: Sequence[Trial]) -> UsageError:
    least = min(trials, key=lambda one: one.divergence)
    return UsageError(
        f"No pack stays within a divergence of {bound:g} nats a predicted token: the nearest that was found, of {least.size} bytes, "
        f"reaches {least.divergence:.2g}.",
        hint="Allow more, or choose the preset lossless, which diverges by nothing.",
        smallest=least.divergence,
    )
