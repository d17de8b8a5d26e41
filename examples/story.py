"""Telling a story of several stages, so that it can be interrupted and goes on where it stopped.

Every stage leaves a JSON file with what it found out in the work folder; a stage whose file is there is not played
again. Commands are run as a user would type them, and shown.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import rich.box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

Facts = dict[str, Any]
"""What a stage found out; JSON-compatible."""


class Story:
    """The narrator: a work folder, the stages played so far, and where to print.

    Args:
        work: folder for everything that is made.
        stages: name of each stage → its title and a sentence about it.
        settings: what the results depend on; when it is not what an earlier run had, the story starts over.
        fresh: start over in any case.
    """

    def __init__(
        self, work: Path, stages: Mapping[str, tuple[str, str]], settings: Mapping[str, Any], *, fresh: bool = False
    ) -> None:
        self.work = work.resolve()
        self.stages = stages
        self.console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
        self.seconds: dict[str, float] = {}
        self.variables: dict[str, str] = {}
        """Environment variables for the commands, on top of the present ones."""
        noted = self.work / "settings.json"
        text = json.dumps(settings, indent=2, sort_keys=True, default=str)
        if self.work.exists() and any(self.work.iterdir()):
            if not noted.exists():
                raise SystemExit(f"{work} holds something else: name a folder of its own with --work.")
            if fresh or noted.read_text(encoding="utf-8") != text:
                shutil.rmtree(self.work)
        self.work.mkdir(parents=True, exist_ok=True)
        _write(noted, text)
        signal.signal(signal.SIGTERM, _terminate)

    def tell(self, text: str) -> None:
        """Print what the narrator says; rich's markup is allowed."""
        self.console.print(text)

    def stage(self, name: str, play: Callable[[], Facts]) -> Facts:
        """Play a stage, or take its facts from an earlier run.

        Args:
            name: of the stage, and of its file in the work folder.
            play: does the work and returns its facts.
        """
        title, explanation = self.stages[name]
        path = self.work / f"{name}.json"
        self.console.print(f"\n[bold cyan]{len(self.seconds) + 1}. {title}[/]  [dim]{explanation}[/]")
        if path.exists():
            record = json.loads(path.read_text(encoding="utf-8"))
            self.tell("   done in an earlier run")
        else:
            start = time.monotonic()
            facts = play()
            record = {"seconds": round(time.monotonic() - start, 1), "facts": facts}
            _write(path, json.dumps(record, indent=2))
        self.seconds[title] = record["seconds"]
        facts = record["facts"]
        assert isinstance(facts, dict)
        return facts

    def play(self, tell: Callable[[Story], Facts]) -> Facts:
        """Tell a whole story; interrupted with Ctrl-C, it ends in a sentence and exit code 130."""
        try:
            return tell(self)
        except KeyboardInterrupt:
            self.tell("\nInterrupted. Run it again, and it goes on from here.")
            raise SystemExit(130) from None

    def run(self, *command: str | Path) -> None:
        """Show a skillhub command and run it; its output goes where ours goes.

        Raises:
            SystemExit: it failed; with its exit code, after it has said why.
        """
        words = [self.shown(word) if isinstance(word, Path) else word for word in command]
        self.console.print(f"   [bold]$ {escape(shlex.join(words))}[/]", soft_wrap=True)
        sys.stdout.flush()
        arguments = [sys.executable, "-m", *map(str, command)]
        done = subprocess.run(arguments, env={**os.environ, **self.variables}, check=False)
        if done.returncode:
            raise SystemExit(done.returncode)

    def shown(self, path: Path) -> str:
        """Return a path as a user would type it here."""
        here = Path.cwd()
        return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)

    def tell_table(self, header: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = True) -> None:
        """Print a table; with ``numbers``, all columns but the first are aligned to the right."""
        table = Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
        for number, title in enumerate(header):
            table.add_column(title, justify="right" if numbers and number else "left", overflow="fold")
        for row in rows:
            table.add_row(*map(escape, row))
        self.console.print(table)

    def tell_promises(self, promises: Mapping[str, bool]) -> None:
        """Print each promise and whether it came true."""
        for promise, came_true in promises.items():
            self.tell(f"   [green]✓ {promise}[/]" if came_true else f"   [bold red]✗ not true: {promise}[/]")

    def tell_times(self) -> None:
        """Print how long each stage took (in the run that played it)."""
        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_column()
        table.add_column(justify="right")
        for title, seconds in self.seconds.items():
            table.add_row(f"   {title}", f"{seconds:.0f} s")
        table.add_row("   [bold]together[/]", f"[bold]{sum(self.seconds.values()):.0f} s[/]")
        self.console.print(table)


def made_whole(result: Path, make: Callable[[Path], None]) -> Path:
    """Make a folder under another name and rename it, so that it is there whole or not at all."""
    part = result.with_name(f"{result.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    make(part)
    shutil.rmtree(result, ignore_errors=True)
    part.rename(result)
    return result


def use_own_folders(work: Path) -> None:
    """Point skillhub and the Hub's client at folders in ``work``, so that nothing of the user's is read or changed."""
    for variable, folder in {
        "SKILLHUB_CACHE": "user/cache",
        "SKILLHUB_HOME": "user/home",
        "SKILLHUB_STATE": "user/state",
        "HF_HOME": "user/huggingface",
    }.items():
        os.environ[variable] = str(work.resolve() / folder)
    for variable in ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        os.environ.pop(variable, None)


def folder_size(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _write(path: Path, text: str) -> None:
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)  # unwinds through every `finally`, so the registry is stopped
