"""Measuring a skill: the base, the fine-tune, and the base with the pack grafted, on the same rows.

A language model is measured on ``{"prompt": …, "answer": …}`` rows by the negative log-likelihood of the answer and by how far its
predictions are from the fine-tune's; an encoder on ``{"a": …, "b": …}`` rows by the cosine of the two sentences and by how far its
embeddings are from the fine-tune's. The distance from the fine-tune is also measured on texts that have nothing to do with the
skill: the control, which says what a pack changes where it should change nothing.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import structs

from skillhub.bases import locate_base
from skillhub.compose.generation import choose_tokenizer, load_model
from skillhub.compose.grafts import graft
from skillhub.documents import field_error
from skillhub.errors import NotFoundError, UsageError
from skillhub.fields import Label
from skillhub.files import disk_errors
from skillhub.fingerprint import fingerprint_checkpoint
from skillhub.manifest import Evaluation, Manifest, Variant
from skillhub.measures import Figure, Measure, PairMeasure, check_figures, measure_answers
from skillhub.packs import RECEIPT_FILE, Pack, write_manifest
from skillhub.progress import Progress
from skillhub.prompts import whole_text
from skillhub.scoring import ROOM

Row = dict[str, str]

ANSWER_KEYS = frozenset({"prompt", "answer"})
PAIR_KEYS = frozenset({"a", "b"})

_TASK_HINT = "Say in a few words what the rows measure, such as --task 'math held-out'."


def read_rows(path: Path) -> list[Row]:
    """Read rows from a JSON-lines file: all ``{prompt, answer}`` or all ``{a, b}``; other keys are left out.

    Raises:
        NotFoundError: there is no such file.
        UsageError: the file has no rows, or a line is not such a row (the message has its number).
        DiskError: the file may not be read.
    """
    if not path.is_file():
        raise NotFoundError(f"There is no file {path}.", hint="Give a JSON-lines file with one row a line.")
    rows: list[Row] = []
    with disk_errors(path):
        data = path.read_bytes()
    for number, line in enumerate(data.splitlines(), start=1):
        if line.strip():
            rows.append(_parse_row(line, f"{path}, line {number}", frozenset(rows[0]) if rows else None))
    if not rows:
        raise UsageError(
            f"{path} has no rows.", hint='Write one {"prompt": …, "answer": …} or {"a": …, "b": …} a line.'
        )
    return rows


def evaluate_pack(
    pack: Pack,
    base: str | Path,
    rows: Sequence[Row],
    *,
    tuned: str | Path | None = None,
    task: str = "held-out",
    progress: Progress | None = None,
) -> list[Evaluation]:
    """Measure base, fine-tune and pack, and write the scores into the pack's manifest.

    The manifest's digest, and with it the pack's identity, changes: this is for packs that were not published yet. Evaluations of
    other tasks stay. Weights are as they are stored in the models' dtypes, so rounding counts.

    Args:
        pack: a pack folder that was built here.
        base: the base's folder or ``repo[@revision]``.
        rows: all ``{prompt, answer}`` (a causal language model) or all ``{a, b}`` (an encoder).
        tuned: the fine-tune's folder or repository, to be compared with. All read by its tokenizer, where it has one of the base's
            vocabulary; else, and without a fine-tune, by the base's.
        task: what the rows measure.
        progress: called with (``base rows``, ``pack rows`` or ``tuned rows``, done, all).

    Returns:
        One evaluation per metric: ``nll`` (nats an answer token) and ``exact`` (share of rows), or ``cosine``. With a fine-tune also
        ``kl``, its divergence to the others in nats a token, or ``distance``, 1 − cosine of embeddings to its; on the rows, and
        as the task :data:`skillhub.measures.CONTROL` on unrelated texts.

    Raises:
        UsageError: the pack was installed from a registry, the task is no line of text, there are no rows, they are of two kinds or one
            has nothing to score, the model cannot be loaded, or a score is not finite.
        WrongBaseError: the pack does not fit the base.
        DiskError: there is no room for what the fine-tune predicts, up to some 8 GB beside the pack.
    """
    if pack.owner is not None or (pack.folder / RECEIPT_FILE).exists():
        raise UsageError(
            f"{pack} was published; its manifest is its identity and stays as it is.",
            hint="Evaluate the pack that you built, before you publish it.",
        )
    if not rows:
        raise UsageError("There are no rows to evaluate on.", hint="Give at least one row.")
    _check_rows(rows)
    check_task(task)
    folder = locate_base(base)
    variant = pack.variant_for(fingerprint_checkpoint(folder).fingerprint)
    parent = pack.folder.parent
    with disk_errors(parent), tempfile.TemporaryDirectory(dir=parent, prefix=".evaluation-") as spool:
        measure = _choose_measure(rows, task, folder, tuned, Path(spool))
        figures = _measure_all(measure, folder, tuned, pack, progress)
    measured = _compare(figures)
    write_manifest(pack.folder, _with_evaluation(pack.manifest, variant.base.fingerprint, measured))
    return measured


def _keys_of(row: Row) -> frozenset[str]:
    """Return what is measured of a row: a pair where it is one and no answer to a prompt."""
    return PAIR_KEYS if set(row) >= PAIR_KEYS and not set(row) >= ANSWER_KEYS else ANSWER_KEYS


def _check_rows(rows: Sequence[Row]) -> None:
    """Refuse rows that are not all answers to prompts or all pairs, each of texts."""
    keys = _keys_of(rows[0])
    for number, row in enumerate(rows, start=1):
        if not all(isinstance(row.get(key), str) for key in keys):
            raise UsageError(
                f"Row {number} lacks the texts {' and '.join(sorted(keys))}.",
                hint="Give rows that are all of prompt and answer, or all of a and b.",
            )
        for key in keys:
            whole_text(row[key], f"Row {number}")


def _choose_measure(rows: Sequence[Row], task: str, base: Path, tuned: str | Path | None, spool: Path) -> Measure:
    """Return what measures such rows."""
    tokenizer, limit = choose_tokenizer(base, tuned)
    if _keys_of(rows[0]) == PAIR_KEYS:
        return PairMeasure(tokenizer, task, rows, compares=tuned is not None)
    return measure_answers(tokenizer, rows, task, None if tuned is None else spool, limit)


def _measure_all(
    measure: Measure, base: Path, tuned: str | Path | None, pack: Pack, progress: Progress | None
) -> dict[str, list[Figure]]:
    """Return the figures of ``tuned`` (none without), ``base`` and ``pack``; one model is in memory at a time."""
    is_encoder = isinstance(measure, PairMeasure)

    def score(model: Any, what: str) -> list[Figure]:
        report = (lambda _, done, total: progress(f"{what} rows", done, total)) if progress else None
        found = measure.score(model, is_tuned=what == "tuned", progress=report)
        check_figures(found, what)
        return found

    figures = dict[str, list[Figure]](tuned=[])
    if tuned is not None:
        figures["tuned"] = score(load_model(tuned, encoder=is_encoder, room=ROOM, tokenizer_of=base)[0], "tuned")
    model, _ = load_model(base, encoder=is_encoder, room=ROOM)
    figures["base"] = score(model, "base")
    graft(model, [pack])
    figures["pack"] = score(model, "pack")
    return figures


def _compare(figures: dict[str, list[Figure]]) -> list[Evaluation]:
    """Return the figures of the models side by side."""
    found = []
    for place, one in enumerate(figures["base"]):
        tuned = figures["tuned"][place].value if figures["tuned"] else None
        packed = figures["pack"][place].value
        found.append(
            Evaluation(task=one.task, metric=one.metric, base=one.value, tuned=tuned, pack=packed, rows=one.rows)
        )
    return found


def gain_kept(measured: Iterable[Evaluation]) -> float | None:
    """Return how much of what the fine-tune gained in likelihood, or in cosine, a pack keeps; None where it gained nothing."""
    for one in measured:
        if one.metric in ("nll", "cosine") and one.tuned is not None and one.tuned != one.base:
            gained = (one.base - one.tuned) * (1 if one.metric == "nll" else -1)
            return (one.base - one.pack) / (one.base - one.tuned) if gained > 0 else None
    return None


def check_task(task: str) -> None:
    """Refuse before anything is measured what the manifest cannot hold.

    Raises:
        UsageError: the task is no line of text.
    """
    try:
        msgspec.convert(task, Label)
    except msgspec.ValidationError as error:
        raise UsageError(f"The task {task!r}: {field_error(error).removeprefix('$: ')}.", hint=_TASK_HINT) from error
    if not task.strip():
        raise UsageError("The task has no name.", hint=_TASK_HINT)


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
            return {key: whole_text(value[key], where) for key in sorted(keys)}
    wanted = " or ".join(str(sorted(keys)) for keys in ([expected] if expected else [ANSWER_KEYS, PAIR_KEYS]))
    raise UsageError(f"{where} is not an object with {wanted}.", hint="All rows of a file have the same keys.")
