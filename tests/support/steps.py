"""Run an action in a forked process that ends at a chosen step: killed, or with no room on the disk from there on.

A step is whatever changes files (an open for writing, what is then written, a rename, a link, …) and every HTTP request and answer; for a
full disk only what needs room. The action itself knows nothing of it: files are seen through Python's audit hook, requests through the client's own hooks.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

from skillhub.errors import SkillhubError

KILL = "kill"
FULL_DISK = "full disk"

KILLED = 137
CRASHED = 99
UNINTERRUPTED = -1

_CHANGES = {"os.rename", "os.link", "os.mkdir", "os.rmdir", "os.remove", "os.chmod", "os.truncate", "os.symlink"}
_NEEDS_ROOM = {"os.link", "os.mkdir", "os.symlink"}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class _Steps:
    """Counts steps, and interrupts at the chosen one."""

    def __init__(self, interrupt_at: int, how: str) -> None:
        self.count = 0
        self._at, self._how = interrupt_at, how

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and bool(arguments[2] & _WRITES)
        if event in _CHANGES or (writes and not str(arguments[0]).startswith("/dev/")):
            self.step(needs_room=writes or event in _NEEDS_ROOM)
        if writes and self._how == KILL and isinstance(arguments[0], str | os.PathLike):
            self.step(before_end=lambda: _tear(os.fspath(arguments[0]), arguments[2]))

    def step(self, *_: object, needs_room: bool = False, before_end: Callable[[], None] = lambda: None) -> None:
        if self._how == FULL_DISK and not needs_room:
            return
        number, self.count = self.count, self.count + 1
        if self._how == KILL and number == self._at:
            before_end()
            os._exit(KILLED)
        if self._how == FULL_DISK and number >= self._at >= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _tear(path: str, flags: int) -> None:
    """Leave a file as it is when a process ends while it writes: opened, and not yet full."""
    with os.fdopen(os.open(path, flags), "wb") as stream:
        stream.write(b"to")


def run_until(action: Callable[[], object], interrupt_at: int, how: str = KILL) -> tuple[int, int]:
    """Run an action in a child process that is interrupted before the step of that number.

    Returns:
        The child's exit status (0, an error's exit code, ``KILLED``, or ``CRASHED`` for any other exception), and the
        number of steps it took when it ended by itself.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = CRASHED
        try:
            steps = _Steps(interrupt_at, how)
            _watch(steps)
            status = _status_of(action)
            os.write(writer, str(steps.count).encode())
        finally:
            sys.stderr.flush()
            os._exit(status)
    os.close(writer)
    _, waited = os.waitpid(child, 0)
    with os.fdopen(reader) as stream:
        said = stream.read()
    return os.waitstatus_to_exitcode(waited), int(said or 0)


def _status_of(action: Callable[[], object]) -> int:
    try:
        action()
    except SkillhubError as error:
        return error.exit_code
    except BaseException:
        traceback.print_exc()
        return CRASHED
    return 0


def _watch(steps: _Steps) -> None:
    import httpx2
    from huggingface_hub import set_client_factory

    hooks: dict[str, list[Callable[..., Any]]] = {"request": [steps.step], "response": [steps.step]}
    # plain http needs no certificates, and reading them takes longer than everything else
    set_client_factory(lambda: httpx2.Client(event_hooks=hooks, follow_redirects=True, timeout=30, verify=False))
    sys.addaudithook(steps.audit)
