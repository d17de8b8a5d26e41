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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from skillhub import settings
from skillhub.documents import field_error, parse_toml
from skillhub.errors import NotFoundError, UsageError
from skillhub.files import disk_errors, write_atomically
from skillhub.lockfile import LOCAL
from skillhub.locks import locked
from skillhub.names import is_bare_name
from skillhub.projects import RegistryEntry

if TYPE_CHECKING:
    from tomlkit import TOMLDocument

CONFIGURATION_FILE = "config.toml"

_SIZE = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*(?:([kMGT])(i?))?B?", re.IGNORECASE)
_POWERS = {"k": 1, "m": 2, "g": 3, "t": 4}


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
        names = [entry.name for entry in self.registry]
        for number, name in enumerate(names):
            if name in names[:number]:
                raise ValueError(f".registry[{number}].name: there are two called {name!r}")

    @property
    def cache_limit_bytes(self) -> int | None:
        """The limit in bytes; None without one."""
        return None if self.cache_limit is None else parse_size(self.cache_limit)


def parse_size(text: str, *, where: str = "") -> int:
    """Return the bytes that a size means: ``50GB``, ``1.5 MB`` or ``2000000``; a ``kB`` has 1000, a ``KiB`` 1024.

    Raises:
        ValueError: it is no size; the message begins with ``where``.
    """
    found = _SIZE.fullmatch(text.strip())
    if not found:
        raise ValueError(f"{where}: {text!r} is not a size such as 50GB".removeprefix(": "))
    unit = (1024 if found[3] else 1000) ** _POWERS[found[2].lower()] if found[2] else 1
    return int(float(found[1]) * unit)


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


def change_configuration(change: Callable[[TOMLDocument], None]) -> Configuration:
    """Change ``config.toml``, which is made where there is none; comments and the order of what people wrote stay.

    Args:
        change: changes the document in place.

    Returns:
        What the file says now.

    Raises:
        UsageError: the file so far is not valid, or would not be; it stays as it is.
        EnvironmentLockedError: another process has been changing it for long.
        DiskError: it may not be read or written.
    """
    import tomlkit

    path = configuration_path()
    with locked(path.with_name(f".{CONFIGURATION_FILE}.lock"), timeout_seconds=30):
        with disk_errors(path):
            data = path.read_bytes() if path.exists() else b""
        parse_configuration(data, where=str(path))
        document = tomlkit.parse(data.decode("utf-8-sig"))
        change(document)
        text = tomlkit.dumps(document).encode()
        changed = parse_configuration(text, where=f"{path} as it would be")
        if text != data:
            write_atomically(path.resolve(), text)  # where it is a link, what it leads to changes
    return changed


def set_value(name: str, values: Sequence[str]) -> Configuration:
    """Write a field of ``config.toml``; without values it is left out, so the default holds.

    Raises:
        UsageError: as :func:`change_configuration`.
        DiskError: as :func:`change_configuration`.
    """

    def change(document: TOMLDocument) -> None:
        if values:
            document[name] = list(values) if _is_list(name) else values[0]
        else:
            document.pop(name, None)

    return change_configuration(change)


def _is_list(name: str) -> bool:
    return isinstance(getattr(Configuration(), name), list)


def add_registry(entry: RegistryEntry) -> Configuration:
    """Add a registry, which is asked after those that are there.

    Raises:
        UsageError: the name, the address or a pattern will not do, or there is one of that name; or as
            :func:`change_configuration`.
        DiskError: as :func:`change_configuration`.
    """
    _check_registry(entry)

    import tomlkit
    from tomlkit.items import AoT

    def change(document: TOMLDocument) -> None:
        registries: Any = document.get("registry")
        if any(one["name"] == entry.name for one in registries or ()):
            raise UsageError(
                f"There is a registry called {entry.name} already.",
                hint=f"Choose another name, or remove it first: skillhub config registry remove {entry.name}.",
            )
        table = tomlkit.table() if registries is None or isinstance(registries, AoT) else tomlkit.inline_table()
        for key, value in msgspec.to_builtins(entry).items():
            if value not in (None, []):
                table[key] = value
        if registries is None:
            if document:
                document.add(tomlkit.nl())
            document.append("registry", tomlkit.aot())
        elif isinstance(registries, AoT):
            registries[-1].add(tomlkit.nl())
        document["registry"].append(table)

    return change_configuration(change)


def remove_registry(name: str) -> Configuration:
    """Remove a registry.

    Raises:
        NotFoundError: none is called so.
        UsageError: as :func:`change_configuration`.
        DiskError: as :func:`change_configuration`.
    """

    def change(document: TOMLDocument) -> None:
        registries: Any = document.get("registry") or []
        found = [number for number, one in enumerate(registries) if one["name"] == name]
        if not found:
            there = ", ".join(one["name"] for one in registries) or "none"
            raise NotFoundError(f"No registry is called {name} in config.toml.", hint=f"There are: {there}.")
        del registries[found[0]]
        if not registries:
            del document["registry"]

    return change_configuration(change)


def _check_registry(entry: RegistryEntry) -> None:
    if not is_bare_name(entry.name) or entry.name == LOCAL:
        raise UsageError(
            f"{entry.name!r} cannot be the name of a registry.", hint="Use letters, digits, '-', '_' and '.': corp."
        )
    if entry.url is not None:
        _check_address(entry.url)
    for pattern in entry.packs:
        if pattern != "*" and (pattern.count("/") != 1 or pattern.startswith("/") or pattern.endswith("/")):
            raise UsageError(
                f"{pattern!r} is no pattern of packs' full names.",
                hint="Write OWNER/NAME with * in it, such as 'corp/*'.",
            )


def _check_address(text: str) -> None:
    try:
        parts = urlsplit(text)
        good = parts.scheme in ("http", "https", "file") and bool(parts.netloc or parts.path) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise UsageError(f"{text!r} is no address.", hint="Write it with its scheme, such as https://hub.example.com.")
    if parts.username or parts.password:
        raise UsageError(
            "An address in config.toml may not hold a user or password.",
            hint="Leave them out, and save a token: skillhub login --registry NAME.",
        )
