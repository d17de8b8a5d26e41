"""``skillhub base``: fingerprints of base models."""

from __future__ import annotations

from pathlib import Path

import click

from skillhub.cli import console


@click.group("base")
def base_command() -> None:
    """Fingerprint base models."""


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
    from skillhub.bases import locate_base
    from skillhub.fingerprint import fingerprint_checkpoint

    folder: Path = locate_base(source)
    record = fingerprint_checkpoint(folder)
    if as_json:
        console.emit_json({"fingerprint": record.fingerprint, "tensors": len(record.tensors), "source": source})
    else:
        click.echo(record.fingerprint)
