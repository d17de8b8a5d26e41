"""``skillhub install`` and ``skillhub uninstall``."""

from __future__ import annotations

from pathlib import Path

import click

from skillhub.cli import console, options
from skillhub.environments import InstalledPack
from skillhub.packs import short_fingerprint


@click.command("install")
@click.argument("requirements", nargs=-1, metavar="[REQUIREMENT]...")
@click.option("--base", metavar="PATH|REPO|FINGERPRINT", help="The base model that the packs are for.")
@click.option("--offline", is_flag=True, help="Use only what is already in the store.")
@options.environment_option
@options.registry_options
@console.output_options
def install_command(
    requirements: tuple[str, ...],
    base: str | None,
    offline: bool,
    environment: Path | None,
    registry: str | None,
    token: str | None,
    as_json: bool,
) -> None:
    """Install packs into an environment; without REQUIREMENT, what the environment asks for.

    A requirement is a name (acme/math-pack), a name with versions ('acme/math-pack>=1.2,<2') or the folder of a built
    pack (./math-pack). Every byte is checked against the pack's manifest before it is installed.

    \b
    Example:
      skillhub install acme/math-pack --base ./SmolLM2-135M-Instruct
    """
    from skillhub.installer import install

    with console.progress() as progress:
        installed = install(
            requirements,
            base=base,
            environment=options.chosen_environment(environment),
            registry=registry,
            token=token,
            offline=offline,
            progress=progress,
            notice=None if as_json else console.say,
        )
    if as_json:
        console.emit_json({"installed": [describe(one) for one in installed]})
        return
    for one in installed:
        size = console.size_text(one.size)
        click.echo(f"Installed {one.name} {one.version} ({size}) for {short_fingerprint(one.fingerprint)}.")


@click.command("uninstall")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@options.environment_option
@console.output_options
def uninstall_command(names: tuple[str, ...], environment: Path | None, as_json: bool) -> None:
    """Remove installed packs from an environment; the store keeps the bytes.

    \b
    Example:
      skillhub uninstall acme/math-pack
    """
    from skillhub.installer import uninstall

    removed = uninstall(names, environment=options.existing_environment(environment))
    if as_json:
        console.emit_json({"uninstalled": [{"name": str(one.name), "version": one.version} for one in removed]})
        return
    for one in removed:
        click.echo(f"Uninstalled {one.name} {one.version or '(damaged)'}.")


def describe(one: InstalledPack) -> dict[str, object]:
    """Return an installed pack for ``--json``."""
    return {
        "name": str(one.name),
        "version": one.version,
        "digest": one.receipt.manifest,
        "fingerprint": one.fingerprint,
        "kind": one.receipt.kind,
        "registry": one.receipt.registry,
        "folder": str(one.folder),
        "bytes": one.size,
    }
