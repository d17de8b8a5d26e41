"""The YAML block at the top of a ``README.md``: what a registry lists a repository by.

A person may write keys of their own there, on the Hub's pages too. Those are kept as they stand, comments and all: the
block is put together from lines, and never written anew from what was parsed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from skillhub.errors import UsageError

_FENCE = "---"
_MAX_CHARACTERS = 200_000

Value = str | list[str]


@dataclass(frozen=True)
class FrontMatter:
    """A block that was read.

    Attributes:
        values: what its keys mean.
        lines: key → the lines that say so.
    """

    values: Mapping[str, Any]
    lines: Mapping[str, str]

    def texts(self, key: str) -> list[str]:
        """Return a key's value as a list of texts; what is neither a text nor a list of them is left out."""
        value = self.values.get(key)
        return [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, str) and one]


def split_readme(readme: str) -> tuple[str, str]:
    """Return the YAML block of a README, without its fences, and what comes after it."""
    lines = readme.removeprefix("\ufeff").replace("\r\n", "\n").split("\n")
    if lines[0].rstrip() != _FENCE:
        return "", "\n".join(lines)
    end = next((number for number, line in enumerate(lines[1:], 1) if line.rstrip() == _FENCE), None)
    if end is None:
        return "", "\n".join(lines)
    return "\n".join(lines[1:end]), "\n".join(lines[end + 1 :])


def read_front_matter(block: str) -> FrontMatter:
    """Read a YAML block.

    Raises:
        UsageError: it is not YAML, no mapping, or uses aliases, which can unfold into gigabytes.
    """
    import yaml

    if not block.strip():
        return FrontMatter({}, {})
    if len(block) > _MAX_CHARACTERS:
        raise _unreadable("it is too long")
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(block, Loader=yaml.SafeLoader)):
            raise _unreadable("it uses aliases")
        node, values = yaml.compose(block, Loader=yaml.SafeLoader), yaml.safe_load(block)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _unreadable("it is not valid YAML") from error
    if node is None:
        return FrontMatter({}, {})
    if not isinstance(node, yaml.MappingNode) or node.flow_style:
        raise _unreadable("it is not a list of keys, one a line")
    return FrontMatter(values, _lines_of_keys(block, node))


def _lines_of_keys(block: str, node: Any) -> dict[str, str]:
    """Return key → its lines; a comment belongs to the key before it, the first ones to the first key."""
    lines = block.split("\n")
    starts = [key.start_mark.line for key, _ in node.value]
    starts[0] = 0
    ends = [*starts[1:], len(lines)]
    return {
        str(key.value): "\n".join(lines[start:end]).rstrip()
        for (key, _), start, end in zip(node.value, starts, ends, strict=True)
    }


def write_front_matter(values: Mapping[str, Value], kept: Iterable[str] = ()) -> str:
    """Return a YAML block with its fences.

    Args:
        values: texts, and lists of texts; quoted as JSON, which YAML reads.
        kept: lines that follow as they are.

    Raises:
        UsageError: those lines were YAML where they stood, and are none after ours.
    """
    lines = []
    for key, value in values.items():
        if isinstance(value, str):
            lines.append(f"{key}: {_quoted(value)}")
        else:
            lines += [f"{key}:", *(f"- {_quoted(text)}" for text in value)]
    block = "\n".join([*lines, *kept])
    read_front_matter(block)
    return f"{_FENCE}\n{block}\n{_FENCE}"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _unreadable(why: str) -> UsageError:
    return UsageError(
        f"The metadata at the top of README.md cannot be read: {why}.",
        hint="Correct it on the repository's page; the next release then renews it.",
    )
