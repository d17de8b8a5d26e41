"""``skillhub list``, ``show`` and ``verify``: looking at what is installed. None of them uses the network."""

from __future__ import annotations

from pathlib import Path

import click

from skillhub.cli import console, options
from skillhub.cli.outcomes import describe
from skillhub.environments import InstalledPack, damaged_packs, find_installed, installed_packs
from skillhub.errors import FINDINGS_EXIT_CODE
from skillhub.manifest import Variant
from skillhub.names import is_folder
from skillhub.packs import Pack, describe_base, open_pack, short_fingerprint


@click.command("list")
@options.environment_option
@console.output_options
def list_command(environment: Path | None, as_json: bool) -> None:
    """List the packs that are installed in an environment.

    \b
    Example:
      skillhub list
    """
    chosen = options.existing_environment(environment)
    packs, damaged = installed_packs(chosen), damaged_packs(chosen)
    if as_json:
        described = [describe(one) for one in packs]
        errors = [one.to_json() for one in damaged]
        console.emit_json({"environment": str(chosen.folder), "packs": described, "damaged": errors})
        return
    for error in damaged:
        console.report(error, as_json=False, with_cause=False)
    if not packs:
        click.echo("No packs are installed here.")
        return
    rows = []
    for one in packs:
        size = console.size_text(one.size)
        rows.append([str(one.name), one.version, short_fingerprint(one.fingerprint), size])
    console.table(["Pack", "Version", "Base", "Size"], rows, right=(3,))


@click.command("show")
@click.argument("name", metavar="PACK")
@options.environment_option
@console.output_options
def show_command(name: str, environment: Path | None, as_json: bool) -> None:
    """Show what a pack says about itself: PACK is an installed name or a folder.

    \b
    Example:
      skillhub show acme/math-pack
      skillhub show ./math-pack
    """
    if is_folder(name):
        pack = open_pack(Path(name).expanduser())
    else:
        installed = find_installed(options.existing_environment(environment), name)
        if installed.pack is None:
            _show_adapter(installed, as_json=as_json)
            return
        pack = installed.pack
    if as_json:
        from msgspec import to_builtins

        manifest = to_builtins(pack.manifest)
        console.emit_json({"folder": str(pack.folder), "digest": pack.digest, "manifest": manifest})
        return
    _print_pack(pack)


def _show_adapter(installed: InstalledPack, *, as_json: bool) -> None:
    if as_json:
        console.emit_json(describe(installed))
        return
    click.echo(click.style(f"{installed}", bold=True) + ": a PEFT adapter")
    click.echo(f"  Commit:    {installed.receipt.commit}")
    click.echo(f"  Size:      {console.size_text(installed.size)}")
    click.echo(f"  Folder:    {installed.folder}")


def _print_pack(pack: Pack) -> None:
    manifest = pack.manifest
    click.echo(click.style(str(pack), bold=True) + (f": {manifest.summary}" if manifest.summary else ""))
    facts = {
        "Licence": manifest.license or "not stated",
        "Tags": ", ".join(manifest.skills.tags),
        "Requires": ", ".join(manifest.requires),
        "Conflicts": ", ".join(manifest.conflicts),
        "Digest": pack.digest,
        "Folder": str(pack.folder),
    }
    for title, text in facts.items():
        if text:
            click.echo(f"  {title + ':':<11}{text}")
    for variant in manifest.variants:
        _print_variant(variant)


def _print_variant(variant: Variant) -> None:
    base, codec = variant.base, variant.codec
    click.echo(f"\nFor {describe_base(variant)}, {base.architecture or 'unknown architecture'}, {base.dtype}:")
    click.echo(
        f"  {console.size_text(variant.size)}, {codec.bits_per_weight:.3f} bits per weight, preset {codec.preset}, "
        f"{len(codec.tensors)} tensors"
    )
    if variant.evaluation:
        rows = [
            [
                one.task,
                one.metric,
                f"{one.base:.4f}",
                "–" if one.tuned is None else f"{one.tuned:.4f}",
                f"{one.pack:.4f}",
            ]
            for one in variant.evaluation
        ]
        console.table(["Task", "Metric", "Base", "Tuned", "Pack"], rows, right=(2, 3, 4))


@click.command("verify")
@options.environment_option
@console.output_options
@click.pass_context
def verify_command(context: click.Context, environment: Path | None, as_json: bool) -> None:
    """Check every installed file against its pack's manifest; exit code 1 when something is wrong.

    \b
    Example:
      skillhub verify
    """
    from skillhub.checking import verify

    chosen = options.existing_environment(environment)
    with console.progress() as progress:
        findings = verify(chosen, progress=progress)
    packs = installed_packs(chosen) if not findings else []
    if as_json:
        console.emit_json(
            {"environment": str(chosen.folder), "ok": not findings, "findings": [one.to_json() for one in findings]}
        )
    elif findings:
        for finding in findings:
            click.echo(f"{finding.message} {finding.hint}")
    else:
        count = "1 pack" if len(packs) == 1 else f"{len(packs)} packs"
        click.echo(f"{count} verified: every byte is what its manifest says.")
    if findings:
        context.exit(FINDINGS_EXIT_CODE)
