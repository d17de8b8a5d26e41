"""``skillhub completion``, and what a shell completes: commands, options, packs, registries. No server is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeAlias

import click
from click.shell_completion import CompletionItem, get_completion_class

from skillhub.cli import console
from skillhub.names import is_folder

VARIABLE = "_SKILLHUB_COMPLETE"
"""The environment variable by which a shell asks for completions."""

_PROGRAM = "skillhub"

Complete: TypeAlias = Callable[[click.Context, click.Parameter, str], list[CompletionItem[str]]]


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@console.output_options
@click.pass_context
def completion_command(context: click.Context, shell: str, as_json: bool) -> None:
    """Print the script that makes a shell complete commands, options, and the names of installed packs.

    \b
    bash (4.4 or later), in ~/.bashrc:
      eval "$(skillhub completion bash)"
    zsh, in ~/.zshrc after compinit:
      eval "$(skillhub completion zsh)"
    fish:
      skillhub completion fish > ~/.config/fish/completions/skillhub.fish

    \b
    Example:
      eval "$(skillhub completion bash)"
    """
    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(context.find_root().command, {}, _PROGRAM, VARIABLE).source()
    if as_json:
        console.emit_json({"shell": shell, "script": script})
    else:
        click.echo(script, nl=False)


def _swallowed(find: Callable[[click.Context, str], Iterable[str]]) -> Complete:
    """Return what click asks for completions: those that begin with what is typed; none where anything goes wrong.

    A message would be written into the line that the user types.
    """

    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        try:
            if is_folder(incomplete):
                return [CompletionItem(incomplete, type="dir")]
            given = context.params.get(parameter.name or "") or ()
            found = [text for text in find(context, incomplete) if text.lower().startswith(incomplete.lower())]
            return [CompletionItem(text) for text in found if not isinstance(given, tuple) or text not in given]
        except Exception:
            return []

    return complete


def _packs(context: click.Context, incomplete: str) -> list[str]:
    """Return the full names of the packs of the environment, and their bare ones once one is begun."""
    from skillhub.cli import options
    from skillhub.environments import installed_folders, name_of_folder
    from skillhub.lockfile import read_lock

    chosen = context.params.get("environment")
    place = options.existing_environment(Path(chosen) if chosen else None)
    lock = read_lock(place.lock_path)
    names = {entry.pack_name: str(entry.pack_name) for entry in (lock.packs if lock else ())}
    for folder in installed_folders(place):
        names.setdefault(name_of_folder(folder), str(name_of_folder(folder)))
    full = sorted(names.values(), key=str.lower)
    bare = [name.rpartition("/")[2] for name in full] if incomplete and "/" not in incomplete else []
    return list(dict.fromkeys([*full, *(name for name in bare if bare.count(name) == 1)]))


def _registries(context: click.Context, incomplete: str) -> list[str]:
    from skillhub.configuration import read_configuration

    return list(dict.fromkeys([*(entry.name for entry in read_configuration().registry), "hub"]))


complete_packs = _swallowed(_packs)
complete_registries = _swallowed(_registries)
