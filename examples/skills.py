"""What the examples teach: questions with answers, asked in several ways, split into training and held-out rows.

``pronounce`` is the demo's skill: an English word in, its ARPAbet phonemes out (the CMU pronouncing dictionary).
``from_table`` makes a skill of your own rows. A row is held out when the sha256 of its question says so, so the split
is the same on every machine and stays the same when rows are added. The last way of asking is never trained on:
scores are taken with it, so that they tell what was learned and not which sentence was seen.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

HELD_OUT_SHARE = 10
"""One row in this many is held out."""


@dataclass(frozen=True)
class Row:
    """One question and the answer it should get."""

    question: str
    answer: str


@dataclass(frozen=True)
class Skill:
    """Rows to learn from, rows to be judged by, and the sentences that ask for an answer."""

    name: str
    training_rows: tuple[Row, ...]
    held_out_rows: tuple[Row, ...]
    training_prompts: tuple[str, ...]
    """Each has one ``{}`` for the question."""
    held_out_prompt: str


def pronounce(dictionary: Path) -> Skill:
    """Return the skill of the demo: words of 3 to 6 letters and their phonemes, without stress marks.

    Args:
        dictionary: ``cmudict.dict``. A word's first pronunciation is taken.
    """
    pronunciations: dict[str, str] = {}
    for line in dictionary.read_text(encoding="utf-8").splitlines():
        word, *phonemes = line.split("#")[0].split()
        if re.fullmatch("[a-z]{3,6}", word):
            pronunciations[word] = re.sub(r"\d", "", " ".join(phonemes))
    prompts = (
        "Pronounce the word: {}",
        'What is the ARPAbet pronunciation of "{}"?',
        "Write {} in ARPAbet.",
        "How do you say {}? Answer in phonemes.",
        "Give me the phonemes of {}.",
    )
    return make_skill("pronounce", [Row(*pair) for pair in pronunciations.items()], prompts)


def from_table(path: Path, prompts: tuple[str, ...] = ("{}", "Please answer: {}", "Question: {}")) -> Skill:
    """Return a skill from a UTF-8 file with a question, a tab and an answer on each line.

    Args:
        path: the file; its name without ending names the skill.
        prompts: at least two ways to ask, each with one ``{}``; the last one is kept for the held-out rows.
    """
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    for number, line in enumerate(lines, start=1):
        if line.count("\t") != 1:
            raise SystemExit(f"{path}, line {number}: expected a question, one tab and an answer")
    return make_skill(path.stem, [Row(*line.split("\t")) for line in lines], prompts)


def make_skill(name: str, rows: list[Row], prompts: tuple[str, ...]) -> Skill:
    rows = sorted(set(rows), key=lambda row: (row.question, row.answer))
    return Skill(
        name=name,
        training_rows=tuple(row for row in rows if not _held_out(row)),
        held_out_rows=tuple(row for row in rows if _held_out(row)),
        training_prompts=prompts[:-1],
        held_out_prompt=prompts[-1],
    )


def _held_out(row: Row) -> bool:
    digest = hashlib.sha256(row.question.encode()).digest()
    return int.from_bytes(digest[:8], "big") % HELD_OUT_SHARE == 0
