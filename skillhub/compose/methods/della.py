"""DELLA: drop elements of a delta at random, the smaller ones of each row more often."""

from __future__ import annotations

from typing import Any

import torch

from skillhub.compose.methods.arithmetic import Thinning, arithmetic_method
from skillhub.compose.methods.dare import RESCALE
from skillhub.compose.methods.interface import MergeInputs, Option
from skillhub.compose.methods.linear import divisor_of
from skillhub.compose.methods.masks import uniforms_for

EPSILON = Option(
    0.15,
    0,
    0.5,
    "elements are kept with probabilities from density − epsilon to density + epsilon; less where that leaves 0 to 1",
)


def drop_by_rank(
    delta: torch.Tensor, uniforms: torch.Tensor, density: float, epsilon: float, *, rescale: bool = True
) -> torch.Tensor:
    """Return a delta whose elements are kept with probabilities that grow with their rank in the row (Deep et al., arXiv 2406.11617, section 3).

    The paper's MagPrune: the element of rank k, from 0 for the smallest magnitude of n, is kept with probability
    ``density + epsilon · (2k / (n − 1) − 1)``, and divided by that probability. The paper's ε is twice this one, which is mergekit's. Equal magnitudes
    are ranked in their order. A row is everything under one index of the first dimension; a vector is one row. mergekit divides by one number
    for all elements instead (the option ``keep_norm``), which favours the small ones less.

    Args:
        delta: fp32; not modified. Whole rows of a tensor will do.
        uniforms: fp32, of its shape, from 0 to below 1: elements stay where they are below their probability.
        density: from 0 to 1, the mean probability; 1 keeps all.
        epsilon: not negative; lessened to the distance of the density from 0 or 1 where it is larger.
        rescale: whether to divide.

    Returns:
        fp32, of the same shape; the delta itself where all is kept.
    """
    if density >= 1:
        return delta
    if density <= 0:
        return torch.zeros_like(delta)
    epsilon = min(epsilon, density, 1 - density)
    probabilities = relative_ranks(delta).mul_(2 * epsilon).add_(density - epsilon)
    kept = delta * (uniforms < probabilities)
    return kept.div_(probabilities.clamp_(min=2.0**-24)) if rescale else kept


def relative_ranks(delta: torch.Tensor) -> torch.Tensor:
    """Return the ranks of the magnitudes within each row, from 0 for the smallest to 1 for the largest; ½ where a row has one element.

    Args:
        delta: fp32, of at least one dimension; not modified.

    Returns:
        fp32, of the same shape.
    """
    rows = delta.reshape(1 if delta.dim() < 2 else len(delta), -1)
    count = rows.shape[1]
    if count == 1:
        return torch.full_like(delta, 0.5)
    order = rows.abs().argsort(dim=1, stable=True)
    ranks = torch.arange(count, dtype=torch.float32, device=delta.device)
    ranks.div_(divisor_of(ranks, max(1, count - 1)))
    return torch.empty_like(rows).scatter_(1, order, ranks.expand_as(rows)).reshape(delta.shape)


def _thin(inputs: MergeInputs, index: int, delta: torch.Tensor, first: int, _: Any) -> torch.Tensor:
    density, options = inputs.densities[index], inputs.options
    if density >= 1:
        return delta
    rescale = bool(options["rescale"]) and not options["keep_norm"]
    return drop_by_rank(delta, uniforms_for(inputs, index, delta, first), density, options["epsilon"], rescale=rescale)


_PRUNING = Thinning(_thin, options={"epsilon": EPSILON, "rescale": RESCALE})
_SOURCE = "arXiv 2406.11617, section 3"

DELLA = arithmetic_method("della", _SOURCE, _PRUNING, elects=True)
DELLA_LINEAR = arithmetic_method("della_linear", _SOURCE, _PRUNING, elects=False)
