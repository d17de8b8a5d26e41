"""DARE: drop elements of a delta at random, and scale the others up, so that the expectation stays."""

from __future__ import annotations

from typing import Any

import torch

from skillhub.compose.methods.arithmetic import Thinning, arithmetic_method
from skillhub.compose.methods.interface import MergeInputs, Option
from skillhub.compose.methods.linear import divisor_of
from skillhub.compose.methods.masks import uniforms_for

RESCALE = Option(1, 0, 1, "divide what is kept by the probability of keeping it")


def drop_at_random(
    delta: torch.Tensor, uniforms: torch.Tensor, density: float, *, rescale: bool = True
) -> torch.Tensor:
    """Return a delta of which each element is kept with probability ``density`` (Yu et al., arXiv 2311.03099, section 3.2).

    What is kept is divided by the density, as in the paper. mergekit scales by the ratio of the sums of magnitudes before and after
    instead, which is the same but for chance: the option ``keep_norm``.

    Args:
        delta: fp32; not modified.
        uniforms: fp32, of its shape, from 0 to below 1: elements stay where they are below the density.
        density: from 0 to 1; 1 keeps all.
        rescale: whether to divide.

    Returns:
        fp32, of the same shape; the delta itself where all is kept.
    """
    if density >= 1:
        return delta
    if density <= 0:
        return torch.zeros_like(delta)
    kept = delta * (uniforms < density)
    return kept.div_(divisor_of(kept, density)) if rescale else kept


def _thin(inputs: MergeInputs, index: int, delta: torch.Tensor, first: int, _: Any) -> torch.Tensor:
    density = inputs.densities[index]
    if density >= 1:
        return delta
    rescale = bool(inputs.options["rescale"]) and not inputs.options["keep_norm"]
    return drop_at_random(delta, uniforms_for(inputs, index, delta, first), density, rescale=rescale)


_DROPPING = Thinning(_thin, options={"rescale": RESCALE})
_SOURCE = "arXiv 2311.03099, section 3"

DARE_LINEAR = arithmetic_method("dare_linear", _SOURCE, _DROPPING, elects=False)
DARE_TIES = arithmetic_method("dare_ties", _SOURCE, _DROPPING, elects=True)
