"""Model Breadcrumbs: drop the largest elements of a delta as outliers, and the smallest as noise."""

from __future__ import annotations

import math
from typing import Any

import torch

from skillhub.compose.methods.arithmetic import Thinning, arithmetic_method
from skillhub.compose.methods.interface import MergeInputs, Option
from skillhub.compose.methods.ties import kept_elements, magnitudes_of_ranks, trim

GAMMA = Option(0.01, 0, 1, "share of elements, the largest, that are dropped; less where the density needs them")


def band(delta: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Return a delta with zeros for magnitudes below ``low`` or over ``high`` (Davari & Belilovsky, arXiv 2312.06795, section 3).

    Args:
        delta: fp32; not modified.
        low: least magnitude that stays, from :func:`band_ranks`.
        high: largest magnitude that stays.

    Returns:
        fp32, of the same shape; the delta itself where everything stays.
    """
    kept = trim(delta, low)
    return kept if high == math.inf else kept - torch.nn.functional.hardshrink(kept, high)


def band_ranks(elements: int, density: float, gamma: float) -> tuple[int, int]:
    """Return the ranks, from 1 for the largest magnitude, of the first and the last element that stays.

    ``int(gamma * n)`` of the largest go, and then all but ``max(1, int(density * n))``. Where so many are not left fewer of the
    largest go, as in mergekit.

    Args:
        elements: n, of the whole tensor.
        density: over 0 and at most 1.
        gamma: from 0 to 1.
    """
    kept = kept_elements(elements, density)
    dropped = min(int(gamma * elements), elements - kept)
    return dropped + 1, dropped + kept


def _measure(inputs: MergeInputs, index: int) -> tuple[float, float]:
    density = inputs.densities[index]
    if density >= 1 or density <= 0 or inputs.elements == 0:
        return (math.inf if density <= 0 else 0.0), math.inf
    largest, smallest = band_ranks(inputs.elements, density, inputs.options["gamma"])
    high, low = magnitudes_of_ranks(inputs, index, [largest, smallest])
    return low, high if largest > 1 else math.inf


def _thin(inputs: MergeInputs, index: int, delta: torch.Tensor, first: int, limits: Any) -> torch.Tensor:
    low, high = limits
    return band(delta, low, high)


_MASKING = Thinning(_thin, _measure, options={"gamma": GAMMA})
_SOURCE = "arXiv 2312.06795, section 3"

BREADCRUMBS = arithmetic_method("breadcrumbs", _SOURCE, _MASKING, elects=False)
BREADCRUMBS_TIES = arithmetic_method(
    "breadcrumbs_ties", f"{_SOURCE}; arXiv 2306.01708, section 4", _MASKING, elects=True
)
