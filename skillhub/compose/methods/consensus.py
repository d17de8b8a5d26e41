"""Electing a sign for every element, and adding up the deltas that have it: how TIES and what followed it settle conflicts."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from skillhub.compose.methods.interface import Option
from skillhub.compose.methods.linear import SCALE, linear

MEAN = Option(1, 0, 1, "divide what has the elected sign by how many deltas it is of; 0 adds it up, as mergekit can")
NORMALIZE = Option(0, 0, 1, "divide by the sum of these deltas' weights instead, as mergekit does")
CONSENSUS_OPTIONS = {"normalize": NORMALIZE, "mean": MEAN, "lambda": SCALE}

_LEAST_DIVISOR = 1e-8


def consensus(
    deltas: Sequence[torch.Tensor], weights: Sequence[float], *, normalize: bool = False, mean: bool = True
) -> torch.Tensor:
    """Merge weighted deltas element by element, without those of the minority's sign (arXiv 2306.01708, section 4, steps 2 and 3).

    *Elect* takes the sign of the deltas' sum. *Disjoint mean* sums the elements with that sign and divides by **how many** there are.
    Where the sum is zero no sign is elected and the result is 0; mergekit elects the positive one.

    Args:
        deltas: at least one, fp32, of one shape, already multiplied by their weights; not modified.
        weights: one per delta; only ``normalize`` looks at them.
        normalize: divide by the sum of the weights of the deltas with the sign, not by their number. Where weights cancel (their
            sum is below 1e-8) nothing is divided.
        mean: divide at all.

    Returns:
        fp32, of the same shape, in new memory.
    """
    # Masks of booleans cost several times what floats do here: products with the sign, cut at zero, say as much.
    sign = linear(deltas, [1.0] * len(deltas)).sign()
    total = torch.zeros_like(sign)
    divisor = torch.zeros_like(sign)
    agreeing = torch.empty_like(sign)
    for delta, weight in zip(deltas, weights, strict=True):
        torch.mul(delta, sign, out=agreeing).clamp_(min=0.0)
        total.add_(agreeing)
        if normalize:
            divisor.add_(agreeing.sign_().mul_(weight))
        elif mean:
            divisor.add_(agreeing.sign_())
    total.mul_(sign)
    if normalize and min(weights) < 0:
        return total.div_(torch.where(divisor.abs() < _LEAST_DIVISOR, 1.0, divisor))
    if normalize:  # no sum is less than a weight, or it is of nothing
        return total.div_(divisor.clamp_(min=min((weight for weight in weights if weight), default=1.0)))
    return total.div_(divisor.clamp_(min=1.0)) if mean else total
