"""``skillhub doctor``: what may be wrong here, and what to do about it."""

from __future__ import annotations

import textwrap
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from skillhub.cli import console
from skillhub.errors import FINDINGS_EXIT_CODE
from skillhub.redaction import presentable

if TYPE_CHECKING:
    from skillhub.diagnosis import Check

_WIDTH = 74  # of a message; hints are not broken, for they hold commands to copy
_COLORS = {"ok": "green", "warning": "yellow", "problem": "red"}


@click.command("doctor")
@click.option("--offline", is_flag=True, help="Leave out what needs the network.")
@console.output_options
@click.pass_context
def doctor_command(context: click.Context, offline: bool, as_json: bool) -> None:
    """Check the installation, folders, settings, environments, registries and tokens; exit code 1 on problems.

    A warning is something that works and could be better. Registries are asked once each, for one line, and with your
    token for its owner's name; --offline asks none.

    \b
    Example:
      skillhub doctor
      skillhub doctor --offline --json
    """
    from skillhub.diagnosis import PROBLEM, diagnose

    checks = diagnose(offline=offline)
    has_problems = any(one.status == PROBLEM for one in checks)
    if as_json:
        console.emit_json({"ok": not has_problems, "checks": [asdict(one) for one in checks]})
    else:
        _print(checks)
    if has_problems:
        context.exit(FINDINGS_EXIT_CODE)


def _print(checks: list[Check]) -> None:
    width = max(len(one.status) for one in checks)
    for one in checks:
        mark = click.style(f"{one.status:<{width}}", fg=_COLORS[one.status])
        lines = textwrap.wrap(
            f"{one.name}: {presentable(one.message)}", _WIDTH - width, break_long_words=False, break_on_hyphens=False
        )
        click.echo(f"{mark}  " + f"\n{'':<{width}}    ".join(lines))
        if one.hint:
            click.echo(f"{'':<{width}}  → {presentable(one.hint)}")
    counts = Counter(one.status for one in checks)
    told = [
        f"{counts[status]} {status}{'s' * (counts[status] != 1)}" for status in ("problem", "warning") if counts[status]
    ]
    click.echo(f"\n{', '.join(told).capitalize()}." if told else "\nAll is well.")
