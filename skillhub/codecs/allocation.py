"""Allocation: which codec stores a tensor, and how finely, from one price of a bit for the whole model.

First every tensor is analysed on its own: at each of a ladder of prices, which of the candidates (:mod:`skillhub.codecs.candidates`) would
store it, in how many bits, and with what error? Then one price is chosen that meets the budget, and every
tensor is encoded at it. At one common price no byte could move from one tensor to another and lower the total error
(Everett 1963; Shoham & Gersho 1988).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from skillhub.codecs import exact, lossless, rows, zero
from skillhub.codecs.candidates import Components, Offer, Target, Values, find_candidates
from skillhub.codecs.candidates.components import choose_outliers, measure_row_bits
from skillhub.codecs.decoding import decode
from skillhub.codecs.encoding import EncodedPart, EncodedTensor
from skillhub.codecs.factorization import Factors, factorize, factorize_in_metrics, save_factors
from skillhub.codecs.metrics import Metrics
from skillhub.codecs.predictions import FORMATS
from skillhub.errors import UsageError

MAX_RANK = 192
"""Components that an analysis keeps of a matrix."""

SMALL_TENSOR = 4096
"""Tensors of at most this many elements are stored exactly."""

SMALLEST_PEAK, LARGEST_PEAK = 2.0**-50, 2.0**40
"""Deltas whose largest weight lies outside have squares that fp32 does not hold well."""

PRICE_STEP = 4.0
PRICE_STEPS = 7
"""The ladder of an analysis: prices that are powers of 4, from the first at which components are bought downwards."""

MOST_PRICE_STEPS = 20
"""A ladder goes on until half of the components are bought, if a few of them dwarf the rest, but not beyond this."""

EXTRAPOLATION = 12
"""How many halvings of the price below the lowest ladder a budget may ask for."""

_PIECE = 1 << 22
"""Elements that are compared at a time."""


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
        added_rows: rows at the end that ``fixed`` has.
        prices: the ladder, falling (squared error a bit).
        bits: estimated size at each price, beside ``fixed``, of what is chosen.
        errors: estimated squared error that remains at each price.
        kinds: which candidate that is.
    """

    name: str
    shape: tuple[int, ...]
    energy: float
    fixed: tuple[EncodedPart, ...]
    factors: Factors | Path | None = None
    row_bits: float = 0.0
    is_calibrated: bool = False
    added_rows: int = 0
    prices: tuple[float, ...] = ()
    bits: tuple[float, ...] = ()
    errors: tuple[float, ...] = ()
    kinds: tuple[str, ...] = ()

    @property
    def fixed_bytes(self) -> int:
        """Payload bytes that the tensor costs at every price."""
        return EncodedTensor(self.shape, self.fixed).nbytes

    @property
    def is_whole(self) -> bool:
        """Whether the tensor is stored exactly at every price."""
        return self.factors is None and any(part.codec == exact.ID for part in self.fixed)

    def kind_at(self, price: float) -> str:
        """Return which candidate stores the tensor at a price: that of the nearest price of the ladder."""
        if not self.kinds:
            return Components.kind
        nearest = min(self.prices, key=lambda one: abs(math.log(one / price)))
        return self.kinds[self.prices.index(nearest)]


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
    values: Values | None = None,
    spool: Path | None = None,
    max_rank: int = MAX_RANK,
) -> Analysis:
    """Find out what a tensor's delta costs at which price.

    Args:
        name: canonical name; seeds randomized factorization.
        delta: fp32, any shape; not changed.
        added_rows: how many rows at the end the base does not have; they are kept exactly.
        metrics: what errors in its rows and columns cost; None counts all alike.
        values: the tensors that it is the difference of, if whoever decodes it will have the base's.
        spool: a folder for the factors, so that memory does not hold those of every tensor; by default they stay in memory.
        max_rank: components to keep at most.

    Raises:
        ValueError: ``delta`` is not fp32.
    """
    found = decompose(name, delta, added_rows=added_rows, metrics=metrics, max_rank=max_rank)
    if not isinstance(found.factors, Factors):
        return found
    target = _target_of(found, delta, metrics, values)
    prices, kinds, offers = zip(*_measure_ladder(target), strict=True)
    return replace(
        found,
        factors=found.factors if spool is None else save_factors(spool, name, found.factors),
        energy=target.energy,
        prices=prices,
        bits=tuple(offer.bits for offer in offers),
        errors=tuple(offer.error for offer in offers),
        kinds=kinds,
    )


def decompose(
    name: str,
    delta: torch.Tensor,
    *,
    added_rows: int = 0,
    metrics: Metrics | None = None,
    max_rank: int = MAX_RANK,
) -> Analysis:
    """Return an analysis that asks no price: at every one the tensor is stored by components, if not exactly.

    Args and errors are those of :func:`analyse`.
    """
    if delta.dtype != torch.float32:
        raise ValueError(f"expected a float32 delta, got {delta.dtype}")
    shape = tuple(delta.shape)
    if not bool(delta.any()):
        return Analysis(name, shape, 0.0, zero.encode(shape).parts)
    if _is_stored_exactly(delta):
        return Analysis(name, shape, 0.0, exact.encode(delta).parts)
    fixed: tuple[EncodedPart, ...] = ()
    if added_rows:
        fixed = (rows.encode(delta, list(range(shape[0] - added_rows, shape[0]))),)
    matrix = _without_rows(delta, added_rows)
    energy = float(matrix.square().sum(dtype=torch.float64))
    if energy == 0:
        return Analysis(name, shape, 0.0, fixed)
    if metrics is None:
        factors, row_bits = factorize(name, matrix, max_rank), measure_row_bits(matrix)
    else:
        factors, row_bits = factorize_in_metrics(name, matrix, max_rank, metrics), 0.0
    return Analysis(name, shape, energy, fixed, factors, row_bits, metrics is not None, added_rows)


def _is_stored_exactly(delta: torch.Tensor) -> bool:
    """Return whether low rank is out of the question: vectors, small tensors, values that squares cannot hold."""
    if delta.dim() < 2 or delta.numel() <= SMALL_TENSOR or min(delta.shape[0], delta[0].numel()) < 2:
        return True
    return not has_sane_magnitude(delta)


def has_sane_magnitude(delta: torch.Tensor) -> bool:
    """Say whether fp32 holds the squares of a delta well, by its largest weight; not so for NaN."""
    return SMALLEST_PEAK < float(delta.abs().max()) < LARGEST_PEAK


def _without_rows(delta: torch.Tensor, added_rows: int) -> torch.Tensor:
    """Return a delta as a matrix in which added rows are zero."""
    matrix = delta.reshape(delta.shape[0], -1)
    if added_rows:
        matrix = matrix.clone()
        matrix[-added_rows:] = 0
    return matrix


def _target_of(analysis: Analysis, delta: torch.Tensor, metrics: Metrics | None, values: Values | None) -> Target:
    """Return what candidates store of a tensor."""
    assert analysis.factors is not None
    matrix, values = _without_rows(delta, analysis.added_rows), _restorable(values, analysis.added_rows)
    return Target(matrix, analysis.factors, metrics, analysis.row_bits, values)


def _restorable(values: Values | None, added_rows: int) -> Values | None:
    """Return the tensors of a difference, if the one can be restored from the other."""
    if values is None or added_rows or values.tuned.shape != values.base.shape:
        return None
    is_known = values.tuned.dtype in FORMATS and values.base.dtype in lossless.BASE_DTYPES.values()
    return values if is_known else None


def _measure_ladder(target: Target) -> list[tuple[float, str, Offer]]:
    """Return (price, kind, offer) of what is chosen, from the first price at which components are worth their bits downwards.

    The prices are powers of four, which all tensors share. What is exact is chosen where it takes no more bits than components do, and not
    before: to trade its bits for squared errors would take them from components, of which a model's function needs the more.
    """
    components, changes = find_candidates(target)
    exponent = math.floor(math.log(target.factors.values[0] ** 2 / 64, PRICE_STEP))
    lowest = exponent - MOST_PRICE_STEPS
    ladder: list[tuple[float, str, Offer]] = []
    while exponent > lowest:
        prices = [PRICE_STEP ** (exponent - step) for step in range(PRICE_STEPS)]  # many at once save time
        exponent -= PRICE_STEPS
        for price, (near, count) in zip(prices, components.offers(prices), strict=True):
            if (exact := changes.exact) and exact.bits <= near.bits:
                # Once more at the next price: more bits buy nothing.
                return [*ladder, *((one, changes.kind, exact) for one in (price, price / PRICE_STEP))]
            if near.bits or ladder:
                ladder.append((price, components.kind, near))
            if len(ladder) >= PRICE_STEPS and 2 * count >= len(target.factors.values):
                return ladder
    return ladder


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
        if set_bytes + estimate_payload(analyses, math.exp2(middle)) > budget_bytes:
            low = middle
        else:
            high = middle
    return math.exp2(high)


def estimate_payload(analyses: Sequence[Analysis], price: float) -> float:
    """Return about how many bytes tensors that are stored as differences take at a price (squared error a bit)."""
    fixed = sum(analysis.fixed_bytes for analysis in analyses)
    return fixed + sum(_estimate_bits(one, math.log2(price)) for one in analyses if one.prices) / 8


def _estimate_bits(analysis: Analysis, log_price: float) -> float:
    """Interpolate an analysis's bits at ``2**log_price``: nothing above its ladder, a straight line in the logarithm below."""
    logs = np.log2(np.array([analysis.prices[0] * PRICE_STEP, *analysis.prices]))
    bits = np.array([0.0, *analysis.bits])
    if log_price < logs[-1]:
        slope = (bits[-1] - bits[-2]) / (logs[-2] - logs[-1])
        return float(bits[-1] + slope * (logs[-1] - log_price))
    # The root of the size is close to linear in the logarithm of the price.
    return float(np.interp(-log_price, -logs, np.sqrt(bits)) ** 2)


def encode(analysis: Analysis, price: float, delta: torch.Tensor, values: Values | None = None) -> EncodedTensor:
    """Encode a tensor at ``price``, as what costs least there.

    Args:
        analysis: of this tensor.
        price: squared error a bit, from :func:`choose_lambda`.
        delta: the fp32 delta.
        values: those of the analysis.
    """
    if analysis.factors is None:
        return EncodedTensor(analysis.shape, analysis.fixed)
    target = _target_of(analysis, delta, None, values)
    kind = analysis.kind_at(price)
    chosen = next(one for one in find_candidates(target) if one.kind == kind)
    parts = (*chosen.encode(price), *analysis.fixed)
    encoded = EncodedTensor(analysis.shape, parts or zero.encode(analysis.shape).parts)
    if analysis.is_calibrated or encoded.operation != "add":
        return encoded
    remaining = delta - decode(encoded)
    errors = remaining.reshape(len(delta), -1).square_().sum(dim=1, dtype=torch.float64).numpy()
    outliers = choose_outliers(errors, price, analysis.row_bits)
    if not len(outliers):
        return encoded
    return EncodedTensor(analysis.shape, (*encoded.parts, rows.encode(delta, outliers.tolist())))


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
