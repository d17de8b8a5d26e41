"""TIES merging: trim, elect a sign per element, average what agrees."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from skillhub.compose.methods.arithmetic import Thinning, arithmetic_method
from skillhub.compose.methods.consensus import consensus
from skillhub.compose.methods.interface import MergeInputs
from skillhub.compose.methods.linear import weighted
from skillhub.compose.methods.trimming import Cut, cuts_at, kept_elements, trim


def ties(
    deltas: Sequence[torch.Tensor],
    weights: Sequence[float],
    cuts: Sequence[Cut],
    *,
    normalize: bool = False,
    mean: bool = True,
) -> torch.Tensor:
    """Merge deltas by TIES (Yadav et al., arXiv 2306.01708, section 4 and algorithm 1).

    *Trim* keeps of each delta the elements of largest magnitude, ``density`` of the tensor's (at least one), and of equal magnitudes a random
    part (:mod:`skillhub.compose.methods.trimming`). The paper trims over the whole model at once, here it is per tensor, as mergekit does. *Elect*
    takes the sign of the sum of the trimmed, weighted deltas. *Disjoint mean* sums the elements with that sign and divides by **how many** there
    are: weights scale the deltas (the paper's λ, per pack) and are not normalized away, so halving all of them halves the result.

    Args:
        deltas: at least one, fp32, of one shape; not modified.
        weights: one per delta.
        cuts: one per delta, from :func:`skillhub.compose.methods.trimming.cut_to_density`.
        normalize: divide by the sum of the agreeing deltas' weights, as mergekit does by default.
        mean: divide at all; without it and ``normalize`` the result is mergekit's with ``normalize: false``.

    Returns:
        fp32, of the same shape; zero where nothing was kept or the elected sign is 0.
    """
    kept = [weighted(trim(delta, cut), weight) for delta, weight, cut in zip(deltas, weights, cuts, strict=True)]
    return consensus(kept, weights, normalize=normalize, mean=mean)


def _measure(inputs: MergeInputs) -> list[Cut]:
    kept = [kept_elements(inputs.elements, density) for density in inputs.densities]
    ranks = [(index, count) for index, count in enumerate(kept) if 0 < count < inputs.elements]
    cuts = dict(zip(ranks, cuts_at(inputs, ranks), strict=True))
    return [cuts.get(rank, Cut(0.0 if rank[1] else math.inf)) for rank in enumerate(kept)]


def _thin(inputs: MergeInputs, index: int, delta: torch.Tensor, first: int, cut: Any) -> torch.Tensor:
    return trim(delta, cut, first)


TRIMMING = Thinning(_thin, _measure)

TIES = arithmetic_method("ties", "arXiv 2306.01708, section 4", TRIMMING, elects=True)
