"""``skillhub base``: base models, their fingerprints, and which of them an environment is for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from skillhub.cli import console, options
from skillhub.errors import NotFoundError

if TYPE_CHECKING:
    from skillhub.basechange import KnownBase
    from skillhub.fingerprint import BaseRecord


@click.group("base")
def base_command() -> None:
    """Fingerprint base models, show what is known of them, and choose that of an environment.

    \b
    Example:
      skillhub base fingerprint ./SmolLM2-135M-Instruct
      skillhub base use ./SmolLM2-135M-Instruct
    """


@base_command.command("fingerprint")
@click.argument("source", metavar="PATH|REPO")
@console.output_options
def fingerprint(source: str, as_json: bool) -> None:
    """Print the fingerprint of a checkpoint folder or of a model on the Hub.

    The fingerprint does not change when the same weights are sharded differently, saved as fp32 or bf16, or with the
    output head tied or untied; it changes when any weight moves by a bf16 step.

    \b
    Example:
      skillhub base fingerprint ./SmolLM2-135M-Instruct
      skillhub base fingerprint HuggingFaceTB/SmolLM2-135M-Instruct@main
    """
    from skillhub.bases import find_base

    found = find_base(source)
    record = _fingerprint(found.folder)
    if as_json:
        told = {"fingerprint": record.fingerprint, "tensors": len(record.tensors), "source": source}
        console.emit_json({**told, "folder": str(found.folder), "repo": found.repo, "revision": found.revision})
    else:
        click.echo(record.fingerprint)


def _fingerprint(folder: Path) -> BaseRecord:
    """Fingerprint a checkpoint that lies here, with a progress bar."""
    from skillhub.checkpointfiles import checkpoint_files
    from skillhub.fingerprint import fingerprint_checkpoint
    from skillhub.progress import counting

    files = checkpoint_files(folder)
    with console.progress() as progress:
        count = counting("Fingerprint", sum(path.stat().st_size for path in files), progress)
        return fingerprint_checkpoint(folder, progress=count)


@base_command.command("show")
@click.argument("name", metavar="[PATH|REPO|FINGERPRINT]", required=False)
@options.environment_option
@console.output_options
def show(name: str | None, environment: Path | None, as_json: bool) -> None:
    """Show the base of the environment, or what is known of another one: its environments, and the packs for it.

    Your own environments and the project around the current folder are looked into; no server is asked. A fingerprint
    may be shortened to its first digits.

    \b
    Example:
      skillhub base show
      skillhub base show HuggingFaceTB/SmolLM2-135M-Instruct
    """
    from skillhub.basechange import find_known_bases, known_bases
    from skillhub.environments import user_environments

    if name is None:
        found = [one for one in known_bases([options.existing_environment(environment)]) if one.environments]
        if not found:
            raise NotFoundError(
                "This environment has no base yet.",
                hint="It gets one with the first pack (skillhub install), or: skillhub base use PATH.",
            )
    else:
        chosen = options.chosen_environment(environment)
        places = [*([chosen] if chosen else []), *user_environments()]
        known = known_bases({one.folder.absolute(): one for one in places}.values())
        found = find_known_bases(_as_fingerprint(name), known)
    if not found:
        raise NotFoundError(
            f"No environment and no installed pack is for the base {name}.",
            hint="Find packs for it: skillhub search --base OWNER/NAME.",
        )
    if as_json:
        console.emit_json({"bases": [_describe(one) for one in found]})
        return
    for one in found:
        _print(one)


def _as_fingerprint(name: str) -> str:
    """Return the fingerprint of a folder; any other name as it is."""
    from skillhub.names import is_folder

    folder = Path(name).expanduser()
    if is_folder(name) or folder.exists():
        if not folder.exists():
            raise NotFoundError(f"There is no folder {name}.", hint="Correct the path.")
        return _fingerprint(folder).fingerprint
    return name


def _describe(base: KnownBase) -> dict[str, Any]:
    info = base.info
    packs = [{"name": str(one.name), "version": one.version, "folder": str(one.folder)} for one in base.packs]
    return {
        "fingerprint": base.fingerprint,
        "repo": base.repo,
        "revision": base.revision,
        "architecture": info.architecture if info else None,
        "parameters": (info.parameters or None) if info else None,
        "dtype": info.dtype if info else None,
        "environments": [str(one.folder) for one in base.environments],
        "packs": packs,
        "elsewhere": [str(name) for name in base.elsewhere],
    }


def _print(base: KnownBase) -> None:
    info = base.info
    size = f"{info.parameters:,} weights" if info and info.parameters else ""
    facts = {
        "Repository": f"{base.repo}@{base.revision}" if base.repo and base.revision else base.repo or "not known",
        "Model": ", ".join(text for text in (info and info.architecture, size, info and info.dtype) if text),
        "Environments": "\n".join(str(one.folder) for one in base.environments) or "none",
        "Packs": "\n".join(str(one) for one in base.packs) or "none",
        "Also for it": "\n".join(f"{one} (installed for another base)" for one in base.elsewhere.values()),
    }
    click.echo(click.style(base.fingerprint, bold=True))
    for title, text in facts.items():
        for number, line in enumerate(text.splitlines()):
            click.echo(f"  {'' if number else title + ':':<14}{line}")


@base_command.command("use")
@click.argument("name", metavar="PATH|REPO|FINGERPRINT")
@options.dry_run_option
@options.source_options
@options.environment_option
@console.output_options
def use(name: str, dry_run: bool, environment: Path | None, as_json: bool, **given: Any) -> None:
    """Make the environment one for this base, and install its packs' variants for it.

    Locked releases stay where they have a variant for the base; otherwise others that have one are looked for. When there
    are none, nothing is changed.

    \b
    Example:
      skillhub base use ./SmolLM2-135M-Instruct
      skillhub base use HuggingFaceTB/SmolLM2-135M-Instruct --dry-run
    """
    from skillhub.basechange import use_base
    from skillhub.cli.outcomes import print_outcome
    from skillhub.packs import base_text

    place = options.chosen_environment(environment) or options.existing_environment(None)
    if Path(name).expanduser().exists():
        _fingerprint(Path(name).expanduser())  # is remembered, so the rest is quick
    with console.progress() as progress:
        session = options.make_session(progress, as_json=as_json, **given)
        outcome = use_base(session, place, name, dry_run=dry_run)
    if not as_json:
        verb = "would be" if dry_run else "is"
        click.echo(f"The base {verb} {base_text(outcome.base.fingerprint, outcome.base.repo)}.")
    if as_json or outcome.changes:
        print_outcome(outcome, dry_run=dry_run, as_json=as_json)
