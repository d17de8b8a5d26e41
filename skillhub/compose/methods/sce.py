"""SCE: select the elements on which packs differ most, calculate a weight per pack, erase the minority's signs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from skillhub.compose.methods.consensus import consensus
from skillhub.compose.methods.interface import Chunk, MergeInputs, MergeMethod, Option
from skillhub.compose.methods.linear import divisor_of, linear
from skillhub.compose.methods.selection import kth_largest
from skillhub.compose.methods.sums import total_square

SELECT = Option(1, 0, 1, "share of the elements that differ between packs, those of largest variance, that are merged")


@dataclass(frozen=True)
class Selection:
    """What SCE measured of a tensor.

    Attributes:
        least: variance from which on elements are selected.
        weights: one per delta; they sum up to 1.
    """

    least: float
    weights: tuple[float, ...]


def sce(deltas: Sequence[torch.Tensor], selection: Selection) -> torch.Tensor:
    """Merge deltas by SCE (Wan et al., FuseChat, arXiv 2408.07990, section 3.3).

    *Select* keeps the elements whose variance between the deltas is among the largest. *Calculate* weighs each delta by its share of
    the sum of squares of what was selected. *Erase* drops, element by element, the deltas of the minority's sign, and the weights of
    the others are divided by their sum. mergekit weighs all deltas alike where the mean squares sum up to less than 1e-6, which real
    fine-tunes do; here that is so only where they are all zero.

    Args:
        deltas: at least one, fp32, of one shape; not modified. Rows of a tensor will do, with what was measured of all of it.
        selection: from the whole tensor.

    Returns:
        fp32, of the same shape.
    """
    return weighted_consensus(selected(deltas, selection.least), selection.weights)


def weighted_consensus(deltas: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """Return the weighted mean of the deltas whose sign is that of the **unweighted** sum, element by element."""
    sign = consensus(deltas, weights, mean=False).sign()
    total, divisor = torch.zeros_like(sign), torch.zeros_like(sign)
    for delta, weight in zip(deltas, weights, strict=True):
        agreeing = torch.mul(delta, sign).clamp_(min=0.0)
        total.add_(agreeing * weight)
        divisor.add_(agreeing.sign_().mul_(weight))
    return total.mul_(sign).div_(torch.where(divisor == 0, 1.0, divisor))


def selected(deltas: Sequence[torch.Tensor], least: float) -> list[torch.Tensor]:
    """Return the deltas with zeros where their variance is below ``least``."""
    if least <= 0:
        return list(deltas)
    mask = (variance(deltas) >= least).to(torch.float32)
    return [delta * mask for delta in deltas]


def variance(deltas: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the variance between deltas, element by element (the mean squared distance from their mean), fp32."""
    mean = linear(deltas, [1.0] * len(deltas))
    mean = mean / divisor_of(mean, len(deltas))
    total = torch.zeros_like(mean)
    for delta in deltas:
        total.add_(torch.sub(delta, mean).square_())
    return total.div_(divisor_of(total, len(deltas)))


def shares(squares: Sequence[float]) -> tuple[float, ...]:
    """Return each number's share of their sum; equal shares where that is 0."""
    total = sum(squares)
    return tuple(square / total if total > 0 else 1 / len(squares) for square in squares)


def _measure(inputs: MergeInputs) -> Selection:
    least = _least_variance(inputs)
    squares = [0.0] * len(inputs.deltas)
    for deltas in inputs.delta_chunks(range(len(inputs.deltas))):
        for index, delta in enumerate(selected(deltas, least)):
            squares[index] += total_square(delta)
    return Selection(least, shares(squares))


def _least_variance(inputs: MergeInputs) -> float:
    share = inputs.options["select_topk"]
    if share >= 1 or len(inputs.deltas) == 1:
        return 0.0
    differing = sum(int(values.count_nonzero()) for (values,) in _variances(inputs))
    if differing == 0 or share <= 0:
        return 0.0 if differing == 0 else math.inf
    return kth_largest(
        lambda: _variances(inputs),
        [(0, max(1, int(share * differing)))],
        elements=inputs.elements,
        sample=_variances(inputs, sample=True),
    )[0].value


def _variances(inputs: MergeInputs, *, sample: bool = False) -> Iterator[list[torch.Tensor]]:
    everyone = range(len(inputs.deltas))
    return ([variance(deltas)] for deltas in inputs.delta_chunks(everyone, sample=sample))


def _merge(inputs: MergeInputs, chunk: Chunk, selection: Selection) -> torch.Tensor:
    if len(chunk.deltas) == 1:
        return chunk.deltas[0]
    return sce(chunk.deltas, selection)


SCE = MergeMethod(
    "sce",
    "arXiv 2408.07990, section 3.3",
    _merge,
    _measure,
    counts_every_pack=True,
    uses_weights=False,
    options={"select_topk": SELECT},
)
