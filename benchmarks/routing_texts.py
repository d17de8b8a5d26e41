"""The texts of the routing benchmark: three skills' questions, text that belongs to none, and near-misses."""

from __future__ import annotations

import ast
import gettext
import gzip
import hashlib
import random
import re
import sysconfig
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROWS, SOURCE_ROWS = 200, 100

Questions = dict[str, list[str]]
"""Skill → questions, without a wording."""

WORDINGS = {
    "math": ["{} = ?", "What is {}?", "Compute {}.", "Please calculate {}", "Work out {} for me."],
    "phonemes": [
        "Pronounce the word: {}",
        'What is the ARPAbet pronunciation of "{}"?',
        "Write {} in ARPAbet.",
        "How do you say {}? Answer in phonemes.",
        "Give me the phonemes of {}.",
    ],
    "spanish": [
        "Translate to Spanish: {}",
        'What is "{}" in Spanish?',
        "How would a Spanish interface say: {}",
        "Put this into Spanish. {}",
        "Spanish version of: {}",
    ],
}
"""The last one of each is never part of a card."""


def asked(held_out: Questions, skill: str, wordings: slice = slice(4, 5)) -> list[str]:
    """Return the held-out questions of a skill in some of its wordings."""
    chosen = WORDINGS[skill][wordings]
    return [chosen[place % len(chosen)].format(text) for place, text in enumerate(held_out[skill])]


def questions(dictionary: Path, catalogues: Path) -> tuple[Questions, Questions]:
    """Return training and held-out questions of each skill; a question is held out when its digest says so."""
    chance = random.Random(2)
    sums = set()
    while len(sums) < 12_000:
        operator = chance.choice("+-*")
        a, b = (
            (chance.randrange(2, 13), chance.randrange(2, 100))
            if operator == "*"
            else sorted(chance.sample(range(1000), 2))
        )
        sums.add(f"{b} {operator} {a}")
    words = {line.split()[0] for line in dictionary.read_text(encoding="utf-8").splitlines() if line.split()}
    found = {
        "math": sums,
        "phonemes": {word for word in words if re.fullmatch("[a-z]{3,12}", word)},
        "spanish": messages(catalogues, "es"),
    }
    chosen = {skill: chance.sample(sorted(texts), len(texts)) for skill, texts in found.items()}
    training = {skill: [text for text in texts if not is_held_out(text)][:1000] for skill, texts in chosen.items()}
    return training, {skill: [text for text in texts if is_held_out(text)][:ROWS] for skill, texts in chosen.items()}


def messages(catalogues: Path, language: str) -> set[str]:
    """Return the English texts of Django's interface that have a translation."""
    found: set[str] = set()
    for path in catalogues.glob(f"**/locale/{language}/LC_MESSAGES/*.mo"):
        with path.open("rb") as stream:
            catalogue = gettext.GNUTranslations(stream)._catalog  # type: ignore[attr-defined]
        found |= {text for text in catalogue if isinstance(text, str) and "\n" not in text and 3 < len(text) < 140}
    return found


def is_held_out(text: str) -> bool:
    return int(hashlib.sha1(text.encode()).hexdigest(), 16) % 10 == 0


def unrelated_texts() -> dict[str, list[str]]:
    """Return texts that belong to no skill, by where they are from."""
    site, library = Path(sysconfig.get_path("purelib")), Path(sysconfig.get_path("stdlib"))
    control = (ROOT / "examples" / "control_texts.txt").read_text(encoding="utf-8")
    found = {
        "docstrings of Python": _docstrings(sorted(library.glob("*.py"))[1::2]),
        "docstrings of huggingface_hub and peft": _docstrings(
            sorted([*site.glob("huggingface_hub/*.py"), *site.glob("peft/**/*.py")])
        ),
        "licences": _paragraphs([*Path("/usr/share/common-licenses").glob("*"), *site.glob("*/**/LICENSE*")]),
        "READMEs of packages": _paragraphs(site.glob("*.dist-info/METADATA"), skip_head=True),
        "READMEs of the system": _paragraphs(Path("/usr/share/doc").glob("*/README*")),
        "manual pages, section 1": _paragraphs(Path("/usr/share/man/man1").glob("*.gz")),
        "control texts": [*re.split(r"(?<=\.)\s+", control.strip()), *control.strip().split("\n\n")],
    }
    return {source: _sample(texts, SOURCE_ROWS) for source, texts in found.items() if texts}


def _docstrings(paths: Sequence[Path]) -> list[str]:
    found = []
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module) and (text := ast.get_docstring(node)):
                found.append(text)
    return found


def _paragraphs(paths: Iterable[Path], *, skip_head: bool = False) -> list[str]:
    found = []
    for path in sorted({path for path in paths if path.is_file()}):
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode(errors="replace")
        if path.name.endswith(".1.gz"):
            text = re.sub(r"^[.'].*$", "", text, flags=re.MULTILINE)
            text = re.sub(r"\\f[A-Z]|\\&|\\-", "", text).replace("\\", "")
        paragraphs = re.split(r"\n\s*\n", text.partition("\n\n")[2] if skip_head else text)
        shown = [" ".join(part.split()) for part in paragraphs]
        found += [part for part in shown if len(part) > 20 and sum(map(str.isalpha, part)) > len(part) / 2][:40]
    return found


def _sample(texts: Sequence[str], count: int) -> list[str]:
    """Return some of the texts, cut to various lengths as prompts have them."""
    chance = random.Random(12)
    different = sorted({text.strip() for text in texts if text.strip()})
    chosen = chance.sample(different, min(count, len(different)))
    return [text[: chance.choice([60, 120, 250, 500])] for text in chosen]


def near_misses(catalogues: Path, held_out: Questions) -> dict[str, list[str]]:
    """Return inputs that look like a skill's and are not."""
    chance = random.Random(7)
    number, word = (lambda: chance.randrange(2, 500)), (lambda: chance.choice(WORDS))
    found = {}
    for language, code in (("German", "de"), ("French", "fr"), ("Portuguese", "pt")):
        texts = chance.sample(sorted(messages(catalogues, code)), 100)
        found[f"interface texts to {language}"] = [
            WORDINGS["spanish"][place % 5].replace("Spanish", language).format(text) for place, text in enumerate(texts)
        ]
    found["arithmetic in words"] = [chance.choice(MATHS_IN_WORDS).format(word(), word()) for _ in range(100)]
    found["other questions with numbers"] = [chance.choice(WITH_NUMBERS).format(number(), number()) for _ in range(100)]
    found["other questions about a word"] = [
        chance.choice(ABOUT_WORDS).format(text) for text in held_out["phonemes"][:100]
    ]
    return found


WORDS = [
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "fifteen",
    "twenty",
    "thirty",
    "fifty",
    "ninety",
]
MATHS_IN_WORDS = [
    "What is {} plus {}?",
    "Compute {} times {}.",
    "Add {} and {}.",
    "Tom has {} apples and buys {} more. How many has he now?",
    "A box holds {} eggs. How many eggs are in {} boxes?",
]
WITH_NUMBERS = [
    "What is {} divided by {}?",
    "What is {}% of {}?",
    "Is {} divisible by {}?",
    "Which is larger, {} or {}?",
    "Convert {} miles to kilometres, and {} pounds to kilos.",
    "The flat has {} square metres and costs {} euros a month. Is that a lot?",
]
ABOUT_WORDS = [
    "What does {} mean?",
    "Spell the word: {}",
    "Use {} in a sentence.",
    "Write {} in capitals.",
    "What rhymes with {}?",
]
