"""Reading an encoded delta a few rows at a time: the bits that decoding all of it gives, without memory for all of it.

Codes are unpacked once a tensor, and each part of it becomes a layer that gives the rows that are asked for. Rows of low-rank components are
multiplied out then: every sum is over small integers and exact (:mod:`skillhub.codecs.lowrank`), so it does not matter which rows are
multiplied together. Packs are multiplied one by one all the same: their scales have no power of two in common, so a
product of several packs' factors would not be exact, and would not save a multiplication either.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from skillhub.codecs import EncodedPart, EncodedTensor, decode, lowrank, residual, rows, sign, sparse
from skillhub.codecs.encoding import count_elements, damaged
from skillhub.tensorreaders import MemoryReader, Shape, TensorReader, row_shape

Layer: TypeAlias = Callable[[torch.Tensor | None, int, int], torch.Tensor]
"""(rows that the layers before it gave, or None; first row, row after the last) → the rows with this layer; may change its input."""


@dataclass(frozen=True, eq=False)
class LayeredReader:
    """Reads a tensor whose parts can each be decoded by rows.

    Attributes:
        shape: of the tensor.
        layers: one a part, applied in order; at least one.
    """

    shape: Shape
    layers: tuple[Layer, ...]

    def read(self, begin: int, end: int) -> torch.Tensor:
        """Return some rows, in memory of their own."""
        end = min(end, self.shape[0])
        values: torch.Tensor | None = None
        for layer in self.layers:
            values = layer(values, begin, end)
        assert values is not None
        return values


def reader_of(encoded: EncodedTensor) -> TensorReader:
    """Return a reader of an encoded delta.

    Raises:
        NewerSchemaError, IntegrityError: as :func:`skillhub.codecs.decode`.
    """
    if not encoded.shape or not encoded.parts or any(part.codec not in _LAYERS for part in encoded.parts):
        return MemoryReader(decode(encoded))
    count_elements(encoded.shape)
    layers = tuple(_LAYERS[part.codec](part, encoded.shape) for part in encoded.parts)
    return LayeredReader(row_shape(encoded.shape), layers)


def _adding(expand: Callable[[slice], npt.NDArray[np.float32]], shape: Shape) -> Layer:
    """Return the layer that adds rows which ``expand`` computes."""

    def add(there: torch.Tensor | None, begin: int, end: int) -> torch.Tensor:
        values = torch.from_numpy(expand(slice(begin, end))).reshape(end - begin, *shape[1:])
        return values if there is None else there.add_(values)

    return add


def _low_rank_layer(part: EncodedPart, shape: Shape) -> Layer:
    if len(shape) < 2:
        raise damaged("has low-rank components but is no matrix")
    components = lowrank.read_components(part, *lowrank.matrix_shape(shape))
    return _adding(lowrank.factors_of(components).multiply, shape)


def _residual_layer(part: EncodedPart, shape: Shape) -> Layer:
    return _adding(residual.read_residual(part, shape).expand, shape)


def _sign_layer(part: EncodedPart, shape: Shape) -> Layer:
    return _adding(sign.read_signs(part, shape).expand, shape)


def _rows_layer(part: EncodedPart, shape: Shape) -> Layer:
    """Return the layer that puts exact rows in the place of others."""
    indices, values = rows.read_rows(part, shape)

    def replace(there: torch.Tensor | None, begin: int, end: int) -> torch.Tensor:
        there = _zeros(begin, end, shape) if there is None else there
        first, last = torch.searchsorted(indices, torch.tensor([begin, end])).tolist()
        there[indices[first:last] - begin] = values[first:last]
        return there

    return replace


def _sparse_layer(part: EncodedPart, shape: Shape) -> Layer:
    """Return the layer that adds to few weights."""
    indices, values = sparse.read_changes(part, shape)
    width = count_elements(shape[1:])

    def scatter(there: torch.Tensor | None, begin: int, end: int) -> torch.Tensor:
        first, last = torch.searchsorted(indices, torch.tensor([begin * width, end * width])).tolist()
        chosen = indices[first:last] - begin * width
        return sparse.apply_changes(there, (end - begin, *shape[1:]), chosen, values[first:last])

    return scatter


def _zeros(begin: int, end: int, shape: Shape) -> torch.Tensor:
    return torch.zeros(end - begin, *shape[1:], dtype=torch.float32, device="cpu")


_LAYERS: dict[str, Callable[[EncodedPart, Shape], Layer]] = {
    lowrank.ID: _low_rank_layer,
    residual.ID: _residual_layer,
    rows.ID: _rows_layer,
    sign.ID: _sign_layer,
    sparse.ID: _sparse_layer,
}
"""Codec → what makes a layer of a part of it; tensors with any other part are decoded whole."""
