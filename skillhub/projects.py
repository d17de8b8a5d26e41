"""``skillhub.toml``: what an environment should hold, as people and commands write it.

A command changes only the keys that it must, so comments and the order of what people wrote stay.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct

from skillhub.documents import field_error, parse_toml
from skillhub.errors import UsageError
from skillhub.fields import FingerprintText, Label

PROJECT_FILE = "skillhub.toml"
MAX_PROJECT_BYTES = 16 << 20


class Base(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The base model that an environment is for.

    Attributes:
        fingerprint: ``skb1:…``.
        repo: repository on a registry, where known.
        revision: of that repository, where one was named.
    """

    fingerprint: FingerprintText
    repo: Label | None = None
    revision: Label | None = None


class RegistryEntry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A registry that a project or the user names.

    Attributes:
        name: what locks call it.
        url: its address; None where the user's own configuration has it.
        packs: patterns of full names, such as ``corp/*``. Packs that match come from this registry only, and it is asked for no others.
    """

    name: Label
    url: Label | None = None
    packs: list[Label] = []


class Project(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A parsed ``skillhub.toml``: what the environment should hold.

    Attributes:
        base: the environment's base model, in a list of one; empty until the first install chose it.
        requirements: as their author wrote them, with owners.
        owners: looked through, in order, for names without an owner.
        constraints: requirements that narrow the versions of packs that come in anyway.
        overrides: requirements that take the place of all others for their packs.
        exclude_newer: releases that were published later than this (RFC 3339) are left alone.
        pre_releases: whether pre-releases will do where nobody asked for one.
        registry: asked in order, before the configured one.
    """

    requirements: list[str] = []
    constraints: list[str] = []
    overrides: list[str] = []
    owners: list[str] = []
    exclude_newer: str | None = None
    pre_releases: bool = False
    base: list[Base] = []
    registry: list[RegistryEntry] = []


def parse_project(data: bytes, *, where: str = PROJECT_FILE) -> Project:
    """Read the bytes of a ``skillhub.toml``.

    Raises:
        UsageError: the TOML or a field is wrong; the message names the line or the field.
    """
    try:
        project = msgspec.convert(parse_toml(data), Project)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{where}: {error}.", hint="Correct that line, then try again.") from error
    except msgspec.MsgspecError as error:
        raise UsageError(f"{where}: {field_error(error)}.", hint="Correct that field, then try again.") from error
    if len(project.base) > 1:
        raise UsageError(f"{where} names several bases.", hint="Keep one [[base]]; use one environment a base.")
    return project


def updated_text(data: bytes, project: Project) -> bytes:
    """Return the bytes of a ``skillhub.toml`` that says what ``project`` does, as little changed as can be.

    Args:
        data: the file so far; empty for a new one.
        project: what it should say.

    Raises:
        UsageError: the file so far is not valid.
    """
    import tomlkit

    before = parse_project(data) if data else Project()
    document = tomlkit.parse(data.decode("utf-8-sig"))
    for name in Project.__struct_fields__:
        value = getattr(project, name)
        if value == getattr(before, name) and (name in document or name != "requirements"):
            continue
        if not value and name != "requirements":
            document.pop(name, None)
        elif isinstance(value, list) and value and isinstance(value[0], Struct):
            document[name] = _tables(value)
        elif isinstance(value, list):
            _write_list(document, name, value)
        else:
            document[name] = value
    return tomlkit.dumps(document).encode()


def _tables(values: Sequence[Struct]) -> Any:
    import tomlkit

    tables = tomlkit.aot()
    for value in values:
        table = tomlkit.table()
        for key, field in msgspec.to_builtins(value).items():
            if field not in (None, []):
                table[key] = field
        tables.append(table)
    return tables


def _write_list(document: Any, name: str, texts: Sequence[str]) -> None:
    """Make an array hold these texts; those that stay keep their lines and comments."""
    import tomlkit

    if name not in document:
        document[name] = tomlkit.array()
    array = document[name]
    for text in [old for old in array if old not in texts]:
        array.remove(text)
    for text in texts:
        if text not in array:
            array.append(text)
    if not texts:
        document[name] = tomlkit.array()
    elif "#" not in array.as_string():  # laid out anew where nobody's comment can get lost
        array.multiline(True)
