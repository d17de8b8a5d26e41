"""What ``skillhub fuse --interference`` does: measure how much packs get into each other's way, print and draw it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from skillhub.cli import console

if TYPE_CHECKING:
    from skillhub.compose.interference import Interference

_WORST = 10


def measure(base: str, names: Sequence[str], picture: Path, request: dict[str, Any], as_json: bool) -> dict[str, Any]:
    """Measure, draw and print how much the packs get into each other's way; return it for ``--json``."""
    from skillhub.compose.heatmaps import check_drawable, draw_interference
    from skillhub.compose.interference import advise, measure_interference
    from skillhub.compose.plans import plan_fusion

    check_drawable(picture)
    plan = plan_fusion(base, list(names), **request, reads_base=True)
    plan.check()
    with console.progress("tensors") as progress:
        found = measure_interference(plan.recipe, plan.contributions, plan.base, progress=progress)
    if found.modules:
        draw_interference(found, picture)
    if not as_json:
        if found.modules:
            _print_interference(found)
        click.echo(advise(found))
        click.echo(f"Drawn in {picture}." if found.modules else "No tensor is changed by two packs: nothing was drawn.")
    drawn = str(picture) if found.modules else None
    return {"interference": _interference_json(found), "advice": advise(found), "picture": drawn}


def _interference_json(found: Interference) -> dict[str, Any]:
    pairs = []
    for pair in found.pairs:
        total = found.total(pair)
        modules = [
            {"layer": layer, "module": module, "cosine": one[pair].cosine, "sign_conflict": one[pair].conflict}
            for (layer, module), one in found.modules.items()
            if pair in one
        ]
        packs = [found.packs[number] for number in pair]
        pairs.append({"packs": packs, "cosine": total.cosine, "sign_conflict": total.conflict, "modules": modules})
    return {"norms": dict(zip(found.packs, found.norms, strict=True)), "pairs": pairs}


def _print_interference(found: Interference) -> None:
    """Print a row for each pair of packs, and the modules where cosines are farthest from 0."""
    rows = []
    for pair in found.pairs:
        total = found.total(pair)
        names = f"{found.packs[pair[0]]}, {found.packs[pair[1]]}"
        rows.append((names, "all of it", f"{total.cosine:+.3f}", f"{total.conflict:.1%}"))
    single = [
        (f"{found.packs[pair[0]]}, {found.packs[pair[1]]}", layer, module, overlap)
        for (layer, module), overlaps in found.modules.items()
        for pair, overlap in overlaps.items()
    ]
    for names, layer, module, overlap in sorted(single, key=lambda row: -abs(row[3].cosine))[:_WORST]:
        place = module if layer is None else f"{layer}. {module}"
        rows.append((names, place, f"{overlap.cosine:+.3f}", f"{overlap.conflict:.1%}"))
    console.table(("packs", "where", "cosine", "signs differ"), rows, right=(2, 3))
