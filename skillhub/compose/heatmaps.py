"""A picture of how much packs get into each other's way: layers by modules, for each pair of packs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skillhub.compose.interference import Interference, Pair
from skillhub.errors import UsageError, missing_extra
from skillhub.files import disk_errors

MOST_PAIRS = 6
"""Most pairs that are drawn; beyond, those with the smallest cosines."""

_ROW_INCHES, _COLUMN_INCHES = 0.18, 0.3


def check_drawable(path: str | Path) -> None:
    """Check, before anything is measured, that a picture can be drawn there.

    Raises:
        UsageError: the name does not end in ``.png``.
        MissingExtraError: matplotlib is not installed.
    """
    if Path(path).suffix.lower() != ".png":
        raise UsageError(f"{path} is not the name of a PNG picture.", hint="Give a name that ends in .png.")
    try:
        import matplotlib.figure  # noqa: F401
    except ModuleNotFoundError as error:
        raise missing_extra(error) from error


def draw_interference(interference: Interference, path: str | Path) -> None:
    """Draw a heat map of sign conflicts and one of cosines for each pair of packs.

    Args:
        interference: what was measured.
        path: the PNG file that is written.

    Raises:
        UsageError: no two packs change the same tensor, or the name does not end in ``.png``.
        DiskError: the file may not be written.
    """
    check_drawable(path)
    from matplotlib.figure import Figure

    pairs = sorted(interference.pairs, key=lambda pair: interference.total(pair).cosine)[:MOST_PAIRS]
    if not interference.modules:
        raise UsageError("No two packs change the same tensor.", hint="There is nothing to draw: compose them freely.")
    rows = sorted({layer for layer, _ in interference.modules}, key=lambda layer: -1 if layer is None else layer)
    columns = sorted({module for _, module in interference.modules})
    width, height = 2 * (2.5 + _COLUMN_INCHES * len(columns)), len(pairs) * (2.4 + _ROW_INCHES * len(rows))
    figure = Figure(figsize=(width, height), layout="constrained")
    axes: Any = figure.subplots(len(pairs), 2, squeeze=False)
    for number, pair in enumerate(pairs):
        names = f"{interference.packs[pair[0]]} and {interference.packs[pair[1]]}"
        conflicts, cosines = _grids(interference, pair, rows, columns)
        limit = max(0.1, float(np.nanmax(np.abs(cosines), initial=0.0)))
        draw_panel(axes[number, 0], conflicts, f"{names}\nsigns that differ", "RdBu_r", (0.0, 1.0), rows, columns)
        draw_panel(axes[number, 1], cosines, f"{names}\ncosine", "RdBu", (-limit, limit), rows, columns)
    with disk_errors(Path(path)):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)


def _grids(
    interference: Interference, pair: Pair, rows: list[int | None], columns: list[str]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return shares of conflicts and cosines (layers, modules); NaN where not both packs change something."""
    conflicts = np.full((len(rows), len(columns)), np.nan)
    cosines = conflicts.copy()
    for (layer, module), overlaps in interference.modules.items():
        if pair in overlaps:
            place = rows.index(layer), columns.index(module)
            conflicts[place], cosines[place] = overlaps[pair].conflict, overlaps[pair].cosine
    return conflicts, cosines


def draw_panel(
    axes: Any,
    grid: NDArray[np.float64],
    title: str,
    colours: str,
    limits: tuple[float, float],
    rows: list[int | None],
    columns: list[str],
) -> None:
    """Draw one heat map: a cell for each layer and module, grey where the grid (layers, modules) is NaN.

    Args:
        axes: of matplotlib.
        grid: the values.
        title: what they are.
        colours: name of matplotlib's colour map.
        limits: values of its ends.
        rows: numbers of the layers; None stands for what is outside of layers.
        columns: names of the modules.
    """
    image = axes.imshow(grid, cmap=colours, vmin=limits[0], vmax=limits[1], aspect="auto", interpolation="nearest")
    axes.set_facecolor("lightgrey")
    axes.set_title(title, fontsize=9)
    axes.set_ylabel("layer")
    axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=7)
    axes.set_yticks(range(len(rows)), ["-" if row is None else str(row) for row in rows], fontsize=7)
    axes.figure.colorbar(image, ax=axes)
