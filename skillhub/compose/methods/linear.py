"""Task arithmetic: the weighted sum of the deltas; divided by the sum of the weights it is the average of the tuned models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from skillhub.compose.methods.interface import Chunk, MergeInputs, MergeMethod, Option, Options

NORMALIZE = Option(0, 0, 1, "divide by the sum of the weights")
SCALE = Option(1, -1e6, 1e6, "factor of the merged delta, after all else")
SUM_OPTIONS = {"normalize": NORMALIZE, "lambda": SCALE}

_LEAST_DIVISOR = 1e-8


def linear(deltas: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """Return the weighted sum of the deltas (Ilharco et al., arXiv 2212.04089, section 2).

    A negative weight unlearns a skill (its section 3). One delta of weight 1 is returned as it is, bit for bit. Products and sums
    are separate operations in the given order, so that the result does not depend on fused multiply-add.

    Args:
        deltas: at least one, fp32, of one shape; not modified.
        weights: one per delta.

    Returns:
        fp32, of the same shape; a delta itself where it is the only one and its weight 1, else new memory.
    """
    total = weighted(deltas[0], weights[0])
    product = None
    for number, (delta, weight) in enumerate(zip(deltas[1:], weights[1:], strict=True)):
        if weight != 1:
            product = torch.mul(delta, weight, out=product)
            delta = product
        total = total.add_(delta) if number or weights[0] != 1 else total + delta
    return total


def weighted(delta: torch.Tensor, weight: float) -> torch.Tensor:
    """Return a delta times a weight; itself where that is 1."""
    return delta if weight == 1 else delta * weight


def divisor_of(values: torch.Tensor, number: float) -> torch.Tensor:
    """Return a number to divide values by, to the same bits on every device: a GPU multiplies by a plain one's reciprocal."""
    return torch.full((), number, dtype=values.dtype, device=values.device)


def scaled_sum(deltas: Sequence[torch.Tensor], weights: Sequence[float], options: Options) -> torch.Tensor:
    """Return :func:`linear`, divided by the sum of the weights where options say ``normalize``, times their ``lambda``.

    Weights that cancel (their sum is below 1e-8) are not divided by, as in mergekit.
    """
    scale = options.get("lambda", 1.0)
    total = sum(weights)
    if options.get("normalize") and abs(total) >= _LEAST_DIVISOR:
        scale /= total
    return weighted(linear(deltas, weights), scale)


def _merge(inputs: MergeInputs, chunk: Chunk, _: Any) -> torch.Tensor:
    return scaled_sum(chunk.deltas, inputs.weights, inputs.options)


LINEAR = MergeMethod(
    "linear",
    "arXiv 2212.04089, section 2",
    _merge,
    averages_packs=True,
    options=SUM_OPTIONS,
)
