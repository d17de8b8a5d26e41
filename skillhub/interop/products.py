"""A delta as a product of two factors, which is what adapters hold: exactly where a pack stores components, else nearly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from skillhub.codecs import EncodedTensor, factors, lowrank, rows, zero
from skillhub.codecs.encoding import EncodedPart
from skillhub.codecs.factorization import factorize
from skillhub.codecs.lowrank import Components, matrix_shape


@dataclass(frozen=True, eq=False)
class Product:
    """A matrix as the product of two factors.

    Attributes:
        left: fp32, rows × rank.
        right: fp32, rank × columns.
    """

    left: torch.Tensor
    right: torch.Tensor

    @property
    def rank(self) -> int:
        """How many columns of ``left`` and rows of ``right`` there are."""
        return len(self.right)

    def multiply(self) -> torch.Tensor:
        """Return the matrix, in fp32."""
        return self.left @ self.right


def product_rank(encoded: EncodedTensor) -> int | None:
    """Return the rank of :func:`product_of`, from the configs alone; None where there is no such product."""
    if len(encoded.shape) != 2 or encoded.operation != "add":
        return None
    if not all(part.codec in (zero.ID, lowrank.ID, factors.ID, rows.ID) for part in encoded.parts):
        return None
    counts = (part.config.get("rows" if part.codec == rows.ID else "rank", 0) for part in encoded.parts)
    return sum(int(count) for count in counts)


def product_of(encoded: EncodedTensor) -> Product | None:
    """Return the factors of a matrix that a pack stores as components, or None where it stores it otherwise.

    Multiplied they give what decoding gives, but for the rounding of fp32. An adapter's factors are given as they are stored, with the
    scale in the left one. Rows that are stored exactly become components of their own: a unit vector by the row.

    Raises:
        IntegrityError: a part is damaged.
    """
    if product_rank(encoded) is None:
        return None
    height, width = encoded.shape
    left, right = [torch.zeros(height, 0)], [torch.zeros(0, width)]
    for part in encoded.parts:
        if part.codec == lowrank.ID:
            one = _multiplied_out(lowrank.read_components(part, *matrix_shape(encoded.shape)))
        elif part.codec == factors.ID:
            widened = factors.read_factors(part, encoded.shape).widened()
            one = Product(widened[0].T, widened[1])
        elif part.codec == rows.ID:
            one, replaced = _rows(part, encoded.shape)
            for factor in left:
                factor[replaced] = 0
        else:
            continue
        left.append(one.left)
        right.append(one.right)
    return Product(torch.cat(left, dim=1), torch.cat(right))


def nearest_product(name: str, matrix: torch.Tensor, rank: int) -> Product:
    """Return the product of a rank that is nearest to a matrix in the sum of squares, by its singular values.

    Args:
        name: the tensor's name; seeds the randomized algorithm that large matrices take.
        matrix: fp32, rows × columns.
        rank: how many components; where the matrix has fewer, the others are zero.
    """
    left, right = torch.zeros(matrix.shape[0], rank), torch.zeros(rank, matrix.shape[1])
    if matrix.any():
        found = factorize(name, matrix, rank)
        count, roots = len(found.values), torch.from_numpy(np.sqrt(found.values).astype(np.float32))
        left[:, :count] = torch.from_numpy(found.left).T * roots
        right[:count] = torch.from_numpy(found.right) * roots[:, None]
    return Product(left, right)


def balanced(left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Move powers of two between factors until both are of about the same size: no bit changes, and float16 holds them.

    Args:
        left: (rank, rows) fp32.
        right: (rank, columns) fp32.
    """
    sizes = [side.abs().amax(dim=1, keepdim=True).clamp_(min=2.0**-100) for side in (left, right)]
    power = torch.exp2(((sizes[0].log2() - sizes[1].log2()) / 2).round())
    return left / power, right * power


def _multiplied_out(components: Components) -> Product:
    """Return integer components as factors of about the same size, so that none leaves the range of narrower dtypes."""
    exponents = np.concatenate([np.full(count, exponent) for count, exponent in components.groups])
    lengths = [
        np.maximum(np.linalg.norm(codes.astype(np.float64), axis=1), 1) for codes in (components.left, components.right)
    ]
    sizes = np.log2(components.scales) + exponents
    shift = np.rint((sizes + np.log2(lengths[0]) - np.log2(lengths[1])) / 2).astype(np.int64)  # of the right factor
    left = components.left.astype(np.float64) * (components.scales * 2.0 ** (exponents - shift))[:, None]
    right = components.right.astype(np.float64) * (2.0**shift)[:, None]
    if components.lines is not None:
        left *= np.exp2(components.lines.rows, dtype=np.float64)
        right *= np.exp2(components.lines.columns, dtype=np.float64)
    return Product(torch.from_numpy(left.T.astype(np.float32)), torch.from_numpy(right.astype(np.float32)))


def _rows(part: EncodedPart, shape: tuple[int, ...]) -> tuple[Product, torch.Tensor]:
    """Return rows that are stored exactly as a product, and their numbers."""
    replaced, values = rows.read_rows(part, shape)
    left = torch.zeros(shape[0], len(replaced))
    left[replaced, torch.arange(len(replaced))] = 1
    return Product(left, values), replaced
