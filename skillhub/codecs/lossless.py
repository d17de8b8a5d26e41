"""The codec ``lossless``: the tuned tensor bit for bit, as what has to be added to its base's bits read as integers.

Floats of one sign are ordered as their bits are (Lindstrom & Isenburg 2006, section 3.1), so bits become integers whose difference
counts representable values. What is coded is that difference between the tuned tensor and a prediction: the base, plus the delta
that the parts before this one decode to (:mod:`skillhub.codecs.predictions`). A few low-rank components take much of a delta out.

A difference is coded as a symbol (:mod:`skillhub.codecs.ans`), which says a magnitude exactly below :data:`EXACT` and to a quarter of
an octave beyond; the bits that it leaves open follow (:mod:`skillhub.codecs.leftovers`). Layout of ``data``: the frame of the levels of rows
and columns, a byte each; the stream of symbols; and the frame of what they leave open.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import numpy.typing as npt
import torch

from skillhub.codecs import ans, leftovers
from skillhub.codecs.encoding import EncodedPart, EncodedTensor, check_keys, count_elements, damaged, read_integer
from skillhub.codecs.predictions import (
    FORMATS,
    MODELS,
    Model,
    Prediction,
    Words,
    bits_of,
    chunks,
    fit_scales,
    has_scales,
    matrix_shape,
    predict,
    samples,
    values_of,
)
from skillhub.codecs.streams import Bytes, compress, decompress, split_frames

ID = "lossless"

OPERATION = "restore"
"""The decoded tensor is the tuned one; decoding it takes the base's."""

EXACT = 8
"""Magnitudes below this have a symbol each; an octave above has four."""

CELL_BITS = 4
"""About what a symbol that occurs in a context costs in the tables."""

SCALE_BITS = 6
"""About what the scale of a row or column takes."""

FRAME_BITS = 8 * 100
"""Bits beside symbols and scales: headers, states of the entropy coder."""

DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in FORMATS}
BASE_DTYPES = {**DTYPES, "float64": torch.float64}


@dataclass(frozen=True, eq=False)
class Alphabet:
    """The symbols of a format; ``2 · magnitude class + sign``.

    Attributes:
        magnitudes: (symbols,) int64, the least of each.
        extra: (symbols,) uint8, bits that a symbol leaves open.
    """

    magnitudes: npt.NDArray[np.int64]
    extra: Bytes

    @property
    def size(self) -> int:
        """Number of symbols."""
        return self.extra.size


@cache
def alphabet_of(bits: int) -> Alphabet:
    """Return the symbols for differences of so many bits."""
    classes = [(magnitude, 0) for magnitude in range(EXACT)]
    classes += [((4 + quarter) << (octave - 2), octave - 2) for octave in range(3, bits) for quarter in range(4)]
    magnitudes, extra = np.repeat(np.array(classes, dtype=np.int64), 2, axis=0).T
    return Alphabet(magnitudes.copy(), extra.astype(np.uint8))


def encode(
    tuned: torch.Tensor,
    base: torch.Tensor,
    parts: tuple[EncodedPart, ...] = (),
    delta: torch.Tensor | None = None,
) -> EncodedTensor:
    """Store ``tuned`` bit for bit, for whoever has ``base``.

    Args:
        tuned: bf16, fp16 or fp32; any shape, layout and values.
        base: a float tensor of that shape, or with another number of rows; rows that it lacks are predicted to be zero.
        parts: of an encoding of tuned − base that serves as prediction, such as one of few low-rank components.
        delta: what ``parts`` decode to.

    Raises:
        ValueError: a dtype or shape is none of these.
    """
    shape = tuple(tuned.shape)
    _check_kinds(tuned, base)
    prediction = predict(base, shape, tuned.dtype, delta if parts else None)
    words = bits_of(tuned.detach().cpu())
    symbols, left = _code(prediction, words)
    model = _choose_model(fit_scales(prediction, words, tuned.dtype, shape), prediction, symbols)
    contexts = np.empty(words.size, dtype=np.uint8)
    for begin, end in chunks(words.size):
        contexts[begin:end] = model.contexts(prediction, begin, end)
    alphabet = alphabet_of(prediction.form.bits)
    levels = np.concatenate([model.rows, model.columns]) if has_scales(shape) else model.rows[:1]
    frames = [
        compress(levels),
        ans.encode(symbols, contexts, alphabet=alphabet.size, context_count=MODELS[model.kind].contexts),
        compress(left),
    ]
    config = {
        "operation": OPERATION,
        "dtype": str(tuned.dtype).removeprefix("torch."),
        "base_dtype": str(base.dtype).removeprefix("torch."),
        "model": model.kind,
        "offset": model.offset,
        "exponent": model.exponent,
        "frames": [frame.size for frame in frames],
    }
    return EncodedTensor(shape, (*parts, EncodedPart(ID, config, {"data": np.concatenate(frames)})))


def estimate_bits(tuned: torch.Tensor, base: torch.Tensor, factor: float = 1.0) -> float:
    """Estimate the bits that :func:`encode` would take without a prediction.

    Args:
        tuned: some rows of the tensor, or all.
        base: the base's, likewise.
        factor: how many times as large the whole tensor is.

    Raises:
        ValueError: as :func:`encode`.
    """
    shape = tuple(tuned.shape)
    _check_kinds(tuned, base)
    prediction, words = predict(base, shape, tuned.dtype, None), bits_of(tuned.detach().cpu())
    symbols, left = _code(prediction, words)
    model = _choose_model(fit_scales(prediction, words, tuned.dtype, shape), prediction, symbols)
    scales = SCALE_BITS * (factor * model.rows.size + model.columns.size)
    return FRAME_BITS + scales + 8 * factor * left.size + _estimate_bits(model, prediction, symbols, factor)


def decode(part: EncodedPart, shape: tuple[int, ...], delta: torch.Tensor | None, base: torch.Tensor) -> torch.Tensor:
    """Return the tuned tensor, in its own dtype.

    Args:
        part: the stored part.
        shape: of the tensor.
        delta: what the parts before it gave, fp32; None where there are none.
        base: the base's tensor, as it was when this was encoded.

    Raises:
        IntegrityError: config, streams, shape and base contradict each other.
    """
    check_keys(part, {"operation", "dtype", "base_dtype", "model", "offset", "exponent", "frames"}, {"data"})
    dtype, elements = stored_dtype(part), count_elements(shape)
    if base.dtype != base_dtype(part) or base.dim() != len(shape) or tuple(base.shape[1:]) != shape[1:]:
        raise damaged(f"was made with another base than one of {base.dtype} and shape {list(base.shape)}")
    levels, coded, left = split_frames(part.arrays["data"], part.config["frames"], 3)
    model = _read_model(part, shape, levels)
    alphabet = alphabet_of(FORMATS[dtype].bits)
    stream = ans.read_stream(coded, elements, alphabet=alphabet.size, context_count=MODELS[model.kind].contexts)
    prediction = predict(base, shape, dtype, delta)
    symbols = np.empty(elements, dtype=np.uint8)
    for number, (begin, end) in enumerate(chunks(elements)):
        symbols[begin:end] = stream.decode_chunk(number, model.contexts(prediction, begin, end))
    if elements and int(symbols.max()) >= alphabet.size:
        raise damaged("has symbols outside their alphabet")
    words = _restore(prediction, symbols, left)
    return values_of(words, dtype).reshape(shape)


def stored_dtype(part: EncodedPart) -> torch.dtype:
    """Return the dtype that a part decodes to.

    Raises:
        IntegrityError: it does not say one.
    """
    return _read_dtype(part, "dtype", DTYPES)


def base_dtype(part: EncodedPart) -> torch.dtype:
    """Return the dtype that the base's tensor has to have; errors as for :func:`stored_dtype`."""
    return _read_dtype(part, "base_dtype", BASE_DTYPES)


def _read_dtype(part: EncodedPart, key: str, known: dict[str, torch.dtype]) -> torch.dtype:
    name = part.config.get(key)
    if not isinstance(name, str) or name not in known or part.config.get("operation") != OPERATION:
        raise damaged(f"is restored with an unknown operation or {key} {name!r}")
    return known[name]


def _check_kinds(tuned: torch.Tensor, base: torch.Tensor) -> None:
    if tuned.dtype not in FORMATS or base.dtype not in BASE_DTYPES.values():
        raise ValueError(f"{tuned.dtype} cannot be stored as a difference to {base.dtype}")
    if base.dim() != tuned.dim() or base.shape[1:] != tuned.shape[1:]:
        raise ValueError(f"{list(base.shape)} does not predict {list(tuned.shape)}")


def _ordered(words: Words) -> Words:
    """Return bits of floats as integers of the same size that are ordered as the floats are; its own inverse."""
    bits = 8 * words.dtype.itemsize
    ordered: Words = words ^ ((words >> (bits - 1)) & words.dtype.type(2 ** (bits - 1) - 1))
    return ordered


def _is_mirrored(prediction: Prediction, begin: int, end: int) -> npt.NDArray[np.bool_] | None:
    """Say which differences are coded with the other sign, so that positive ones lead to where the prediction was rounded from."""
    if prediction.beyond is None:
        return None
    return (prediction.beyond[begin:end] < 0) ^ (prediction.words[begin:end] < 0)


def _code(prediction: Prediction, words: Words) -> tuple[Bytes, Bytes]:
    """Return the symbols of the differences of all elements, and packed what they leave open."""
    symbols, left = np.empty(words.size, dtype=np.uint8), [np.empty(0, dtype=np.uint8)]
    for begin, end in chunks(words.size):
        steps = (_ordered(words[begin:end]) - _ordered(prediction.words[begin:end])).astype(np.int64)
        mirrored = _is_mirrored(prediction, begin, end)
        if mirrored is not None:
            np.negative(steps, out=steps, where=mirrored)
        magnitudes = np.abs(steps)
        symbols[begin:end] = _classes(magnitudes) * 2 + (steps < 0)
        far, widths = _open_bits(prediction, symbols[begin:end])
        left.append(leftovers.pack(magnitudes[far] & ((1 << widths) - 1), widths))
    return symbols, np.concatenate(left)


def _open_bits(prediction: Prediction, symbols: Bytes) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int64]]:
    """Return which symbols of a chunk leave bits open, and how many."""
    far = np.flatnonzero(symbols >= 2 * EXACT)
    return far, alphabet_of(prediction.form.bits).extra[symbols[far]].astype(np.int64)


def _classes(magnitudes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the magnitude class of each magnitude."""
    octaves = np.frexp(magnitudes.astype(np.float64))[1].astype(np.int64) - 1
    beyond = EXACT + (octaves - 3) * 4 + ((magnitudes >> np.maximum(octaves - 2, 0)) & 3)
    return np.where(magnitudes < EXACT, magnitudes, beyond)


def _restore(prediction: Prediction, symbols: Bytes, frame: Bytes) -> Words:
    """Return the bits of the tuned tensor."""
    alphabet = alphabet_of(prediction.form.bits)
    opened = [_open_bits(prediction, symbols[begin:end]) for begin, end in chunks(symbols.size)]
    sizes = [leftovers.count_packed(widths) for _, widths in opened]
    left = np.split(decompress(frame, sum(sizes)), np.cumsum(sizes))
    signed = np.where(np.arange(alphabet.size) & 1, -alphabet.magnitudes, alphabet.magnitudes)
    table = signed.astype(prediction.form.words)  # of the size of the words, whose sums wrap around
    words = np.empty(symbols.size, dtype=prediction.form.words)
    for (begin, end), (far, widths), packed in zip(chunks(symbols.size), opened, left, strict=False):
        chunk = symbols[begin:end]
        steps = table.take(chunk)
        beyond = leftovers.unpack(packed, widths)
        steps[far] += np.where(chunk[far] & 1, -beyond, beyond).astype(steps.dtype)
        mirrored = _is_mirrored(prediction, begin, end)
        if mirrored is not None:
            steps = np.where(mirrored, -steps, steps)
        steps += _ordered(prediction.words[begin:end])
        words[begin:end] = _ordered(steps)
    return words


def _choose_model(model: Model, prediction: Prediction, symbols: Bytes) -> Model:
    """Return the model of the kind that codes the symbols in fewest bits."""
    models = [replace(model, kind=kind) for kind in MODELS]
    return min(models, key=lambda one: _estimate_bits(one, prediction, symbols))


def _estimate_bits(model: Model, prediction: Prediction, symbols: Bytes, factor: float = 1.0) -> float:
    """Return about what symbols and tables take of a tensor that is ``factor`` times as large, from samples."""
    counts = np.zeros(MODELS[model.kind].contexts * 256, dtype=np.int64)
    for begin, end in samples(symbols.size):
        pairs = model.contexts(prediction, begin, end).astype(np.intp) * 256 + symbols[begin:end]
        counts += np.bincount(pairs, minlength=counts.size)
    cells = counts.reshape(-1, 256)
    totals = cells.sum(axis=1, keepdims=True)
    bits = -float((cells * np.log2(np.maximum(cells, 1) / np.maximum(totals, 1))).sum())
    return factor * bits * symbols.size / max(1, int(totals.sum())) + CELL_BITS * int(np.count_nonzero(cells))


def _read_model(part: EncodedPart, shape: tuple[int, ...], frame: Bytes) -> Model:
    """Return the model that a part was coded with."""
    kind = part.config["model"]
    if not isinstance(kind, str) or kind not in MODELS:
        raise damaged(f"has an unknown model {kind!r}")
    offset = read_integer(part.config["offset"], "offset", -(2**13), 2**13)
    exponent = read_integer(part.config["exponent"], "exponent", 0, 255)
    rows, columns = matrix_shape(shape)
    if has_scales(shape):
        levels = decompress(frame, rows + columns)
        return Model(kind, levels[:rows], levels[rows:], offset, exponent)
    return Model(kind, decompress(frame, 1), np.full(columns, 128, dtype=np.uint8), offset, exponent)
