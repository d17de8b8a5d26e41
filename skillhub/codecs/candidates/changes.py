"""Candidate: the changed weights as they are, where few changed; without those that are not worth their bits.

They are stored by :mod:`skillhub.codecs.lossless`, to which the base's weights tell where changes are and how large, or where that cannot
be, by :mod:`skillhub.codecs.sparse`. A delta of which nearly every change is worth its bits is stored bit for bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from skillhub.codecs import lossless, sparse
from skillhub.codecs.candidates.interface import Floats, Offer, Target
from skillhub.codecs.encoding import EncodedPart

SAMPLE = 1 << 17
"""Weights that an estimate looks at."""

FEW = 0.5
"""Share of changed weights up to which some of them may be left out, and their places are worth storing."""

NEARLY_ALL = 0.98
"""Where this share of the changes is worth its bits, all are stored: to be exact is worth the others' bits."""

VALUE_BITS = 2.0
"""About what a change takes beside its place."""


@dataclass(frozen=True, eq=False)
class Changes:
    """The changes of single weights that are worth their bits.

    Attributes:
        target: the matrix.
    """

    target: Target
    _bits: dict[int, float] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The codec."""
        return sparse.ID if self.target.values is None else lossless.ID

    def offer(self, price: float) -> Offer | None:
        """As :meth:`skillhub.codecs.candidates.interface.Candidate.offer`."""
        if self._few is None:
            return None if self.target.values is None else Offer(self._bits_of_all, 0.0, 0.0)
        least = self._choose_least(price)
        if not least:
            return Offer(self._bits_of_all, 0.0, 0.0)
        kept = self._sizes >= least
        if not kept.any():
            return Offer(0.0, self.target.energy, self.target.energy)
        left, energy = (float(np.square(self._sizes[which], dtype=np.float64).sum()) for which in (~kept, ...))
        error, count = left / energy * self.target.energy, int(kept.sum())
        if count not in self._bits:  # changes are of few sizes: prices close together keep the same
            self._bits[count] = self._estimate_bits(torch.from_numpy(kept))
        return Offer(self._bits[count], error, error)

    def encode(self, price: float) -> tuple[EncodedPart, ...]:
        """As :meth:`skillhub.codecs.candidates.interface.Candidate.encode`."""
        target, least = self.target, self._choose_least(price)
        kept = torch.from_numpy(np.abs(target.weigh(target.matrix)) >= least)
        if not bool(kept.any()):
            return ()
        if target.values is None:
            return (sparse.encode(torch.where(kept, target.matrix, 0.0)),)
        tuned, base = target.values
        if least:
            tuned = torch.where(kept.reshape(tuned.shape), tuned, base.to(tuned.dtype))
        return lossless.encode(tuned, base).parts

    @cached_property
    def _few(self) -> Floats | None:
        """Sizes of the sampled changes, from the largest, where so few weights changed that some of these may be left out."""
        if int(self.target.matrix.count_nonzero()) > FEW * self.target.matrix.numel():
            return None
        return -np.sort(-self._sizes[self._sizes > 0])

    @cached_property
    def _rows(self) -> slice:
        return self.target.sample(SAMPLE)

    @cached_property
    def _sizes(self) -> Floats:
        """Of some rows: the root of what each change costs that is left out."""
        sizes: Floats = np.abs(self.target.weigh(self.target.matrix[self._rows], self._rows))
        return sizes

    def _choose_least(self, price: float) -> float:
        """Return the size from which on a change is stored; 0 stores all."""
        if self._few is None:
            return 0.0
        count, least = self._few.size, 0.0
        for _ in range(4):
            share = max(count, 1) / self._sizes.size
            bits = VALUE_BITS + math.log2(max((1 - share) / share, 1.0))
            least = math.sqrt(price * bits / self.target.coherence) / self.target.unit
            count = int(np.searchsorted(-self._few, -least, side="right"))
        return 0.0 if count >= NEARLY_ALL * self._few.size else least

    @cached_property
    def _bits_of_all(self) -> float:
        return self._estimate_bits(torch.from_numpy(self._sizes > 0))

    def _estimate_bits(self, kept: torch.Tensor) -> float:
        """Return about what those of the sampled changes take that are kept, for the whole matrix."""
        target, factor = self.target, self.target.matrix.numel() / kept.numel()
        if target.values is None:
            return sparse.estimate_bits(torch.where(kept, target.matrix[self._rows], 0.0), factor)
        shape = tuple(target.matrix.shape)
        tuned, base = (one.reshape(shape)[self._rows] for one in target.values)
        return lossless.estimate_bits(torch.where(kept, tuned, base.to(tuned.dtype)), base, factor)
