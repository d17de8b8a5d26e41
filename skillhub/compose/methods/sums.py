"""Sums over whole tensors in fp64 that have the same bits for every number of threads: only elementwise additions, in a fixed order."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def folded_sum(values: torch.Tensor, dim: int = 0) -> torch.Tensor:
    """Return the sum along a dimension, by adding the second half to the first until one is left.

    Args:
        values: fp64, of at least one dimension; not modified.
        dim: which dimension goes away.

    Returns:
        fp64; zeros where the dimension is empty.
    """
    count = values.shape[dim]
    if count == 0:
        return values.sum(dim)
    while count > 1:
        half = count // 2
        folded = values.narrow(dim, 0, half) + values.narrow(dim, half, half)
        if count % 2:
            folded.narrow(dim, 0, 1).add_(values.narrow(dim, count - 1, 1))
        values, count = folded, half
    return values.select(dim, 0)


def total_magnitude(tensor: torch.Tensor) -> float:
    """Return the sum of the magnitudes of a tensor."""
    return float(folded_sum(tensor.abs().double().flatten()))


def total_square(tensor: torch.Tensor) -> float:
    """Return the sum of the squares of a tensor."""
    return float(folded_sum(tensor.double().square_().flatten()))


def inner_products(tensors: Sequence[torch.Tensor], dim: int | None = None) -> list[list[torch.Tensor]]:
    """Return the inner products of all pairs (their Gram matrix).

    Args:
        tensors: fp32, of one shape.
        dim: the dimension that the vectors lie along; None where each tensor is one vector.

    Returns:
        Symmetric, fp64: 0-dimensional, or of the tensors' shape without ``dim``. Products of fp32 numbers are exact in fp64.
    """
    wide = [tensor.double() if dim is not None else tensor.double().flatten() for tensor in tensors]
    products: list[list[torch.Tensor]] = [[] for _ in wide]
    for row, one in enumerate(wide):
        for column, other in enumerate(wide[: row + 1]):
            product = folded_sum(one * other, dim or 0)
            products[row].append(product)
            if column < row:
                products[column].append(product)
    return products
