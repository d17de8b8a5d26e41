"""Rounding vectors whose entries' errors are felt together: what one entry is off by, the entries after it make good.

In a metric ``M = SᵀS`` with off-diagonal entries the error of one entry can be cancelled by those of others. With ``S`` upper triangular
entries are rounded from the last to the first, each after what the later ones have left over was added to it, so that of every
error only what is new in it counts. This is the nearest-plane algorithm (Babai 1986), as GPTQ is (Frantar et al. 2023, arXiv 2210.17323;
Chen et al. 2025, arXiv 2507.18553); here vectors have steps of their own and a dead zone. Of real layers the squared error of
rounding falls to a fifth on the side of the inputs, and to a third on that of the gradients.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

Floats = npt.NDArray[np.float32]

BLOCK = 64
"""Entries whose errors are passed on one by one; those of earlier blocks arrive by one matrix product."""


def round_with_feedback(
    vectors: Floats, root: Floats, *, threshold: float, most: int
) -> tuple[npt.NDArray[np.int16], Floats]:
    """Round vectors to integers so that the error is small in a metric.

    Args:
        vectors: (count, n) fp32, in units of each vector's step.
        root: (n, n) fp32, the upper triangular root of the metric.
        threshold: the fraction from which on magnitudes are rounded up.
        most: the largest magnitude of a code.

    Returns:
        The (count, n) codes, and the error ``S·(vector − codes)`` of each, (count, n).
    """
    count, size = vectors.shape
    wanted = np.ascontiguousarray(vectors.T)
    codes, errors, rests = (np.empty((size, count), np.float32) for _ in range(3))
    diagonal = root.diagonal()[:, None]
    unit, passed = torch.from_numpy(root / diagonal), torch.from_numpy(errors)
    for stop in range(size, 0, -BLOCK):
        start = max(stop - BLOCK, 0)
        arrived = torch.from_numpy(wanted[start:stop]) + unit[start:stop, stop:] @ passed[stop:]
        targets = arrived.numpy()
        for entry in range(stop - 1, start - 1, -1):
            arrived[entry - start].addmv_(passed[entry + 1 : stop].T, unit[entry, entry + 1 : stop])
            target = targets[entry - start]
            code = round_half_dead(target, threshold=threshold, most=most, out=codes[entry])
            np.subtract(wanted[entry], code, out=errors[entry])
            np.subtract(target, code, out=rests[entry])
    rests *= diagonal
    return codes.T.astype(np.int16, order="C"), np.ascontiguousarray(rests.T)


def round_half_dead(values: Floats, *, threshold: float, most: int, out: Floats | None = None) -> Floats:
    """Return the nearest integers but for fractions below ``threshold``, which are rounded towards zero, and magnitudes up to ``most``."""
    magnitudes = np.abs(values, out=out)
    magnitudes += np.float32(1 - threshold)
    np.floor(magnitudes, out=magnitudes)
    np.minimum(magnitudes, np.float32(most), out=magnitudes)
    return np.copysign(magnitudes, values, out=magnitudes)
