"""What the command line prints: results on stdout, progress and errors on stderr."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import click

from skillhub.errors import SkillhubError, UsageError
from skillhub.progress import Progress, waits_told
from skillhub.redaction import presentable, printable

OUTPUT_SCHEMA = 0
"""Schema number of every ``--json`` result."""

_MOST_BARS = 10

Command = TypeVar("Command", bound=Callable[..., Any])


def output_options(command: Command) -> Command:
    """Add ``--json``, ``--quiet``, ``--verbose`` and ``--no-color`` to a command."""
    for option in (
        click.option("--no-color", is_flag=True, expose_value=False, callback=_no_color, help="Print without colours."),
        click.option("--verbose", is_flag=True, expose_value=False, help="Show the technical cause of an error."),
        click.option("--quiet", "-q", is_flag=True, expose_value=False, callback=_quiet, help="Show no progress."),
        click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout."),
    ):
        command = option(command)
    return command


def _quiet(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    context.meta["skillhub.quiet"] = value


def _no_color(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        os.environ["NO_COLOR"] = "1"
        context.color = False


def is_quiet() -> bool:
    """Say whether progress should not be shown: asked for, or stderr is no terminal."""
    context = click.get_current_context(silent=True)
    asked = bool(context and context.meta.get("skillhub.quiet"))
    return asked or not sys.stderr.isatty()


def is_leader() -> bool:
    """Say whether this is the process that speaks, of those that torchrun has started."""
    return os.environ.get("RANK", "0") == "0"


def quiet_transformers() -> None:
    """Keep transformers from printing its own progress bars and reminders into our output."""
    from transformers.utils import logging

    transformers_logging: Any = logging  # its functions carry no types
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def emit_json(result: dict[str, Any]) -> None:
    """Print one JSON object with the schema number."""
    click.echo(json.dumps({"schema": OUTPUT_SCHEMA, **result}, ensure_ascii=False, indent=2))


def say(text: str) -> None:
    """Print a line for people on stderr; not with ``--quiet``, and of processes that work together the first alone does."""
    context = click.get_current_context(silent=True)
    if is_leader() and not (context and context.meta.get("skillhub.quiet")):
        click.echo(presentable(text), err=True)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> None:
    """Print a table on stdout, as wide as the terminal allows (80 columns elsewhere).

    Args:
        header: titles of the columns.
        rows: cells.
        right: numbers of the columns that are aligned to the right.
    """
    import rich.box
    from rich.console import Console
    from rich.table import Table

    grid = Table(box=rich.box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for number, title in enumerate(header):
        grid.add_column(title, justify="right" if number in right else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(_plain(cell) for cell in row))
    # a file or a pipe needs no folding; and there are terminals that say they have no columns at all
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 160
    Console(width=width, highlight=False).print(grid)


def _plain(cell: str) -> str:
    from rich.markup import escape

    return escape(printable(cell))


def size_text(count: int) -> str:
    """Return a number of bytes for people: ``3.4 MB`` (powers of ten)."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} B"


@contextmanager
def progress(unit: str = "bytes") -> Iterator[Progress | None]:
    """Show bars of progress, and waits that a registry asks for, on stderr while the block runs.

    Yields None when no bars should be shown. They appear with the first step that is told, so a command may ask the user
    something before.

    Args:
        unit: ``bytes`` shows sizes and rates, anything else counts.
    """
    with waits_told(say):
        if is_quiet():
            yield None
            return
        bars = _Bars(unit)
        try:
            yield bars.advance
        finally:
            bars.stop()


class _Bars:
    """Bars on stderr, one for each thing that is told of; from any thread."""

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._shown: Any = None
        self._tasks: dict[str, Any] = {}
        self._lock = threading.Lock()

    def advance(self, what: str, done: int, total: int) -> None:
        """Show how far something has come."""
        with self._lock:
            if self._shown is None:
                self._shown = _new_bars(self._unit)
                self._shown.start()
            if what not in self._tasks:
                self._make_room()
                self._tasks[what] = self._shown.add_task(what, total=total or None)
            self._shown.update(self._tasks[what], completed=done, total=total or None)

    def _make_room(self) -> None:
        """Take the oldest complete bars away where there are many: to draw hundreds takes longer than what they tell of."""
        finished = {task.id for task in self._shown.tasks if task.finished}
        complete = [what for what, task in self._tasks.items() if task in finished]
        for what in complete[: max(0, len(self._tasks) - _MOST_BARS + 1)]:
            self._shown.remove_task(self._tasks.pop(what))

    def stop(self) -> None:
        """Take the bars away."""
        if self._shown is not None:
            self._shown.stop()


def _new_bars(unit: str) -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    counts = [DownloadColumn(), TransferSpeedColumn()] if unit == "bytes" else [MofNCompleteColumn()]
    columns = [TextColumn("{task.description}", markup=False), BarColumn(), *counts, TimeRemainingColumn()]
    return Progress(*columns, console=Console(stderr=True), transient=True)


def report(error: SkillhubError, *, as_json: bool, with_cause: bool) -> None:
    """Print an error: as JSON on stdout, or as cause and remedy on stderr."""
    if as_json:
        click.echo(presentable(json.dumps(error.to_json(), ensure_ascii=False, default=str)))
        return
    color = False if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" else None
    click.echo(f"{click.style('error', fg='red', bold=True)}: {presentable(error.message)}", err=True, color=color)
    if error.hint:
        click.echo(f"{click.style('hint', fg='cyan', bold=True)}: {presentable(error.hint)}", err=True, color=color)
    if with_cause and error.__cause__ is not None:
        click.echo(presentable(f"cause: {type(error.__cause__).__name__}: {error.__cause__}"), err=True)


def report_usage(error: click.ClickException, *, as_json: bool) -> None:
    """Print click's own complaint about the arguments in our form."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "skillhub"
    usage = UsageError(_sentence(error.format_message()), hint=f"Try '{command} --help'.")
    report(usage, as_json=as_json, with_cause=False)


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?", "!")) else f"{text}."


def report_internal(error: Exception, *, as_json: bool, with_cause: bool) -> None:
    """Print an error that nobody foresaw: a bug of ours, said as such."""
    wrapped = SkillhubError(
        f"skillhub failed unexpectedly: {type(error).__name__}: {error}",
        hint="This is a bug. Run the command again with --verbose and report what it prints.",
    )
    report(wrapped, as_json=as_json, with_cause=False)
    if with_cause:
        import traceback

        click.echo(presentable("".join(traceback.format_exception(error))), err=True)


def guard_logs() -> None:
    """Keep secrets out of what other libraries log from now on; a user may have asked for their debug messages."""
    make = logging.getLogRecordFactory()

    def make_presentable(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        with suppress(Exception):  # arguments that do not fit the message: logging reports that itself
            record.msg, record.args = presentable(record.getMessage()), ()
        if record.exc_info:
            record.exc_text = presentable(logging.Formatter().formatException(record.exc_info))
        return record

    logging.setLogRecordFactory(make_presentable)
