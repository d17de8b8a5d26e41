"""Reading an encoded delta a few rows at a time: the bits that decoding all of it gives, without memory for all of it.

Codes are unpacked once a tensor. Rows of low-rank components are then multiplied out as they are asked for: every sum is over small
integers and exact (:mod:`skillhub.codecs.lowrank`), so it does not matter which rows are multiplied together. Packs are multiplied one
by one all the same: their scales have no power of two in common, so a product of several packs' factors would not be exact, and
would not save a multiplication either.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch

from skillhub.codecs import EncodedTensor, decode, lowrank, rows
from skillhub.codecs.encoding import count_elements
from skillhub.tensorreaders import MemoryReader, Shape, TensorReader, row_shape

Layer: TypeAlias = Callable[[torch.Tensor, int, int], torch.Tensor]
"""(rows that the layers before it gave, first row, row after the last) → the rows with this layer; may change its input."""


@dataclass(frozen=True, eq=False)
class LayeredReader:
    """Reads a low-rank part, with what is stored on top of it.

    Attributes:
        shape: of the tensor.
        factors: of the low-rank part.
        layers: applied to its rows, in order.
    """

    shape: Shape
    factors: lowrank.Factors
    layers: tuple[Layer, ...]

    def read(self, begin: int, end: int) -> torch.Tensor:
        """Return some rows, in memory of their own."""
        end = min(end, self.shape[0])
        values = torch.from_numpy(self.factors.multiply(slice(begin, end))).reshape(end - begin, *self.shape[1:])
        for layer in self.layers:
            values = layer(values, begin, end)
        return values


def reader_of(encoded: EncodedTensor) -> TensorReader:
    """Return a reader of an encoded delta.

    Raises:
        NewerSchemaError, IntegrityError: as :func:`skillhub.codecs.decode`.
    """
    first, *others = encoded.parts or (None,)
    known = first is not None and first.codec == lowrank.ID and len(encoded.shape) >= 2
    if first is None or not known or any(part.codec != rows.ID for part in others):
        return MemoryReader(decode(encoded))
    count_elements(encoded.shape)
    components = lowrank.read_components(first, *lowrank.matrix_shape(encoded.shape))
    layers = tuple(_replacing(*rows.read_rows(part, encoded.shape)) for part in others)
    return LayeredReader(row_shape(encoded.shape), lowrank.factors_of(components), layers)


def _replacing(indices: torch.Tensor, values: torch.Tensor) -> Layer:
    """Return the layer that puts exact rows in the place of others."""

    def replace(there: torch.Tensor, begin: int, end: int) -> torch.Tensor:
        first, last = torch.searchsorted(indices, torch.tensor([begin, end])).tolist()
        there[indices[first:last] - begin] = values[first:last]
        return there

    return replace
