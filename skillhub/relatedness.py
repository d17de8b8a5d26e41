"""Whether a checkpoint can be a fine-tune of a base at all: fine-tunes stay near what they started from."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from statistics import median

from skillhub.deltas import Delta

UNRELATED = 0.7
"""Norm of a delta over that of the base's weights from which the two are hardly of one family: usual fine-tunes reach a tenth, independent
weights of one size 1.4."""

_MATRICES = 5
_SMALLEST = 4096


def relative_norm(delta: Delta, names: Iterable[str]) -> float:
    """Return the norm of a delta over that of the base's weights: the median of a few matrices; 0 where there are none.

    Args:
        delta: between two checkpoints.
        names: of tensors that changed.
    """
    sizes = {name: delta.base.tensors[name] for name in names if delta.change(name) == "delta"}
    matrices = [name for name, info in sizes.items() if len(info.shape) > 1 and info.nbytes > _SMALLEST]
    found = []
    for name in heapq.nsmallest(_MATRICES, matrices, key=lambda one: (sizes[one].nbytes, one)):
        if delta.is_additive(name):
            whole = float(delta.base.tensor(name).float().norm())
            found.append(float(delta.tensor(name).norm()) / whole if whole else 0.0)
    return median(found) if found else 0.0


def doubt(relative: float, base: object) -> str | None:
    """Return what people should be told of a delta of a relative norm; None where it is that of a fine-tune."""
    if not relative > UNRELATED:
        return None
    return (
        f"The weights differ from the base's by {relative:.0%} of their norm, those of fine-tunes by a few percent. "
        f"Is {base} what the fine-tune started from?"
    )
