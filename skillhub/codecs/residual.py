"""The codec ``residual``: every weight as a small integer times a step, most of them zero; alone or on top of low rank.

A uniform quantizer with a dead zone, its codes entropy-coded: at low rates that is within a tenth of a bit of the rate–distortion bound for
the peaked distributions that deltas have (Sullivan 1996, "Efficient scalar quantization of exponential and Laplacian random variables"). Rows
and columns may have scales of their own, powers of 2 in quarter steps, so that weights that matter more are quantized more finely.

A weight decodes to ``(code · (step · row scale)) · column scale``, each product rounded to fp32 in that order, none of them subnormal or
infinite: IEEE 754 leaves one result, on every machine.

No preset stores anything so: the codec is part of the format, so that packs may be read which have it. :func:`encode` is for whoever
writes such packs, and for tests.

Layout of the array ``data``: frames whose sizes the config lists: the quarter exponents of the row scales and of the column scales (int8;
left out where all are 0), the packed codes in row-major order, and their overflow (:mod:`skillhub.codecs.symbols`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from skillhub.codecs.arithmetic import Codes
from skillhub.codecs.encoding import EncodedPart, check_keys, damaged, read_integer
from skillhub.codecs.lowrank import matrix_shape
from skillhub.codecs.streams import Bytes, compress_frame, decompress, decompress_frame, split_frames
from skillhub.codecs.symbols import (
    MAX_CODE,
    PACKINGS,
    add_overflow,
    choose_packing,
    count_overflow,
    count_packed,
    pack_symbols,
    unpack_symbols,
)

ID = "residual"

Floats = npt.NDArray[np.float32]
Exponents = npt.NDArray[np.int8]

DEAD_ZONE = 0.6
"""Codes are rounded up from this fraction on: one that moves to zero saves more bits than its error is worth."""

QUARTERS = np.array([1.0, 1.189207115002721, 1.4142135623730951, 1.6817928305074292], dtype=np.float32)
"""2 to the power of 0, 1/4, 1/2 and 3/4, as fp32."""

MAX_EXPONENT = 127
"""Of a scale, in quarters, in magnitude: a factor of up to 2**31.75 either way."""

MIN_STEP, MAX_STEP = 2.0**-60, 2.0**40
"""With every scale and code inside its limits, no product is then subnormal or infinite."""


@dataclass(frozen=True, eq=False)
class Residual:
    """A quantized matrix.

    Attributes:
        codes: (rows, columns) int16, of magnitudes up to ``symbols.MAX_CODE``.
        row_steps: (rows,) fp32, the step times the row's scale.
        column_scales: (columns,) fp32, or None where all are 1.
    """

    codes: Codes
    row_steps: Floats
    column_scales: Floats | None

    def expand(self, rows: slice = slice(None)) -> Floats:
        """Return some rows as fp32 of (rows, columns); the same bits for every choice of rows."""
        values: Floats = np.multiply(self.codes[rows], self.row_steps[rows, None], dtype=np.float32)
        if self.column_scales is not None:
            np.multiply(values, self.column_scales, out=values)
        return np.add(values, np.float32(0), out=values)  # a code of 0 is 0.0, whatever the sign of its step


def encode(
    residual: torch.Tensor,
    step: float,
    *,
    row_exponents: Exponents | None = None,
    column_exponents: Exponents | None = None,
    dead_zone: float = DEAD_ZONE,
) -> EncodedPart:
    """Quantize ``residual`` and return the part that adds it.

    The step that is stored is the multiple of ``step`` that fits the codes best, by least squares of weights that are divided by their scales.

    Args:
        residual: finite fp32 of at least two dimensions, any layout; what follows the first dimension is a row.
        step: width of a quantization step where scales are 1. Weights beyond 255 steps are cut to that.
        row_exponents: (rows,) int8: the scale of a row is ``2**(exponent / 4)``.
        column_exponents: (columns,) int8, likewise.
        dead_zone: the fraction of a step from which on codes are rounded up; 0.5 is to nearest.

    Raises:
        ValueError: the residual, the step or an exponent is something else.
    """
    shape = matrix_shape(tuple(residual.shape)) if residual.dim() >= 2 else (0, 0)
    normalized = _normalize(residual, row_exponents, column_exponents)
    if not 2 * MIN_STEP <= step <= MAX_STEP / 2:
        raise ValueError(f"expected a step between {2 * MIN_STEP} and {MAX_STEP / 2}, got {step}")
    codes = _quantize(normalized, step, dead_zone)
    fitted = step * _fit(normalized, codes, step)
    mantissa, exponent = math.frexp(float(np.float32(fitted)))
    packing = choose_packing(codes)
    packed, overflow = pack_symbols(codes.reshape(-1), packing)
    scales = [_scale_bytes(values, size) for values, size in zip((row_exponents, column_exponents), shape, strict=True)]
    frames = [compress_frame(data) for data in (*scales, packed, overflow)]
    config = {
        "step": [int(mantissa * 2**24), exponent - 24],
        "packing": packing,
        "frames": [frame.size for frame in frames],
    }
    return EncodedPart(ID, config, {"data": np.concatenate(frames)})


def _normalize(residual: torch.Tensor, row_exponents: Exponents | None, column_exponents: Exponents | None) -> Floats:
    """Return the residual as a matrix, each weight divided by its scales."""
    if residual.dtype != torch.float32 or residual.dim() < 2 or not bool(residual.isfinite().all()):
        raise ValueError("expected a finite float32 residual of at least two dimensions")
    matrix: Floats = residual.detach().cpu().reshape(matrix_shape(tuple(residual.shape))).contiguous().numpy()
    for axis, exponents in enumerate((row_exponents, column_exponents)):
        if exponents is None:
            continue
        if exponents.dtype != np.int8 or exponents.shape != (matrix.shape[axis],) or (exponents == -128).any():
            raise ValueError(f"expected {matrix.shape[axis]} int8 exponents from -127 to 127")
        scales = _scales(exponents)
        matrix = matrix / (scales[:, None] if axis == 0 else scales)
    return matrix


def _quantize(normalized: Floats, step: float, dead_zone: float) -> Codes:
    """Return the codes of weights that are divided by their scales."""
    scaled = normalized / np.float32(step)
    magnitudes = np.minimum(np.floor(np.abs(scaled) + np.float32(1 - dead_zone)), MAX_CODE)
    codes: Codes = np.copysign(magnitudes, scaled).astype(np.int16)
    return codes


def _fit(normalized: Floats, codes: Codes, step: float) -> float:
    """Return by what the step is best multiplied for decoding, between 1/2 and 2; 1 where all codes are zero."""
    chosen = codes != 0
    kept, targets = codes[chosen].astype(np.float64), normalized[chosen].astype(np.float64)
    energy = float(kept @ kept)
    return min(max(float(kept @ targets) / (energy * step), 0.5), 2.0) if energy else 1.0


def _scales(exponents: Exponents) -> Floats:
    """Return the fp32 scales of quarter exponents: one of four constants times a power of two, hence exact."""
    whole, quarter = np.divmod(exponents.astype(np.int32), 4)
    return np.ldexp(QUARTERS[quarter], whole)


def _scale_bytes(exponents: Exponents | None, size: int) -> Bytes:
    """Return the exponents as bytes; nothing where all are 0."""
    return np.empty(0, np.uint8) if exponents is None or not exponents.any() else exponents.view(np.uint8)[:size]


def decode(part: EncodedPart, shape: tuple[int, ...], delta: torch.Tensor | None) -> torch.Tensor:
    """Return the fp32 residual of ``shape``, added to ``delta`` if there is one.

    Raises:
        IntegrityError: config, frames and shape contradict each other.
    """
    values = torch.from_numpy(read_residual(part, shape).expand()).reshape(shape)
    return values if delta is None else delta.add_(values)


def read_residual(part: EncodedPart, shape: tuple[int, ...]) -> Residual:
    """Unpack the codes of a part for a tensor of ``shape``.

    Raises:
        IntegrityError: as :func:`decode`.
    """
    check_keys(part, {"step", "packing", "frames"}, {"data"})
    if len(shape) < 2:
        raise damaged("has a residual of rows and columns but is no matrix")
    rows, columns = matrix_shape(shape)
    step = _read_step(part.config["step"])
    packing = read_integer(part.config["packing"], "packing", 0, len(PACKINGS) - 1)
    row_frame, column_frame, packed_frame, overflow_frame = split_frames(part.arrays["data"], part.config["frames"], 4)
    packed = decompress_frame(packed_frame, count_packed(rows * columns, packing))
    codes = unpack_symbols(packed, rows * columns, packing)
    codes = add_overflow(codes, decompress_frame(overflow_frame, count_overflow(codes, packing)), packing)
    row_scales, column_scales = _read_scales(row_frame, rows), _read_scales(column_frame, columns)
    row_steps = np.full(rows, step, np.float32) if row_scales is None else row_scales * step
    return Residual(codes.reshape(rows, columns), row_steps, column_scales)


def _read_step(value: object) -> np.float32:
    """Return the step of a config: an integer of 24 bits times a power of two."""
    if not isinstance(value, list) or len(value) != 2:
        raise damaged("has no usable step")
    mantissa = read_integer(value[0], "step", 1, 2**24)
    step = math.ldexp(mantissa, read_integer(value[1], "exponent of the step", -126, 126))
    if not MIN_STEP <= step <= MAX_STEP:
        raise damaged(f"has a step of {step}, which is out of range")
    return np.float32(step)


def _read_scales(frame: Bytes, count: int) -> Floats | None:
    """Return the scales of a frame; None where it was left out, so that all are 1."""
    if not frame.size:
        return None
    exponents = decompress(frame, count).view(np.int8)
    if (exponents == -128).any():
        raise damaged("has a scale that is out of range")
    return _scales(exponents)
