"""GPTQ: quantizing the rows of a matrix so that its product with typical inputs changes least.

Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers" (arXiv 2210.17323), §3.3.
Columns are rounded one after another, and the error of each is made up for by the columns that are not rounded yet, as well as they can: the
update is a row of the Cholesky factor of the inverse second moment of the inputs. Columns with the largest inputs go first ("act-order" in the
authors' code).

Codes are the odd integers up to ``2**bits - 1``: ``2**bits`` levels, symmetric about zero, as a midrise quantizer has them. With few bits that
uses every level, where codes around 0 would waste one.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from skillhub.codecs.arithmetic import Codes

Floats = npt.NDArray[np.float64]

DAMPING = 0.01
"""Part of the mean of the second moment's diagonal that is added to it (the authors' default)."""

BLOCK = 128
"""Columns whose errors reach the columns behind them in one matrix product."""

MAX_BITS = 8

STEP_CANDIDATES = np.geomspace(0.04, 1.0, 40)
"""Steps that are tried, relative to the one that makes the largest entry the outermost level."""


def outermost(bits: int) -> int:
    """Return the largest code of ``bits`` bits."""
    return (1 << bits) - 1


def round_codes(values: Floats, steps: Floats, bits: int) -> Floats:
    """Return the odd code whose multiple of its step is nearest to each value; a value between two goes up.

    Args:
        values: any shape.
        steps: broadcastable to it, positive; neighbouring levels are two steps apart.
        bits: of a code, 1 to :data:`MAX_BITS`.
    """
    limit = outermost(bits)
    codes: Floats = np.clip(2 * np.floor(values / (2 * steps)) + 1, -limit, limit)
    return codes


def fit_steps(vectors: Floats, bits: int) -> Floats:
    """Return (n, 1): for each row of ``vectors`` (n, m) the step of least squared error among :data:`STEP_CANDIDATES`.

    The candidates begin where even heavy tails should not be cut; a row of zeros gets the step 1.
    """
    peaks = np.abs(vectors).max(axis=1, keepdims=True, initial=0.0)
    largest = np.where(peaks > 0, peaks / outermost(bits), 1.0)
    best, least = largest, np.full_like(largest, np.inf)
    for candidate in STEP_CANDIDATES:
        steps = largest * candidate
        error = np.square(round_codes(vectors, steps, bits) * steps - vectors).sum(axis=1, keepdims=True)
        best, least = np.where(error < least, steps, best), np.minimum(error, least)
    return np.where(peaks > 0, best, 1.0)


def quantize(matrix: Floats, steps: Floats, bits: int, second_moment: Floats | None = None) -> Codes:
    """Return int16 codes of a matrix; ``codes * steps`` approximates it.

    Args:
        matrix: (n, m).
        steps: (n, 1) or (1, m), as of :func:`round_codes`.
        bits: of a code.
        second_moment: (m, m), ``E[x xᵀ]`` of what the matrix is multiplied by, up to a factor; symmetric, positive semi-definite, finite.
            Without it, every entry is rounded to the nearest code.
    """
    steps = np.broadcast_to(steps, matrix.shape)
    if second_moment is None or not second_moment.any():
        return round_codes(matrix, steps, bits).astype(np.int16)
    order = np.argsort(-np.diag(second_moment), kind="stable")
    update = _inverse_factor(second_moment[np.ix_(order, order)])
    rest, steps = matrix[:, order].astype(np.float64), np.ascontiguousarray(steps[:, order])
    codes = np.empty_like(rest)
    for begin in range(0, rest.shape[1], BLOCK):
        block = slice(begin, min(begin + BLOCK, rest.shape[1]))
        codes[:, block], errors = _quantize_block(rest[:, block], steps[:, block], bits, update[block, block])
        rest[:, block.stop :] -= errors @ update[block, block.stop :]
    result = np.empty(matrix.shape, dtype=np.int16)
    result[:, order] = codes.astype(np.int16)
    return result


def _quantize_block(rest: Floats, steps: Floats, bits: int, update: Floats) -> tuple[Floats, Floats]:
    """Quantize the columns of a block; return codes and the scaled errors that the columns behind it have to make up for."""
    rest = np.asfortranarray(rest)
    codes, errors = np.empty_like(rest), np.empty_like(rest)
    for column in range(rest.shape[1]):
        codes[:, column] = round_codes(rest[:, column], steps[:, column], bits)
        errors[:, column] = (rest[:, column] - codes[:, column] * steps[:, column]) / update[column, column]
        rest[:, column:] -= np.outer(errors[:, column], update[column, column:])
    return codes, errors


def _inverse_factor(second_moment: Floats) -> Floats:
    """Return the upper triangular ``R`` with ``Rᵀ·R`` the inverse of the damped second moment.

    The Cholesky factor of the matrix in reversed order, inverted and reversed again, is ``R``: the inverse itself is never formed.
    """
    damped = second_moment.astype(np.float64)
    mean = float(np.mean(np.diag(damped)))
    damped[np.diag_indices_from(damped)] += DAMPING * mean
    lower = torch.linalg.cholesky(torch.from_numpy(damped[::-1, ::-1].copy()))
    inverse = torch.linalg.solve_triangular(
        lower, torch.eye(len(damped), dtype=torch.float64, device="cpu"), upper=False
    )
    factor: Floats = np.ascontiguousarray(inverse.numpy()[::-1, ::-1])
    return factor
