"""What the commands print that change an environment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from skillhub.cli import console
from skillhub.environments import InstalledPack, installed_packs
from skillhub.packs import base_text

if TYPE_CHECKING:
    from skillhub.changes import Change, Outcome

_DONE = {"install": "Installed", "update": "Updated", "repair": "Repaired", "remove": "Removed"}
_WOULD = {"install": "Would install", "update": "Would update", "repair": "Would repair", "remove": "Would remove"}


def print_outcome(outcome: Outcome, *, dry_run: bool, as_json: bool, **more: Any) -> None:
    """Print what was changed, or would be.

    Args:
        outcome: what happened.
        dry_run: nothing was changed.
        as_json: print it as JSON.
        more: further keys of the JSON result.
    """
    if as_json:
        console.emit_json(
            {
                "environment": str(outcome.environment.folder),
                "base": outcome.base.fingerprint,
                "dry_run": dry_run,
                "lock_changed": outcome.lock_changed,
                "changes": [describe_change(one) for one in outcome.changes],
                **more,
            }
        )
        return
    for one in outcome.changes:
        click.echo(change_line(one, dry_run=dry_run))
    if not outcome.changes:
        packs = f"{len(outcome.lock.packs)} packs are" if len(outcome.lock.packs) != 1 else "1 pack is"
        base = base_text(outcome.base.fingerprint, outcome.base.repo)
        click.echo(f"Nothing to do: {packs} installed as locked, for {base}.")


def change_line(one: Change, *, dry_run: bool = False) -> str:
    """Return one change for people."""
    verb = (_WOULD if dry_run else _DONE)[one.action]
    size = console.size_text(one.size)
    if one.action == "remove":
        return f"{verb} {one.name} {one.before or '(damaged)'}"
    if one.action == "update":
        return f"{verb} {one.name} {one.before} → {one.after} ({size})"
    return f"{verb} {one.name} {one.after} ({size})"


def describe_change(one: Change) -> dict[str, object]:
    """Return one change for ``--json``."""
    return {
        "action": one.action,
        "name": str(one.name),
        "before": one.before,
        "after": one.after,
        "size": one.size,
    }


def describe(one: InstalledPack) -> dict[str, object]:
    """Return an installed pack for ``--json``."""
    return {
        "name": str(one.name),
        "version": one.version,
        "kind": one.receipt.kind,
        "digest": one.receipt.manifest,
        "fingerprint": one.fingerprint,
        "registry": one.receipt.registry,
        "folder": str(one.folder),
        "size": one.size,
    }


def describe_asked(outcome: Outcome) -> list[dict[str, object]]:
    """Return the packs that were asked for as they are installed, for ``--json``."""
    asked = set(outcome.asked)
    return [describe(one) for one in installed_packs(outcome.environment) if one.name in asked]
