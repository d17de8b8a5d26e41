"""Low rank in half precision: what extracting a LoRA from a fine-tune gives, as `mergekit-extract-lora` does.

The truncated singular value decomposition is the best approximation of its rank (Eckart & Young 1936). Each singular value is split evenly
between its two vectors, and both factors are stored in fp16, as PEFT saves them. Only matrices are compressed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from skillhub.codecs import EncodedTensor, factors
from skillhub.codecs.factorization import factorize
from skillhub.codecs.lowrank import matrix_shape
from skillhub.recipes.encoding import HALF_BYTES, Compressed, is_matrix, keep_exactly


@dataclass(frozen=True)
class Options:
    """What the recipe leaves to choose.

    Attributes:
        rank: components that are kept of each matrix.
    """

    rank: int = 32


COMMON = Options()


def compress(
    name: str, delta: torch.Tensor, second_moment: torch.Tensor | None = None, options: Options = COMMON
) -> Compressed:
    """Compress a tensor's delta.

    Args:
        name: canonical name; seeds randomized factorization.
        delta: fp32, any shape.
        second_moment: not used: the decomposition is of the weights, not of what they do to inputs.
        options: the rank.
    """
    if not is_matrix(delta):
        return keep_exactly(delta)
    rows, columns = matrix_shape(tuple(delta.shape))
    found = factorize(name, delta.reshape(rows, columns), min(options.rank, rows, columns))
    # The power of two keeps small deltas clear of fp16's subnormal numbers, and rounds nothing.
    scale = 2.0 ** math.floor(math.log2(found.values[0]))
    split = np.sqrt(found.values / scale)[:, None]
    a, b = (torch.from_numpy(side * split).to(torch.float16) for side in (found.right, found.left))
    part = factors.encode(factors.AdapterFactors(a, b.T, scale))
    encoded = EncodedTensor(tuple(delta.shape), (part,))
    return Compressed(encoded, HALF_BYTES * len(split) * (rows + columns))
