"""``skillhub login``, ``logout`` and ``whoami``: tokens, each for the registry it belongs to."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from skillhub.cli import completion, console, options
from skillhub.environments import read_project
from skillhub.errors import AuthError, NotFoundError, UsageError

if TYPE_CHECKING:
    from skillhub import hub
    from skillhub.projects import RegistryEntry

_LONGEST_TOKEN = 10_000

_registry_option = click.option(
    "--registry",
    metavar="NAME|URL",
    shell_complete=completion.complete_registries,
    help="A configured registry, or its address; else the one that HF_ENDPOINT names.",
)


@click.command("login")
@_registry_option
@click.option(
    "--token", metavar="TOKEN", help="The token. Others may see it in the list of processes: better pipe it in."
)
@console.output_options
def login_command(registry: str | None, token: str | None, as_json: bool) -> None:
    """Save a token for a registry: it is sent there, and nowhere else.

    The token is asked for without showing it; where there is no terminal, it is the first line of stdin. It is tried
    before it is saved. Without --registry this is the login of huggingface_hub, which all its programs share; those of
    other registries lie in the same file of tokens, under their addresses.

    \b
    Example:
      skillhub login
      skillhub login --registry https://hub.corp.example < token.txt
    """
    from skillhub import hub

    found = _own_registry(registry)
    _require_network_registry(found)
    given = hub.Registry(found.name, found.endpoint, _read_token(found, token))
    try:
        account = hub.fetch_account(given)
    except AuthError as error:
        raise AuthError(
            f"{given.address} does not accept this token; nothing was saved.",
            hint="Make a token on the website of that registry, and copy it whole.",
            **error.details,
        ) from error
    if given.name == hub.HUB:
        hub.log_in(given)
    else:
        hub.store_token(given.endpoint, str(given.token))
    if as_json:
        console.emit_json(_describe(given, account))
        return
    click.echo(f"Logged in to {given.address} as {account.name}{_scope_text(account)}.")
    variable = hub.token_variable() if given.name == hub.HUB else None
    if variable:
        console.say(f"{variable} is set, and is used in place of the saved token.")


@click.command("logout")
@_registry_option
@console.output_options
def logout_command(registry: str | None, as_json: bool) -> None:
    """Remove the saved token of a registry from this machine. It stays valid until it is revoked there.

    \b
    Example:
      skillhub logout
      skillhub logout --registry https://hub.corp.example
    """
    from skillhub import hub

    found = _own_registry(registry)
    removed = hub.remove_token(found.endpoint)
    if found.name == hub.HUB:
        removed = hub.remove_active_token() or removed
    if as_json:
        console.emit_json({"registry": found.name, "endpoint": found.address, "removed": removed})
    elif removed:
        click.echo(f"Removed the token for {found.address}.")
    else:
        click.echo(f"No token is saved for {found.address}.")
    variable = hub.token_variable() if found.name == hub.HUB else None
    if variable and not as_json:
        console.say(f"{variable} is still set, and its token is still sent to {found.address}.")


@click.command("whoami")
@_registry_option
@console.output_options
def whoami_command(registry: str | None, as_json: bool) -> None:
    """Show whose token is sent to a registry, and what it may do.

    \b
    Example:
      skillhub whoami
      skillhub whoami --registry corp --json
    """
    from skillhub import hub

    found = _find_registry(registry, _project_registries())
    _require_network_registry(found)
    account = hub.fetch_account(found)
    if as_json:
        console.emit_json(_describe(found, account) | {"token_from": _token_source(found)})
        return
    named = f" ({found.name})" if found.name not in (hub.HUB, found.address.partition("://")[2]) else ""
    facts = {
        "Registry": f"{found.address}{named}",
        "Organisations": ", ".join(account.organizations) or "none",
        "Token": ", ".join(text for text in (account.token_name, _token_source(found)) if text),
        "Scope": ", ".join([account.scope or "not told", *account.entities]),
    }
    click.echo(click.style(account.name, bold=True))
    for title, text in facts.items():
        click.echo(f"  {title + ':':<15}{text}")


def _own_registry(chosen: str | None) -> hub.Registry:
    """Return a registry that the user named: its address, or a name of ``config.toml``.

    What a project calls a registry is not enough to hand a token over: others may have written its ``skillhub.toml``.
    """
    theirs = [entry for entry in _project_registries() if entry.name == chosen and entry.url]
    try:
        return _find_registry(chosen, [])
    except NotFoundError as error:
        if not theirs:
            raise
        raise UsageError(
            f"Only this project calls a registry {chosen}: {theirs[0].url}.",
            hint=f"If you trust that address with your token: --registry {theirs[0].url}.",
        ) from error


def _find_registry(chosen: str | None, project: list[RegistryEntry]) -> hub.Registry:
    from skillhub import hub
    from skillhub.registries import find_registry

    return find_registry(project, chosen or hub.HUB)


def _project_registries() -> list[RegistryEntry]:
    place = options.chosen_environment(None)
    return read_project(place).registry if place else []


def _require_network_registry(registry: hub.Registry) -> None:
    if registry.folder is not None:
        raise UsageError(
            f"{registry.folder} is a vendored folder, which knows no users.",
            hint="Name a registry that is on the network: --registry URL.",
        )


def _read_token(registry: hub.Registry, given: str | None) -> str:
    if given is None and sys.stdin.isatty():
        given = click.prompt(f"Token for {registry.address}", hide_input=True, err=True)
    elif given is None:
        given = sys.stdin.readline(_LONGEST_TOKEN)
    token = str(given).strip()
    if not token:
        raise UsageError(
            "No token was given.", hint=f"Type it when asked, or pipe it in: {registry.login_command} < FILE."
        )
    return token


def _token_source(registry: hub.Registry) -> str:
    from skillhub import hub

    variable = hub.token_variable() if registry.name == hub.HUB else None
    return f"from {variable}" if variable else "saved"


def _scope_text(account: hub.Account) -> str:
    return f" (the token's scope is {account.scope})" if account.scope else ""


def _describe(registry: hub.Registry, account: hub.Account) -> dict[str, Any]:
    return {
        "registry": registry.name,
        "endpoint": registry.address,
        "name": account.name,
        "organizations": list(account.organizations),
        "token_name": account.token_name,
        "scope": account.scope,
        "entities": list(account.entities),
    }
