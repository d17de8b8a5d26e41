"""Where the command line prints to: closed streams, odd terminals, and a folder that is gone."""

from __future__ import annotations

import os
import pty
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from skillhub.cli.console import _Bars
from tests.support.commands import Shell


def in_a_shell(shell: Shell, script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a line of sh, in which ``skillhub`` is ours."""
    ours = f"{shlex.quote(sys.executable)} -m skillhub"
    return subprocess.run(
        ["sh", "-c", script.replace("skillhub", ours)],
        env=shell.variables,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def on_a_terminal(shell: Shell, *arguments: str, **variables: str) -> str:
    """Run ``skillhub`` with a terminal as its stdout and stderr; returns what that shows."""

    def shown(terminal: int) -> Iterator[bytes]:
        with suppress(OSError):  # how a terminal tells that nobody writes to it any more
            while data := os.read(terminal, 65536):
                yield data

    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "skillhub", *arguments],
        env={**shell.variables, **variables},
        cwd=shell.home,
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    text = b"".join(shown(ours)).decode()
    os.close(ours)
    process.wait(timeout=60)
    return text


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_leads_nowhere_and_breaks_nothing(shell: Shell, closed: str) -> None:
    (shell.home / "project").mkdir()
    assert in_a_shell(shell, f"skillhub init . {closed}", shell.home / "project").returncode == 0
    assert in_a_shell(shell, f"skillhub list {closed}", shell.home / "project").returncode == 0
    assert in_a_shell(shell, f"skillhub uninstall nothing {closed}", shell.home / "project").returncode == 4
    written = [path.name for path in (shell.home / "project").iterdir() if path.is_file()]
    assert written == ["skillhub.toml"]


def test_a_current_folder_that_is_gone_is_said_so(shell: Shell) -> None:
    (shell.home / "gone").mkdir()
    done = in_a_shell(shell, "rmdir ../gone; skillhub list", shell.home / "gone")
    assert done.returncode == 4, done.stderr
    assert done.stderr == "error: The current folder was removed.\nhint: Go to one that exists: cd ~.\n"


def test_a_terminal_without_columns_shows_tables_all_the_same(shell: Shell) -> None:
    text = on_a_terminal(shell, "config", "list", COLUMNS="0")
    assert "SKILLHUB_CACHE" in text


def test_a_dumb_terminal_gets_no_escape_sequences(shell: Shell) -> None:
    assert "\x1b[31m" in on_a_terminal(shell, "config", "get", "nothing", TERM="xterm")
    assert "\x1b" not in on_a_terminal(shell, "config", "get", "nothing", TERM="dumb")
    assert "\x1b" not in on_a_terminal(shell, "config", "get", "nothing", TERM="xterm", NO_COLOR="1")


def test_hundreds_of_bars_are_not_drawn_at_once() -> None:
    bars = _Bars("bytes")
    bars.advance("one that is going on", 1, 2)
    for number in range(200):
        bars.advance(f"pack {number}", 1, 1)
    shown = [task.description for task in bars._shown.tasks]
    bars.stop()
    assert len(shown) == 10 and shown[0] == "one that is going on" and shown[-1] == "pack 199"
