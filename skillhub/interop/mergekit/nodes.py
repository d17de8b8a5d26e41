"""YAML as a tree in which every value knows where it stands, so that every error can name its place."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import yaml

from skillhub.errors import NotFoundError, UnsafeContentError, UsageError
from skillhub.files import read_limited

FILE_LIMIT = 1 << 18
"""Longest file that is read, in bytes."""

_NODE_LIMIT = 20_000
_MERGE = "tag:yaml.org,2002:merge"

Scalar: TypeAlias = bool | int | float | str | None


@dataclass(frozen=True)
class Place:
    """Where a value stands.

    Attributes:
        file: name of the file.
        document: number of the document in it, from 1; 0 where the file has one only.
        line: from 1.
        path: keys and indices that lead to it, such as ``slices[1].sources[0].layer_range``; empty for a document.
    """

    file: str
    document: int
    line: int
    path: str = ""

    def __str__(self) -> str:
        document = f"document {self.document}" if self.document else ""
        return ", ".join(part for part in (self.file, document, f"line {self.line}", self.path) if part)

    def key(self, key: str, line: int) -> Place:
        """Return the place of a value under a key."""
        return Place(self.file, self.document, line, f"{self.path}.{key}" if self.path else key)

    def item(self, index: int, line: int) -> Place:
        """Return the place of an item of a list."""
        return Place(self.file, self.document, line, f"{self.path}[{index}]")

    def error(self, message: str, hint: str) -> UsageError:
        """Return the error that what stands here is wrong."""
        return UsageError(f"{self}: {message}", hint=hint, file=self.file, line=self.line, path=self.path)


@dataclass(frozen=True)
class Entry:
    """A value of a YAML document, with its place.

    Attributes:
        value: a scalar, a list of entries, or a mapping from keys to entries.
        place: where it stands.
    """

    value: Scalar | Sequence[Entry] | Mapping[str, Entry]
    place: Place

    @property
    def is_scalar(self) -> bool:
        """Whether it is neither a list nor a mapping, nor nothing."""
        return isinstance(self.value, (bool, int, float, str))

    def items(self) -> Sequence[Entry]:
        """Return the items of a list.

        Raises:
            UsageError: it is none, or an empty one.
        """
        if isinstance(self.value, Sequence) and not isinstance(self.value, str) and self.value:
            return self.value
        raise self.place.error("this must be a list.", "Write its items on lines that begin with '- '.")

    def mapping(self) -> Mapping[str, Entry]:
        """Return a mapping; an empty one where nothing was written.

        Raises:
            UsageError: it is none.
        """
        if self.value is None:
            return {}
        if isinstance(self.value, Mapping):
            return self.value
        raise self.place.error("this must be a mapping.", "Write lines of the form 'key: value'.")

    def fields(self, known: Iterable[str], *, refused: Mapping[str, str] | None = None) -> Mapping[str, Entry]:
        """Return a mapping with known keys only, without those that have no value.

        Args:
            known: the keys it may have.
            refused: other keys that files are known to have → what to do instead.

        Raises:
            UsageError: it is no mapping or has another key.
        """
        known = list(known)
        for key, entry in self.mapping().items():
            if key not in known:
                raise entry.place.error(f"the key {key!r} is not supported here.", _advice(key, known, refused or {}))
        return {key: entry for key, entry in self.mapping().items() if entry.value is not None}

    def text(self) -> str:
        """Return a text that is not empty.

        Raises:
            UsageError: it is none.
        """
        if isinstance(self.value, str) and self.value:
            return self.value
        raise self.place.error(f"{self.shown} is not a text.", "Write a text, in quotes where it looks like a number.")

    def count(self, least: int = 0) -> int:
        """Return a whole number of at least ``least``.

        Raises:
            UsageError: it is none.
        """
        if isinstance(self.value, int) and not isinstance(self.value, bool) and self.value >= least:
            return self.value
        raise self.place.error(f"{self.shown} is not a whole number of at least {least}.", "Write one.")

    def switch(self) -> bool:
        """Return a truth value.

        Raises:
            UsageError: it is none.
        """
        if isinstance(self.value, bool):
            return self.value
        raise self.place.error(f"{self.shown} is neither true nor false.", "Write true or false.")

    @property
    def shown(self) -> str:
        """The value, as an error shows it."""
        if isinstance(self.value, Mapping):
            return "a mapping"
        return repr(self.value) if self.value is None or self.is_scalar else "a list"


def _advice(key: str, known: Sequence[str], refused: Mapping[str, str]) -> str:
    if key in refused:
        return refused[key]
    near = difflib.get_close_matches(key, known, n=1)
    listed = f"These are: {', '.join(known)}."
    return f"Did you mean {near[0]!r}? {listed}" if near else f"Remove it. {listed}"


def read_documents(path: Path) -> list[tuple[Entry, str]]:
    """Read a YAML file.

    Returns:
        Every document that is not empty, with its own text.

    Raises:
        NotFoundError: there is no such file.
        UsageError: it is not YAML, or holds values that no merge needs (dates, bytes, keys twice).
        UnsafeContentError: it is far longer than such files are.
    """
    if not path.is_file():
        raise NotFoundError(f"There is no file {path}.", hint="Give the path of a merge configuration.")
    data = read_limited(path, FILE_LIMIT)
    try:
        text = data.decode("utf-8-sig")
        nodes = list(yaml.compose_all(text, Loader=yaml.SafeLoader))
    except UnicodeDecodeError as error:
        raise UsageError(f"{path.name} is not UTF-8 text.", hint="Save it as UTF-8.") from error
    except RecursionError as error:
        raise _too_deep(path) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise UsageError(f"{path.name}{line} is not YAML: {problem}.", hint="Correct the file.") from error
    documents = [
        (node, part)
        for node, part in zip(nodes, _texts(text), strict=False)
        if not (isinstance(node, yaml.ScalarNode) and node.value == "")
    ]
    if not documents:
        raise UsageError(f"{path.name} is empty.", hint="Write a merge configuration into it.")
    reader = _Reader()
    found = []
    for number, (node, part) in enumerate(documents, start=1):
        place = Place(path.name, number if len(documents) > 1 else 0, _line(node))
        try:
            found.append((reader.entry(node, place), part))
        except RecursionError as error:
            raise _too_deep(path) from error
    return found


def _too_deep(path: Path) -> UnsafeContentError:
    return UnsafeContentError(f"{path.name} is nested too deeply.", hint="Write it with fewer levels.")


def _texts(text: str) -> list[str]:
    """Cut a file into the texts of its documents, with their comments and without the lines between them."""
    cuts: list[tuple[int, int]] = []
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.DocumentStartEvent):
            marks = (event.start_mark, event.end_mark) if event.explicit else ()
            cuts.append((marks[0].index, marks[1].index) if marks and marks[0] and marks[1] else (0, 0))
    ends = [*(begin for begin, _ in cuts[1:]), len(text)]
    return [text[begin:end].strip() + "\n" for (_, begin), end in zip(cuts, ends, strict=False)]


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


class _Reader:
    """Turns nodes into entries, with a limit on how many: aliases may repeat what they name any number of times."""

    def __init__(self) -> None:
        self._count = 0
        self._open: set[int] = set()

    def entry(self, node: yaml.Node, place: Place) -> Entry:
        self._count += 1
        if isinstance(node, yaml.ScalarNode):
            _check_text(node.value, place)
        if self._count > _NODE_LIMIT or id(node) in self._open:
            raise UnsafeContentError(f"{place}: aliases repeat themselves without end.", hint="Write the values out.")
        self._open.add(id(node))
        try:
            return Entry(self._value(node, place), place)
        finally:
            self._open.discard(id(node))

    def _value(self, node: yaml.Node, place: Place) -> Scalar | Sequence[Entry] | Mapping[str, Entry]:
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, place)
        if isinstance(node, yaml.SequenceNode):
            return [self.entry(item, place.item(index, _line(item))) for index, item in enumerate(node.value)]
        return _scalar(node, place)

    def _mapping(self, node: yaml.MappingNode, place: Place) -> Mapping[str, Entry]:
        own: dict[str, Entry] = {}
        merged: dict[str, Entry] = {}
        for key, value in node.value:
            if key.tag == _MERGE:
                for one in self._merged(value, place):
                    merged = {**one, **merged}
                continue
            if not isinstance(key, yaml.ScalarNode):
                raise place.error("a key is not a text.", "Write keys as words.")
            _check_text(key.value, place)
            inner = place.key(key.value, _line(key))
            if key.value in own:
                raise inner.error(f"the key {key.value!r} is there twice.", "Write it once.")
            own[key.value] = self.entry(value, inner)
        return {**merged, **own}

    def _merged(self, node: yaml.Node, place: Place) -> Iterator[Mapping[str, Entry]]:
        """Yield the mappings that ``<<`` names, of which the first counts."""
        for one in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            if not isinstance(one, yaml.MappingNode):
                raise place.key("<<", _line(node)).error("what is merged in is not a mapping.", "Name a mapping.")
            entry = self.entry(one, place)
            yield entry.mapping()


def _check_text(text: str, place: Place) -> None:
    """Refuse halves of characters, which YAML can escape and nothing can store."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise place.error("a text has half of a character.", "Write the character itself.") from error


def _scalar(node: yaml.Node, place: Place) -> Scalar:
    """Return the value of a scalar, as YAML 1.1 reads it and mergekit with it (``yes`` is true, ``1e-5`` a text)."""
    try:
        value = yaml.constructor.SafeConstructor().construct_object(node)
    except (yaml.YAMLError, ValueError) as error:
        raise place.error(f"{node.value!r} cannot be read.", "Write it in quotes if it is a text.") from error
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise place.error(f"{node.value!r} is a {type(value).__name__}.", "Write it in quotes if it is a text.")
