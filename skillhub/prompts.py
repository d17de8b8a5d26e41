"""Prompts: that they are texts, and files of them: JSON lines, ``{"prompt": …}`` each, like those that ``skillhub evaluate`` reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from skillhub.errors import NotFoundError, UsageError
from skillhub.files import disk_errors

MAX_BYTES = 64 << 20


def read_prompts(path: Path) -> list[str]:
    """Return the prompts of a JSON-lines file; other keys of a line are left out.

    Raises:
        NotFoundError: there is no such file.
        UsageError: the file has no prompts, is far too long, or a line has none (the message has its number).
        DiskError: the file may not be read.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder.", hint="Give a JSON-lines file with one prompt a line.")
    if not path.is_file():
        raise NotFoundError(f"There is no file {path}.", hint="Give a JSON-lines file with one prompt a line.")
    with disk_errors(path), path.open("rb") as stream:
        data = stream.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise UsageError(f"{path} is longer than {MAX_BYTES >> 20} MB.", hint="Give fewer prompts.")
    lines = list(enumerate(data.splitlines(), start=1))
    prompts = [_parse(line, f"{path}, line {number}") for number, line in lines if line.strip()]
    if not prompts:
        raise UsageError(f"{path} has no prompts.", hint='Write one {"prompt": "…"} a line.')
    return prompts


def _parse(line: bytes, where: str) -> str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where} is not JSON.", hint='Write one {"prompt": "…"} a line, in UTF-8.') from error
    prompt = value.get("prompt") if isinstance(value, dict) else None
    if not isinstance(prompt, str) or not prompt.strip():
        raise UsageError(f"{where} has no prompt.", hint='Write one {"prompt": "…"} a line.')
    return whole_text(prompt, where)


def check_prompts(prompts: Sequence[str] | None, examples: Sequence[str]) -> None:
    """Check prompts that a caller gave, and the examples of an author's file.

    Raises:
        UsageError: one is empty, no text, or has half of a character; the message says which.
    """
    if isinstance(prompts, str):
        raise UsageError("The prompts are one text.", hint="Give a list of texts, one a prompt.")
    for what, texts in (("Prompt", prompts or ()), ("Example prompt", examples)):
        for number, text in enumerate(texts, start=1):
            if not isinstance(text, str) or not text.strip():
                raise UsageError(
                    f"{what} {number} is empty or no text.", hint="Leave it out, or write what users would."
                )
            whole_text(text, f"{what} {number}")


def whole_text(text: str, where: str) -> str:
    """Return a text that has no halves of characters, which no tokenizer takes.

    Raises:
        UsageError: it has some: JSON can escape them, and a terminal of another encoding sends them.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{where} has half of a character.", hint="Write it in UTF-8.") from error
    return text
