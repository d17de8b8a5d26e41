"""How a tensor is stored bit for bit in fewest bytes: the codec ``lossless`` with or without a low-rank prediction, or ``exact``."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from skillhub.codecs import exact, lossless, lowrank
from skillhub.codecs.allocation import Analysis, decompose
from skillhub.codecs.allocation import encode as encode_delta
from skillhub.codecs.decoding import decode
from skillhub.codecs.encoding import EncodedTensor
from skillhub.codecs.predictions import FORMATS

PRICE = 0.6
"""Mean squared delta a bit that the search for the best price of components begins at; it suits most tensors of four fine-tunes."""

PRICE_STEPS = 8
"""How often the search halves or doubles the price at most: the embeddings of one fine-tune were smallest at a sixteenth."""

SAMPLE = 1 << 17
"""Elements that prices are compared on."""


def encode(name: str, tuned: torch.Tensor, base: torch.Tensor) -> EncodedTensor:
    """Store ``tuned`` bit for bit, for whoever has ``base``.

    Args:
        name: canonical name of the tensor; seeds randomized factorization.
        tuned: any dtype that :mod:`skillhub.codecs.exact` stores.
        base: of the same shape, or with another number of rows.
    """
    if tuned.dtype not in FORMATS or base.dtype not in lossless.BASE_DTYPES.values():
        return exact.encode(tuned, operation="set")
    # Also where to store it as it is would be shorter: what is set does not compose with other packs.
    candidates = [lossless.encode(tuned, base)]
    predicting = _predict_delta(name, tuned, base)
    if predicting is not None:
        candidates.append(lossless.encode(tuned, base, predicting.parts, decode(predicting)))
    return min(candidates, key=lambda one: one.nbytes)


def _predict_delta(name: str, tuned: torch.Tensor, base: torch.Tensor) -> EncodedTensor | None:
    """Return the coarse encoding of tuned − base that saves most; None where low rank does not say anything of it."""
    if tuned.dim() < 2:
        return None
    delta = tuned.to(torch.float32, copy=True)
    rows = min(len(base), len(tuned))
    delta[:rows] -= base[:rows].to(torch.float32)
    if not bool(delta.isfinite().all()):
        return None
    analysis = decompose(name, delta, added_rows=len(tuned) - rows)
    if analysis.factors is None:
        return None
    price = PRICE * float(delta.square().mean(dtype=torch.float64))
    best = _Candidate.at(price, analysis, delta, tuned, base)
    for factor in (0.5, 2.0):
        there = best
        for _ in range(PRICE_STEPS):
            other = _Candidate.at(there.price * factor, analysis, delta, tuned, base)
            if other.size >= best.size:
                break
            best = there = other
        if best.price < price:  # the size has one minimum: no need to look on the other side
            break
    return best.encoded if best.encoded.parts[0].codec == lowrank.ID else None


@dataclass(frozen=True, eq=False)
class _Candidate:
    """An encoding of a delta at a price, and about how many bytes the tensor takes with it."""

    price: float
    encoded: EncodedTensor
    size: float

    @classmethod
    def at(
        cls, price: float, analysis: Analysis, delta: torch.Tensor, tuned: torch.Tensor, base: torch.Tensor
    ) -> _Candidate:
        encoded = encode_delta(analysis, price, delta)
        # Rows that lie apart: neighbours (heads, experts, words) resemble each other.
        stride = max(1, tuned.numel() // SAMPLE)
        shared = min(len(base), len(tuned))
        some, there = tuned[:shared:stride], decode(encoded)[:shared:stride]
        rest = lossless.encode(some, base[:shared:stride], encoded.parts, there).nbytes - encoded.nbytes
        return cls(price, encoded, encoded.nbytes + rest * tuned.numel() / max(1, some.numel()))
