"""Options that several commands share, and what they mean: which environment, which registry."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from skillhub.environments import Environment, find_project, user_environments
from skillhub.errors import NotFoundError, UsageError

Command = TypeVar("Command", bound=Callable[..., Any])


def environment_option(command: Command) -> Command:
    """Add ``--environment``."""
    return click.option(
        "--environment",
        "-e",
        type=click.Path(path_type=Path, file_okay=False),
        help="Folder of the environment; else the project around the current folder, else your own for the base.",
    )(command)


def registry_options(command: Command) -> Command:
    """Add ``--registry`` and ``--token``."""
    command = click.option(
        "--token",
        metavar="TOKEN",
        help="Token for the registry. Without it HF_ENDPOINT gets HF_TOKEN or the saved one.",
    )(command)
    return click.option(
        "--registry", metavar="URL", help="Address of the registry; else HF_ENDPOINT, else huggingface.co."
    )(command)


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
