"""How much packs get into each other's way: the cosine of their deltas, and how often these want different signs.

Two deltas at right angles (cosine 0) can be added and both keep what they learned; opposite ones undo each other, and parallel ones
count twice what they share. Where single elements disagree in sign, their sum is smaller than either (Yadav et al., arXiv 2306.01708,
section 3); deltas that know nothing of each other disagree in half of the elements.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeAlias

import torch

from skillhub.compose.merging import Contribution, changed_names, contributing, merge_inputs
from skillhub.compose.recipes import Recipe
from skillhub.compose.schedules import cut_layer
from skillhub.compose.tunedcheckpoints import CheckpointBase
from skillhub.progress import Progress

Pair: TypeAlias = tuple[int, int]
"""The numbers of two packs, the smaller first."""

Module: TypeAlias = tuple[int | None, str]
"""Number of the layer (None outside of layers), and the module's name in it, such as ``self_attn.q_proj``."""

OPPOSED, PARALLEL, OUTWEIGHED = -0.1, 0.3, 3.0
"""Cosines from which on packs count as undoing each other or as having learned the same; a ratio of norms that matters."""


@dataclass(frozen=True)
class Overlap:
    """What two deltas have in common, over some tensors.

    Attributes:
        product: their inner product.
        squares: the squared norm of each, over the same tensors.
        shared: elements that both change.
        conflicts: elements of these in which the signs differ.
    """

    product: float
    squares: tuple[float, float]
    shared: int
    conflicts: int

    @property
    def cosine(self) -> float:
        """Cosine of the angle between them; 0 where one is zero."""
        length = math.sqrt(self.squares[0]) * math.sqrt(self.squares[1])
        return self.product / length if length else 0.0

    @property
    def conflict(self) -> float:
        """Share of the elements that both change in which they want different signs."""
        return self.conflicts / self.shared if self.shared else 0.0

    def __add__(self, other: Overlap) -> Overlap:
        squares = (self.squares[0] + other.squares[0], self.squares[1] + other.squares[1])
        return Overlap(
            self.product + other.product, squares, self.shared + other.shared, self.conflicts + other.conflicts
        )


@dataclass(frozen=True)
class Interference:
    """How much the packs of a recipe get into each other's way, as they are weighed.

    Attributes:
        packs: their names, in the recipe's order.
        norms: Euclidean norm of each pack's weighted delta.
        modules: module → pair → their overlap; of the modules that both change.
    """

    packs: tuple[str, ...]
    norms: tuple[float, ...]
    modules: Mapping[Module, Mapping[Pair, Overlap]]

    def total(self, pair: Pair) -> Overlap:
        """Return the overlap of two packs over the whole model: what only one of them changes counts in its norm."""
        found = sum((pairs[pair] for pairs in self.modules.values() if pair in pairs), Overlap(0.0, (0.0, 0.0), 0, 0))
        squares = (self.norms[pair[0]] ** 2, self.norms[pair[1]] ** 2)
        return Overlap(found.product, squares, found.shared, found.conflicts)

    @property
    def pairs(self) -> list[Pair]:
        """All pairs of packs."""
        return list(combinations(range(len(self.packs)), 2))


def measure_interference(
    recipe: Recipe,
    contributions: Sequence[Contribution],
    base: CheckpointBase,
    *,
    progress: Progress | None = None,
) -> Interference:
    """Measure how much packs get into each other's way; reads every delta once, a chunk at a time.

    Args:
        recipe: the packs with their weights: a negative one turns a delta round.
        contributions: their deltas, in its order.
        base: the base.
        progress: called with (``tensors``, done, all).

    Raises:
        IntegrityError: a pack's bytes are damaged.
    """
    squares = [0.0] * len(contributions)
    modules: dict[Module, dict[Pair, Overlap]] = defaultdict(dict)
    names = [name for name in changed_names(contributions) if not _is_set(contributions, name)]
    for done, name in enumerate(names, 1):
        members = contributing(contributions, name)
        numbers = [contributions.index(one) for one in members]
        found, lengths = _overlaps(recipe, members, name, base)
        for number, length in zip(numbers, lengths, strict=True):
            squares[number] += length
        pairs = modules[module_of(name)]
        for (first, second), overlap in found.items():
            pair = (numbers[first], numbers[second])
            pairs[pair] = pairs[pair] + overlap if pair in pairs else overlap
        if progress:
            progress("tensors", done, len(names))
    packs = tuple(str(one.item.pack.name) for one in contributions)
    return Interference(packs, tuple(map(math.sqrt, squares)), {key: value for key, value in modules.items() if value})


def _is_set(contributions: Sequence[Contribution], name: str) -> bool:
    return contributing(contributions, name)[0].delta.sets_values(name)


def module_of(name: str) -> Module:
    """Return the module that a canonical name lies in."""
    number, inner = cut_layer(name)
    return number, inner.removesuffix(".weight").removesuffix(".bias")


def _overlaps(
    recipe: Recipe, members: Sequence[Contribution], name: str, base: CheckpointBase
) -> tuple[dict[Pair, Overlap], list[float]]:
    """Return the overlap of every pair of packs in one tensor, and each one's squared norm."""
    inputs = merge_inputs(recipe, members, name, base.reader(name))
    pairs = list(combinations(range(len(members)), 2))
    products: dict[Pair, float] = dict.fromkeys(pairs, 0.0)
    counts: dict[Pair, tuple[int, int]] = dict.fromkeys(pairs, (0, 0))
    squares = [0.0] * len(members)
    for begin, end in inputs.spans():
        chunk = inputs.chunk(begin, end)
        deltas = [(delta * weight).flatten() for delta, weight in zip(chunk.deltas, inputs.weights, strict=True)]
        signs = [delta.sign() for delta in deltas]
        changed = [sign.abs() for sign in signs]
        for number, delta in enumerate(deltas):
            squares[number] += float(torch.dot(delta, delta))
        for one, other in pairs:
            products[one, other] += float(torch.dot(deltas[one], deltas[other]))
            shared = _count(changed[one], changed[other])
            agreement = _count(signs[one], signs[other])  # how many agree less how many do not
            counts[one, other] = (counts[one, other][0] + shared, counts[one, other][1] + (shared - agreement) // 2)
    found = {
        (one, other): Overlap(products[one, other], (squares[one], squares[other]), *counts[one, other])
        for one, other in pairs
    }
    return found, squares


def _count(one: torch.Tensor, other: torch.Tensor) -> int:
    """Return the inner product of tensors of −1, 0 and 1: exact in fp32 over pieces of under 2**24 elements."""
    pieces = zip(torch.split(one, 1 << 23), torch.split(other, 1 << 23), strict=True)
    return sum(int(torch.dot(first, second)) for first, second in pieces)


def advise(interference: Interference) -> str:
    """Return what the figures say about how to compose the packs, in sentences."""
    names, norms = interference.packs, interference.norms
    said = []
    totals = {pair: interference.total(pair) for pair in interference.pairs}
    opposed = [pair for pair, overlap in totals.items() if overlap.cosine <= OPPOSED]
    parallel = [pair for pair, overlap in totals.items() if overlap.cosine >= PARALLEL]
    if opposed:
        said.append(
            f"{_pairs(names, opposed)} pull in opposite directions, so that in a sum one undoes the other: give one a smaller "
            "weight, or route between them."
        )
    if parallel:
        said.append(
            f"{_pairs(names, parallel)} learned much the same, which a sum counts twice: give weights that sum to 1."
        )
    least, most = min(range(len(norms)), key=norms.__getitem__), max(range(len(norms)), key=norms.__getitem__)
    if norms[most] > OUTWEIGHED * norms[least] > 0:
        said.append(
            f"{names[most]} changes the weights {norms[most] / norms[least]:.1f} times as much as {names[least]} and may "
            "outweigh it: try a smaller weight for it."
        )
    if not said:
        said.append(
            "The deltas lie nearly at right angles, so none undoes another; together they still move the weights further than each "
            "alone. Begin with ties at a density of 0.2, compare linear, and route where every skill has to stay whole."
            if totals
            else "There is one pack, and nothing for it to get in the way of."
        )
    return " ".join(said)


def _pairs(names: Sequence[str], pairs: Iterable[Pair]) -> str:
    return ", ".join(f"{names[one]} and {names[other]}" for one, other in pairs)
