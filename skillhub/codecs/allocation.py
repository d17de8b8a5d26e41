"""Allocation: how many bytes each tensor gets, from one price of a bit for the whole model.

First every tensor is analysed on its own: what would it cost, and how much error would remain, at a ladder of prices? Then one price
is chosen that meets the budget, and every tensor is encoded at it. At one common price no byte could move from one tensor
to another and lower the total error (Everett 1963; Shoham & Gersho 1988).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from skillhub.codecs import exact, lowrank, rows, zero
from skillhub.codecs.decoding import decode
from skillhub.codecs.encoding import EncodedPart, EncodedTensor, damaged
from skillhub.codecs.factorization import Factors, factorize, factorize_in_metrics, load_factors, save_factors
from skillhub.codecs.metrics import Metrics
from skillhub.codecs.quantization import Quantized, quantize
from skillhub.errors import UsageError

Floats = npt.NDArray[np.float64]

MAX_RANK = 192
"""Components that an analysis keeps of a matrix."""

SMALL_TENSOR = 4096
"""Tensors of at most this many elements are stored exactly."""

PRICE_STEP = 2.0
PRICE_STEPS = 13
"""The ladder of an analysis: prices that are powers of 2, from the first that buys anything downwards."""

MOST_PRICE_STEPS = 40
"""A ladder goes on until half of the components are bought, if a few of them dwarf the rest, but not beyond this."""

EXTRAPOLATION = 12
"""How many halvings of the price below the lowest ladder a budget may ask for."""

MAX_OUTLIERS = 0.01
"""Largest share of a matrix's rows that are stored exactly as outliers."""

COHERENCE = 4.0
"""How many times its own error a component costs that is left out of a calibrated tensor; between 1 and 16 the divergence of a real
fine-tune changed by a tenth, and was least here."""

_PIECE = 1 << 22
"""Elements that are compared at a time."""

ROW_SAMPLE = 16
"""Rows that are encoded to see what an exact row costs."""


@dataclass(frozen=True, eq=False)
class Analysis:
    """What one tensor's bytes would buy.

    Attributes:
        name: the tensor's canonical name.
        shape: its shape.
        energy: sum of squares of the delta that is not stored exactly.
        fixed: parts that are stored at every price (zero, exact, added rows).
        factors: singular components, or the file that holds them; None when ``fixed`` says everything.
        row_bits: what storing one row exactly costs.
        is_calibrated: whether errors are measured in a metric; rows then are not stored exactly for their own error.
        prices: the ladder, falling (squared error a bit).
        bits: estimated size at each price, beside ``fixed``, with the outliers.
        errors: estimated squared error that remains at each price.
    """

    name: str
    shape: tuple[int, ...]
    energy: float
    fixed: tuple[EncodedPart, ...]
    factors: Factors | Path | None = None
    row_bits: float = 0.0
    is_calibrated: bool = False
    prices: tuple[float, ...] = ()
    bits: tuple[float, ...] = ()
    errors: tuple[float, ...] = ()

    @property
    def fixed_bytes(self) -> int:
        """Payload bytes that the tensor costs at every price."""
        return EncodedTensor(self.shape, self.fixed).nbytes


@dataclass(frozen=True)
class ErrorRecord:
    """How far a decoded delta is from the true one.

    Attributes:
        relative_squared_error: squared error over the sum of squares of the true delta; 0 when both are zero.
        max_absolute_error: largest absolute error of one weight.
    """

    relative_squared_error: float
    max_absolute_error: float


def analyse(
    name: str,
    delta: torch.Tensor,
    *,
    added_rows: int = 0,
    metrics: Metrics | None = None,
    spool: Path | None = None,
    max_rank: int = MAX_RANK,
) -> Analysis:
    """Find out what a tensor's delta costs at which price.

    Args:
        name: canonical name; seeds randomized factorization.
        delta: fp32, any shape; not changed.
        added_rows: how many rows at the end the base does not have; they are kept exactly.
        metrics: what errors in its rows and columns cost; None counts all alike.
        spool: a folder for the factors, so that memory does not hold those of every tensor; by default they stay in memory.
        max_rank: components to keep at most.

    Raises:
        ValueError: ``delta`` is not fp32.
    """
    if delta.dtype != torch.float32:
        raise ValueError(f"expected a float32 delta, got {delta.dtype}")
    shape = tuple(delta.shape)
    if not bool(delta.any()):
        return Analysis(name, shape, 0.0, zero.encode(shape).parts)
    if _is_stored_exactly(delta):
        return Analysis(name, shape, 0.0, exact.encode(delta).parts)
    fixed: tuple[EncodedPart, ...] = ()
    matrix = delta.reshape(shape[0], -1)
    if added_rows:
        first = shape[0] - added_rows
        fixed = (rows.encode(delta, list(range(first, shape[0]))),)
        matrix = matrix.clone()
        matrix[first:] = 0
    energy = float(matrix.square().sum(dtype=torch.float64))
    if energy == 0:
        return Analysis(name, shape, 0.0, fixed)
    if metrics is None:
        factors, row_bits = factorize(name, matrix, max_rank), _measure_row_bits(matrix)
        ladder = _measure_ladder(factors, row_bits, matrix.square().sum(dim=1, dtype=torch.float64).numpy(), None)
    else:
        factors, row_bits = factorize_in_metrics(name, matrix, max_rank, metrics), 0.0
        energy = metrics.energy(matrix)
        ladder = _measure_ladder(factors, row_bits, np.array([energy]), metrics)
    kept = factors if spool is None else save_factors(spool, name, factors)
    return Analysis(name, shape, energy, fixed, kept, row_bits, metrics is not None, *ladder)


def _is_stored_exactly(delta: torch.Tensor) -> bool:
    """Return whether low rank is out of the question: vectors, small tensors, values that squares cannot hold."""
    if delta.dim() < 2 or delta.numel() <= SMALL_TENSOR or min(delta.shape[0], delta[0].numel()) < 2:
        return True
    peak = float(delta.abs().max())
    return not 2.0**-50 < peak < 2.0**40


def _measure_row_bits(matrix: torch.Tensor) -> float:
    """Return the bits of one exactly stored row: a measurement of the largest ones, which outliers are among."""
    largest = matrix.square().sum(dim=1).argsort(descending=True, stable=True)[:ROW_SAMPLE]
    sample = rows.encode(matrix, sorted(largest.tolist()))
    return 8 * EncodedTensor(tuple(matrix.shape), (sample,)).nbytes / len(largest)


def _measure_ladder(
    factors: Factors, row_bits: float, row_energies: Floats, metrics: Metrics | None
) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
    """Return (prices, bits, errors) from the first price that buys anything downwards, on a grid that all tensors share."""
    energy = float(row_energies.sum())
    exponent = math.floor(math.log(factors.values[0] ** 2 / 64, PRICE_STEP))
    points: list[tuple[float, float, float]] = []
    few = True
    while len(points) < PRICE_STEPS or (few and len(points) < MOST_PRICE_STEPS):
        price = PRICE_STEP**exponent
        bought = quantize(factors, price, metrics=metrics, coherence=_coherence(factors))
        few = 2 * len(bought.kept) < len(factors.values)
        outliers = np.zeros(0)
        if factors.lines is None:
            errors = np.maximum(row_energies - _explained_by_row(factors, bought), 0)
            outliers = errors[_choose_outliers(errors, price, row_bits)]
        bits = bought.bits + _bits_of_lines(factors, bought) + len(outliers) * row_bits
        if bits or points:
            points.append((price, bits, max(energy - bought.removed - float(outliers.sum()), 0.0)))
        exponent -= 1
    prices, bits_at, errors_at = zip(*points, strict=True)
    return prices, bits_at, errors_at


def _coherence(factors: Factors) -> float:
    return 1.0 if factors.lines is None else COHERENCE


def _bits_of_lines(factors: Factors, bought: Quantized) -> float:
    """Return what the exponents of rows and columns take, where anything is bought."""
    if factors.lines is None or not len(bought.kept):
        return 0.0
    exponents = np.concatenate([factors.lines.rows, factors.lines.columns])
    _, counts = np.unique(exponents, return_counts=True)
    return 200 - 1.2 * float((counts * np.log2(counts / counts.sum())).sum())  # what zstandard was seen to take


def _explained_by_row(factors: Factors, bought: Quantized) -> Floats:
    """Return how much of each row's square the components explain, by as much as they are orthogonal."""
    left, right = factors.left[bought.kept], factors.right[bought.kept]
    approximate = bought.left * bought.scales[:, None]
    along = np.einsum("ij,ij->i", bought.right, right, dtype=np.float64) * factors.values[bought.kept]
    square = np.einsum("ij,ij->i", bought.right, bought.right, dtype=np.float64)
    explained: Floats = 2 * along @ (left * approximate) - square @ np.square(approximate)
    return explained


def choose_lambda(analyses: Sequence[Analysis], budget_bytes: int, *, set_bytes: int = 0) -> float:
    """Return the price (squared error a bit) at which the payload of all tensors is about ``budget_bytes``.

    Args:
        analyses: of the tensors that are stored as differences.
        budget_bytes: payload of all tensors.
        set_bytes: the part of it that tensors take that are stored as they are.

    Raises:
        UsageError: what must be stored exactly is larger than the budget.
    """
    fixed = set_bytes + sum(analysis.fixed_bytes for analysis in analyses)
    if fixed > budget_bytes:
        raise UsageError(
            f"A budget of {budget_bytes} bytes is too small: vectors, added rows and other exact values alone take {fixed}.",
            hint=f"Choose a budget of at least {fixed} bytes.",
            minimum=fixed,
        )
    ladders = [analysis for analysis in analyses if analysis.prices]
    if not ladders:
        return 1.0
    low = math.log2(min(analysis.prices[-1] for analysis in ladders)) - EXTRAPOLATION
    high = math.log2(max(analysis.prices[0] for analysis in ladders)) + math.log2(PRICE_STEP)
    for _ in range(40):
        middle = (low + high) / 2
        if fixed + sum(_estimate_bits(analysis, middle) for analysis in ladders) / 8 > budget_bytes:
            low = middle
        else:
            high = middle
    return math.exp2(high)


def _estimate_bits(analysis: Analysis, log_price: float) -> float:
    """Interpolate an analysis's bits at ``2**log_price``: nothing above its ladder, a straight line in the logarithm below."""
    logs = np.log2(np.array([analysis.prices[0] * PRICE_STEP, *analysis.prices]))
    bits = np.array([0.0, *analysis.bits])
    if log_price < logs[-1]:
        slope = (bits[-1] - bits[-2]) / (logs[-2] - logs[-1])
        return float(bits[-1] + slope * (logs[-1] - log_price))
    # The root of the size is close to linear in the logarithm of the price.
    return float(np.interp(-log_price, -logs, np.sqrt(bits)) ** 2)


def encode(
    analysis: Analysis, price: float, delta: torch.Tensor | None = None, metrics: Metrics | None = None
) -> EncodedTensor:
    """Encode a tensor at ``price``.

    Args:
        analysis: of this tensor.
        price: squared error a bit, from :func:`choose_lambda`.
        delta: the fp32 delta; where it is given, rows that low rank describes badly are stored exactly if that is worth its bits.
        metrics: those of the analysis.
    """
    if analysis.factors is None:
        return EncodedTensor(analysis.shape, analysis.fixed)
    factors = load_factors(analysis.factors)
    bought = quantize(factors, price, metrics=metrics, coherence=_coherence(factors))
    parts: tuple[EncodedPart, ...] = ()
    if len(bought.scales):
        components = lowrank.choose_groups(bought.left, bought.right, bought.scales, factors.lines)
        if components is None:
            raise damaged("has scales that fp32 cannot hold")  # excluded by _is_stored_exactly
        parts = (lowrank.encode(components),)
    encoded = EncodedTensor(analysis.shape, (*parts, *analysis.fixed) or zero.encode(analysis.shape).parts)
    if delta is None or analysis.is_calibrated:
        return encoded
    residual = delta.reshape(delta.shape[0], -1) - decode(encoded).reshape(delta.shape[0], -1)
    errors = residual.square_().sum(dim=1, dtype=torch.float64).numpy()
    outliers = _choose_outliers(errors, price, analysis.row_bits)
    if not len(outliers):
        return encoded
    return EncodedTensor(analysis.shape, (*encoded.parts, rows.encode(delta, outliers.tolist())))


def _choose_outliers(errors: Floats, price: float, row_bits: float) -> npt.NDArray[np.int64]:
    """Return the rows whose remaining squared error is worth storing them exactly at ``price``, in increasing order."""
    worth = np.flatnonzero(errors > price * row_bits)
    worst = worth[np.argsort(-errors[worth], kind="stable")[: int(MAX_OUTLIERS * len(errors))]]
    return np.sort(worst)


def measure_error(delta: torch.Tensor, decoded: torch.Tensor) -> ErrorRecord:
    """Compare a decoded delta with the true one, both fp32 of one shape; values equal to the bit (NaN too) count as no error."""
    if not delta.numel():
        return ErrorRecord(0.0, 0.0)
    squared = energy = 0.0
    largest = torch.zeros(())
    pieces = (torch.split(one.reshape(-1), _PIECE) for one in (delta, decoded))
    for true, found in zip(*pieces, strict=True):
        error = torch.where(true.view(torch.int32) == found.view(torch.int32), 0.0, found - true)
        squared += float(error.square().sum(dtype=torch.float64))
        energy += float(true.square().sum(dtype=torch.float64))
        largest = largest.maximum(error.abs().max())  # of a NaN a NaN
    relative = squared / energy if energy > 0 else 0.0
    return ErrorRecord(0.0 if squared == 0 else relative, float(largest))
