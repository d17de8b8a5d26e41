"""``skillhub export``: packs for other tools."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from skillhub.cli import console, options
from skillhub.cli.options import split_weight

if TYPE_CHECKING:
    from skillhub.exporter import Export
    from skillhub.interop.exportcards import ExportedAdapter


@click.command("export")
@click.option("--base", metavar="PATH|REPO", required=True, help="The base model.")
@click.option("--pack", "packs", multiple=True, required=True, metavar="PACK[@WEIGHT]", help="A pack; may be repeated.")
@click.option("--output", "-o", "out", type=click.Path(path_type=Path), required=True, help="Folder of the adapters.")
@click.option(
    "--to",
    "--format",
    "format",
    type=click.Choice(["peft", "vllm"]),
    default="peft",
    show_default=True,
    help="Adapters of peft; for vllm also a script that serves them.",
)
@click.option(
    "--rank",
    type=click.IntRange(1, 65536),
    help="Highest rank: what needs a higher one, or is stored densely, is taken as near as this rank allows.",
)
@click.option(
    "--max-error",
    type=click.FloatRange(0, 1),
    help="Refuse an adapter that lacks more than this share of its pack's delta (of the sum of squares, in all of it).",
)
@click.option("--partial", is_flag=True, help="Leave out what does not fit a LoRA adapter, instead of refusing.")
@options.environment_option
@console.output_options
def export_command(
    base: str,
    packs: tuple[str, ...],
    out: Path,
    format: str,
    rank: int | None,
    max_error: float | None,
    partial: bool,
    environment: Path | None,
    as_json: bool,
) -> None:
    """Write packs as LoRA adapters that peft loads and vLLM serves, one folder each.

    For peft they hold linear layers, embeddings and norms; for vLLM linear layers only. What else a pack changes (biases, fused
    experts, added rows) is listed, here and in the folder's README.md, and left out only with --partial. PEFT adapters among the
    packs are passed on.

    \b
    Example:
      skillhub export --base ./SmolLM2-135M-Instruct --pack acme/math-pack --to peft --rank 64 --max-error 0.05 -o ./adapters
      skillhub export --base ./SmolLM2-135M-Instruct --pack acme/math-pack --to vllm --partial -o ./adapters
    """
    from skillhub.exporter import export_adapters

    console.quiet_transformers()
    names, weights = zip(*map(split_weight, packs), strict=True)
    with console.progress("adapters") as progress:
        written = export_adapters(
            list(names),
            base,
            out,
            format=format,
            weights=list(weights),
            rank=rank,
            max_error=max_error,
            partial=partial,
            environment=options.chosen_environment(environment),
            progress=progress,
            notice=console.say,
        )
    if as_json:
        console.emit_json(_as_json(written, out))
    else:
        _print(written, out)


def _as_json(written: Export, out: Path) -> dict[str, Any]:
    return {
        "folder": str(out),
        "script": str(out / written.script.name) if written.script else None,
        "adapters": [asdict(adapter) for adapter in written.adapters],
    }


def _print(written: Export, out: Path) -> None:
    from skillhub.interop.exportcards import counted

    console.table(
        ("Adapter", "Pack", "Layers", "Rank", "Size", "Error", "Left out"),
        list(map(_row, written.adapters)),
        right=(2, 3, 4),
    )
    for adapter in written.adapters:
        if adapter.misfits:
            click.echo(f"{adapter.name} leaves out {counted(adapter.misfits)}; README.md lists them.")
    serve = f" Serve them with {out / written.script.name}." if written.script else ""
    click.echo(f"Wrote {out}.{serve}")


def _row(adapter: ExportedAdapter) -> tuple[str, ...]:
    from skillhub.interop.exportcards import shares

    error, left_out = shares(adapter)
    size = console.size_text(adapter.size)
    return adapter.name, adapter.pack, str(adapter.layers), str(adapter.rank), size, error, left_out
