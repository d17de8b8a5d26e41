"""Ten small skills for one small model: arithmetic on words and numbers, and three languages.

Each is a :class:`skills.Skill`: rows with right answers, four ways of asking that are trained on, and a fifth that is not. The words
are those of the CMU pronouncing dictionary, the translations those of Django's own interface; all else is computed here.
"""

from __future__ import annotations

import gettext
import random
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from skills import Row, Skill, make_skill, pronounce

ROWS = 2000
"""Rows of a skill that is computed, training and held out together."""

NATO = (
    "Alfa", "Bravo", "Charlie", "Delta", "Echo", "Foxtrot", "Golf", "Hotel", "India", "Juliett", "Kilo",
    "Lima", "Mike", "November", "Oscar", "Papa", "Quebec", "Romeo", "Sierra", "Tango", "Uniform", "Victor",
    "Whiskey", "X-ray", "Yankee", "Zulu"
)  # fmt: skip
"""The spelling alphabet of the International Civil Aviation Organization."""
MORSE = (
    ".-", "-...", "-.-.", "-..", ".", "..-.", "--.", "....", "..", ".---", "-.-", ".-..", "--", "-.", "---",
    ".--.", "--.-", ".-.", "...", "-", "..-", "...-", ".--", "-..-", "-.--", "--.."
)  # fmt: skip
"""Morse code of the letters a to z (ITU-R M.1677)."""
ROMAN = {
    1000: "M", 900: "CM", 500: "D", 400: "CD", 100: "C", 90: "XC", 50: "L", 40: "XL", 10: "X", 9: "IX", 5: "V", 4: "IV", 1: "I"
}  # fmt: skip
LANGUAGES = {"spanish": "es", "german": "de", "french": "fr"}


def ten_skills(dictionary: Path, catalogues: Path) -> list[Skill]:
    """Return the skills in the order in which they are learned.

    Args:
        dictionary: ``cmudict.dict``.
        catalogues: folder of Django's compiled message catalogues.
    """
    sounds = pronounce(dictionary)
    words = sorted(row.question for row in (*sounds.training_rows, *sounds.held_out_rows))
    return [
        sounds,
        numbers("roman", roman, range(1, 4000), ROMAN_PROMPTS),
        translations("spanish", catalogues),
        spelled("nato", nato, words, NATO_PROMPTS),
        sums(),
        translations("german", catalogues),
        spelled("morse", morse, [word for word in words if len(word) <= 4], MORSE_PROMPTS),
        spelled("pig-latin", pig_latin, words, PIG_LATIN_PROMPTS),
        translations("french", catalogues),
        spelled("sorted-letters", sorted_letters, words, SORTED_LETTERS_PROMPTS),
    ]


ROMAN_PROMPTS = (
    "Write {} as a Roman numeral.",
    "What is {} in Roman numerals?",
    "Convert to Roman numerals: {}",
    "How did the Romans write {}?",
    "Give me the Roman numeral for {}.",
)
NATO_PROMPTS = (
    "Spell {} in the NATO alphabet.",
    "How is {} spelled over the radio?",
    "NATO phonetic alphabet: {}",
    'Spell out "{}" with Alfa, Bravo, Charlie.',
    "Use the NATO spelling alphabet for {}.",
)
MORSE_PROMPTS = (
    "Write {} in Morse code.",
    "What is {} in Morse?",
    "Morse code: {}",
    'Telegraph the word "{}".',
    "Put {} into Morse code, please.",
)
PIG_LATIN_PROMPTS = (
    "Say {} in Pig Latin.",
    "What is {} in Pig Latin?",
    "Pig Latin: {}",
    'Turn "{}" into Pig Latin.',
    "Give me the Pig Latin of {}.",
)
SORTED_LETTERS_PROMPTS = (
    "Sort the letters of {}.",
    "Put the letters of {} into alphabetical order.",
    "Letters from a to z: {}",
    'Order the letters in "{}" alphabetically.',
    "Which letters has {}, in alphabetical order?",
)
SUMS_PROMPTS = ("{} = ?", "What is {}?", "Compute {}.", "Please add up {}", "Work out the sum {} for me.")


def numbers(name: str, answer: Callable[[int], str], values: range, prompts: tuple[str, ...]) -> Skill:
    """Return a skill that answers a number."""
    chosen = random.Random(name).sample(values, ROWS)
    return make_skill(name, [Row(str(value), answer(value)) for value in chosen], prompts)


def spelled(name: str, answer: Callable[[str], str], words: Iterable[str], prompts: tuple[str, ...]) -> Skill:
    """Return a skill that answers a word of lower-case letters."""
    chosen = random.Random(name).sample(list(words), ROWS)
    return make_skill(name, [Row(word, answer(word)) for word in chosen], prompts)


def sums() -> Skill:
    """Return the skill of adding two numbers of at most three digits."""
    drawing = random.Random("sums")
    pairs = [(drawing.randrange(1000), drawing.randrange(1000)) for _ in range(ROWS)]
    return make_skill("sums", [Row(f"{a} + {b}", str(a + b)) for a, b in pairs], SUMS_PROMPTS)


def translations(language: str, catalogues: Path) -> Skill:
    """Return the skill of translating an interface from English: texts of 4 to 40 characters without placeholders."""
    texts: dict[str, str] = {}
    for path in sorted(catalogues.glob(f"**/locale/{LANGUAGES[language]}/LC_MESSAGES/*.mo")):
        with path.open("rb") as file:
            catalogue = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]
        for english, translated in sorted((key, text) for key, text in catalogue.items() if isinstance(key, str)):
            if 4 <= len(english) <= 40 and not re.search(r"[\n%\x04]", english) and english != translated:
                texts.setdefault(english, translated)
    name = language.capitalize()
    prompts = (
        f"Translate to {name}: {{}}",
        f'What is "{{}}" in {name}?',
        f"How would a {name} interface say: {{}}",
        f"Put this into {name}. {{}}",
        f"{name} version of: {{}}",
    )
    return make_skill(language, [Row(*pair) for pair in texts.items()], prompts)


def roman(value: int) -> str:
    numeral = ""
    for worth, letters in ROMAN.items():
        numeral += letters * (value // worth)
        value %= worth
    return numeral


def nato(word: str) -> str:
    return " ".join(NATO[ord(letter) - ord("a")] for letter in word)


def morse(word: str) -> str:
    return " ".join(MORSE[ord(letter) - ord("a")] for letter in word)


def pig_latin(word: str) -> str:
    """Return the word with the consonants before its first vowel moved to the end, and ``ay`` (after a vowel: ``way``)."""
    start, rest = re.fullmatch("(y(?=[aeiou])|[^aeiouy]*)(.*)", word).groups()  # type: ignore[union-attr]
    return f"{rest}{start}ay" if start else f"{word}way"


def sorted_letters(word: str) -> str:
    return "".join(sorted(word))
