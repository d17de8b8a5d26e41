"""What TIES, DARE, DELLA and Breadcrumbs have in common: deltas are thinned out one by one, then added or settled by election.

They differ in how a delta is thinned out, the :class:`Thinning`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from skillhub.compose.methods.consensus import CONSENSUS_OPTIONS, consensus
from skillhub.compose.methods.interface import Chunk, MergeInputs, MergeMethod, Option
from skillhub.compose.methods.linear import SUM_OPTIONS, scaled_sum, weighted
from skillhub.compose.methods.sums import total_magnitude

KEEP_NORM = Option(
    0, 0, 1, "scale what is kept of a delta so that the sum of its magnitudes stays: what mergekit calls rescale"
)


@dataclass(frozen=True)
class Thinning:
    """How some of a delta's elements are dropped.

    Attributes:
        thin: (inputs, index of the delta, its rows, index of their first element, what was measured) → what is kept of them, fp32; the
            rows themselves where that is everything.
        measure: inputs → what ``thin`` has to know of each delta.
        options: what it can be told.
    """

    thin: Callable[[MergeInputs, int, torch.Tensor, int, Any], torch.Tensor]
    measure: Callable[[MergeInputs], Sequence[Any]] | None = None
    options: Mapping[str, Option] | None = None


def arithmetic_method(name: str, source: str, thinning: Thinning, *, elects: bool) -> MergeMethod:
    """Return the merge method that thins deltas out, weighs them, and adds them up.

    Args:
        name: of the method.
        source: its paper and section.
        thinning: how deltas are thinned out.
        elects: whether signs are elected (:func:`skillhub.compose.methods.consensus.consensus`).
    """

    def measure(inputs: MergeInputs) -> list[tuple[Any, float]]:
        known = thinning.measure(inputs) if thinning.measure else [None] * len(inputs.deltas)
        return [(each, _factor(thinning, inputs, index, each)) for index, each in enumerate(known)]

    def merge(inputs: MergeInputs, chunk: Chunk, measured: list[tuple[Any, float]]) -> torch.Tensor:
        kept = [
            weighted(thinning.thin(inputs, index, delta, chunk.first, known), factor)
            for index, (delta, (known, factor)) in enumerate(zip(chunk.deltas, measured, strict=True))
        ]
        if not elects:
            return scaled_sum(kept, inputs.weights, inputs.options)
        kept = [weighted(delta, weight) for delta, weight in zip(kept, inputs.weights, strict=True)]
        normalize, mean = bool(inputs.options["normalize"]), bool(inputs.options["mean"])
        merged = consensus(kept, inputs.weights, normalize=normalize, mean=mean)
        return weighted(merged, inputs.options["lambda"])

    options = CONSENSUS_OPTIONS if elects else SUM_OPTIONS
    return MergeMethod(
        name,
        source,
        merge,
        measure,
        averages_packs=not elects,
        uses_density=True,
        options={**options, **(thinning.options or {}), "keep_norm": KEEP_NORM},
    )


def _factor(thinning: Thinning, inputs: MergeInputs, index: int, known: Any) -> float:
    """Return the factor that ``keep_norm`` asks for."""
    if not inputs.options["keep_norm"] or inputs.densities[index] >= 1:
        return 1.0
    before = after = 0.0
    first = 0
    for (delta,) in inputs.delta_chunks([index]):
        before += total_magnitude(delta)
        after += total_magnitude(thinning.thin(inputs, index, delta, first, known))
        first += delta.numel()
    return before / after if after > 0 else 1.0
