"""A check, and what came of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from skillhub.errors import SkillhubError

Status = Literal["ok", "warning", "problem"]
OK: Status = "ok"
WARNING: Status = "warning"
PROBLEM: Status = "problem"


@dataclass(frozen=True)
class Check:
    """What a check has found.

    Attributes:
        name: what was looked at.
        status: ``ok``; ``warning`` when everything works, and something could be better; ``problem`` when something does not.
        message: what was found, one sentence.
        hint: what to do about it; empty where there is nothing to do.
    """

    name: str
    status: Status
    message: str
    hint: str = ""


def from_error(name: str, error: SkillhubError) -> Check:
    """Return the check that ended in an error."""
    return Check(name, PROBLEM, error.message, error.hint)


def readable(name: str, read: Callable[[], object], message: str) -> Check:
    """Return the check that something can be read: the message, or the error that reading raised."""
    try:
        read()
    except SkillhubError as error:
        return from_error(name, error)
    return Check(name, OK, message)
