"""``config.toml``: what a user decides once for all environments. It lies in the configuration folder.

    owners = ["acme"]                    looked through for names without an owner
    cache_limit = "50GB"                 the store is pruned to this size after an installation

    [[registry]]                         asked in order, before HF_ENDPOINT
    name = "corp"
    url = "https://hub.corp.example"
    packs = ["corp/*"]

Tokens are not here: huggingface_hub keeps the one for HF_ENDPOINT, and ``skillhub login --registry`` those of others.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import msgspec
from msgspec import Struct

from skillhub import settings
from skillhub.documents import field_error, parse_toml
from skillhub.errors import UsageError
from skillhub.files import disk_errors
from skillhub.names import is_bare_name
from skillhub.projects import RegistryEntry

CONFIGURATION_FILE = "config.toml"

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([kMGT]?)B?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


class Configuration(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A parsed ``config.toml``; without one, all is as it comes.

    Attributes:
        owners: looked through, in order and after those of a project, for names without an owner.
        cache_limit: size that the store is kept below, such as ``50GB``; None keeps everything.
        registry: asked in order, after those of a project and before ``HF_ENDPOINT``.
    """

    owners: list[str] = []
    cache_limit: str | None = None
    registry: list[RegistryEntry] = []

    def __post_init__(self) -> None:
        for number, owner in enumerate(self.owners):
            if not is_bare_name(owner):
                raise ValueError(f".owners[{number}]: {owner!r} is not an owner's name")
        if self.cache_limit is not None:
            parse_size(self.cache_limit, where=".cache_limit")

    @property
    def cache_limit_bytes(self) -> int | None:
        """The limit in bytes; None without one."""
        return None if self.cache_limit is None else parse_size(self.cache_limit)


def parse_size(text: str, *, where: str = "") -> int:
    """Return the bytes that a size means: ``50GB``, ``1.5 MB`` or ``2000000``; units are powers of 1000.

    Raises:
        ValueError: it is no size; the message begins with ``where``.
    """
    found = _SIZE.fullmatch(text.strip())
    if not found:
        raise ValueError(f"{where}: {text!r} is not a size such as 50GB".removeprefix(": "))
    return int(float(found[1]) * 1000 ** _POWERS[found[2].lower()])


def configuration_path() -> Path:
    """Return where the configuration is or would be."""
    return settings.configuration_folder() / CONFIGURATION_FILE


def read_configuration() -> Configuration:
    """Read the user's configuration; without a file nothing is decided.

    Raises:
        UsageError: the TOML or a field is wrong; the message names the line or the field.
        DiskError: it may not be read, or is a folder.
    """
    path = configuration_path()
    try:
        with disk_errors(path):
            data = path.read_bytes()
    except FileNotFoundError:
        return Configuration()
    return parse_configuration(data, where=str(path))


def parse_configuration(data: bytes, *, where: str = CONFIGURATION_FILE) -> Configuration:
    """Read the bytes of a ``config.toml``.

    Raises:
        UsageError: the TOML or a field is wrong; the message names the line or the field.
    """
    try:
        return msgspec.convert(parse_toml(data), Configuration)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{where}: {error}.", hint="Correct that line, then try again.") from error
    except msgspec.MsgspecError as error:
        raise UsageError(f"{where}: {field_error(error)}.", hint="Correct that field, then try again.") from error
