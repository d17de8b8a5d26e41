"""A fine-tune that somebody published, as a SkillPack: all-MiniLM-L6-v2 learns the language of site reliability.

The base and the fine-tune come from two PyPI packages; nothing is trained here. The fine-tune is packed, published on
a registry of our own, installed into a fresh environment, grafted onto the base, and taken off again.

Run it with ``python examples/sre_embeddings.py``. It takes under a minute once the two models are there.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from models_from_pypi import minilm, sre_minilm
from running_registry import running_registry
from story import Facts, Story, folder_size, use_own_folders

PAIRS = (
    ("pod keeps crashing", "CrashLoopBackOff"),
    ("mean time to recover", "MTTR"),
    ("CrashLoopBackOff", "container keeps restarting"),
    ("container out of memory", "OOMKilled"),
    ("container is being killed due to memory", "OOMKilled — container memory limit exceeded"),
    ("self-healing", "system detects and recovers from failures automatically"),
)
"""The pairs that the fine-tune's own README compares."""

STAGES = {
    "pack": ("Pack the fine-tune", "The difference to its base, compressed."),
    "publish": ("Publish it, and install it elsewhere", "Through a registry of our own, into a fresh environment."),
    "graft": ("Graft it onto the base, and take it off again", "Cosines of the pairs, and every tensor's bytes."),
}
PACK, VERSION, BUDGET = "sre-pack", "1.0.0", "4MB"
"""The budget is more than a preset would give: a small encoder's cosines are to be right to the second decimal, and this
fine-tune is not of low rank."""
LARGEST_DIFFERENCE = 0.01
"""What is promised: no cosine of the grafted model differs by more from the fine-tune's."""


def main() -> int:
    """Tell the story; return 0 when everything that was promised came true."""
    parser = argparse.ArgumentParser(description="A published fine-tune of all-MiniLM-L6-v2 as a SkillPack.")
    parser.add_argument("--fresh", action="store_true", help="start over")
    default = Path(__file__).resolve().parent.parent / ".demo" / "sre-embeddings"
    parser.add_argument("--work", type=Path, default=default, help="folder for what is made")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    options = parser.parse_args()
    story = Story(options.work, STAGES, {"pack": PACK, "version": VERSION, "budget": BUDGET}, fresh=options.fresh)
    figures = story.play(tell)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0 if all(figures["promises"].values()) else 1


def tell(story: Story) -> Facts:
    """Play all stages and return the figures."""
    use_own_folders(story.work)
    base, tuned = minilm(), sre_minilm()
    pack, project = story.work / PACK, story.work / "project"
    story.tell("[bold]A published fine-tune, as a SkillPack.[/]")
    story.stage("pack", lambda: build_pack(story, tuned, base, pack))
    name = story.stage("publish", lambda: deliver(story, pack, base, project))["name"]
    facts = story.stage("graft", lambda: compare(name, base, tuned, project))
    return tell_figures(story, facts, pack_size=folder_size(pack))


def build_pack(story: Story, tuned: Path, base: Path, pack: Path) -> Facts:
    shutil.rmtree(pack, ignore_errors=True)  # of a run that was killed before it could note that it had packed
    details = ["--name", PACK, "--version", VERSION, "--summary", "The language of site reliability engineering"]
    details += ["--budget", BUDGET]
    story.run("skillhub", "pack", tuned, "--base", base, "-o", pack, *details)
    return {}


def deliver(story: Story, pack: Path, base: Path, project: Path) -> Facts:
    with running_registry(story.work / "registry") as registry:
        story.variables = registry.exports
        name = f"{registry.user}/{PACK}"
        story.run("skillhub", "publish", pack, name)
        story.run("skillhub", "install", name, "--base", base, "--environment", project)
    return {"name": name}


def compare(name: str, base: Path, tuned: Path, project: Path) -> Facts:
    """Return the pairs' cosines and the weights' digests of base, fine-tune, grafted and ungrafted model."""
    from scores import weights_digest
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    import skillhub

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    model = AutoModel.from_pretrained(base, local_files_only=True).eval()
    facts: Facts = {"cosines": {}, "digests": {}}

    def note(title: str, model: Any) -> None:
        facts["cosines"][title] = cosines(model, tokenizer)
        facts["digests"][title] = weights_digest(model)

    note("base", model)
    note("fine-tune", AutoModel.from_pretrained(tuned, local_files_only=True).eval())
    model = skillhub.graft(model, [name], environment=project)
    note("base + pack", model)
    skillhub.ungraft(model)
    note("after ungraft", model)
    return facts


def cosines(model: Any, tokenizer: Any) -> list[float]:
    """Return the cosine of each pair: mean of the token vectors, as the model's authors pool them."""
    import torch
    from torch.nn import functional as F

    sentences = [sentence for pair in PAIRS for sentence in pair]
    tokens = tokenizer(sentences, padding=True, return_tensors="pt")
    with torch.inference_mode():
        vectors = model(**tokens).last_hidden_state
    mask = tokens["attention_mask"][..., None]
    vectors = F.normalize((vectors * mask).sum(1) / mask.sum(1), dim=-1)
    return [float(cosine) for cosine in (vectors[0::2] * vectors[1::2]).sum(-1)]


def tell_figures(story: Story, facts: Facts, *, pack_size: int) -> Facts:
    """Print the cosines and whether the promises came true; return all of it."""
    rows, digests = facts["cosines"], facts["digests"]
    difference = max(abs(a - b) for a, b in zip(rows["fine-tune"], rows["base + pack"], strict=True))
    story.tell_table(
        ["pair", *rows],
        [[f"{a} / {b}", *(f"{row[number]:.4f}" for row in rows.values())] for number, (a, b) in enumerate(PAIRS)],
    )
    story.tell(f"   pack {pack_size / 1e6:.2f} MB; largest difference from the fine-tune {difference:.4f}")
    promises = {
        f"no cosine differs from the fine-tune's by more than {LARGEST_DIFFERENCE}": difference <= LARGEST_DIFFERENCE,
        "grafting changed the weights": digests["base + pack"] != digests["base"],
        "ungrafting brought every bit back": digests["after ungraft"] == digests["base"],
    }
    story.tell_promises(promises)
    story.tell_times()
    return {**facts, "pack_bytes": pack_size, "largest_difference": difference, "promises": promises}


if __name__ == "__main__":
    sys.exit(main())
