"""What a published recipe makes of one tensor, and what all of them do alike.

A recipe is a pure function of a delta, the second moment of what the tensor is multiplied by, and its options. It answers with the tensor as
our container stores it and with the bytes that the paper's own form takes once packed: fixed-width codes and fp16 scales.
Both are needed for an honest comparison, since our container entropy-codes what it stores.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from skillhub.codecs import EncodedTensor, exact, zero
from skillhub.codecs.allocation import has_sane_magnitude
from skillhub.codecs.lowrank import matrix_shape

HALF_BYTES = 2
"""Bytes of an fp16 or bf16 value."""


@dataclass(frozen=True, eq=False)
class Compressed:
    """One tensor, compressed by a recipe.

    Attributes:
        encoded: as our container stores it.
        published_bytes: what the published form takes, packed, without headers.
    """

    encoded: EncodedTensor
    published_bytes: int


Recipe = Callable[[str, torch.Tensor, torch.Tensor | None], Compressed]
"""(name, fp32 delta, fp32 second moment (columns, columns) of the inputs or None) → the compressed tensor."""


def is_matrix(delta: torch.Tensor) -> bool:
    """Say whether a delta is what recipes compress: at least two rows and columns, not all zero, finite and of sane magnitude."""
    if delta.dim() < 2 or min(matrix_shape(tuple(delta.shape))) < 2:
        return False
    return has_sane_magnitude(delta)


def keep_exactly(delta: torch.Tensor) -> Compressed:
    """Return a delta bit for bit, as every recipe keeps norms, biases and whatever else is no matrix.

    The papers leave those in the checkpoint's own 16-bit dtype. An unchanged tensor takes nothing.
    """
    if not bool(delta.any()):
        return Compressed(zero.encode(tuple(delta.shape)), 0)
    return Compressed(exact.encode(delta), HALF_BYTES * delta.numel())
