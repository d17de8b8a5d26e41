"""The background: prompts that belong to no pack, against which a card's threshold is set.

``background.txt`` ships with skillhub. It was written for this: chat, code, mathematics, small tasks, many languages, passages of
text, and fragments. Changing it changes every card that is made afterwards, so a card says which one it was made against.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources

from skillhub.files import sha256_of_bytes

_FILE = "background.txt"
_TEXT = frozenset(("passages", "documents"))
_HEADING = re.compile(r"\[([a-z]+)\]")


@cache
def background_prompts() -> tuple[str, ...]:
    """Return the prompts, in the file's order."""
    return tuple(text for texts in background_kinds().values() for text in texts)


@cache
def background_kinds() -> dict[str, tuple[str, ...]]:
    """Return the prompts by kind: ``chat``, ``code``, ``maths``, ``tasks``, ``languages``, ``passages``, ``short``, ``documents``.

    A prompt is one line of the file, in which a backslash and an n stand for a line break; a line in square brackets begins a kind.
    """
    kinds: dict[str, list[str]] = {}
    for line in _read().decode("utf-8").splitlines():
        if heading := _HEADING.fullmatch(line):
            kinds[heading[1]] = found = []
        elif line:
            found.append(line.replace("\\n", "\n"))
    return {kind: tuple(texts) for kind, texts in kinds.items()}


@cache
def background_weights() -> tuple[float, ...]:
    """Return what each prompt counts for, in the order of :func:`background_prompts`; all together 1.

    Half of what a model reads are taken to be requests, half pieces of text (``passages`` and ``documents``).
    """
    kinds = background_kinds()
    rows = {
        is_text: sum(len(found) for kind, found in kinds.items() if (kind in _TEXT) == is_text)
        for is_text in (True, False)
    }
    return tuple(0.5 / rows[kind in _TEXT] for kind, found in kinds.items() for _ in found)


@cache
def background_digest() -> str:
    """Return the SHA-256 of the file."""
    return sha256_of_bytes(_read())


def _read() -> bytes:
    return resources.files(__package__).joinpath(_FILE).read_bytes()
