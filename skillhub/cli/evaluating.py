"""``skillhub evaluate``: measuring a pack; and what it prints, which ``skillhub pack --evaluate`` prints too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from skillhub.cli import console
from skillhub.manifest import Evaluation
from skillhub.packs import Pack, open_pack


@dataclass(frozen=True)
class Examples:
    """What a pack is to be measured on.

    Attributes:
        rows: as a file has them.
        task: what they measure.
    """

    rows: list[dict[str, str]]
    task: str

    def measure(self, pack: Pack, base: str, tuned: str | None) -> list[Evaluation]:
        """Measure base, fine-tune and pack, and note the scores in the pack's manifest."""
        from skillhub.evaluation import evaluate_pack

        with console.progress("rows") as progress:
            return evaluate_pack(pack, base, self.rows, tuned=tuned, task=self.task, progress=progress)


def read_examples(path: Path, task: str, limit: int | None = None) -> Examples:
    """Read the first ``limit`` rows of a file, or all of them.

    Raises:
        NotFoundError, UsageError: there is no such file, a line is no row, or the task is no line of text.
    """
    from skillhub.evaluation import check_task, read_rows

    check_task(task)
    return Examples(read_rows(path)[:limit], task)


@click.command("evaluate")
@click.argument("pack_folder", metavar="PACK", type=click.Path(path_type=Path))
@click.option("--base", metavar="PATH|REPO", required=True, help="The base model.")
@click.option("--tuned", metavar="PATH|REPO", help="The fine-tune that the pack was built from, to compare with.")
@click.option("--rows", "rows_file", type=click.Path(path_type=Path), required=True, help="JSONL with the examples.")
@click.option("--task", required=True, help="What the examples measure, such as 'math held-out'.")
@click.option("--limit", type=click.IntRange(min=1), help="Use the first N examples only.")
@console.output_options
def evaluate_command(
    pack_folder: Path, base: str, tuned: str | None, rows_file: Path, task: str, limit: int | None, as_json: bool
) -> None:
    """Measure base, fine-tune and pack on the same examples, and note the scores in PACK's manifest.

    Each line of the examples is {"prompt": …, "answer": …} for a language model (nll: negative log-likelihood of an answer token in
    nats; exact: share of answers that are exact), or {"a": …, "b": …} for an encoder (cosine). With --tuned also how far base and
    pack are from the fine-tune: kl, the divergence of its predictions in nats a token, or distance, 1 − cosine of its embeddings; on
    the examples, and on texts that have nothing to do with them. Weights are as the model's dtype stores them, forwards in fp32. Evaluate
    before publishing: the scores become part of the manifest, and with it of the release's identity.

    \b
    Example:
      skillhub evaluate math-pack --base ./SmolLM2 --tuned ./tuned --rows held-out.jsonl --task "math held-out"
    """
    pack = open_pack(pack_folder)
    console.quiet_transformers()
    scores = read_examples(rows_file, task, limit).measure(pack, base, tuned)
    if as_json:
        console.emit_json({"pack": str(pack_folder), **scores_json(scores)})
    else:
        print_scores(scores)


def scores_json(scores: Sequence[Evaluation]) -> dict[str, Any]:
    """Return scores for ``--json``."""
    from msgspec import to_builtins

    from skillhub.evaluation import gain_kept

    return {"evaluation": to_builtins(scores), "gain_kept": gain_kept(scores)}


def print_scores(scores: Sequence[Evaluation]) -> None:
    """Print a row for each score, and how much of the fine-tune's gain the pack keeps."""
    from skillhub.evaluation import gain_kept

    cells = [
        [
            score.task,
            score.metric,
            _text(score, score.base),
            _text(score, score.tuned),
            _text(score, score.pack),
            str(score.rows),
        ]
        for score in scores
    ]
    console.table(["Task", "Metric", "Base", "Tuned", "Pack", "Rows"], cells, right=(2, 3, 4, 5))
    kept = gain_kept(scores)
    if kept is not None:
        click.echo(f"The pack keeps {kept:.2%} of what the fine-tune gained.")


def _text(score: Evaluation, value: float | None) -> str:
    """Return a score as text: distances from the fine-tune are small, and are shown to so many digits."""
    if value is None:
        return "–"
    return f"{value:.2g}" if score.metric in ("kl", "distance") else f"{value:.4f}"
