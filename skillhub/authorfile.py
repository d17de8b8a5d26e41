"""The author's file ``skillpack.toml``: what a person writes about a pack before it is built.

``skillhub new`` writes one with every key explained (see ``new_author_file``).
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import msgspec
from msgspec import Struct

from skillhub.documents import field_error, parse_toml
from skillhub.errors import NotFoundError, UsageError
from skillhub.files import disk_errors
from skillhub.manifest import MANIFEST_SCHEMA, Manifest, Skill
from skillhub.names import is_bare_name

AUTHOR_FILE = "skillpack.toml"

_TEMPLATE = """\
# What `skillhub pack` should know about this pack. Of these lines only name and version must be there.

# Without an account's name, which it gets where it is published: acme/{bare}.
name = {name}

# By PEP 440: 1.2.0, 1.3.0rc1 (a pre-release) or 1.2.0.post1 (the same for another base). A version never changes.
version = "0.1.0"

# One line for people who search: what can the model do with the pack?
summary = ""  # "Sums, differences and products of three digits"

# By the Hub's or SPDX's short name. It must go with the base model's licence.
# license = "apache-2.0"

# The model that was fine-tuned: a folder (seen from this file) or OWNER/NAME[@REVISION] on the Hub.
# base = "HuggingFaceTB/SmolLM2-135M-Instruct"

# Packs that are installed with this one, and packs that must not be: OWNER/NAME and, where it matters, PEP 440 versions.
requires = []  # ["acme/chat-pack>=1.2,<2"]
conflicts = []  # ["acme/other-math-pack", "acme/old-pack<1"]

[skills]
# Words to be found by.
tags = []  # ["math", "arithmetic"]

# A few inputs that the pack is good at, for people. From 16 or more the pack gets a routing card, which tells its inputs from others;
# inputs for the card alone go into a file of their own: skillhub pack --prompts FILE.jsonl.
prompts = []  # ["What is 12 + 30?", "Multiply 14 by 3."]
"""


class AuthorFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A parsed ``skillpack.toml``.

    Attributes:
        name: bare name of the pack.
        version: PEP 440, normalized, without a local part.
        base: path (relative to the file) or ``repo[@revision]`` of the base model; None when the command line names it.
    """

    name: str
    version: str
    summary: str = ""
    license: str | None = None
    base: str | None = None
    requires: list[str] = []
    conflicts: list[str] = []
    skills: Skill = Skill()

    def to_manifest(self) -> Manifest:
        """Return the manifest that these words begin, without variants.

        Raises:
            UsageError: a field is not valid; the message names it.
        """
        fields = {name: value for name, value in msgspec.to_builtins(self).items() if name != "base"}
        try:
            return msgspec.convert({"schema": MANIFEST_SCHEMA, **fields}, Manifest)
        except msgspec.MsgspecError as error:
            raise UsageError(
                f"{_field_error(error)}.", hint=f"Correct it in {AUTHOR_FILE} or on the command line."
            ) from error


def new_author_file(folder: Path, name: str | None = None) -> tuple[Path, str]:
    """Write a ``skillpack.toml`` in which every key is explained; it is valid as it stands.

    Args:
        folder: where; it is made if it is not there.
        name: bare name of the pack; None means that of the folder, with dashes for what no name may hold.

    Returns:
        The file, and the pack's name.

    Raises:
        UsageError: the name cannot be a pack's, or there is such a file.
        DiskError: the folder may not be written.
    """
    chosen = name if name is not None else _name_of(folder.resolve())
    if not is_bare_name(chosen):
        raise UsageError(
            f"{chosen!r} is no name for a pack (letters, digits, '.', '_' and '-').", hint="Choose one with --name."
        )
    path = folder / AUTHOR_FILE
    text = _TEMPLATE.format(name=json.dumps(chosen), bare=chosen)
    with disk_errors(path):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with path.open("x", encoding="utf-8") as stream:
                stream.write(text)
        except FileExistsError as error:
            raise UsageError(
                f"There is a {path} already.", hint="Edit it, or name another folder.", path=str(path)
            ) from error
    return path, chosen


def _name_of(folder: Path) -> str:
    """Return a folder's name as a pack's name, as far as that goes."""
    name = re.sub(r"[^A-Za-z0-9._]+|-{2,}", "-", folder.name)
    return re.sub(r"\.{2,}", ".", name).strip("-.")


def read_author_file(path: Path) -> AuthorFile:
    """Read ``skillpack.toml``.

    Raises:
        NotFoundError: there is no such file.
        UsageError: the TOML or a field is wrong; the message names the line or the field.
        DiskError: the file may not be read.
    """
    try:
        with disk_errors(path):
            return msgspec.convert(parse_toml(path.read_bytes()), AuthorFile)
    except FileNotFoundError as error:
        raise NotFoundError(f"There is no {path}.", hint="Give --name and --version instead.") from error
    except msgspec.MsgspecError as error:
        raise UsageError(f"{path}: {_field_error(error)}.", hint="Correct that field, then try again.") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: {error}.", hint="Correct that line, then try again.") from error


def _field_error(error: msgspec.MsgspecError) -> str:
    return field_error(error).removeprefix("$.").removeprefix("$: ")
