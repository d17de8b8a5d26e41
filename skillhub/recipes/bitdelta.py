"""BitDelta: the sign of every weight's delta and one scale a row.

Liu et al., "BitDelta: Your Fine-Tune May Only Be Worth One Bit" (arXiv 2402.10193), §3.1, with the scale that errs least. The paper's second
step, training the scales by distillation (§3.2), is left out: it needs gradients through the whole model and changes no sign. A
scale a row, where the paper has one a matrix, makes up for some of that at 0.02 bits a weight. Only matrices are compressed.
"""

from __future__ import annotations

import torch

from skillhub.codecs import EncodedTensor, sign
from skillhub.codecs.lowrank import matrix_shape
from skillhub.recipes.encoding import HALF_BYTES, Compressed, is_matrix, keep_exactly


def compress(name: str, delta: torch.Tensor, second_moment: torch.Tensor | None = None) -> Compressed:
    """Compress a tensor's delta.

    Args:
        name: canonical name; not used.
        delta: fp32, any shape.
        second_moment: not used: signs are not calibrated.
    """
    if not is_matrix(delta):
        return keep_exactly(delta)
    rows, columns = matrix_shape(tuple(delta.shape))
    encoded = EncodedTensor(tuple(delta.shape), (sign.encode(delta),))
    return Compressed(encoded, -(-rows * columns // 8) + HALF_BYTES * rows)
