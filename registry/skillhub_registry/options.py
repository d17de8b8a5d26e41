"""What several commands of the command line share: where the data is, and how results are written."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial, wraps
from pathlib import Path
from typing import Any, Final

import click
import platformdirs

from skillhub.errors import UsageError
from skillhub_registry.audit import Change
from skillhub_registry.database import Database
from skillhub_registry.observation import ObservedDatabase, making_change
from skillhub_registry.registry import Mirrored, Place, open_database, open_existing_database


def default_data() -> Path:
    """Return where the data lies unless --data says otherwise."""
    return Path(os.environ.get("SKILLHUB_REGISTRY_DATA") or platformdirs.user_data_path("skillhub-registry"))


data_option = click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    default=default_data,
    show_default="$SKILLHUB_REGISTRY_DATA, else the platform's data folder",
    help="The folder that holds everything.",
)
database_option = click.option(
    "--database",
    metavar="ADDRESS",
    envvar="SKILLHUB_REGISTRY_DATABASE",
    show_envvar=True,
    help="postgresql://user:password@host/name instead of a file in the folder.",
)
storage_option = click.option(
    "--storage",
    metavar="ADDRESS",
    envvar="SKILLHUB_REGISTRY_STORAGE",
    show_envvar=True,
    help="s3://bucket/prefix instead of the folder for files; ?endpoint=https://… for a store that is not AWS.",
)
MIRROR_TOKEN: Final = "SKILLHUB_REGISTRY_MIRROR_TOKEN"
"""The variable with the token for the mirrored Hub; no option, which others would see in the list of processes."""

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")


def opening_database(
    command: Callable[..., None], *, find: Callable[[Place], Database] = open_existing_database
) -> Callable[..., None]:
    """Give a command the options that say where the database is, and the open database as ``database``."""

    @data_option
    @database_option
    @wraps(command)
    def run(*arguments: Any, data: Path, database: str | None, **options: Any) -> None:
        opened = ObservedDatabase(find(Place(data, database)))
        told = {name: value for name, value in options.items() if value not in (None, (), False)}
        change = Change("(command line)", "", click.get_current_context().command_path, detail=told)
        try:
            with making_change(change):
                command(*arguments, database=opened, **options)
        finally:
            opened.close()

    return run


making_database = partial(opening_database, find=open_database)
"""As ``opening_database``, for commands that may come before the first start: there is a database afterwards."""


def check_arguments(arguments: Sequence[str]) -> None:
    """Refuse what is no text: it can be no name, and be written nowhere.

    Raises:
        UsageError: an argument is not valid UTF-8.
    """
    for argument in arguments:
        if not _is_text(argument):
            raise UsageError(f"The argument {argument!a} is not valid UTF-8.", hint="Type it again.")


def ask_password() -> str:
    """Return the password that somebody types twice, or the first line of stdin.

    Raises:
        UsageError: it is not valid UTF-8.
    """
    if sys.stdin.isatty():
        password = str(click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True))
    else:
        password = sys.stdin.buffer.readline().decode("utf-8", "surrogateescape").rstrip("\r\n")
    if not _is_text(password):
        raise UsageError("The password is not valid UTF-8.", hint="A browser would send it as other bytes.")
    return password


def _is_text(text: str) -> bool:
    """Say whether a string came from valid UTF-8; Python hides other bytes in halves of surrogate pairs."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600}


def read_duration(value: str | int) -> int:
    """Return the seconds of a time span such as ``90d``, ``24h`` or ``30m``; the type of options."""
    if isinstance(value, int):
        return value
    match = re.fullmatch(r"([0-9]{1,6})([smhd])", value)
    if match is None:
        raise click.BadParameter(f"{value!r} is no time span; write 90d, 24h, 30m or 10s")
    return int(match[1]) * _SECONDS[match[2]]


def mirror_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say which Hub is mirrored, and that as ``mirrored``."""

    @click.option(
        "--mirror",
        metavar="ADDRESS",
        envvar="SKILLHUB_REGISTRY_MIRROR",
        show_envvar=True,
        help=f"Fetch from this Hub what is not here, and keep it. {MIRROR_TOKEN} holds a token for it.",
    )
    @click.option(
        "--mirror-refresh",
        type=read_duration,
        metavar="TIME",
        default=60,
        show_default="60s",
        help="For how long that Hub is not asked again for the same branch or name.",
    )
    @wraps(command)
    def run(*arguments: Any, mirror: str | None, mirror_refresh: int, **options: Any) -> None:
        token = os.environ.get(MIRROR_TOKEN) or None
        command(*arguments, mirrored=Mirrored(mirror, token, mirror_refresh) if mirror else None, **options)

    return run
