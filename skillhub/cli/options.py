"""Options that several commands share, and what they mean: which environment, which registry, how to resolve."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from skillhub.cli import completion
from skillhub.environments import Environment, find_project, user_environments
from skillhub.errors import NotFoundError, UsageError
from skillhub.redaction import printable

if TYPE_CHECKING:
    from skillhub.progress import Progress
    from skillhub.sessions import Session
    from skillhub.wanted import Wanted

_MOST_CHOICES = 9

Command = TypeVar("Command", bound=Callable[..., Any])
Value = TypeVar("Value")


def read_by(parse: Callable[[str], Value]) -> Callable[[click.Context, click.Parameter, str | None], Value | None]:
    """Return a callback for an option whose text a function reads; its ``ValueError`` says what is wrong with the text."""

    def read(context: click.Context, parameter: click.Parameter, text: str | None) -> Value | None:
        try:
            return None if text is None else parse(text)
        except ValueError as error:
            raise click.BadParameter(str(error), context, parameter) from error

    return read


_REPOSITORY_WEIGHT = re.compile(r"(?P<name>checkpoint:[^@]+(?:@(?![-+.\d]*$)[^@]+)?)(?:@(?P<weight>[^@]*))?")


def split_weight(text: str) -> tuple[str, float]:
    """Read ``PACK[@WEIGHT]``; the repository of a checkpoint may have its revision before the weight.

    Raises:
        UsageError: the weight is not a number, or no pack is named.
    """
    found = _REPOSITORY_WEIGHT.fullmatch(text)
    name, at, weight = (found["name"], found["weight"], found["weight"]) if found else text.rpartition("@")
    if not text or (at and not name):
        raise UsageError(
            f"{text!r} names no pack.", hint="Write a name or folder, such as acme/math-pack or ./math-pack."
        )
    if not at:
        return (name if found else text), 1.0
    try:
        return name, float(weight)
    except ValueError as error:
        raise UsageError(f"{weight!r} in {text!r} is not a weight.", hint="Write a number, such as @0.5.") from error


def environment_option(command: Command) -> Command:
    """Add ``--environment``."""
    return click.option(
        "--environment",
        "-e",
        type=click.Path(path_type=Path, file_okay=False),
        help="Folder of the environment; else the project around the current folder, else your own for the base.",
    )(command)


def token_option(command: Command) -> Command:
    """Add ``--token``."""
    return click.option(
        "--token",
        metavar="TOKEN",
        help="Token for the registry; else the one saved for it, or HF_TOKEN for HF_ENDPOINT.",
    )(command)


def registry_options(command: Command) -> Command:
    """Add ``--registry`` and ``--token``."""
    command = token_option(command)
    return click.option(
        "--registry",
        metavar="NAME|URL|DIR",
        shell_complete=completion.complete_registries,
        help="A configured registry, an address, or a vendored folder; else the configured ones, HF_ENDPOINT last.",
    )(command)


def source_options(command: Command) -> Command:
    """Add ``--offline`` and ``--refresh``, and the options of :func:`registry_options`."""
    command = click.option("--refresh", is_flag=True, help="Read again what the registry says has not changed.")(
        command
    )
    command = click.option("--offline", is_flag=True, help="Use only what is already here; ask no server.")(command)
    return registry_options(command)


def dry_run_option(command: Command) -> Command:
    """Add ``--dry-run``."""
    return click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")(command)


def lock_options(command: Command) -> Command:
    """Add ``--locked``, ``--frozen`` and ``--dry-run``."""
    for option in (
        dry_run_option,
        click.option("--frozen", is_flag=True, help="Take the lock as it is, whatever skillhub.toml says."),
        click.option("--locked", is_flag=True, help="Fail with exit code 10 if the lock would have to change."),
    ):
        command = option(command)
    return command


def make_session(
    progress: Progress | None, *, registry: str | None, token: str | None, offline: bool, refresh: bool, as_json: bool
) -> Session:
    """Return what the command works with; with ``--json`` notices are not printed, and nobody is asked anything."""
    from skillhub.cli import console
    from skillhub.sessions import Session

    session = Session(registry, token, offline, refresh, progress)
    if not as_json:
        session.notice = console.say
        session.choose = _choose if sys.stdin.isatty() and sys.stderr.isatty() else session.choose
    return session


def _choose(wanted: Wanted, candidates: Sequence[str]) -> str | None:
    """Ask on the terminal which pack is meant; an empty answer chooses none."""
    shown = candidates[:_MOST_CHOICES]
    click.echo(f"{wanted.name.name} has no owner. There are:", err=True)
    for number, name in enumerate(shown, 1):
        click.echo(f"  {number}  {printable(name)}", err=True)
    answer = click.prompt("Which one? (a number; empty for none)", default="", show_default=False, err=True)
    return shown[int(answer) - 1] if answer.isdecimal() and 0 < int(answer) <= len(shown) else None


def chosen_environment(folder: Path | None) -> Environment | None:
    """Return the environment that was named, or the project around the current folder, or None."""
    return Environment(folder) if folder else find_project()


def existing_environment(folder: Path | None) -> Environment:
    """Return the environment to look into, for commands that change nothing or need something installed.

    Raises:
        NotFoundError: nothing was ever installed, or the folder is no environment.
        UsageError: there are several and none was named.
    """
    chosen = chosen_environment(folder)
    if chosen:
        if not chosen.project_path.is_file() and not chosen.packs_folder.is_dir():
            raise NotFoundError(
                f"{chosen.folder} is not an environment.", hint="Name the folder that packs were installed into."
            )
        return chosen
    found = user_environments()
    if not found:
        raise NotFoundError("No packs are installed.", hint="Install one: skillhub install OWNER/NAME --base MODEL.")
    if len(found) > 1:
        folders = ", ".join(str(one.folder) for one in found)
        raise UsageError(
            f"There are environments for {len(found)} bases: {folders}.", hint="Choose with --environment."
        )
    return found[0]
