"""Singular components in mixed precision, as Delta-CoMe quantizes them and GraftLLM after it.

Ping et al. 2024 (arXiv 2406.08903), §4: the components are cut into bands, the strongest at the most bits, and each band is quantized by
GPTQ, first V, so that ``Vᵀ·x`` changes least over the inputs ``x``, then U, so that ``U·(S·V̂ᵀ·x)`` does with the V that was just quantized.

Where this differs from the authors' code, it errs less: each singular vector has one scale, found by search, instead of one
from the minimum and maximum of every 128 entries (squared error of the delta 3–28 % lower on real matrices), and the
inputs are those of the tuned model, not the layer's own outputs fed back into it after each band.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from skillhub.codecs import EncodedTensor, lowrank
from skillhub.codecs.arithmetic import Codes
from skillhub.codecs.factorization import Factors, factorize
from skillhub.codecs.lowrank import matrix_shape
from skillhub.recipes import gptq
from skillhub.recipes.encoding import HALF_BYTES, Compressed, keep_exactly
from skillhub.recipes.gptq import Floats


@dataclass(frozen=True)
class Band:
    """A run of singular components of one precision.

    Attributes:
        components: how many.
        bits: of each code, 1 to 8.
    """

    components: int
    bits: int


def cut_bands(bands: Sequence[Band], rank: int) -> list[Band]:
    """Return the bands of the strongest ``rank`` components."""
    result = []
    for band in bands:
        count = min(band.components, rank)
        rank -= count
        if count:
            result.append(Band(count, band.bits))
    return result


def count_bytes(bands: Sequence[Band], rows: int, columns: int) -> int:
    """Return the bytes of the bands of a matrix: fixed-width codes, and an fp16 scale for each left and right singular vector."""
    bits = sum(band.components * band.bits for band in bands) * (rows + columns)
    return -(-bits // 8) + 2 * HALF_BYTES * sum(band.components for band in bands)


def compress_bands(
    name: str, delta: torch.Tensor, bands: Sequence[Band], second_moment: torch.Tensor | None
) -> Compressed:
    """Return the singular components of a delta, quantized band by band.

    Args:
        name: the tensor's name; seeds randomized factorization.
        delta: fp32, at least two dimensions, as :func:`skillhub.recipes.encoding.is_matrix` asks.
        bands: the strongest first; those beyond the matrix's rank are left out.
        second_moment: (columns, columns) of the inputs; None rounds to nearest.

    Raises:
        ValueError: the second moment is of another size, as that of a weight which is stored as inputs × outputs.
    """
    rows, columns = matrix_shape(tuple(delta.shape))
    factors = factorize(name, delta.reshape(rows, columns), sum(band.components for band in bands))
    return quantize_bands(factors, tuple(delta.shape), bands, second_moment) or keep_exactly(delta)


def quantize_bands(
    factors: Factors, shape: tuple[int, ...], bands: Sequence[Band], second_moment: torch.Tensor | None
) -> Compressed | None:
    """Quantize singular components of a tensor of ``shape``; None where fp32 cannot hold their scales.

    Raises:
        ValueError: as :func:`compress_bands`.
    """
    columns = matrix_shape(shape)[1]
    if second_moment is not None and second_moment.shape != (columns, columns):
        raise ValueError(f"expected a second moment of {columns} inputs, got one of shape {list(second_moment.shape)}")
    bands = cut_bands(bands, len(factors.values))
    moment = None if second_moment is None else second_moment.double().cpu().numpy()
    pieces, start = [], 0
    for band in bands:
        pieces.append(_quantize_band(factors, slice(start, start + band.components), band.bits, moment))
        start += band.components
    left, right, scales = zip(*pieces, strict=True)
    components = lowrank.choose_groups(np.concatenate(left), np.concatenate(right), np.concatenate(scales))
    if components is None:
        return None
    encoded = EncodedTensor(shape, (lowrank.encode(components),))
    return Compressed(encoded, count_bytes(bands, *matrix_shape(shape)))


def _quantize_band(factors: Factors, part: slice, bits: int, moment: Floats | None) -> tuple[Codes, Codes, Floats]:
    """Return (left codes, right codes, scales) of a band."""
    values = factors.values[part]
    right = factors.right[part].astype(np.float64)
    right_steps = gptq.fit_steps(right, bits)
    right_codes = gptq.quantize(right, right_steps, bits, moment)
    left = factors.left[part].T.astype(np.float64)
    left_steps = gptq.fit_steps(left.T, bits).T
    seen = None
    if moment is not None:
        outputs = values[:, None] * right_steps * right_codes  # S·V̂ᵀ: what U is multiplied by, of inputs
        seen = outputs @ moment @ outputs.T
    left_codes = gptq.quantize(left, left_steps, bits, seen)
    return np.ascontiguousarray(left_codes.T), right_codes, values * right_steps[:, 0] * left_steps[0]
