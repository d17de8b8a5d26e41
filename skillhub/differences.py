"""How two checkpoints differ: what changed, by how much, how low its rank is, and how large a pack of it would be.

Everything is measured tensor by tensor, so memory is bounded by the largest of them.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from skillhub.budgets import with_room
from skillhub.checkpoints import Checkpoint, open_checkpoint
from skillhub.codecs import exact
from skillhub.codecs.allocation import Analysis, analyse, choose_lambda
from skillhub.codecs.candidates import Values
from skillhub.deltas import Delta, shapes_fit
from skillhub.errors import UsageError, WrongBaseError
from skillhub.goals import SIZES
from skillhub.progress import Progress

Key = TypeVar("Key", bound=Hashable)

ENERGY_SHARE = 0.9
"""Share of a delta's sum of squares that counts as nearly all of it."""

PRESET = "near"
"""Preset whose size is predicted."""


@dataclass(frozen=True)
class TensorDifference:
    """How one tensor differs.

    Attributes:
        name: its canonical name.
        change: ``unchanged``, ``changed``, ``resized`` (a vocabulary with another number of rows), ``added`` or ``removed`` (only one
            checkpoint has it), or ``replaced`` (integers, or values without a finite difference).
        elements: of the tuned tensor; of a removed one the base's.
        changed: how many of them have other bits than in the base; where the dtypes differ, than the base's rounded to the tuned one's.
        squared_norm: of the delta, in the rows that both have; 0 where there is no difference of floats.
        base_squared_norm: of the base's tensor in these rows.
        rank: least number of singular components that hold 90 % of the delta's sum of squares; None for what is no changed matrix.
        full_rank: the most components that it could have; None likewise.
        size: predicted bytes in a pack; None when not asked for.
    """

    name: str
    change: str
    elements: int
    changed: int
    squared_norm: float = 0.0
    base_squared_norm: float = 0.0
    rank: int | None = None
    full_rank: int | None = None
    size: int | None = None


@dataclass(frozen=True)
class Total:
    """How several tensors differ together.

    Attributes:
        tensors: how many they are.
        elements: weights in them.
        changed: weights with other bits.
        norm: Euclidean norm of their delta.
        base_norm: that of the base's tensors.
        rank: median of the changed matrices' ranks for 90 % of the energy; None where there is no such matrix.
        full_rank: median of the most that they could be.
        size: predicted bytes in a pack; None when not asked for.
    """

    tensors: int
    elements: int
    changed: int
    norm: float
    base_norm: float
    rank: int | None
    full_rank: int | None
    size: int | None

    @property
    def changed_share(self) -> float:
        """Share of the weights that have other bits."""
        return self.changed / self.elements if self.elements else 0.0

    @property
    def relative_norm(self) -> float | None:
        """The delta's norm over the base's; None where the base is zero or has no such tensor."""
        return self.norm / self.base_norm if self.base_norm else None


@dataclass(frozen=True)
class Difference:
    """How a tuned checkpoint differs from its base.

    Attributes:
        base_size: bytes of the base's weights, as they are stored.
        tensors: every tensor of either, in the order of their names.
    """

    base_size: int
    tensors: tuple[TensorDifference, ...]

    @property
    def is_empty(self) -> bool:
        """Say whether both have the same weights."""
        return all(one.change == "unchanged" for one in self.tensors)

    def with_change(self, change: str) -> list[TensorDifference]:
        """Return the tensors whose change is of this kind."""
        return [one for one in self.tensors if one.change == change]

    def total(self) -> Total:
        """Return how all of it differs."""
        return add_up(self.tensors)

    def by(self, key: Callable[[str], Key]) -> dict[Key, Total]:
        """Return how groups of tensors differ, those that share the ``key`` of their names."""
        groups: dict[Key, list[TensorDifference]] = defaultdict(list)
        for one in self.tensors:
            groups[key(one.name)].append(one)
        return {group: add_up(members) for group, members in groups.items()}


def add_up(tensors: Iterable[TensorDifference]) -> Total:
    """Return how several tensors differ together."""
    members = list(tensors)
    sizes = [one.size for one in members if one.size is not None]
    return Total(
        tensors=len(members),
        elements=sum(one.elements for one in members),
        changed=sum(one.changed for one in members),
        norm=math.sqrt(sum(one.squared_norm for one in members)),
        base_norm=math.sqrt(sum(one.base_squared_norm for one in members)),
        rank=_median(one.rank for one in members),
        full_rank=_median(one.full_rank for one in members),
        size=sum(sizes) if sizes else None,
    )


def _median(numbers: Iterable[int | None]) -> int | None:
    known = [number for number in numbers if number is not None]
    return statistics.median_low(known) if known else None


def compare_checkpoints(
    base: str | Path, tuned: str | Path, *, quick: bool = False, progress: Progress | None = None
) -> Difference:
    """Measure how a fine-tune differs from its base.

    Args:
        base: a folder with safetensors, one such file, or ``repo[@revision]``.
        tuned: likewise.
        quick: leave out ranks and predicted sizes, which take nearly all of the time.
        progress: called with (what, tensors done, all of them).

    Raises:
        UsageError: the checkpoints have no tensor in common.
        WrongBaseError: a tensor has another shape in one than in the other, beyond the rows of a vocabulary.
        NotFoundError, UnsafeContentError, IntegrityError, NetworkError: a checkpoint cannot be read.
    """
    delta = Delta(open_checkpoint(base), open_checkpoint(tuned))
    _check_comparable(delta)
    found, analyses = [], {}
    with tempfile.TemporaryDirectory() as spool:
        for done, name in enumerate(delta.names, 1):
            one = _compare(delta, name)
            if one.change in ("changed", "resized") and not quick:
                change = delta.tensor(name)
                added = delta.added_rows(name)
                rank, full_rank = _ranks(change[: len(change) - added] if change.dim() else change)
                one = replace(one, rank=rank, full_rank=full_rank)
                values = Values(delta.tuned.tensor(name), delta.base.tensor(name))
                analyses[name] = analyse(name, change, added_rows=added, values=values, spool=Path(spool))
            found.append(one)
            if progress:
                progress("Comparing", done, len(delta.names))
    size = sum(info.nbytes for info in delta.base.tensors.values())
    if quick:
        return Difference(size, tuple(found))
    sizes = _predict_sizes(delta, found, analyses, size)
    return Difference(size, tuple(replace(one, size=sizes[one.name]) for one in found))


def _check_comparable(delta: Delta) -> None:
    """Refuse what is no pair of base and fine-tune, by the headers alone."""
    base, tuned = delta.base, delta.tuned
    shared = [name for name in delta.names if delta.change(name) == "delta"]
    if not shared:
        raise UsageError(
            f"{tuned.folder} and {base.folder} have no tensor in common.",
            hint="Compare a fine-tune with the base model that it started from.",
        )
    for name in shared:
        one, other = base.tensors[name].shape, tuned.tensors[name].shape
        if not shapes_fit(name, one, other):
            raise WrongBaseError(
                f"{_architecture(base)} and {_architecture(tuned)} cannot be compared: {name} is {list(one)} in the one and "
                f"{list(other)} in the other.",
                hint="Compare a fine-tune with the base model that it started from.",
                tensor=name,
            )


def _architecture(checkpoint: Checkpoint) -> str:
    return f"{checkpoint.folder} ({checkpoint.architecture})" if checkpoint.architecture else str(checkpoint.folder)


def _compare(delta: Delta, name: str) -> TensorDifference:
    """Count and measure what differs in one tensor."""
    change = delta.change(name)
    if change != "delta":
        elements = (delta.base if change == "removed" else delta.tuned).tensors[name].elements
        return TensorDifference(name, change, elements, elements)
    base, tuned = delta.base.tensor(name), delta.tuned.tensor(name)
    rows = min(len(base), len(tuned)) if base.dim() else 1
    base_square = _square(base[:rows] if base.dim() else base) if base.dtype.is_floating_point else 0.0
    if delta.is_unchanged(name):
        return TensorDifference(name, "unchanged", tuned.numel(), 0, base_squared_norm=base_square)
    shared = (base[:rows], tuned[:rows]) if base.dim() else (base, tuned)
    changed = _count_changed(*shared) + tuned.numel() - shared[1].numel()
    if not delta.is_additive(name):
        return TensorDifference(name, "replaced", tuned.numel(), changed)
    kind = "changed" if base.shape == tuned.shape else "resized"
    difference = delta.tensor(name)
    square = _square(difference[:rows] if base.dim() else difference)
    return TensorDifference(name, kind, tuned.numel(), changed, square, base_square)


def _count_changed(base: torch.Tensor, tuned: torch.Tensor) -> int:
    """Count the elements of two tensors of one shape that have other bits."""
    size = tuned.element_size()
    one, other = (side.contiguous().reshape(-1).view(torch.uint8) for side in (base.to(tuned.dtype), tuned))
    return int((one != other).reshape(-1, size).any(dim=1).count_nonzero())


def _square(tensor: torch.Tensor) -> float:
    """Return the sum of squares, added up in fp64."""
    return float(torch.linalg.vector_norm(tensor.float(), dtype=torch.float64)) ** 2


def _ranks(change: torch.Tensor) -> tuple[int, int] | tuple[None, None]:
    """Return rank and full rank of a matrix's delta, from the eigenvalues of its Gram matrix; none for vectors and zeros."""
    if change.dim() < 2 or min(len(change), change[:1].numel()) < 2 or not bool(change.any()):
        return None, None
    matrix = change.reshape(len(change), -1)
    matrix = matrix / matrix.abs().max()  # squares of small deltas would leave fp32
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    energies = torch.linalg.eigvalsh(wide @ wide.T).double().clamp_min(0).flip(0).cumsum(0).numpy()
    rank = int(np.searchsorted(energies, ENERGY_SHARE * energies[-1])) + 1
    return min(rank, len(energies)), len(energies)


def _predict_sizes(
    delta: Delta, tensors: Iterable[TensorDifference], analyses: Mapping[str, Analysis], base_size: int
) -> dict[str, int]:
    """Return the bytes that each tensor would take in a pack, at the price that the preset's budget leads to."""
    sizes = {one.name: 0 for one in tensors}
    for one in tensors:
        if one.change in ("added", "replaced"):
            sizes[one.name] = exact.encode(delta.values(one.name), operation="set").nbytes
    as_they_are = sum(sizes.values())
    least = as_they_are + sum(analysis.fixed_bytes for analysis in analyses.values())
    budget = with_room(base_size // SIZES[PRESET], least)
    price = choose_lambda(list(analyses.values()), budget, set_bytes=as_they_are)
    return sizes | {name: _bytes_at(analysis, price) for name, analysis in analyses.items()}


def _bytes_at(analysis: Analysis, price: float) -> int:
    """Return what a tensor takes at ``price``, between the prices at which it was analysed."""
    if not analysis.prices or price >= 2 * analysis.prices[0]:
        return analysis.fixed_bytes
    roots = np.sqrt(analysis.bits)  # nearly linear in the logarithm of the price
    found = np.interp(-math.log2(price), -np.log2(analysis.prices), roots, left=0.0)
    return analysis.fixed_bytes + round(float(found) ** 2 / 8)
