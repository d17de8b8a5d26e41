"""Candidate: every change as it is, bit for bit.

It is stored by :mod:`skillhub.codecs.lossless`, to which the base's weights tell where changes are and how large, or where that cannot be, by
:mod:`skillhub.codecs.sparse`, if few weights changed. No change is left out for being small: of a preference-tuned model half of the
squares, kept so in 0.7 MB, gave ten times the divergence of a tenth of them in components of 1.6 MB.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from skillhub.codecs import lossless, sparse
from skillhub.codecs.candidates.interface import Offer, Target
from skillhub.codecs.encoding import EncodedPart

SAMPLE = 1 << 16
"""Weights that an estimate looks at."""

FEW = 0.5
"""Share of changed weights up to which their places are worth storing."""


@dataclass(frozen=True, eq=False)
class Changes:
    """All changes.

    Attributes:
        target: the matrix.
    """

    target: Target

    @property
    def kind(self) -> str:
        """The codec."""
        return sparse.ID if self.target.values is None else lossless.ID

    @cached_property
    def exact(self) -> Offer | None:
        """What it takes at every price; None if nothing stores these changes well."""
        target = self.target
        if target.values is None and int(target.matrix.count_nonzero()) > FEW * target.matrix.numel():
            return None
        return Offer(self._estimate_bits(), 0.0)

    def offer(self, price: float) -> Offer | None:
        """As :meth:`skillhub.codecs.candidates.interface.Candidate.offer`."""
        return self.exact

    def encode(self, price: float) -> tuple[EncodedPart, ...]:
        """As :meth:`skillhub.codecs.candidates.interface.Candidate.encode`."""
        if self.target.values is None:
            return (sparse.encode(self.target.matrix),)
        return lossless.encode(*self.target.values).parts

    def _estimate_bits(self) -> float:
        target = self.target
        rows = target.sample(SAMPLE)
        some = target.matrix[rows]
        factor = target.matrix.numel() / some.numel()
        if target.values is None:
            return sparse.estimate_bits(some, factor)
        tuned, base = (one.reshape(target.matrix.shape)[rows] for one in target.values)
        return lossless.estimate_bits(tuned, base, factor)
