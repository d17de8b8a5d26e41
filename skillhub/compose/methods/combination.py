"""Results that lie in the span of what is merged: the base times one number plus each delta times another.

What these numbers are depends on lengths and angles only, that is on the inner products of the base and the deltas. So one pass
measures these, and the numbers are worked out in fp64. Models are written over the base and the deltas as well: tuned models of one base are
so close to each other that their own inner products would hide how they differ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from skillhub.compose.methods.interface import Chunk, MergeInputs
from skillhub.compose.methods.sums import inner_products

Vector = list[float]
"""A tensor as a combination: the factor of the base, then of each delta."""

Products = list[list[float]]
"""Inner products of the base and the deltas, in this order."""


def measure_products(inputs: MergeInputs) -> Products:
    """Return the inner products of the base (zeros where there is none) and all deltas of a tensor."""
    count = len(inputs.deltas) + 1
    total = [[0.0] * count for _ in range(count)]
    for chunk in inputs.chunks():
        for row, products in zip(total, inner_products(operands(chunk)), strict=True):
            for column, product in enumerate(products):
                row[column] += float(product)
    return total


def operands(chunk: Chunk) -> list[torch.Tensor]:
    """Return the base's rows (zeros where there is none) and the deltas'."""
    base = torch.zeros_like(chunk.deltas[0]) if chunk.base is None else chunk.base
    return [base, *chunk.deltas]


def member(index: int, count: int, *, model: bool) -> Vector:
    """Return one of ``count`` deltas, or the tuned model that it makes of the base."""
    return [1.0 if model else 0.0, *(float(place == index) for place in range(count))]


def combined(vectors: Sequence[Vector], factors: Sequence[float]) -> Vector:
    """Return a sum of vectors, each times its factor."""
    return [math.fsum(f * v for f, v in zip(factors, column, strict=True)) for column in zip(*vectors, strict=True)]


def inner(one: Vector, other: Vector, products: Products) -> float:
    """Return the inner product of two vectors."""
    rows = (
        a * b * product for a, row in zip(one, products, strict=True) for b, product in zip(other, row, strict=True)
    )
    return math.fsum(rows)


def norm(vector: Vector, products: Products) -> float:
    """Return the length of a vector."""
    return math.sqrt(max(0.0, inner(vector, vector, products)))


def applied(chunk: Chunk, result: Vector, *, model: bool) -> torch.Tensor:
    """Return the delta's rows of a result.

    Args:
        chunk: the rows.
        result: as a combination.
        model: whether the result is the tensor itself; the base is then taken off.
    """
    factors = [result[0] - 1.0 if model else result[0], *result[1:]]
    total: torch.Tensor | None = None
    for operand, factor in zip(operands(chunk), factors, strict=True):
        if factor == 0:
            continue
        total = operand * factor if total is None else total.add_(operand * factor)
    return torch.zeros_like(chunk.deltas[0]) if total is None else total
