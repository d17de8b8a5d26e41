"""What a fine-tuned tensor is expected to be, bit for bit, and how far it may be from that: the model behind the codec ``lossless``.

The expected tensor is the base, plus a delta where one was stored, rounded to the tuned tensor's format. Rows and columns have a scale each, in
quarters of an octave; their sum less the element's exponent says how many representable values it will be off by.
Only integers make contexts, so the decoder finds those of the encoder on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from skillhub.codecs.ans import CHUNK
from skillhub.codecs.streams import Bytes

Words = npt.NDArray[Any]
Levels = npt.NDArray[np.int16]

QUARTERS = 4
"""Levels to a factor of two."""

NEUTRAL = 128
"""Stored level of a column that moves as much as others."""

LEVELS = 64
"""Levels that contexts tell apart; those beyond count as the outermost."""


@dataclass(frozen=True)
class Contexts:
    """What a context is made of.

    Attributes:
        step: exponent of two of the levels that count as one.
        fractions: how many places between two representable values are told apart at which the expected one lay.
        exponents: how many exponents are told apart instead.
    """

    step: int
    fractions: int = 1
    exponents: int = 1

    @property
    def contexts(self) -> int:
        """Number of contexts."""
        return (LEVELS >> self.step) * self.fractions * self.exponents


MODELS = {
    "coarse": Contexts(2, fractions=2),
    "fraction": Contexts(1, fractions=4),
    "fine": Contexts(0, fractions=4),
    "exponent": Contexts(2, exponents=16),
}
"""Few contexts suit small tensors, whose symbols do not pay for many tables; exponents those of which few elements change."""

SIDE_SHARE = 16
"""Rows and columns have scales of their own where there are so many elements to each of them."""

SAMPLES, SAMPLE = 4, 1 << 18
"""Models are compared on so many runs of so many elements."""


@dataclass(frozen=True)
class Format:
    """A floating-point format.

    Attributes:
        bits: of an element.
        mantissa: bits of its mantissa.
        exponents: mask of its exponent, shifted down.
    """

    bits: int
    mantissa: int
    exponents: int

    @property
    def words(self) -> np.dtype[Any]:
        """Signed integers of its size."""
        return np.dtype(f"<i{self.bits // 8}")


FORMATS = {
    torch.bfloat16: Format(16, 7, 255),
    torch.float16: Format(16, 10, 31),
    torch.float32: Format(32, 23, 255),
}


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a tensor is expected to be, element by element.

    Attributes:
        form: the tensor's format.
        words: (elements,) signed integers: the bits of the expected values.
        beyond: (elements,) int16: how far the expected value lay beyond the rounded one, away from zero, in 65536ths of a step; None
            where nothing was rounded.
    """

    form: Format
    words: Words
    beyond: npt.NDArray[np.int16] | None


def predict(base: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype, delta: torch.Tensor | None) -> Prediction:
    """Return what a tensor of ``shape`` and ``dtype`` is expected to be.

    Args:
        base: its base's values; rows that the base lacks count as zero.
        shape: of the tensor: the base's, or with another number of rows.
        dtype: a key of :data:`FORMATS`.
        delta: fp32 of ``shape``, added to the base in fp32 and rounded once; None where the base itself is expected.
    """
    form, base = FORMATS[dtype], _with_rows(base.detach().cpu(), shape)
    if delta is None and base.dtype == dtype:
        return Prediction(form, bits_of(base), None)
    wide = base.to(torch.float32)
    if delta is not None:
        wide = wide + delta
    # Of NaN no bits are promised by casts and sums, nor are sums of infinities; as good as any guess is zero.
    if bool(wide.isnan().any()):
        wide = wide.masked_fill(wide.isnan(), 0.0)
    words, beyond = bits_of(wide.to(dtype)), None
    if form.bits == 16:
        low = bits_of(wide).view("<u4") << np.uint32(form.mantissa - 7)
        beyond = low.astype("<u2").view("<i2")
    return Prediction(form, words, beyond)


def bits_of(tensor: torch.Tensor) -> Words:
    """Return (elements,) the bits of a float tensor as signed integers."""
    size = tensor.dtype.itemsize
    if not tensor.numel():
        return np.empty(0, dtype=f"<i{size}")
    kind = torch.int16 if size == 2 else torch.int32
    words: Words = tensor.contiguous().reshape(-1).view(kind).numpy()
    return words


def values_of(words: Words, dtype: torch.dtype) -> torch.Tensor:
    """Return (elements,) the floats of ``dtype`` with these bits; the memory is shared."""
    return torch.from_numpy(words).view(dtype)


@dataclass(frozen=True, eq=False)
class Model:
    """How contexts are made.

    Attributes:
        kind: a key of :data:`MODELS`.
        rows: (rows,) bytes: level of each row above ``offset``.
        columns: (columns,) bytes: level of each column, :data:`NEUTRAL` for the mean.
        offset: the level from which on distances are told apart, for elements of exponent 0.
        exponent: the first exponent that is told apart.
    """

    kind: str
    rows: Bytes
    columns: Bytes
    offset: int
    exponent: int

    def contexts(self, prediction: Prediction, begin: int, end: int) -> Bytes:
        """Return the contexts of the elements ``begin`` to ``end``."""
        form = prediction.form
        exponents = (prediction.words[begin:end] >> form.mantissa).astype(np.int16)
        exponents &= np.int16(form.exponents)
        np.maximum(exponents, 1, out=exponents)
        levels = self._levels(begin, end)
        levels -= np.int16(QUARTERS) * exponents
        np.clip(levels, 0, LEVELS - 1, out=levels)
        kind = MODELS[self.kind]
        levels >>= kind.step
        if kind.exponents > 1:
            exponents -= np.int16(self.exponent)
            np.clip(exponents, 0, kind.exponents - 1, out=exponents)
            levels *= kind.exponents
            levels += exponents
        elif prediction.beyond is not None:
            levels *= kind.fractions
            levels += np.minimum(
                np.abs(prediction.beyond[begin:end] >> 2) // (8192 // kind.fractions), kind.fractions - 1
            )
        else:
            levels *= kind.fractions
        return levels.astype(np.uint8)

    def _levels(self, begin: int, end: int) -> Levels:
        """Return the levels of the elements ``begin`` to ``end`` as far as row and column say them."""
        width = self.columns.size
        first, last = begin // width, -(-end // width)
        rows = self.rows[first:last].astype(np.int16) + np.int16(self.offset)
        table = rows[:, None] + (self.columns.astype(np.int16) - NEUTRAL)
        return table.reshape(-1)[begin - first * width : end - first * width]


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return ``shape`` as rows × columns, cut where there are fewest of both; one row of one column where they would be too many."""
    cuts = [(math.prod(shape[:cut]), math.prod(shape[cut:])) for cut in range(len(shape) + 1)]
    rows, columns = min(cuts, key=sum)
    return (rows, columns) if 0 < (rows + columns) * SIDE_SHARE <= rows * columns else (1, max(1, rows * columns))


def has_scales(shape: tuple[int, ...]) -> bool:
    """Say whether rows and columns of a tensor of ``shape`` have scales."""
    return matrix_shape(shape)[0] > 1


def chunks(elements: int) -> Iterator[tuple[int, int]]:
    """Yield first element and element after the last of each run that is coded together."""
    return ((begin, min(begin + CHUNK, elements)) for begin in range(0, elements, CHUNK))


def fit_scales(prediction: Prediction, words: Words, dtype: torch.dtype, shape: tuple[int, ...]) -> Model:
    """Return the model of kind ``fraction`` for the tensor with the bits ``words``."""
    rows, columns = matrix_shape(shape)
    if not words.size:
        neutral = np.full(columns, NEUTRAL, dtype=np.uint8)
        return Model("fraction", np.zeros(rows, dtype=np.uint8), neutral, 0, 1)
    row_sums, column_sums = np.zeros(rows), np.zeros(columns)
    step = max(1, CHUNK // columns)
    for row in range(0, rows, step):
        there = slice(row * columns, min(row + step, rows) * columns)
        distance = values_of(words[there], dtype).float() - values_of(prediction.words[there], dtype).float()
        distance = distance.abs_().nan_to_num_(0.0, 0.0, 0.0).reshape(-1, columns)
        row_sums[row : row + step] = distance.sum(dim=1, dtype=torch.float64).numpy()
        column_sums += distance.sum(dim=0, dtype=torch.float64).numpy()
    row_levels, mean = _to_levels(row_sums / columns), _to_levels(row_sums.sum() / (rows * columns))
    column_levels = np.zeros(columns) if rows == 1 else _to_levels(column_sums / rows) - mean
    highest = int(row_levels.max(initial=-1000))
    model = Model(
        "fraction",
        np.clip(row_levels - highest + 255, 0, 255).astype(np.uint8),
        np.clip(column_levels + NEUTRAL, 0, 255).astype(np.uint8),
        highest - 255,
        1,
    )
    return _placed(model, prediction)


def samples(elements: int) -> Iterator[tuple[int, int]]:
    """Yield the runs of elements that models are compared on."""
    if elements <= SAMPLES * SAMPLE:
        yield 0, elements
        return
    for number in range(SAMPLES):
        begin = (elements - SAMPLE) * number // (SAMPLES - 1)
        yield begin, begin + SAMPLE


def _placed(model: Model, prediction: Prediction) -> Model:
    """Return a model whose contexts tell apart the distances and exponents that there are most of."""
    levels, exponents = [], []
    for begin, end in samples(prediction.words.size):
        there = (prediction.words[begin:end] >> prediction.form.mantissa).astype(np.int16)
        there = np.maximum(there & prediction.form.exponents, 1)
        levels.append(model._levels(begin, end) - QUARTERS * there)
        exponents.append(there)
    highest = int(np.quantile(np.concatenate(levels), 0.999))
    last = int(np.quantile(np.concatenate(exponents), 0.9999))
    offset = model.offset - (highest - LEVELS + 1)
    return replace(model, offset=offset, exponent=max(1, last - MODELS["exponent"].exponents + 1))


def _to_levels(means: Any) -> npt.NDArray[np.float64]:
    levels: npt.NDArray[np.float64] = np.rint(QUARTERS * np.log2(np.maximum(means, 1e-45)))
    return levels


def _with_rows(base: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    if tuple(base.shape) == shape:
        return base
    rows = min(len(base), shape[0])
    result = torch.zeros(shape, dtype=base.dtype)
    result[:rows] = base[:rows]
    return result
