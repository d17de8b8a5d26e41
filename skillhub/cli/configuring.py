"""``skillhub config``: the settings of a user, and the registries that packs may come from."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

from skillhub import settings
from skillhub.cli import completion, console
from skillhub.configuration import (
    Configuration,
    add_registry,
    configuration_path,
    read_configuration,
    remove_registry,
    set_value,
)
from skillhub.errors import UsageError
from skillhub.policy import policy_path
from skillhub.projects import RegistryEntry
from skillhub.redaction import presentable

_DEFAULT = "default"
_OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "SKILLHUB_OFFLINE")


@dataclass(frozen=True)
class _Setting:
    """A setting: its value, a text or a list or yes or no, and what has decided it."""

    name: str
    value: str | list[str] | bool | None
    source: str

    @property
    def text(self) -> str:
        """The value for people."""
        if isinstance(self.value, list):
            return ", ".join(self.value)
        if isinstance(self.value, bool):
            return "yes" if self.value else "no"
        return self.value or ""


_IN_FILE = {
    "owners": "are looked through for names without an owner",
    "cache_limit": "the store is kept below",
}
"""Settings of ``config.toml`` → what they mean."""

_IN_ENVIRONMENT: dict[str, tuple[tuple[str, ...], Callable[[], object]]] = {
    "endpoint": (("HF_ENDPOINT",), lambda: presentable(settings.endpoint())),
    "offline": (_OFFLINE_VARIABLES, settings.offline),
    "cache": (("SKILLHUB_CACHE",), settings.cache_folder),
    "home": (("SKILLHUB_HOME",), settings.home_folder),
    "state": (("SKILLHUB_STATE",), settings.state_folder),
    "config": (("SKILLHUB_CONFIG",), settings.configuration_folder),
    "policy": (("SKILLHUB_POLICY",), policy_path),
    "signing_key": (("SKILLHUB_SIGNING_KEY",), settings.signing_key_file),
}
"""Settings that environment variables decide → those variables, and how to read them."""


@click.group("config")
def config_command() -> None:
    """Show and change settings, and the registries that packs may come from.

    They lie in config.toml; `skillhub config list` tells where that is. Comments in it stay.

    \b
    Example:
      skillhub config set owners acme corp
      skillhub config registry add corp https://hub.corp.example --packs 'corp/*'
    """


@config_command.command("list")
@console.output_options
def list_(as_json: bool) -> None:
    """Show every setting with its value, and what has decided it.

    \b
    Example:
      skillhub config list
    """
    own = read_configuration()
    found = _all_settings(own)
    if as_json:
        told = {one.name: {"value": one.value, "source": one.source} for one in found}
        console.emit_json({"settings": told, "registries": _describe(own)})
        return
    console.table(["Setting", "Value", "From"], [[one.name, one.text, one.source] for one in found])
    if own.registry:
        _print_registries(own)


@config_command.command("get")
@click.argument("key", metavar="KEY")
@console.output_options
def get(key: str, as_json: bool) -> None:
    """Print the value of a setting; a list as one line each.

    \b
    Example:
      skillhub config get cache
    """
    found = {one.name: one for one in _all_settings(read_configuration())}
    if key not in found:
        raise _unknown(key, list(found))
    if as_json:
        console.emit_json({"name": key, "value": found[key].value, "source": found[key].source})
        return
    value = found[key].value
    for line in value if isinstance(value, list) else [found[key].text]:
        click.echo(line)


@config_command.command("set")
@click.argument("key", metavar="KEY")
@click.argument("values", nargs=-1, required=True, metavar="VALUE...")
@console.output_options
def set_(key: str, values: tuple[str, ...], as_json: bool) -> None:
    """Write a setting into config.toml: owners, or cache_limit.

    \b
    Example:
      skillhub config set cache_limit 50GB
    """
    _require_settable(key)
    if len(values) > 1 and not isinstance(getattr(Configuration(), key), list):
        raise UsageError(f"{key} has one value.", hint=f"Write: skillhub config set {key} {values[0]}.")
    _tell_setting(key, set_value(key, values), as_json=as_json)


@config_command.command("unset")
@click.argument("key", metavar="KEY")
@console.output_options
def unset(key: str, as_json: bool) -> None:
    """Take a setting out of config.toml, so that its default holds.

    \b
    Example:
      skillhub config unset cache_limit
    """
    _require_settable(key)
    _tell_setting(key, set_value(key, ()), as_json=as_json)


@config_command.group("registry")
def registry_() -> None:
    """Name the registries that packs may come from.

    They are asked in order, before the one that HF_ENDPOINT names. Packs that match the patterns of a registry come from
    it and from no other, and it is asked for no others.

    \b
    Example:
      skillhub config registry add corp https://hub.corp.example --packs 'corp/*'
      skillhub login --registry corp
    """


@registry_.command("add")
@click.argument("name", metavar="NAME")
@click.argument("url", metavar="URL")
@click.option("--packs", "patterns", multiple=True, metavar="PATTERN", help="Only for these packs; may be repeated.")
@console.output_options
def add(name: str, url: str, patterns: tuple[str, ...], as_json: bool) -> None:
    """Name a registry; it is asked after those that are there.

    \b
    Example:
      skillhub config registry add corp https://hub.corp.example --packs 'corp/*'
    """
    from skillhub.hub import HUB

    if name == HUB:
        raise UsageError(f"{HUB} is the registry that HF_ENDPOINT names.", hint="Call this one something else.")
    own = add_registry(RegistryEntry(name=name, url=url.rstrip("/"), packs=list(patterns)))
    if as_json:
        console.emit_json({"registries": _describe(own)})
    else:
        click.echo(f"Added the registry {name}. If it needs a token: skillhub login --registry {name}")


@registry_.command("remove")
@click.argument("name", metavar="NAME", shell_complete=completion.complete_registries)
@console.output_options
def remove(name: str, as_json: bool) -> None:
    """Remove a registry from config.toml; a token that is saved for it stays until `skillhub logout`.

    \b
    Example:
      skillhub config registry remove corp
    """
    own = remove_registry(name)
    if as_json:
        console.emit_json({"registries": _describe(own)})
    else:
        click.echo(f"Removed the registry {name}.")


@registry_.command("list")
@console.output_options
def list_registries(as_json: bool) -> None:
    """List the registries of config.toml in the order in which they are asked, HF_ENDPOINT last.

    \b
    Example:
      skillhub config registry list
    """
    own = read_configuration()
    if as_json:
        console.emit_json({"registries": _describe(own)})
    else:
        _print_registries(own)


def _print_registries(own: Configuration) -> None:
    rows = [[one["name"], one["url"], ", ".join(one["packs"]) or "any"] for one in _describe(own)]
    console.table(["Registry", "Address", "Packs"], rows)


def _describe(own: Configuration) -> list[dict[str, Any]]:
    from skillhub.hub import HUB

    entries = [*own.registry, *([] if HUB in {one.name for one in own.registry} else [RegistryEntry(name=HUB)])]
    return [
        {"name": one.name, "url": presentable(one.url or settings.endpoint()), "packs": one.packs} for one in entries
    ]


def _all_settings(own: Configuration) -> list[_Setting]:
    """Return every setting: those of ``config.toml``, then those of environment variables."""
    default, found = Configuration(), []
    for name in _IN_FILE:
        value = getattr(own, name)
        source = _DEFAULT if value == getattr(default, name) else str(configuration_path())
        found.append(_Setting(name, value, source))
    for name, (variables, read) in _IN_ENVIRONMENT.items():
        chosen = next((one for one in variables if os.environ.get(one)), _DEFAULT)
        value = read()
        found.append(_Setting(name, value if isinstance(value, bool) or value is None else str(value), chosen))
    return found


def _require_settable(key: str) -> None:
    if key in _IN_ENVIRONMENT:
        variable = _IN_ENVIRONMENT[key][0][0]
        raise UsageError(f"{key} is not in config.toml.", hint=f"Set the environment variable {variable}.")
    if key == "registry":
        raise UsageError("Registries have names.", hint="Write: skillhub config registry add NAME URL.")
    if key not in _IN_FILE:
        raise _unknown(key, [*_IN_FILE, *_IN_ENVIRONMENT])


def _unknown(key: str, known: list[str]) -> UsageError:
    return UsageError(f"There is no setting {key!r}.", hint=f"There are: {', '.join(known)}.")


def _tell_setting(key: str, own: Configuration, *, as_json: bool) -> None:
    found = next(one for one in _all_settings(own) if one.name == key)
    if as_json:
        console.emit_json({"name": key, "value": found.value, "source": found.source})
        return
    meaning = f", which {_IN_FILE[key]}" if found.value else ""
    click.echo(f"{key} is {found.text or 'not set'}{meaning}.")
