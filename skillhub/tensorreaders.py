"""Reading a tensor a few rows at a time, so that merging needs memory for a chunk and not for whole tensors.

A *row* is everything under one index of the first dimension; a tensor without dimensions is read as one row of one element.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeAlias

import numpy as np
import torch

from skillhub.checkpoints import DTYPES
from skillhub.errors import IntegrityError, UsageError
from skillhub.tensorfiles import BITS, TensorInfo

Shape: TypeAlias = tuple[int, ...]


class TensorReader(Protocol):
    """A tensor that is read by rows."""

    @property
    def shape(self) -> Shape:
        """Its shape, of at least one dimension."""

    def read(self, begin: int, end: int) -> torch.Tensor:
        """Return the rows ``begin`` to ``end``, contiguous, in fp32 (fp64 for tensors that are stored in it).

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
class FileReader:
    """Reads a tensor of a safetensors file, into memory of its own: pages of a mapped file would stay and count.

    Attributes:
        info: where it lies.
        device: where rows are moved to, as they are stored, and widened there; None for the CPU.
    """

    info: TensorInfo
    device: torch.device | None = None

    @property
    def shape(self) -> Shape:
        """Its shape, of at least one dimension."""
        return row_shape(self.info.shape)

    def read(self, begin: int, end: int) -> torch.Tensor:
        """Return some rows.

        Raises:
            IntegrityError: the file has become shorter.
        """
        stored = self.read_stored(begin, end)
        return widened(stored if self.device is None else stored.to(self.device))

    def read_stored(self, begin: int, end: int) -> torch.Tensor:
        """Return some rows on the CPU, in the dtype that they are stored in; errors as for :meth:`read`."""
        end = min(end, self.shape[0])
        shape = (max(0, end - begin), *self.shape[1:])
        if not math.prod(shape):  # torch takes no bytes for no values of another dtype
            return torch.empty(shape, dtype=DTYPES[self.info.dtype])
        row = math.prod(self.shape[1:]) * BITS[self.info.dtype] // 8
        data = np.fromfile(self.info.file, np.uint8, count=(end - begin) * row, offset=self.info.begin + begin * row)
        if data.size != (end - begin) * row:
            raise IntegrityError(
                f"{self.info.file} ends inside {self.info.name}.", hint="Fetch or save the file again."
            )
        return torch.from_numpy(data).view(DTYPES[self.info.dtype]).reshape(shape)


@dataclass(frozen=True, eq=False)
class RememberingReader:
    """Keeps the rows that were read last: a base is read once a chunk, however many differences to it are wanted."""

    reader: TensorReader
    _last: list[tuple[int, int, torch.Tensor]] = field(default_factory=list)

    @property
    def shape(self) -> Shape:
        """The other reader's shape."""
        return self.reader.shape

    def read(self, begin: int, end: int) -> torch.Tensor:
        """Return some rows."""
        for first, last, tensor in self._last:
            if (first, last) == (begin, end):
                return tensor
        tensor = self.reader.read(begin, end)
        self._last[:] = [(begin, end, tensor)]
        return tensor


@dataclass(frozen=True, eq=False)
class KeepingReader:
    """Keeps all rows that were read, for what is read more than once and is not too large to be kept."""

    reader: TensorReader
    _kept: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)

    @property
    def shape(self) -> Shape:
        """The other reader's shape."""
        return self.reader.shape

    def read(self, begin: int, end: int) -> torch.Tensor:
        """Return some rows."""
        if (begin, end) not in self._kept:
            self._kept[begin, end] = self.reader.read(begin, end)
        return self._kept[begin, end]


@dataclass(frozen=True, eq=False)
class DifferenceReader:
    """Reads tuned − base, both widened before they are subtracted; rows that only one has are taken against zero.

    Elements whose bits are the same in both differ by zero, whatever they are: infinities and NaN too. Others have no difference
    that could be merged, which is an error.
    """

    tuned: TensorReader
    base: TensorReader

    @property
    def shape(self) -> Shape:
        """The tuned tensor's shape."""
        return self.tuned.shape

    def read(self, begin: int, end: int) -> torch.Tensor:
        """Return some rows in fp32, in memory of their own.

        Raises:
            UsageError: a value of one of them, and not of the other, is infinite or no number.
        """
        there = self.base.shape[0]
        tuned, base = self.tuned.read(begin, end), self.base.read(min(begin, there), min(end, there))
        if not isinstance(self.tuned, FileReader):  # what it read may not be its own
            tuned = tuned.clone()
        if base.dtype == torch.float64:
            tuned = tuned.to(torch.float64)
        shared = tuned[: len(base)]
        shared.sub_(base)
        flat = shared.flatten()
        if not math.isfinite(float(torch.dot(flat, flat))):  # the cheapest look at all of it; rarely so
            before = self.tuned.read(begin, begin + len(base))
            shared.masked_fill_(before.eq(base) | (before.isnan() & base.isnan()), 0.0)
            if not bool(shared.isfinite().all()):
                raise _no_difference(self.tuned)
        return tuned.to(torch.float32)


@dataclass(frozen=True, eq=False)
class SumReader:
    """Reads base + delta in fp32 (fp64 where the base is); rows that only the delta has are added to zeros."""

    base: TensorReader
    delta: TensorReader

    @property
    def shape(self) -> Shape:
        """The delta's shape."""
        return self.delta.shape

    def read(self, begin: int, end: int) -> torch.Tensor:
        """Return some rows, in memory of their own."""
        base = resized(self.base, self.shape[0]).read(begin, end)
        return base + self.delta.read(begin, end)


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


@dataclass(frozen=True, eq=False)
class FactorReader:
    """Reads the product of two factors: ``leftᵀ @ right``, in fp32; its bits depend on which rows are asked for together.

    Attributes:
        left: (rank, rows) fp32.
        right: (rank, columns) fp32.
    """

    left: torch.Tensor
    right: torch.Tensor

    @property
    def shape(self) -> Shape:
        """Rows and columns."""
        return self.left.shape[1], self.right.shape[1]

    def read(self, begin: int, end: int) -> torch.Tensor:
        """Return some rows. In numpy, because torch's matrix product depends on autocast and the process's matmul precision."""
        with np.errstate(all="ignore"):  # what is too large is told by whoever adds it up
            return torch.from_numpy(self.left[:, begin:end].numpy().T @ self.right.numpy())


@dataclass(frozen=True, eq=False)
class MovedReader:
    """Reads what another reader does and moves it to a device.

    Attributes:
        reader: the other reader, which is asked for ``rows`` rows at a time: a product of factors then has the bits that it has when
            the CPU merges it.
        device: where to.
        rows: rows at a time.
    """

    reader: TensorReader
    device: torch.device
    rows: int

    @property
    def shape(self) -> Shape:
        """The other reader's shape."""
        return self.reader.shape

    def read(self, begin: int, end: int) -> torch.Tensor:
        """Return some rows, on the device."""
        end = min(end, self.shape[0])
        begins = range(begin, max(end, begin + 1), self.rows)
        parts = [self.reader.read(first, min(first + self.rows, end)).to(self.device) for first in begins]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


@dataclass(frozen=True)
class ZeroReader:
    """Reads zeros."""

    shape: Shape

    def read(self, begin: int, end: int) -> torch.Tensor:
        """Return some rows."""
        return torch.zeros(min(end, self.shape[0]) - begin, *self.shape[1:])


def moved(readers: Sequence[TensorReader], device: torch.device, rows: int) -> list[TensorReader]:
    """Return readers of the same tensors whose rows lie on a device; what several of them read from is read and moved once.

    Args:
        readers: the readers.
        device: where to.
        rows: how many rows what cannot read onto the device itself is asked for at a time.
    """
    known: dict[int, TensorReader] = {}

    def move(reader: TensorReader) -> TensorReader:
        if id(reader) not in known:
            known[id(reader)] = make(reader)
        return known[id(reader)]

    def make(reader: TensorReader) -> TensorReader:
        if isinstance(reader, FileReader):
            return replace(reader, device=device)
        if isinstance(reader, DifferenceReader):
            return DifferenceReader(move(reader.tuned), move(reader.base))
        if isinstance(reader, RememberingReader):
            return RememberingReader(move(reader.reader))
        if isinstance(reader, ResizedReader):
            return replace(reader, reader=move(reader.reader))
        return MovedReader(reader, device, rows)

    return [move(reader) for reader in readers]


def resized(reader: TensorReader, rows: int) -> TensorReader:
    """Return a reader of ``rows`` rows; the reader itself where it has as many."""
    return reader if reader.shape[0] == rows else ResizedReader(reader, rows)


def _no_difference(tuned: TensorReader) -> UsageError:
    info = tuned.info if isinstance(tuned, FileReader) else None
    what = f"{info.name} in {info.file}" if info else "A tensor of a fine-tune"
    return UsageError(
        f"{what} cannot be compared with the base's: somewhere only one of them is infinite or no number.",
        hint="Leave that fine-tune out: it may have diverged in training.",
        tensor=info.name if info else None,
    )


def row_shape(shape: Shape) -> Shape:
    """Return a shape of at least one dimension."""
    return shape or (1,)


def widened(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in fp32; one in fp64 as it is."""
    return tensor if tensor.dtype == torch.float64 else tensor.to(torch.float32)
