"""A picture of how two checkpoints differ: layers by modules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skillhub.compose.heatmaps import check_drawable, draw_panel
from skillhub.compose.interference import Module, module_of
from skillhub.differences import Difference, Total
from skillhub.files import disk_errors

_ROW_INCHES, _COLUMN_INCHES = 0.18, 0.3


@dataclass(frozen=True)
class _Panel:
    """One heat map: a value of each module. Values that range over orders of magnitude get a logarithmic scale, without the zeros."""

    title: str
    value: Callable[[Total], float | None]
    is_logarithmic: bool


_NORMS = _Panel("norm of the delta\nover the base's", lambda total: total.relative_norm, True)
_RANKS = _Panel(
    "rank for 90 % of the energy\nover the full rank", lambda total: _share(total.rank, total.full_rank), False
)
_SIZES = _Panel("kB in a pack", lambda total: _share(total.size, 1000), True)


def draw_difference(difference: Difference, path: str | Path) -> None:
    """Draw heat maps of relative norms and, where they were measured, of ranks and of predicted sizes.

    Args:
        difference: what was measured.
        path: the PNG file that is written.

    Raises:
        UsageError: the name does not end in ``.png``.
        MissingExtraError: matplotlib is not installed.
        DiskError: the file may not be written.
    """
    check_drawable(path)
    from matplotlib.figure import Figure

    modules = difference.by(module_of)
    rows = sorted({layer for layer, _ in modules}, key=lambda layer: -1 if layer is None else layer)
    columns = list(dict.fromkeys(module for _, module in sorted(modules, key=_outside_first)))
    measured = any(one.size is not None for one in difference.tensors)
    panels = [_NORMS, _RANKS, _SIZES] if measured else [_NORMS]
    size = (len(panels) * (2.5 + _COLUMN_INCHES * len(columns)), 2.8 + _ROW_INCHES * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    axes: Any = figure.subplots(1, len(panels), squeeze=False)
    for place, panel in zip(axes[0], panels, strict=True):
        grid = np.full((len(rows), len(columns)), np.nan)
        for (layer, module), total in modules.items():
            value = panel.value(total)
            grid[rows.index(layer), columns.index(module)] = np.nan if value is None else value
        _draw(place, panel, grid, rows, columns)
    with disk_errors(Path(path)):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)


def _draw(axes: Any, panel: _Panel, grid: NDArray[np.float64], rows: list[int | None], columns: list[str]) -> None:
    from matplotlib.colors import LogNorm

    largest = float(np.nanmax(grid, initial=0.0)) or 1.0
    draw_panel(axes, grid, panel.title, "viridis", (0.0, largest), rows, columns)
    if panel.is_logarithmic:
        axes.images[0].set_norm(LogNorm(float(np.nanmin(grid, where=grid > 0, initial=largest)) / 1.01, largest))


def _outside_first(module: Module) -> tuple[bool, str]:
    return module[0] is not None, module[1]


def _share(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else part / whole
