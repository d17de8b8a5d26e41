"""``skillhub diff``: how two checkpoints differ."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from skillhub.cli import console
from skillhub.cli.packing import module_class

if TYPE_CHECKING:
    from skillhub.differences import Difference, Total

SHOWN = 8
"""Tensors of a kind that are listed by name."""

_CHANGES = {
    "added": "Only the tuned checkpoint has",
    "removed": "Only the base has",
    "resized": "Another number of rows has",
    "replaced": "Other values that have no finite difference of floats has",
}


@click.command("diff")
@click.argument("base", metavar="A")
@click.argument("tuned", metavar="B")
@click.option("--quick", is_flag=True, help="Leave out ranks and pack size, which take nearly all of the time.")
@click.option(
    "--heat-map",
    "picture",
    metavar="FILE.png",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Draw it: layers by modules.",
)
@console.output_options
def diff_command(base: str, tuned: str, quick: bool, picture: Path | None, as_json: bool) -> None:
    """Show how checkpoint B differs from its base A: what changed, by how much, and how large a pack would be.

    A and B are folders with safetensors, or models on the Hub (org/name or org/name@revision). The pack size is predicted for
    `skillhub pack --preset near`; the rank is that of a matrix's delta that holds 90 % of its sum of squares.

    \b
    Example:
      skillhub diff ./SmolLM2-135M-Instruct ./tuned
      skillhub diff ./SmolLM2-135M-Instruct ./tuned --heat-map difference.png
    """
    from skillhub.differences import compare_checkpoints
    from skillhub.relatedness import doubt

    if picture is not None:
        from skillhub.compose.heatmaps import check_drawable

        check_drawable(picture)
    with console.progress("tensors") as progress:
        found = compare_checkpoints(base, tuned, quick=quick, progress=progress)
    if picture is not None and not found.is_empty:
        from skillhub.differencemaps import draw_difference

        draw_difference(found, picture)
    drawn = None if found.is_empty else picture
    if as_json:
        console.emit_json(_as_json(found, base, tuned, drawn))
        return
    if found.is_empty:
        click.echo(f"{base} and {tuned} have the same weights." + (" Nothing was drawn." if picture else ""))
        return
    _print(found, quick=quick)
    if doubts := doubt(found.total().relative_norm or 0.0, base):
        console.say(doubts)
    if drawn:
        click.echo(f"Drawn in {drawn}.")


def _as_json(found: Difference, base: str, tuned: str, picture: Path | None) -> dict[str, Any]:
    classes = found.by(module_class)
    return {
        "base": base,
        "tuned": tuned,
        "same": found.is_empty,
        "base_size": found.base_size,
        "total": _total_json(found.total()),
        "classes": {name: _total_json(total) for name, total in classes.items()},
        **{change: [one.name for one in found.with_change(change)] for change in _CHANGES},
        "picture": str(picture) if picture else None,
    }


def _total_json(total: Total) -> dict[str, Any]:
    return {
        "tensors": total.tensors,
        "weights": total.elements,
        "changed": total.changed,
        "norm": total.norm,
        "relative_norm": total.relative_norm,
        "rank": total.rank,
        "full_rank": total.full_rank,
        "size": total.size,
    }


def _print(found: Difference, *, quick: bool) -> None:
    classes = sorted(found.by(module_class).items(), key=lambda item: -item[1].norm)
    rows = [_row(name, total) for name, total in classes if total.changed]
    header = ["Module class", "Changed", "Norm", "Relative", "Rank", "Pack"]
    shown = slice(0, 4 if quick else 6)
    console.table(header[shown], [row[shown] for row in [*rows, _row("all", found.total())]], right=range(1, 6)[shown])
    unchanged = [name for name, total in classes if not total.changed]
    if unchanged:
        click.echo(f"Unchanged: {_listed(unchanged)}.")
    for change, text in _CHANGES.items():
        if names := [one.name for one in found.with_change(change)]:
            click.echo(f"{text}: {_listed(names)}.")
    size = found.total().size
    if found.total().rank:
        click.echo("Rank: how many singular components hold 90 % of a matrix's delta, of how many; medians.")
    if size:
        checkpoint = console.size_text(found.base_size)
        ratio = f"1/{found.base_size / size:.0f} of" if 2 * size <= found.base_size else "beside"
        click.echo(f"A pack of it takes about {console.size_text(size)} (preset near), {ratio} the {checkpoint} base.")
        click.echo("Names and digests come on top, some hundred bytes a tensor.")


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _row(name: str, total: Total) -> list[str]:
    rank = "–" if total.rank is None else f"{total.rank}/{total.full_rank}"
    relative = "–" if total.relative_norm is None else f"{total.relative_norm:.2%}"
    size = "–" if total.size is None else console.size_text(total.size)
    return [name.removeprefix("layers."), _percent(total), f"{total.norm:.3g}", relative, rank, size]


def _percent(total: Total) -> str:
    """Return the share that changed; few and nearly all are not rounded to none and all."""
    share = total.changed_share
    if 0 < share < 0.001:
        return "<0.1%"
    return ">99.9%" if 0.9995 <= share < 1 else f"{share:.1%}"
