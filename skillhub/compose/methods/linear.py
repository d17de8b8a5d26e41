"""Task arithmetic: the weighted sum of the deltas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from skillhub.compose.methods.interface import Chunk, MergeInputs, MergeMethod


def linear(deltas: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """Return the weighted sum of the deltas (Ilharco et al., arXiv 2212.04089, section 2).

    A negative weight unlearns a skill (its section 3). One delta of weight 1 is returned as it is, bit for bit. Products and sums
    are separate operations in the given order, so that the result does not depend on fused multiply-add.

    Args:
        deltas: at least one, fp32, of one shape; not modified.
        weights: one per delta.

    Returns:
        fp32, of the same shape.
    """
    total = weighted(deltas[0], weights[0])
    for delta, weight in zip(deltas[1:], weights[1:], strict=True):
        total = total + weighted(delta, weight)
    return total


def weighted(delta: torch.Tensor, weight: float) -> torch.Tensor:
    """Return a delta times a weight; itself where that is 1."""
    return delta if weight == 1 else delta * weight


def _merge(inputs: MergeInputs, chunk: Chunk, _: Any) -> torch.Tensor:
    return linear(chunk.deltas, inputs.weights)


LINEAR = MergeMethod("linear", "arXiv 2212.04089, section 2", _merge)
