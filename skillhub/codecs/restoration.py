"""How a tensor is stored bit for bit in fewest bytes: the codec ``lossless`` with or without a low-rank prediction, or ``exact``."""

from __future__ import annotations

import torch

from skillhub.codecs import exact, lossless
from skillhub.codecs.allocation import analyse
from skillhub.codecs.allocation import encode as encode_delta
from skillhub.codecs.decoding import decode
from skillhub.codecs.encoding import EncodedTensor
from skillhub.codecs.predictions import FORMATS

PRICE = 0.3
"""Mean squared delta a bit that components are bought at for a prediction: the best of 0.03, 0.1, 0.3 and 1 on two fine-tunes."""


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
    """Return a coarse encoding of tuned − base; None where low rank does not say anything of it."""
    if tuned.dim() < 2:
        return None
    delta = tuned.to(torch.float32, copy=True)
    rows = min(len(base), len(tuned))
    delta[:rows] -= base[:rows].to(torch.float32)
    if not bool(delta.isfinite().all()):
        return None
    price = PRICE * float(delta.square().mean(dtype=torch.float64))
    analysis = analyse(name, delta, added_rows=len(tuned) - rows)
    if analysis.factors is None:
        return None
    encoded = encode_delta(analysis, price, delta)
    return encoded if encoded.parts[0].codec == "lowrank" else None
