"""Merge methods: how the deltas of several packs become one delta, as pure functions over fp32 tensors.

A method sees one tensor at a time: the deltas of the packs that change it, each of the same shape. What it returns is added to the
base's tensor in fp32 and rounded once, so no method knows about the base, dtypes or rounding. A new method is a function and a row
of :data:`METHODS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from skillhub.errors import UsageError

Merge = Callable[[Sequence[torch.Tensor], Sequence[float], Sequence[float]], torch.Tensor]
"""(deltas, weights, densities) → merged delta."""


@dataclass(frozen=True)
class MergeMethod:
    """One row of :data:`METHODS`.

    Attributes:
        name: what users write.
        merge: the function.
        uses_density: whether densities other than 1 mean anything to it.
        source: the paper and its section.
    """

    name: str
    merge: Merge
    uses_density: bool
    source: str


def linear(deltas: Sequence[torch.Tensor], weights: Sequence[float], densities: Sequence[float] = ()) -> torch.Tensor:
    """Task arithmetic: the weighted sum of the deltas (Ilharco et al., arXiv 2212.04089, section 2).

    A negative weight unlearns a skill (its section 3). One delta of weight 1 is returned as it is, bit for bit. Products and sums
    are separate operations in the given order, so that the result does not depend on fused multiply-add.

    Args:
        deltas: at least one, fp32, of one shape; not modified.
        weights: one per delta.
        densities: not used.

    Returns:
        fp32, of the same shape.
    """
    total = _weighted(deltas[0], weights[0])
    for delta, weight in zip(deltas[1:], weights[1:], strict=True):
        total = total + _weighted(delta, weight)
    return total


def ties(deltas: Sequence[torch.Tensor], weights: Sequence[float], densities: Sequence[float]) -> torch.Tensor:
    """TIES merging: trim, elect a sign per element, average what agrees (Yadav et al., arXiv 2306.01708, section 4 and algorithm 1).

    *Trim* keeps of each delta the elements of largest magnitude, ``density`` of the tensor's (at least one); of equal magnitudes at
    the threshold all stay, so the result does not depend on the order of elements. The paper trims over the whole model at once,
    here it is per tensor, as mergekit does. *Elect* takes the sign of the sum of the trimmed, weighted deltas. *Disjoint mean* sums
    the elements with that sign and divides by **how many** there are: weights scale the deltas (the paper's λ, per pack) and are not
    normalized away, so halving all of them halves the result.

    Args:
        deltas: at least one, fp32, of one shape; not modified.
        weights: one per delta.
        densities: one per delta, over 0 and at most 1.

    Returns:
        fp32, of the same shape; zero where nothing was kept or the elected sign is 0.
    """
    scaled = [
        _weighted(trim(delta, density), weight)
        for delta, weight, density in zip(deltas, weights, densities, strict=True)
    ]
    mass = linear(scaled, [1.0] * len(scaled))
    elected = torch.sign(mass)
    total, count = torch.zeros_like(mass), torch.zeros_like(mass)
    for delta in scaled:
        agrees = (torch.sign(delta) == elected) & (elected != 0)
        total = total + torch.where(agrees, delta, 0.0)
        count = count + agrees
    return total / count.clamp_(min=1.0)


def trim(delta: torch.Tensor, density: float) -> torch.Tensor:
    """Return ``delta`` with all but its largest elements set to zero.

    Args:
        delta: fp32, any shape.
        density: share of elements to keep, over 0 and at most 1; ``max(1, int(density * n))`` stay, and all that equal the smallest
            of these in magnitude.
    """
    count = delta.numel()
    kept = max(1, int(density * count))
    if kept >= count:
        return delta
    magnitudes = delta.abs()
    threshold = magnitudes.flatten().kthvalue(count - kept + 1).values
    return torch.where(magnitudes >= threshold, delta, 0.0)


METHODS: dict[str, MergeMethod] = {
    method.name: method
    for method in (
        MergeMethod("linear", linear, uses_density=False, source="arXiv 2212.04089, section 2"),
        MergeMethod("ties", ties, uses_density=True, source="arXiv 2306.01708, section 4"),
    )
}


def find_method(name: str) -> MergeMethod:
    """Return the merge method called ``name``.

    Raises:
        UsageError: there is none.
    """
    if name not in METHODS:
        raise UsageError(f"There is no merge method {name!r}.", hint=f"Use one of: {', '.join(METHODS)}.")
    return METHODS[name]


def _weighted(delta: torch.Tensor, weight: float) -> torch.Tensor:
    return delta if weight == 1 else delta * weight
