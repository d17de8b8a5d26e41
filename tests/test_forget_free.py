"""What the forgetting example is built of: its skills' answers and its figures. The example itself is told in tests/real."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES))

from forgetting import earlier_kept, kept_by_stage, oracle_kept, report, rightly_routed, ways_table  # noqa: E402
from ten_skills import ROMAN, morse, nato, pig_latin, roman, sorted_letters, spelled, sums, translations  # noqa: E402


@pytest.mark.parametrize(("value", "numeral"), [(4, "IV"), (1994, "MCMXCIV"), (2026, "MMXXVI"), (3999, "MMMCMXCIX")])
def test_numbers_are_written_as_the_romans_did(value: int, numeral: str) -> None:
    assert roman(value) == numeral


def test_a_roman_numeral_says_the_number_it_came_from() -> None:
    worth = {letters: value for value, letters in ROMAN.items()}
    for value in range(1, 4000):
        assert sum(worth[part] for part in re.findall("CM|CD|XC|XL|IX|IV|[MDCLXVI]", roman(value))) == value


def test_words_are_spelled_turned_and_sorted() -> None:
    assert nato("fox") == "Foxtrot Oscar X-ray"
    assert morse("sos") == "... --- ..."
    assert [pig_latin(word) for word in ("string", "apple", "yes", "rhythm", "hm")] == [
        "ingstray",
        "appleway",
        "esyay",
        "ythmrhay",
        "hmay",
    ]
    assert sorted_letters("banana") == "aaabnn"


def test_a_skill_is_the_same_every_time_and_its_rows_are_right() -> None:
    assert sums() == sums()
    for row in (*sums().training_rows, *sums().held_out_rows):
        first, second = row.question.split(" + ")
        assert int(row.answer) == int(first) + int(second)
    words = [a + b + c for a in "bcdfghklmnprst" for b in "aeiou" for c in "bcdfghklmnprstvwxyzaeiouqj"]
    words += [f"{word}{letter}" for word in words for letter in "st"]
    skill = spelled("nato", nato, words, ("{}", "Spell {}."))
    assert len(skill.training_rows) + len(skill.held_out_rows) == 2000
    assert skill == spelled("nato", nato, words, ("{}", "Spell {}."))


def test_translations_come_from_the_catalogues_of_one_language(tmp_path: Path) -> None:
    for language, text in (("es", "Sí, claro"), ("fr", "Oui, bien sûr")):
        folder = tmp_path / "conf" / "locale" / language / "LC_MESSAGES"
        folder.mkdir(parents=True)
        texts = {
            "": "Content-Type: text/plain; charset=UTF-8\n",
            "Of course": text,
            "No": "No",
            "%d left": "x",
            "Ctx\4May": "y",
        }
        (folder / "django.mo").write_bytes(compiled(texts))
    skill = translations("french", tmp_path)
    assert [(row.question, row.answer) for row in (*skill.training_rows, *skill.held_out_rows)] == [
        ("Of course", "Oui, bien sûr")
    ]
    assert skill.held_out_prompt == "French version of: {}"


def compiled(texts: dict[str, str]) -> bytes:
    """Return a message catalogue in gettext's binary format."""
    import struct

    keys = sorted(texts)
    table, strings = [], b""
    start = 28 + 16 * len(keys)
    for part in (keys, [texts[key] for key in keys]):
        for text in part:
            encoded = text.encode()
            table.append(struct.pack("<II", len(encoded), start + len(strings)))
            strings += encoded + b"\0"
    return struct.pack("<7I", 0x950412DE, 0, len(keys), 28, 28 + 8 * len(keys), 0, 0) + b"".join(table) + strings


@pytest.fixture
def figures() -> dict[str, Any]:
    """Two skills: the first falls from 4 to 2, the second from 6 to 2; sequential training loses half of the first."""

    def facts(**nll: float) -> dict[str, Any]:
        return {skill: {"nll": value, "exact": 0.5, "tokens": 0.75} for skill, value in nll.items()} | {
            "ordinary_text": 3.0
        }

    kept = [facts(a=2), facts(a=2, b=2)]
    return {
        "model": "tiny",
        "skills": ["a", "b"],
        "steps": 1,
        "batch": 8,
        "rows": 2,
        "fused": {"ties": "ties with {'weights': 1}"},
        "base": facts(a=4, b=6),
        "tuned": facts(a=2, b=2),
        "own pack": facts(a=2.1, b=2),
        "pack bytes": {"a": 1_000_000, "b": 2_000_000},
        "ways": {
            "routed": kept,
            "ties": kept,
            "average": kept,
            "linear": [facts(a=2), facts(a=5, b=4)],
            "sequential": [facts(a=2), facts(a=3, b=2)],
        },
        "chosen": [{"a": ["a", None]}, {"a": ["a", None], "b": ["b", "b"]}],
    }


def test_what_is_kept_is_the_share_of_the_fine_tunes_own_gain(figures: dict[str, Any]) -> None:
    assert kept_by_stage(figures, "sequential") == [[1.0], [0.5, 1.0]]
    assert kept_by_stage(figures, "linear") == [[1.0], [-0.5, 0.5]]
    assert earlier_kept(figures, "sequential") == [0.5]
    assert oracle_kept(figures) == pytest.approx([0.95])
    assert rightly_routed(figures) == [0.5, 0.75]
    assert ways_table(figures)[1][-1] == ["sequential", "50.0%", "50.0%", "100.0%", "75.0%", "50.0%", "3.000"]


def test_the_report_has_the_figures(figures: dict[str, Any]) -> None:
    told = report(figures)
    assert "(*ties*: ties with {'weights': 1};" in told
    assert "| sequential | 50.0% | 50.0% | 100.0% |" in told
    assert "at the least stage 50.0% got their own pack, after the last 75.0%" in told
    assert "1.0 to\n2.0 MB" in told
