"""TIES merging: trim, elect a sign per element, average what agrees."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from skillhub.compose.methods.arithmetic import Thinning, arithmetic_method
from skillhub.compose.methods.consensus import consensus
from skillhub.compose.methods.interface import MergeInputs
from skillhub.compose.methods.linear import weighted
from skillhub.compose.methods.selection import kth_largest


def ties(
    deltas: Sequence[torch.Tensor],
    weights: Sequence[float],
    thresholds: Sequence[float],
    *,
    normalize: bool = False,
    mean: bool = True,
) -> torch.Tensor:
    """Merge deltas by TIES (Yadav et al., arXiv 2306.01708, section 4 and algorithm 1).

    *Trim* keeps of each delta the elements of largest magnitude, ``density`` of the tensor's (at least one); of equal magnitudes at
    the threshold all stay, so the result does not depend on the order of elements. The paper trims over the whole model at once,
    here it is per tensor, as mergekit does. *Elect* takes the sign of the sum of the trimmed, weighted deltas. *Disjoint mean* sums
    the elements with that sign and divides by **how many** there are: weights scale the deltas (the paper's λ, per pack) and are not
    normalized away, so halving all of them halves the result.

    Args:
        deltas: at least one, fp32, of one shape; not modified. Rows of a tensor will do, with the thresholds of all of it.
        weights: one per delta.
        thresholds: one per delta: the magnitude from which on elements stay, from :func:`trim_threshold`.
        normalize: divide by the sum of the agreeing deltas' weights, as mergekit does by default.
        mean: divide at all; without it and ``normalize`` the result is mergekit's with ``normalize: false``.

    Returns:
        fp32, of the same shape; zero where nothing was kept or the elected sign is 0.
    """
    kept = [
        weighted(trim(delta, threshold), weight)
        for delta, weight, threshold in zip(deltas, weights, thresholds, strict=True)
    ]
    return consensus(kept, weights, normalize=normalize, mean=mean)


def trim(delta: torch.Tensor, threshold: float) -> torch.Tensor:
    """Return a delta with zeros for all magnitudes below ``threshold``; the delta itself where that is 0."""
    if threshold <= 0:
        return delta
    below = torch.nextafter(torch.tensor(threshold, dtype=torch.float32), torch.tensor(0.0))
    return torch.nn.functional.hardshrink(delta, float(below))  # keeps what is over it: several times faster than where


def trim_threshold(delta: torch.Tensor, density: float) -> float:
    """Return the magnitude from which on elements stay when all but the largest are trimmed.

    Args:
        delta: fp32, any shape.
        density: share of elements to keep, from 0 to 1; ``max(1, int(density * n))`` stay, and all that equal the smallest of these
            in magnitude. Of density 0 nothing stays.
    """
    kept = kept_elements(delta.numel(), density)
    if not 0 < kept < delta.numel():
        return math.inf if kept == 0 else 0.0
    return kth_largest(lambda: iter([delta.abs()]), [kept])[0]


def kept_elements(elements: int, density: float) -> int:
    """Return how many of a tensor's elements stay: at least one, unless the density is 0."""
    return max(1, int(density * elements)) if density > 0 else 0


def magnitudes_of_ranks(inputs: MergeInputs, index: int, ranks: Sequence[int]) -> list[float]:
    """Return the magnitudes of some ranks (1 is the largest) of one delta."""
    read = partial(inputs.delta_chunks, index)
    return kth_largest(
        lambda: (chunk.abs() for chunk in read()),
        ranks,
        elements=inputs.elements,
        sample=(chunk.abs() for chunk in read(sample=True)),
    )


def _threshold(inputs: MergeInputs, index: int) -> float:
    kept = kept_elements(inputs.elements, inputs.densities[index])
    if not 0 < kept < inputs.elements:
        return math.inf if kept == 0 else 0.0
    return magnitudes_of_ranks(inputs, index, [kept])[0]


def _trim(inputs: MergeInputs, index: int, delta: torch.Tensor, first: int, threshold: Any) -> torch.Tensor:
    return trim(delta, threshold)


TRIMMING = Thinning(_trim, _threshold)

TIES = arithmetic_method("ties", "arXiv 2306.01708, section 4", TRIMMING, elects=True)
