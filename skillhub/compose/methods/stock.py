"""Model Stock: go from the base towards the packs' mean as far as the angles between the packs say."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch

from skillhub.compose.methods.interface import Chunk, MergeInputs, MergeMethod, Option
from skillhub.compose.methods.linear import linear
from skillhub.compose.methods.sums import folded_sum

FILTER_WISE = Option(0, 0, 1, "measure angles for each vector along the last dimension, not for the whole tensor")


def stock_ratio(products: Sequence[Sequence[torch.Tensor]]) -> torch.Tensor:
    """Return how far to go from the base to the mean of the tuned models (Jang et al., arXiv 2403.19522, section 4.2, equation 5).

    ``k · cos θ / (1 + (k − 1) · cos θ)`` for k models with the mean cosine θ between their deltas. Where deltas point away from
    each other on the whole the ratio is 0, the base: mergekit then goes the other way, without bound. mergekit also takes too small a
    cosine where deltas are small, since it holds the product of their norms at 1e-6 or more.

    Args:
        products: inner products of all pairs of deltas, fp64, of any shape.

    Returns:
        fp64, of that shape, from 0 to 1.
    """
    cosines = []
    for one, other in combinations(range(len(products)), 2):
        norms = (products[one][one] * products[other][other]).sqrt_()
        cosines.append(torch.where(norms > 0, products[one][other] / norms, 0.0))
    total = cosines[0]
    for cosine in cosines[1:]:
        total = total + cosine
    cosine = (total / len(cosines)).clamp_(0.0, 1.0)
    count = len(products)
    return count * cosine / (1 + (count - 1) * cosine)


def delta_products(deltas: Sequence[torch.Tensor], *, by_vector: bool) -> list[list[torch.Tensor]]:
    """Return the inner products of all pairs of deltas: of the whole, or for each vector along the last dimension (which stays, of size 1)."""
    wide = [delta.double() if by_vector else delta.double().reshape(1, -1) for delta in deltas]
    return [[folded_sum(one * other, -1).unsqueeze(-1) for other in wide] for one in wide]


def _measure(inputs: MergeInputs) -> Any:
    if inputs.options["filter_wise"]:
        return None
    total: list[list[torch.Tensor]] = []
    for chunk in inputs.chunks():
        part = delta_products(chunk.deltas, by_vector=False)
        total = (
            [[a + b for a, b in zip(*rows, strict=True)] for rows in zip(total, part, strict=True)] if total else part
        )
    return float(stock_ratio(total)) if total else 0.0


def _merge(inputs: MergeInputs, chunk: Chunk, ratio: float | None) -> torch.Tensor:
    mean = linear(chunk.deltas, [1 / len(chunk.deltas)] * len(chunk.deltas))
    if ratio is not None:
        return mean.mul_(ratio)
    return mean.mul_(stock_ratio(delta_products(chunk.deltas, by_vector=True)).to(torch.float32))


MODEL_STOCK = MergeMethod(
    "model_stock",
    "arXiv 2403.19522, section 4.2",
    _merge,
    _measure,
    counts_every_pack=True,
    uses_weights=False,
    options={"filter_wise": FILTER_WISE},
    members=(2, None),
)
