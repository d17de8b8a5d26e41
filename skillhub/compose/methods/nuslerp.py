"""NuSLERP: SLERP between two packs, of the whole tensor or vector by vector."""

from __future__ import annotations

import torch

from skillhub.compose.methods.combination import operands
from skillhub.compose.methods.interface import Chunk, MergeInputs, MergeMethod, Option
from skillhub.compose.methods.spherical import OF_MODELS
from skillhub.compose.methods.sums import folded_sum

PER_ROW = Option(0, 0, 1, "interpolate each vector along the last dimension by itself")
PER_COLUMN = Option(0, 0, 1, "interpolate each vector along the first dimension by itself")

_COLLINEAR = 1e-10

Products = list[torch.Tensor]
"""Inner products of two tensors with themselves and with each other: aa, ab, bb."""


def arc_factors(products: Products, t: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the factors of two vectors in the point at ``t`` of the way between them, along an arc.

    ``sin((1 − t) θ) / sin θ`` and ``sin(t θ) / sin θ`` (Shoemake, SIGGRAPH 1985, section 3.3); ``1 − t`` and ``t`` where the squared sine
    is below 1e-10 (mergekit: 1e-16, which in fp32 is rounding noise) or a vector is zero.

    Args:
        products: fp64, of any shape.
        t: 0 for the first vector, 1 for the second; other numbers go on along the circle.

    Returns:
        fp64, of that shape.
    """
    first, both, second = products
    lengths = (first * second).sqrt()
    cosine = torch.where(lengths > 0, both / lengths, 1.0).clamp_(-1.0, 1.0)
    straight = 1 - cosine.square() <= _COLLINEAR
    angle = torch.where(straight, 1.0, cosine.acos())
    sine = angle.sin()
    return (
        torch.where(straight, 1 - t, ((1 - t) * angle).sin() / sine),
        torch.where(straight, t, (t * angle).sin() / sine),
    )


def nuslerp(one: torch.Tensor, other: torch.Tensor, factors: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Return two tensors' interpolation along an arc (mergekit's ``nuslerp``; no paper).

    Args:
        one: fp32; not modified.
        other: likewise, of its shape.
        factors: from :func:`arc_factors`, of a shape that broadcasts.
    """
    return (one * factors[0].to(torch.float32)).add_(other * factors[1].to(torch.float32))


def place(weights: tuple[float, float]) -> float:
    """Return where between two packs their weights lie: the second's share; half way where they cancel."""
    total = weights[0] + weights[1]
    return weights[1] / total if abs(total) > 1e-6 else 0.5


def vector_products(one: torch.Tensor, other: torch.Tensor, dim: int) -> Products:
    """Return the inner products of the vectors along a dimension, which stays, of size 1."""
    first, second = one.double(), other.double()
    pairs = ((first, first), (first, second), (second, second))
    return [folded_sum(a * b, dim).unsqueeze(dim) for a, b in pairs]


def _pair(inputs: MergeInputs, chunk: Chunk) -> tuple[torch.Tensor, torch.Tensor]:
    base, one, other = operands(chunk)
    return (base + one, base + other) if inputs.options["models"] else (one, other)


def _measure(inputs: MergeInputs) -> tuple[torch.Tensor, torch.Tensor] | None:
    if inputs.options["per_row"] and not inputs.options["per_column"]:
        return None
    total: Products = []
    for chunk in inputs.chunks():
        one, other = _pair(inputs, chunk)
        if not inputs.options["per_column"]:
            one, other = one.reshape(-1, *([1] * (one.dim() - 1))), other.reshape(-1, *([1] * (one.dim() - 1)))
        part = vector_products(one, other, 0)
        total = [a + b for a, b in zip(total, part, strict=True)] if total else part
    return arc_factors(total, _place(inputs)) if total else None


def _merge(inputs: MergeInputs, chunk: Chunk, factors: tuple[torch.Tensor, torch.Tensor] | None) -> torch.Tensor:
    one, other = _pair(inputs, chunk)
    if factors is None:
        factors = arc_factors(vector_products(one, other, -1), _place(inputs))
    result = nuslerp(one, other, factors)
    return result.sub_(chunk.base) if inputs.options["models"] and chunk.base is not None else result


def _place(inputs: MergeInputs) -> float:
    return place((inputs.weights[0], inputs.weights[1]))


NUSLERP = MergeMethod(
    "nuslerp",
    "mergekit, without a paper; Shoemake, SIGGRAPH 1985, section 3.3",
    _merge,
    _measure,
    counts_every_pack=True,
    options={"models": OF_MODELS, "per_row": PER_ROW, "per_column": PER_COLUMN},
    members=(2, 2),
)
