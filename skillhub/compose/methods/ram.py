"""Reinforced agent merging: average what several packs changed, keep what only one did."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from skillhub.compose.methods.interface import Chunk, MergeInputs, MergeMethod, Option

EPSILON = Option(1e-5, 0, 1e6, "elements of at most this magnitude count as unchanged")
RATE = Option(0.1, 0, 1e3, "how strongly elements that only one pack changed are scaled up")
LIMIT = Option(0.2, 0, 1e3, "largest ratio of shared to unique elements that counts")


def reinforced(deltas: Sequence[torch.Tensor], epsilon: float, factors: Sequence[float]) -> torch.Tensor:
    """Merge deltas by reinforced agent merging (RAM, arXiv 2601.13572).

    An element that several packs changed is the mean of their changes; one that a single pack changed is that change, times the
    pack's factor: averaging it with the zeros of the others would weaken what training sparsely reinforced.

    Args:
        deltas: at least one, fp32, of one shape; not modified.
        epsilon: elements of at most this magnitude count as unchanged, and are dropped.
        factors: one per delta, from :func:`unique_factor`; 1 for RAM without rescaling.

    Returns:
        fp32, of the same shape.
    """
    changed = [torch.nn.functional.hardshrink(delta, epsilon) for delta in deltas]
    count = changes(changed)
    total = torch.zeros_like(count)
    alone = (count == 1).to(torch.float32)
    for delta, factor in zip(changed, factors, strict=True):
        total.add_(delta if factor == 1 else delta * alone.mul(factor - 1).add_(1.0))
    return total.div_(count.clamp_(min=1.0))


def changes(deltas: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return how many of some tensors differ from zero, element by element, as fp32."""
    count = torch.zeros_like(deltas[0])
    for delta in deltas:
        count.add_(delta.sign().abs_())
    return count


def unique_factor(shared: int, unique: int, rate: float, limit: float) -> float:
    """Return the factor of what only one pack changed: ``1 + rate · min(shared / unique, limit)``.

    Args:
        shared: how many elements of the tensor this pack and another changed.
        unique: how many this pack alone changed.
        rate: the paper's r.
        limit: the paper's α.
    """
    return 1 + rate * min(shared / max(unique, 1), limit)


def _merge(inputs: MergeInputs, chunk: Chunk, factors: list[float] | None) -> torch.Tensor:
    return reinforced(chunk.deltas, inputs.options["epsilon"], factors or [1.0] * len(chunk.deltas))


def _measure(inputs: MergeInputs) -> list[float]:
    shared, unique = [0] * len(inputs.deltas), [0] * len(inputs.deltas)
    for chunk in inputs.chunks():
        changed = [torch.nn.functional.hardshrink(delta, inputs.options["epsilon"]) for delta in chunk.deltas]
        alone = changes(changed) == 1
        for index, delta in enumerate(changed):
            mine = int(delta.count_nonzero())
            only = int((alone & (delta != 0)).sum())
            unique[index] += only
            shared[index] += mine - only
    return [
        unique_factor(*counts, inputs.options["r"], inputs.options["alpha"])
        for counts in zip(shared, unique, strict=True)
    ]


def _method(name: str, measure: Any, options: dict[str, Option]) -> MergeMethod:
    return MergeMethod(name, "arXiv 2601.13572", _merge, measure, uses_weights=False, options=options)


RAM = _method("ram", None, {"epsilon": EPSILON})
RAM_PLUS = _method("ram_plus", _measure, {"r": RATE, "alpha": LIMIT, "epsilon": EPSILON})
