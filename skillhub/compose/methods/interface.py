"""What a merge method is: how it sees one tensor, and the row of the table that describes it to users.

A method may look at a tensor twice. *Measuring* reads all of it, a chunk at a time, and returns what has to be known of the whole
(a threshold, inner products); *merging* then turns one chunk after another into its part of the result. So a method never needs
memory for a whole tensor. Chunks are cut by a tensor's shape alone (on accelerators, larger ones), hence sums over chunks do not
depend on who asks for them.

A *row* is everything under one index of the first dimension, and a chunk holds whole rows; a vector is one row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from skillhub.errors import UsageError
from skillhub.tensorreaders import Shape, TensorReader

CHUNK = 1 << 17
"""Elements of a chunk (of one row, where a row is longer): what merging needs of it stays in the processor's cache."""

ACCELERATOR_CHUNK = 1 << 22
"""The same on an accelerator, where each operation costs more to start than so many elements cost to compute."""

_SAMPLED = 1 << 20
"""A tensor of at least so many elements is worth a look at a few of them first."""

_SAMPLE, _SAMPLE_PLACES = 1 << 17, 64

Options = Mapping[str, float]
"""What a method can be told beyond weights and densities, for one tensor; a switch is 0 or 1."""


@dataclass(frozen=True, eq=False)
class Chunk:
    """Some rows of one tensor: of the base and of every delta.

    Attributes:
        base: fp32; None where the base has no such tensor. Not to be changed, nor are the deltas.
        deltas: at least one, fp32, all of the base's shape (rows, …).
        first: index, in the whole tensor (row-major), of the chunk's first element.
    """

    base: torch.Tensor | None
    deltas: tuple[torch.Tensor, ...]
    first: int

    @property
    def models(self) -> list[torch.Tensor]:
        """The tuned tensors' rows: base + delta, each; the deltas where there is no base."""
        return list(self.deltas) if self.base is None else [self.base + delta for delta in self.deltas]


@dataclass(frozen=True, eq=False)
class MergeInputs:
    """One tensor of the base and of all packs that change it, as a merge method sees it.

    Attributes:
        name: canonical name.
        base: reads the base's tensor; None where it has none.
        deltas: read the packs' deltas, of one shape.
        weights: one per delta.
        densities: one per delta, over 0 and at most 1.
        options: of the method, all that it has.
        keys: one 64-bit key per delta, for :func:`skillhub.rounding.random_words`: random masks depend on the pack, the tensor's name, the
            element's index and the user's seed alone. Without keys a delta's place among the deltas is its key.
        device: the accelerator that rows are read onto; None for the CPU.
    """

    name: str
    base: TensorReader | None
    deltas: Sequence[TensorReader]
    weights: Sequence[float]
    densities: Sequence[float]
    options: Options = field(default_factory=dict)
    keys: Sequence[int] = ()
    device: torch.device | None = None

    @property
    def shape(self) -> Shape:
        """The deltas' shape."""
        return self.deltas[0].shape

    @property
    def elements(self) -> int:
        """How many elements the tensor has."""
        return math.prod(self.shape)

    def key(self, index: int) -> int:
        """Return the key of one delta."""
        return self.keys[index] if self.keys else index

    def spans(self) -> Iterator[tuple[int, int]]:
        """Yield the first index, along the first dimension, of each chunk and the index after its last; none without elements."""
        rows = self.shape[0]
        if self.elements == 0:
            return
        step = chunk_rows(self.shape, CHUNK if self.device is None else ACCELERATOR_CHUNK)
        for begin in range(0, rows, step):
            yield begin, min(begin + step, rows)

    def sample_spans(self) -> Iterator[tuple[int, int]]:
        """Yield spans that are spread over a large tensor, of some hundred thousand elements together; none for a small one.

        None on an accelerator either, where another look at everything takes less time than many small ones.
        """
        rows, row = self.shape[0], math.prod(self.shape[1:])
        if self.elements < _SAMPLED or len(self.shape) < 2 or self.device is not None:
            return
        places = max(1, min(_SAMPLE_PLACES, rows, _SAMPLE // row))
        step = max(1, _SAMPLE // row // places)
        for place in range(places):
            begin = (2 * place + 1) * rows // (2 * places)
            yield begin, min(begin + step, rows)

    def chunk(self, begin: int, end: int) -> Chunk:
        """Read some rows of everything."""
        base = None if self.base is None else self.base.read(begin, end).to(torch.float32)
        deltas = tuple(delta.read(begin, end).to(torch.float32) for delta in self.deltas)
        return Chunk(base, deltas, begin * math.prod(self.shape[1:]))

    def chunks(self, *, sample: bool = False) -> Iterator[Chunk]:
        """Read everything, a chunk at a time; with ``sample`` only :meth:`sample_spans`."""
        return (self.chunk(begin, end) for begin, end in (self.sample_spans() if sample else self.spans()))

    def delta_chunks(self, indices: Sequence[int], *, sample: bool = False) -> Iterator[list[torch.Tensor]]:
        """Read some of the deltas, a chunk at a time, fp32, without the base; with ``sample`` only :meth:`sample_spans`."""
        deltas = [self.deltas[index] for index in indices]
        for begin, end in self.sample_spans() if sample else self.spans():
            yield [delta.read(begin, end).to(torch.float32) for delta in deltas]


def chunk_rows(shape: Shape, elements: int) -> int:
    """Return how many rows of a tensor are about so many elements, at least one; a vector stays whole."""
    return max(1, elements // max(1, math.prod(shape[1:]))) if len(shape) > 1 else max(1, shape[0])


@dataclass(frozen=True)
class Option:
    """Something that a method can be told.

    Attributes:
        default: its value where the user says nothing.
        low: least value.
        high: largest value.
        help: what it does, in a line.
    """

    default: float
    low: float
    high: float
    help: str


@dataclass(frozen=True)
class MergeMethod:
    """One row of :data:`skillhub.compose.methods.METHODS`.

    Attributes:
        name: what users write.
        source: the paper and its section.
        merge: (inputs, chunk, what was measured) → the merged delta's rows, fp32.
        measure: inputs → what ``merge`` has to know of the whole tensor.
        counts_every_pack: whether a pack that leaves a tensor as it is takes part, with a delta of zeros.
        averages_packs: whether that is so where the option ``normalize`` is on: an average of models is over all of them.
        uses_weights: whether weights other than 1 mean anything to it.
        uses_density: whether densities other than 1 do.
        options: what else it can be told, by name.
        members: least and largest number of packs.
    """

    name: str
    source: str
    merge: Callable[[MergeInputs, Chunk, Any], torch.Tensor]
    measure: Callable[[MergeInputs], Any] | None = None
    counts_every_pack: bool = False
    averages_packs: bool = False
    uses_weights: bool = True
    uses_density: bool = False
    options: Mapping[str, Option] = field(default_factory=dict)
    members: tuple[int, int | None] = (1, None)

    def check_members(self, count: int) -> None:
        """Refuse a number of packs that the method does not take.

        Raises:
            UsageError: it takes fewer or more.
        """
        low, high = self.members
        if count < low or (high is not None and count > high):
            wanted = f"{low}" if low == high else f"at least {low}" if high is None else f"{low} to {high}"
            raise UsageError(
                f"The method {self.name!r} takes {wanted} pack{'s' if wanted != '1' else ''}, not {count}.",
                hint="Choose another method.",
            )

    def takes_untouched(self, options: Options) -> bool:
        """Whether packs that leave a tensor as it is take part in merging it, with deltas of zeros."""
        return self.counts_every_pack or (self.averages_packs and bool(options.get("normalize")))

    def begin(self, inputs: MergeInputs) -> Any:
        """Return what was measured of a tensor; None for methods that need not."""
        return self.measure(inputs) if self.measure else None
