"""PCB merging: let the elements of deltas compete, within a pack by size and between packs by agreement; the weakest drop out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import torch

from skillhub.compose.methods.interface import Chunk, MergeInputs, MergeMethod
from skillhub.compose.methods.linear import SCALE, weighted
from skillhub.compose.methods.selection import kth_largest
from skillhub.compose.methods.sums import folded_sum
from skillhub.compose.methods.trimming import kept_elements

Pair = tuple[int, int]


@dataclass(frozen=True)
class Balance:
    """What PCB measured of a tensor.

    Attributes:
        limits: for each pair of deltas (and each with itself) the least and the largest product of their elements.
        means: for each of these the mean, over the tensor, that its softmax divides by; a delta with itself has two, that among the
            packs under (−1, its index).
        least: for each delta the score from which on its elements stay.
    """

    limits: dict[Pair, tuple[float, float]]
    means: dict[Pair, float]
    least: tuple[float, ...] = ()


def pcb(deltas: Sequence[torch.Tensor], weights: Sequence[float], balance: Balance) -> torch.Tensor:
    """Merge deltas by parameter competition balancing (Du et al., arXiv 2410.02396, section 3.2).

    An element of delta i scores ``softmax(N · norm(δᵢ²)) · Σⱼ softmax(norm(δᵢ δⱼ))``: by its size within the pack, and by how
    much it agrees with the other packs'. ``norm`` scales products to 0 … 1 over the tensor, the softmax is over the tensor's elements,
    N is the number of packs. Of each delta the ``density`` of largest scores stays (the paper's ratio r, 0.1 to 0.2 there), and the result is the mean
    of ``weight · delta``, weighted by score. The paper scores a whole model at once, here it is per tensor; its published code takes tanh for the second softmax
    and cuts outliers first, which this does not.

    Args:
        deltas: at least one, fp32, of one shape; not modified. Rows of a tensor will do, with what was measured of all of it.
        weights: one per delta, the paper's λ.
        balance: from the whole tensor.

    Returns:
        fp32, of the same shape; zero where nothing stays.
    """
    total, divisor = torch.zeros_like(deltas[0]), torch.zeros_like(deltas[0])
    for index, (delta, weight, least) in enumerate(zip(deltas, weights, balance.least, strict=True)):
        score = scores(deltas, index, balance)
        score.mul_(score >= least)
        total.add_(weighted(delta, weight) * score)
        divisor.add_(score)
    return total.div_(torch.where(divisor == 0, 1.0, divisor))


def scores(deltas: Sequence[torch.Tensor], index: int, balance: Balance) -> torch.Tensor:
    """Return the scores of one delta's elements, times the square of the tensor's number of elements; fp32."""
    among = torch.zeros_like(deltas[index])
    for other in range(len(deltas)):
        pair = (min(index, other), max(index, other))
        product = normalized(deltas[index] * deltas[other], balance.limits[pair])
        if other == index:
            within = (product - 1).mul_(len(deltas)).exp_().div_(balance.means[index, index])
            mean = balance.means[-1, index]
        else:
            mean = balance.means[pair]
        among.add_(product.exp_().div_(mean))
    return within.mul_(among)


def normalized(products: torch.Tensor, limits: tuple[float, float]) -> torch.Tensor:
    """Scale numbers linearly, in place, so that the limits become 0 and 1; zeros where these are equal."""
    low, high = limits
    return products.sub_(low).div_(high - low) if high > low else torch.zeros_like(products)


def _measure(inputs: MergeInputs) -> Balance:
    limits = _limits(inputs)
    balance = Balance(limits, _means(inputs, limits))
    least = tuple(_least_score(inputs, index, balance) for index in range(len(inputs.deltas)))
    return Balance(balance.limits, balance.means, least)


def _limits(inputs: MergeInputs) -> dict[Pair, tuple[float, float]]:
    limits: dict[Pair, tuple[float, float]] = {}
    for chunk in inputs.chunks():
        for one, other in combinations_with_replacement(range(len(chunk.deltas)), 2):
            low, high = (float(value) for value in torch.aminmax(chunk.deltas[one] * chunk.deltas[other]))
            before = limits.get((one, other), (low, high))
            limits[one, other] = min(before[0], low), max(before[1], high)
    return limits


def _means(inputs: MergeInputs, limits: dict[Pair, tuple[float, float]]) -> dict[Pair, float]:
    """Return the denominators of all softmaxes, by pair; that of a delta with itself among the others' under (−1, index)."""
    sums: dict[Pair, float] = {}
    for chunk in inputs.chunks():
        for one, other in limits:
            product = normalized(chunk.deltas[one] * chunk.deltas[other], limits[one, other])
            if one == other:
                power = (product - 1).mul_(len(chunk.deltas)).exp_()
                sums[one, one] = sums.get((one, one), 0.0) + _sum(power)
            key = (-1, one) if one == other else (one, other)
            sums[key] = sums.get(key, 0.0) + _sum(product.exp_())
    return {pair: total / inputs.elements for pair, total in sums.items()}


def _sum(values: torch.Tensor) -> float:
    return float(folded_sum(values.double().flatten()))


def _least_score(inputs: MergeInputs, index: int, balance: Balance) -> float:
    kept = kept_elements(inputs.elements, inputs.densities[index])
    if kept == 0:
        return float("inf")
    if kept >= inputs.elements:
        return 0.0

    def read(*, sample: bool = False) -> Iterator[list[torch.Tensor]]:
        everyone = range(len(inputs.deltas))
        return ([scores(deltas, index, balance)] for deltas in inputs.delta_chunks(everyone, sample=sample))

    return kth_largest(read, [(0, kept)], elements=inputs.elements, sample=read(sample=True))[0].value


def _merge(inputs: MergeInputs, chunk: Chunk, balance: Balance) -> torch.Tensor:
    return weighted(pcb(chunk.deltas, inputs.weights, balance), inputs.options["lambda"])


PCB = MergeMethod(
    "pcb", "arXiv 2410.02396, section 3.2", _merge, _measure, uses_density=True, options={"lambda": SCALE}
)
