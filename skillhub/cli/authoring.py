"""``skillhub new`` and ``skillhub key``: what an author has before there is a pack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from skillhub.authorfile import new_author_file
from skillhub.cli import console


@click.command("new")
@click.argument("folder", metavar="[DIR]", type=click.Path(path_type=Path, file_okay=False), default=Path())
@click.option("--name", help="Name of the pack, without owner; else that of the folder.")
@console.output_options
def new_command(folder: Path, name: str | None, as_json: bool) -> None:
    """Write a skillpack.toml with every key explained, for a pack that is to be built.

    `skillhub pack` reads it. DIR is made if it is not there; it is the current folder when not given.

    \b
    Example:
      skillhub new math-pack
      cd math-pack && skillhub pack ./tuned --base ./SmolLM2-135M-Instruct -o built
    """
    path, chosen = new_author_file(folder, name)
    if as_json:
        console.emit_json({"file": str(path), "name": chosen})
        return
    click.echo(f"Wrote {path} for {chosen}. Fill it in, then build the pack:")
    click.echo("  skillhub pack TUNED --base BASE -o FOLDER")


@click.group("key")
def key_command() -> None:
    """Make or show the key that your releases are signed with.

    Who installs a signed pack once gets no release of it by another key, whoever may have taken over your account.
    With a key, `skillhub publish` signs every release.

    \b
    Example:
      skillhub key new
      skillhub key show
    """


@key_command.command("new")
@click.option("--force", is_flag=True, help="Replace the key that is there.")
@console.output_options
def new_key(force: bool, as_json: bool) -> None:
    """Make a key of your own for signing releases; it never leaves this machine.

    Keep a copy in a safe place: without the key nobody can publish a release that users of the earlier ones accept.

    \b
    Example:
      skillhub key new
    """
    from skillhub.signing import generate_key, key_path, save_key

    save_key(generate_key(), key_path(), replace=force)
    _report(f"Made a key: {key_path()}. Keep a copy in a safe place.", as_json=as_json)


@key_command.command("show")
@console.output_options
def show_key(as_json: bool) -> None:
    """Show the public part of your key, and where the key is.

    \b
    Example:
      skillhub key show
    """
    from skillhub.signing import key_path

    _report(f"The key is {key_path()}.", as_json=as_json)


def _report(sentence: str, *, as_json: bool) -> None:
    from skillhub.signing import key_path, load_key, signer_of, signer_text

    signer = signer_text(signer_of(load_key()))
    if as_json:
        result: dict[str, Any] = {"signer": signer, "file": str(key_path())}
        console.emit_json(result)
        return
    click.echo(sentence)
    click.echo(f"Its public part: {signer}")
