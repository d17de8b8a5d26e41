"""Methods that put one pack into a base in part: nearswap, Arcee Fusion, passthrough."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from skillhub.compose.methods.interface import Chunk, MergeInputs, MergeMethod, Option
from skillhub.compose.methods.selection import kth_largest

REACH = Option(1e-4, 0, 1e6, "largest change of an element")
FACTOR = Option(1, -1e6, 1e6, "factor of the tuned tensor")

_LEAST_PROBABILITY = 1e-8
_QUARTILES = (0.25, 0.5, 0.75)


def nearswap(delta: torch.Tensor, t: float) -> torch.Tensor:
    """Return a delta of which no element changes the base by more than ``t`` (alchemonaut's QuartetAnemoi-70B, model card).

    Published as an interpolation with weight ``min(1, t / |tuned − base|)`` for each element, which is cutting the delta off at ±t: where the
    two models are near to each other the tuned one's element is taken, elsewhere the base's is moved towards it.

    Args:
        delta: fp32; not modified.
        t: not negative.
    """
    return delta.clamp(-t, t)


def importance(base: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    """Return how important each element's change is to Arcee Fusion: its magnitude times the divergence of its vector.

    The divergence is that of Kullback and Leibler between the softmaxes of the tuned and the base tensor along the last dimension, with 1e-8 added to
    the probabilities. In fp32, as mergekit computes it, it is mostly rounding noise for fine-tunes: it is of second order in the
    delta. Here it is computed in fp64.

    Args:
        base: fp32, of at least one dimension; not modified.
        delta: likewise, of its shape.

    Returns:
        fp32, of the same shape, not negative.
    """
    wide = base.double()
    tuned = torch.softmax(wide + delta, -1).add_(_LEAST_PROBABILITY)
    before = torch.softmax(wide, -1).add_(_LEAST_PROBABILITY)
    divergence = torch.div(tuned, before).log_().mul_(tuned).sum(-1, keepdim=True)
    return divergence.clamp_(min=0.0).to(torch.float32) * delta.abs()


def keep_important(base: torch.Tensor, delta: torch.Tensor, threshold: float) -> torch.Tensor:
    """Return a delta without the elements whose :func:`importance` is below ``threshold`` (mergekit's ``arcee_fusion``; no paper).

    Args:
        base: fp32; not modified. Rows of a tensor will do, with the threshold of all of it.
        delta: likewise, of its shape.
        threshold: from :func:`fusion_threshold`.
    """
    return delta * (importance(base, delta) >= threshold)


def fusion_threshold(quartiles: list[float]) -> float:
    """Return the importance from which on elements are taken: the median plus 1.5 times the distance of the outer quartiles."""
    low, median, high = quartiles
    return median + 1.5 * (high - low)


def scaled_model(base: torch.Tensor | None, delta: torch.Tensor, scale: float) -> torch.Tensor:
    """Return the delta that makes of a base ``scale`` times the tuned tensor; the delta itself where that is 1."""
    if scale == 1:
        return delta
    scaled = delta * scale
    return scaled if base is None else scaled.add_(base * (scale - 1))


def _measure_importance(inputs: MergeInputs) -> float:
    if inputs.elements == 0:
        return 0.0
    # mergekit takes these from a random million of the elements, drawn anew in each run; here they are exact.
    ranks = [(0, inputs.elements - int(share * (inputs.elements - 1))) for share in _QUARTILES]
    found = kth_largest(
        lambda: _importances(inputs.chunks()),
        ranks,
        elements=inputs.elements,
        sample=_importances(inputs.chunks(sample=True)),
    )
    return fusion_threshold([placed.value for placed in found])


def _importances(chunks: Iterable[Chunk]) -> Iterator[list[torch.Tensor]]:
    return ([importance(_base(chunk), chunk.deltas[0])] for chunk in chunks)


def _base(chunk: Chunk) -> torch.Tensor:
    return torch.zeros_like(chunk.deltas[0]) if chunk.base is None else chunk.base


def _nearswap(inputs: MergeInputs, chunk: Chunk, _: Any) -> torch.Tensor:
    return nearswap(chunk.deltas[0], inputs.options["t"])


def _fuse(inputs: MergeInputs, chunk: Chunk, threshold: float) -> torch.Tensor:
    return keep_important(_base(chunk), chunk.deltas[0], threshold)


def _pass(inputs: MergeInputs, chunk: Chunk, _: Any) -> torch.Tensor:
    return scaled_model(chunk.base, chunk.deltas[0], inputs.options["scale"])


def _method(name: str, source: str, merge: Any, measure: Any = None, **options: Option) -> MergeMethod:
    return MergeMethod(name, source, merge, measure, uses_weights=False, options=options, members=(1, 1))


NEARSWAP = _method("nearswap", "the model card of alchemonaut/QuartetAnemoi-70B-t0.0001", _nearswap, t=REACH)
ARCEE_FUSION = _method("arcee_fusion", "mergekit (Arcee AI), without a paper", _fuse, _measure_importance)
PASSTHROUGH = _method("passthrough", "mergekit (Arcee AI), without a paper", _pass, scale=FACTOR)
