"""The author's file ``skillpack.toml``: what a person writes about a pack before it is built.

name = "math-pack"
version = "1.0.0"
summary = "Sums, differences and products of three digits"
license = "apache-2.0"
base = "HuggingFaceTB/SmolLM2-135M-Instruct"
requires = []
conflicts = []

[skills]
tags = ["math"]
prompts = ["What is 12 + 30?"]
"""

from __future__ import annotations

import tomllib
from pathlib import Path

import msgspec
from msgspec import Struct

from skillhub.documents import field_error, parse_toml
from skillhub.errors import NotFoundError, UsageError
from skillhub.files import disk_errors
from skillhub.manifest import MANIFEST_SCHEMA, Manifest, Skill

AUTHOR_FILE = "skillpack.toml"


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
