"""``skillhub tree``, ``why`` and ``freeze``: what is locked, and why. Nothing but the project and its lock is read."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import click

from skillhub.cli import completion, console, options
from skillhub.environments import Environment, read_project
from skillhub.errors import NotFoundError
from skillhub.graphs import TreeRow, build_tree, find_locked, find_paths, frozen_requirement, key_of, tree_lines
from skillhub.lockfile import LOCK_FILE, Lock, LockedPack, read_lock
from skillhub.names import Requirement
from skillhub.requirements import project_requirements
from skillhub.wanted import Wanted


@click.command("tree")
@click.argument("name", metavar="[PACK]", required=False, shell_complete=completion.complete_packs)
@click.option("--invert", is_flag=True, help="Show below each pack those that require it.")
@click.option("--depth", type=click.IntRange(min=0), metavar="N", help="Levels to show below the roots.")
@options.environment_option
@console.output_options
def tree_command(name: str | None, invert: bool, depth: int | None, environment: Path | None, as_json: bool) -> None:
    """Show what the locked packs require, as a tree; of PACK only, where one is named.

    (*) marks a pack whose own requirements are shown elsewhere in the tree.

    \b
    Example:
      skillhub tree
      skillhub tree acme/shared --invert
    """
    chosen, lock, wanted = _read(environment)
    pack = find_locked(lock, name) if name else None
    rows = build_tree(lock, _requirements(wanted), pack=pack, invert=invert, depth=depth)
    if as_json:
        console.emit_json({"environment": str(chosen.folder), "tree": [_describe_row(row) for row in rows]})
        return
    if not rows:
        click.echo("No packs are locked here.")
    for line in tree_lines(rows, drawn=_can_show("├─│└")):
        click.echo(line)


def _describe_row(row: TreeRow) -> dict[str, object]:
    return {
        "depth": row.depth,
        "name": row.name,
        "version": row.version,
        "requirement": row.requirement,
        "repeated": row.repeated,
    }


@click.command("why")
@click.argument("name", metavar="PACK", shell_complete=completion.complete_packs)
@options.environment_option
@console.output_options
def why_command(name: str, environment: Path | None, as_json: bool) -> None:
    """Show every way from what the environment asks for to PACK, the shortest first.

    \b
    Example:
      skillhub why acme/shared
    """
    chosen, lock, wanted = _read(environment)
    pack = find_locked(lock, name)
    paths = find_paths(lock, _requirements(wanted), pack)
    if as_json:
        described = [
            {"requirement": requirement.text, "packs": [_describe(one) for one in packs]}
            for requirement, packs in paths.found
        ]
        facts = {"environment": str(chosen.folder), "name": pack.name, "version": pack.version}
        console.emit_json({**facts, "paths": described, "complete": paths.complete})
        return
    if not paths.found:
        click.echo(f"{pack.name} {pack.version} is locked, and nothing asks for it any more.")
    arrow = "→" if _can_show("→") else "->"
    for requirement, packs in paths.found:
        steps = [requirement.text, *(f"{one.name} {one.version}" for one in packs)]
        line = f" {arrow} ".join(step.replace(" ", "\N{NO-BREAK SPACE}") for step in steps)  # a step stays on one line
        for part in textwrap.wrap(line, 80, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False):
            click.echo(part.replace("\N{NO-BREAK SPACE}", " "))
    if not paths.complete:
        click.echo("There are more ways; these are the shortest.")


@click.command("freeze")
@click.option("--hashes", is_flag=True, help="Add each manifest's digest, for install --require-hashes.")
@options.environment_option
@console.output_options
def freeze_command(hashes: bool, environment: Path | None, as_json: bool) -> None:
    """Print every locked pack as a requirement of exactly that release, for install -r.

    \b
    Example:
      skillhub freeze --hashes > packs.txt
    """
    chosen, lock, wanted = _read(environment)
    at_commit = {one.key for one in wanted if one.revision}
    frozen = [
        (one, frozen_requirement(one, environment=chosen.folder, start=Path.cwd(), at_commit=key_of(one) in at_commit))
        for one in sorted(lock.packs, key=key_of)
    ]
    if as_json:
        described = [{"requirement": text, "digest": one.manifest, **_describe(one)} for one, text in frozen]
        console.emit_json({"environment": str(chosen.folder), "requirements": described})
        return
    for one, text in frozen:
        click.echo(f"{text} --hash=sha256:{one.manifest}" if hashes else text)


def _describe(pack: LockedPack) -> dict[str, object]:
    return {"name": pack.name, "version": pack.version}


def _read(folder: Path | None) -> tuple[Environment, Lock, list[Wanted]]:
    """Return an environment with its lock and its requirements."""
    chosen = options.existing_environment(folder)
    lock = _read_lock(chosen)
    return chosen, lock, project_requirements(read_project(chosen), lock, chosen.folder)


def _requirements(wanted: Sequence[Wanted]) -> list[Requirement]:
    return [one.requirement for one in wanted]


def _read_lock(environment: Environment) -> Lock:
    lock = read_lock(environment.lock_path)
    if lock is None:
        raise NotFoundError(
            f"{environment.folder} has no {LOCK_FILE}.", hint="Make one: `skillhub lock`, or `skillhub install`."
        )
    return lock


def _can_show(text: str) -> bool:
    """Say whether stdout is a terminal that has these characters; what a pipe reads is left in ASCII."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except (UnicodeError, LookupError):
        return False
    return sys.stdout.isatty()
