"""``skillhub check``, ``verify`` and ``outdated``: whether an environment is what it should be. All end with 1 if not."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from skillhub.cli import console, options
from skillhub.environments import Environment, installed_packs
from skillhub.errors import FINDINGS_EXIT_CODE
from skillhub.lockfile import PEFT

if TYPE_CHECKING:
    from skillhub.promises import Restoration
    from skillhub.updates import Update

_REASON_WIDTH = 42  # of what stands below a pack's name, so the table fits 80 columns


@click.command("verify")
@click.option(
    "--base",
    metavar="PATH|REPO",
    help="The base model; else it is looked for in the Hub's cache. Only packs that restore bit for bit need it.",
)
@options.environment_option
@console.output_options
@click.pass_context
def verify_command(context: click.Context, base: str | None, environment: Path | None, as_json: bool) -> None:
    """Read every installed file, and compare it with its pack's manifest and the lock; exit code 1 when one differs.

    Files that are those of the manifest decode to what it promises, except where a pack restores tensors bit for bit from the base's exact
    values. With the base at hand those are decoded and compared too; otherwise it says that they were not.

    \b
    Example:
      skillhub verify
      skillhub verify --base ./SmolLM2-135M-Instruct
    """
    from skillhub.integrity import verify

    chosen = options.existing_environment(environment)
    with console.progress() as progress:
        findings = verify(chosen, progress=progress)
    restored = [] if findings else _check_restored(chosen, base)
    findings += [finding for one in restored for finding in one.findings]
    if as_json:
        told = [one.to_json() for one in findings]
        about = [_restoration_json(one) for one in restored]
        console.emit_json({"environment": str(chosen.folder), "ok": not findings, "findings": told, "restored": about})
    elif not findings:
        click.echo(f"{_count(chosen)} verified: every byte is what its manifest and the lock say.")
        for one in restored:
            click.echo(_restoration_text(one))
    for finding in findings if not as_json else ():
        click.echo(f"{finding.message} {finding.hint}")
    if findings:
        context.exit(FINDINGS_EXIT_CODE)


def _check_restored(environment: Environment, base: str | None) -> list[Restoration]:
    """Decode what installed packs restore bit for bit, as far as their base is at hand."""
    from skillhub.promises import check_restored

    found = []
    with console.progress("tensors") as progress:
        for one in installed_packs(environment):
            if one.pack is not None:
                found.append(check_restored(one.pack, one.fingerprint, base, progress=progress))
    return [one for one in found if one is not None]


def _restoration_json(one: Restoration) -> dict[str, object]:
    return {
        "pack": str(one.pack.name),
        "tensors": one.tensors,
        "checked": one.base is not None,
        "base": str(one.base) if one.base else None,
        "reason": one.reason or None,
    }


def _restoration_text(one: Restoration) -> str:
    if one.base is not None:
        return (
            f"{one.pack} restores {one.tensors} tensors bit for bit: with {one.base} they are what its manifest says."
        )
    return (
        f"{one.pack} restores {one.tensors} tensors bit for bit; what they decode to was not checked. {one.reason} "
        "To check it, give the base with --base."
    )


@click.command("check")
@options.environment_option
@console.output_options
@click.pass_context
def check_command(context: click.Context, environment: Path | None, as_json: bool) -> None:
    """Look for what does not fit together, without reading the packs' bytes; exit code 1 when something is found.

    Is the lock that of skillhub.toml, is installed what is locked, is all that packs require there and nothing that they
    conflict with, is everything for the base, does the policy allow it, was none of it yanked? No server is asked:
    yanks count that are remembered, as `skillhub outdated` renews them.

    \b
    Example:
      skillhub check
    """
    from skillhub.consistency import check

    chosen = options.existing_environment(environment)
    findings = check(chosen)
    if as_json:
        told = [{"rule": one.rule, "pack": one.pack, "message": one.message, "hint": one.hint} for one in findings]
        console.emit_json({"environment": str(chosen.folder), "ok": not findings, "findings": told})
    elif not findings:
        click.echo(f"{_count(chosen)} checked: everything fits together.")
    for finding in findings if not as_json else ():
        click.echo(f"{finding.message} {finding.hint}")
    if findings:
        context.exit(FINDINGS_EXIT_CODE)


def _count(environment: Environment) -> str:
    count = len(installed_packs(environment))
    return "1 pack" if count == 1 else f"{count} packs"


@click.command("outdated")
@click.option("--pre", is_flag=True, help="Take pre-releases for newer ones.")
@options.source_options
@options.environment_option
@console.output_options
@click.pass_context
def outdated_command(
    context: click.Context, /, pre: bool, environment: Path | None, as_json: bool, **given: Any
) -> None:
    """Show locked packs of which there is something newer; exit code 1 when there is.

    "Wanted" is what `skillhub upgrade` would lock, "Latest" the newest there is, with what keeps it from being wanted. Of a
    PEFT adapter the newest commit is shown, and a folder is outdated when another pack is in it than was locked.

    \b
    Example:
      skillhub outdated
      skillhub outdated --offline
    """
    from skillhub.updates import find_updates

    chosen = options.existing_environment(environment)
    with console.progress() as progress:
        session = options.make_session(progress, as_json=as_json, **given)
        updates = find_updates(session, chosen, allow_pre=pre)
    outdated = [one for one in updates if one.is_outdated]
    if as_json:
        told = [_describe(one) for one in updates]
        console.emit_json({"environment": str(chosen.folder), "ok": not outdated, "packs": told})
    elif outdated:
        _print_updates(outdated)
    else:
        count = "The 1 locked pack is" if len(updates) == 1 else f"All {len(updates)} locked packs are"
        click.echo(f"{count} up to date.")
    for one in updates if not as_json else ():
        if one.reasons and not one.is_outdated:
            console.say(f"{one.name} {one.current}: {'; '.join(one.reasons)}.")
    if outdated:
        context.exit(FINDINGS_EXIT_CODE)


def _describe(one: Update) -> dict[str, object]:
    return {
        "name": one.name,
        "kind": one.kind,
        "current": one.current,
        "wanted": one.wanted,
        "latest": one.latest,
        "reasons": list(one.reasons),
        "outdated": one.is_outdated,
    }


def _print_updates(updates: Sequence[Update]) -> None:
    rows = []
    for one in updates:
        lines = [one.name + (" (adapter)" if one.kind == PEFT else "")]
        for reason in one.reasons:
            lines += textwrap.wrap(reason, _REASON_WIDTH, initial_indent="  ", subsequent_indent="  ")
        rows.append(["\n".join(lines), one.current, one.wanted or "–", one.latest or "–"])
    console.table(["Pack", "Locked", "Wanted", "Latest"], rows)
