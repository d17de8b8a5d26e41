"""Model Breadcrumbs: drop the largest elements of a delta as outliers, and the smallest as noise."""

from __future__ import annotations

import math
from typing import Any

import torch

from skillhub.compose.methods.arithmetic import Thinning, arithmetic_method
from skillhub.compose.methods.interface import MergeInputs, Option
from skillhub.compose.methods.trimming import Cut, cuts_at, kept_elements, trim

GAMMA = Option(0.01, 0, 1, "share of elements, the largest, that are dropped; less where the density needs them")


def band(delta: torch.Tensor, outliers: Cut, kept: Cut, first: int = 0) -> torch.Tensor:
    """Return what one cut keeps of a delta without what another keeps (Davari & Belilovsky, arXiv 2312.06795, section 3).

    Args:
        delta: fp32; not modified. Rows of a tensor will do.
        outliers: keeps the elements that are too large.
        kept: keeps these and the ones that stay.
        first: index, in the whole tensor (row-major), of the first element.

    Returns:
        fp32, of the same shape; the delta itself where everything stays.
    """
    rest = trim(delta, kept, first)
    return rest if outliers.magnitude == math.inf else rest - trim(delta, outliers, first)


def band_ranks(elements: int, density: float, gamma: float) -> tuple[int, int]:
    """Return how many elements are outliers, and how many these are together with those that stay.

    ``int(gamma * n)`` of the largest go, and then all but ``max(1, int(density * n))``. Where so many are not left fewer of the
    largest go, as in mergekit.

    Args:
        elements: n, of the whole tensor.
        density: from 0 to 1.
        gamma: from 0 to 1.
    """
    kept = kept_elements(elements, density)
    outliers = min(int(gamma * elements), elements - kept)
    return outliers, outliers + kept


def _measure(inputs: MergeInputs) -> list[tuple[Cut, Cut]]:
    bands = [band_ranks(inputs.elements, density, inputs.options["gamma"]) for density in inputs.densities]
    ranks = [(index, rank) for index, both in enumerate(bands) for rank in both if 0 < rank < inputs.elements]
    cuts = dict(zip(ranks, cuts_at(inputs, ranks), strict=True))
    nothing, everything = Cut(math.inf), Cut(0.0)
    return [
        (cuts.get((index, outliers), nothing), cuts.get((index, rest), everything if rest else nothing))
        for index, (outliers, rest) in enumerate(bands)
    ]


def _thin(inputs: MergeInputs, index: int, delta: torch.Tensor, first: int, cuts: Any) -> torch.Tensor:
    outliers, kept = cuts
    return band(delta, outliers, kept, first)


_MASKING = Thinning(_thin, _measure, options={"gamma": GAMMA})
_SOURCE = "arXiv 2312.06795, section 3"

BREADCRUMBS = arithmetic_method("breadcrumbs", _SOURCE, _MASKING, elects=False)
BREADCRUMBS_TIES = arithmetic_method(
    "breadcrumbs_ties", f"{_SOURCE}; arXiv 2306.01708, section 4", _MASKING, elects=True
)
