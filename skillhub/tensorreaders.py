"""Reading a tensor a few rows at a time, so that merging needs memory for a chunk and not for whole tensors.

A *row* is everything under one index of the first dimension; a tensor without dimensions is read as one row of one element.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch

Shape: TypeAlias = tuple[int, ...]


class TensorReader(Protocol):
    """A tensor that is read by rows."""

    @property
    def shape(self) -> Shape:
        """Its shape, of at least one dimension."""

    def read(self, begin: int, end: int) -> torch.Tensor:
        """Return the rows ``begin`` to ``end`` on the CPU, contiguous, in fp32 (fp64 for tensors that are stored in it).

        The result may share memory with the source: it is not to be changed.
        """


@dataclass(frozen=True, eq=False)
class MemoryReader:
    """Reads a tensor that is in memory."""

    tensor: torch.Tensor

    @property
    def shape(self) -> Shape:
        """Its shape, of at least one dimension."""
        return row_shape(tuple(self.tensor.shape))

    def read(self, begin: int, end: int) -> torch.Tensor:
        """Return some rows."""
        return widened(self.tensor.reshape(self.shape)[begin:end].contiguous())


@dataclass(frozen=True, eq=False)
class ResizedReader:
    """Reads a tensor as if it had more rows, which are zeros, or fewer."""

    reader: TensorReader
    rows: int

    @property
    def shape(self) -> Shape:
        """The shape with that many rows."""
        return self.rows, *self.reader.shape[1:]

    def read(self, begin: int, end: int) -> torch.Tensor:
        """Return some rows."""
        end = min(end, self.rows)
        there = min(self.reader.shape[0], end)
        present = self.reader.read(min(begin, there), there)
        missing = end - max(begin, there)
        if missing <= 0:
            return present
        return torch.cat([present, present.new_zeros(missing, *self.reader.shape[1:])])


@dataclass(frozen=True)
class ZeroReader:
    """Reads zeros."""

    shape: Shape

    def read(self, begin: int, end: int) -> torch.Tensor:
        """Return some rows."""
        return torch.zeros(min(end, self.shape[0]) - begin, *self.shape[1:])


def resized(reader: TensorReader, rows: int) -> TensorReader:
    """Return a reader of ``rows`` rows; the reader itself where it has as many."""
    return reader if reader.shape[0] == rows else ResizedReader(reader, rows)


def row_shape(shape: Shape) -> Shape:
    """Return a shape of at least one dimension."""
    return shape or (1,)


def widened(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in fp32; one in fp64 as it is."""
    return tensor if tensor.dtype == torch.float64 else tensor.to(torch.float32)
