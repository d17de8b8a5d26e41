"""Delta-CoMe: singular components at 8, 3 and 2 bits, within one bit a weight.

Ping et al., "Delta-CoMe: Training-Free Delta-Compression with Mixed-Precision for Large Language Models" (NeurIPS 2024, arXiv 2406.08903). The
paper stores a delta in 1/16 of fp16, which is one bit a weight: the strongest 2 components at 8 bits, the next 32 at 3 bits, and
as many at 2 bits as that leaves room for. Its code has 968 for a square matrix of 4096, exactly one bit a weight; for other
shapes we apply the same rule. Only matrices are compressed; embeddings, the output head, norms and biases are kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from skillhub.codecs.lowrank import matrix_shape
from skillhub.recipes.components import Band, compress_bands, cut_bands
from skillhub.recipes.encoding import Compressed, is_matrix, keep_exactly


@dataclass(frozen=True)
class Options:
    """How Delta-CoMe spends its bits.

    Attributes:
        bits_per_weight: what the codes of a matrix may take, over its weights.
        rank: how many components there are, instead of as many as ``bits_per_weight`` allows.
        leading: the bands of the strongest components.
        last_bits: the precision of all others.
    """

    bits_per_weight: float = 1.0
    rank: int | None = None
    leading: tuple[Band, ...] = (Band(2, 8), Band(32, 3))
    last_bits: int = 2


PAPER = Options()


def choose_bands(rows: int, columns: int, options: Options = PAPER) -> list[Band]:
    """Return the bands of a matrix of ``rows`` × ``columns``; at least one component."""
    most = min(rows, columns)
    if options.rank is not None:
        return cut_bands([*options.leading, Band(most, options.last_bits)], min(options.rank, most))
    room = (
        options.bits_per_weight * rows * columns / (rows + columns)
    )  # bits of a component's codes, over all components
    bands = []
    for band in [*options.leading, Band(most, options.last_bits)]:
        count = min(band.components, int(room // band.bits))
        room -= count * band.bits
        bands.append(Band(count, band.bits))
    return cut_bands(bands, most) or [Band(1, options.last_bits)]


def compress(
    name: str, delta: torch.Tensor, second_moment: torch.Tensor | None = None, options: Options = PAPER
) -> Compressed:
    """Compress a tensor's delta.

    Args:
        name: canonical name.
        delta: fp32, any shape.
        second_moment: fp32 (columns, columns), ``E[x xᵀ]`` of the inputs of the module: calibrated by GPTQ. None: rounded to nearest.
        options: how the bits are spent.
    """
    if not is_matrix(delta):
        return keep_exactly(delta)
    return compress_bands(name, delta, choose_bands(*matrix_shape(tuple(delta.shape)), options), second_moment)
