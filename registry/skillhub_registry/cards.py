"""Model cards: the YAML block at the top of a README.md, and the tags that follow from it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import yaml

from skillhub_registry import limits

_PREFIXED_TAGS = {"license": "license", "base_model": "base_model", "datasets": "dataset"}
_PLAIN_TAGS = ("tags", "language", "library_name", "pipeline_tag")


@dataclass(frozen=True)
class Card:
    """What a repository says of itself. ``data`` is JSON-compatible."""

    data: dict[str, Any]
    tags: tuple[str, ...] = ()

    @property
    def library_name(self) -> str | None:
        """The library that loads the model."""
        return _text(self.data.get("library_name"))

    @property
    def pipeline_tag(self) -> str | None:
        """The task that the model is for."""
        return _text(self.data.get("pipeline_tag"))


class CardError(ValueError):
    """A card's metadata cannot be read."""


class _Loader(yaml.SafeLoader):
    """Reads plain data only. Aliases are refused: a few of them unfold into gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("aliases are not allowed")
        return super().compose_node(parent, index)


def read_metadata(readme: str) -> dict[str, Any]:
    """Return the metadata of a README.md, {} where it has none.

    Raises:
        CardError: the YAML block is too large, malformed or not a mapping.
    """
    lines = readme.removeprefix("\ufeff").splitlines()
    if not lines or lines[0].rstrip() != "---":
        return {}
    end = next((number for number, line in enumerate(lines[1:], 1) if line.rstrip() == "---"), None)
    if end is None:
        return {}
    block = "\n".join(lines[1:end])
    if len(block) > limits.CARD_METADATA:
        raise CardError(f"the metadata is longer than {limits.CARD_METADATA} characters")
    try:
        # Through JSON: dates become text, other types and NaN have no place in an answer.
        data = json.loads(json.dumps(yaml.load(block, Loader=_Loader), default=str))
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise CardError(f"the metadata is not valid YAML: {error}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise CardError("the metadata must be a mapping of names to values")
    return data


def make_card(readme: str, paths: Iterable[str], more_tags: Iterable[str] = ()) -> Card:
    """Return the card of a repository with this README.md and these files; unreadable metadata counts as none.

    ``more_tags`` are what is known from elsewhere.
    """
    try:
        data = read_metadata(readme)
    except CardError:
        data = {}
    tags: list[str] = []
    for name in _PLAIN_TAGS:
        tags.extend(_texts(data.get(name)))
    for name, prefix in _PREFIXED_TAGS.items():
        tags.extend(f"{prefix}:{text}" for text in _texts(data.get(name)))
    relation = _text(data.get("base_model_relation"))
    if relation is not None:
        tags.extend(f"base_model:{relation}:{text}" for text in _texts(data.get("base_model")))
    if any(path.endswith(".safetensors") for path in paths):
        tags.append("safetensors")
    return Card(data, tuple(dict.fromkeys([*tags, *more_tags])))


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _texts(value: object) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [text for text in values if isinstance(text, str) and text]
