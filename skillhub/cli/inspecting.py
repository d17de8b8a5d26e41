"""``skillhub list``: looking at what is installed. It uses no network."""

from __future__ import annotations

from pathlib import Path

import click

from skillhub.cli import console, options
from skillhub.cli.outcomes import describe
from skillhub.environments import InstalledPack, damaged_packs, installed_packs, read_project
from skillhub.lockfile import LOCAL, PEFT
from skillhub.packs import base_text


@click.command("list")
@options.environment_option
@console.output_options
def list_command(environment: Path | None, as_json: bool) -> None:
    """List what is installed in an environment, and where it came from.

    \b
    Example:
      skillhub list
    """
    chosen = options.existing_environment(environment)
    packs, damaged = installed_packs(chosen), damaged_packs(chosen)
    if as_json:
        described = [{**describe(one), "repository": one.receipt.repository} for one in packs]
        errors = [one.to_json() for one in damaged]
        console.emit_json({"environment": str(chosen.folder), "packs": described, "damaged": errors})
        return
    for error in damaged:
        console.report(error, as_json=False, with_cause=False)
    if not packs:
        click.echo("No packs are installed here.")
        return
    for base in read_project(chosen).base:
        click.echo(f"For {base_text(base.fingerprint, base.repo)}:")
    rows = [[str(one.name), one.version, _kind(one), console.size_text(one.size), origin_text(one)] for one in packs]
    console.table(["Pack", "Version", "Kind", "Size", "From"], rows, right=(3,))


def _kind(installed: InstalledPack) -> str:
    return "adapter" if installed.receipt.kind == PEFT else "pack"


def origin_text(installed: InstalledPack) -> str:
    """Return where a pack came from: the registry, with the repository where that is called otherwise, or the folder."""
    receipt = installed.receipt
    if receipt.registry == LOCAL:
        return receipt.repository or "a folder"
    moved = receipt.repository.lower() != str(installed.name).lower()
    return f"{receipt.registry}: {receipt.repository}" if moved else receipt.registry
