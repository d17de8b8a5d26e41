"""Candidate: what few singular components leave, weight by weight.

A component of the singular value ``s`` takes ``s²`` out of the squares of a matrix and costs a code a row and column. Where every weight has
a code anyway, it saves at most ``s² / (2·ln 2·σ²)`` of their bits, where ``σ²`` is the mean square of what is left: the rate–distortion
function of a Gaussian source (Cover & Thomas, "Elements of Information Theory", §10.3). So components are worth ``2·ln 2·σ²`` a bit, whatever
the price, as soon as that is more than it. Above that price weights are not worth a code, and below it components stay what they were.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from skillhub.codecs import lowrank, residual
from skillhub.codecs.candidates.components import Components
from skillhub.codecs.candidates.interface import Floats, Offer
from skillhub.codecs.encoding import EncodedPart

SAMPLE = 1 << 16
"""Weights that an estimate looks at."""

DEAD_ZONE_SLOPE = math.log(2) / 12
"""A bit that a code costs more than a zero widens the dead zone by so much of a step, at the step that the price asks for."""

WIDEST_DEAD_ZONE = 0.95

AT_LEAST_BELOW = 4
"""Codes are offered at prices so many times below the level: nearer to it, they cost as much as they are worth."""


@dataclass(eq=False)
class Remainder:
    """Components down to one price, and codes for every weight of what they leave.

    Attributes:
        components: the matrix's.
        level: the price that components are bought at, whatever a bit costs; None until a price is low enough for codes.
    """

    components: Components
    level: float | None = None

    kind = "residual"

    def offer(self, price: float) -> Offer | None:
        """As :meth:`skillhub.codecs.candidates.interface.Candidate.offer`."""
        target = self.components.target
        if self.level is None and 2 * math.log(2) * self._left(price) >= price * target.matrix.numel():
            self.level = price
            self._remember()
        if self.level is None or price > self.level / AT_LEAST_BELOW:
            return None
        bits, left = self._low_rank
        some = self._sample
        step = self._step(price)
        found = residual.estimate(torch.from_numpy(some), step, dead_zone=choose_dead_zone(some, step))
        factor = target.matrix.numel() / some.size
        # Errors of a calibrated tensor that point the same way cost more than the sum of their squares.
        shrunk = left * found.error / found.energy if found.energy else 0.0
        error = max(shrunk, found.error * factor * target.unit**2)
        codes = (found.bits - residual.FRAME_BITS) * factor + residual.FRAME_BITS if found.bits else 0.0
        return Offer(bits + codes, error, 0.0)

    def encode(self, price: float) -> tuple[EncodedPart, ...]:
        """As :meth:`skillhub.codecs.candidates.interface.Candidate.encode`; ``level`` must be known."""
        assert self.level is not None
        target, level = self.components.target, max(price, self.level)
        parts = self.components.encode(level)
        rest = target.matrix
        components = self.components.integers(level)
        if components is not None:
            rest = rest - torch.from_numpy(lowrank.reconstruct(components))
        step = self._step(price)
        rows = target.sample(SAMPLE)
        zone = choose_dead_zone(target.weigh(rest[rows], rows), step)
        if not (np.abs(target.weigh(rest)) >= zone * step).any():
            return parts
        exponents = {}
        if target.metrics is not None:
            sides = {"row_exponents": target.metrics.rows, "column_exponents": target.metrics.columns}
            exponents = {key: (-4 * metric.exponents).astype(np.int8) for key, metric in sides.items()}
        return (*parts, residual.encode(rest, step, dead_zone=zone, **exponents))

    def _remember(self) -> None:
        """Work out what all offers take, while these components are those that were bought last."""
        _ = self._low_rank, self._sample

    @cached_property
    def _low_rank(self) -> tuple[float, float]:
        """Bits of the components, and the error that they leave."""
        assert self.level is not None
        removed = self.components.buy(self.level).removed
        return self.components.bits(self.level), max(self.components.target.energy - removed, 0.0)

    @cached_property
    def _sample(self) -> Floats:
        """Some rows of what the components leave, weighed."""
        assert self.level is not None
        return self._sample_rest(self.level)

    def _sample_rest(self, price: float) -> Floats:
        target = self.components.target
        rows = target.sample(SAMPLE)
        some, components = target.matrix[rows], self.components.integers(price)
        if components is not None:
            some = some - torch.from_numpy(lowrank.reconstruct(components, rows))
        return target.weigh(some, rows)

    def _left(self, price: float) -> float:
        """Return the squares of what components leave that are bought at a price, as codes for every weight see them."""
        target = self.components.target
        left = target.energy - self.components.buy(price).removed
        if target.metrics is None:
            return left
        some = self._sample_rest(price)
        squares = float(np.square(some, dtype=np.float64).sum())
        return max(left, squares * target.unit**2 * target.matrix.numel() / some.size)

    def _step(self, price: float) -> float:
        """Return the width of a step of weighed entries: as for the codes of components, one bit removes as much error as it costs."""
        target = self.components.target
        step = math.sqrt(6 * price / math.log(2)) / target.unit
        return min(max(step, 2 * residual.MIN_STEP), residual.MAX_STEP / 2)


def choose_dead_zone(weights: Floats, step: float) -> float:
    """Return the fraction of a step from which on a weight is worth a code, by what a code costs more than a zero.

    A weight of ``x`` steps that becomes one step and not zero removes ``x² - (1 - x)²``; a bit is worth ``ln(2)/6`` squared steps.
    """
    magnitudes, zone = np.abs(weights) / np.float32(step), residual.DEAD_ZONE
    for _ in range(3):
        zeros, ones = (float(np.mean(np.floor(magnitudes + np.float32(1 - zone)) == code)) for code in (0, 1))
        if not ones:
            return WIDEST_DEAD_ZONE if zeros else 0.5
        zone = 0.5 + DEAD_ZONE_SLOPE * math.log2(max(2 * zeros / ones, 1.0))
        zone = min(zone, WIDEST_DEAD_ZONE)
    return zone
