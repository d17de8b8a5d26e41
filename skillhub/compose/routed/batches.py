"""A decided batch: which rows of one forward belong together, worked out once and used by every module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NoReturn

import torch

from skillhub.errors import UsageError
from skillhub.routing.decisions import Decision

Widths = tuple[tuple[int, int], ...]
"""(pack, columns) of factors that lie side by side."""

BASE = -1
"""Stands for the base where packs are told by their index."""

KEPT = 8
"""Things of one kind that are kept for the next forward: factors of sets of packs side by side, indices."""


@dataclass(frozen=True, eq=False)
class Groups:
    """The rows of a batch, sorted so that the rows of one pack are neighbours.

    Attributes:
        packs: the pack of each group, or :data:`BASE`.
        sizes: rows of each group.
        order: the rows in their sorted order; None where they are sorted.
    """

    packs: tuple[int, ...]
    sizes: tuple[int, ...]
    order: torch.Tensor | None
    _indices: dict[Any, torch.Tensor] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return sum(self.sizes)

    @cached_property
    def inverse(self) -> torch.Tensor | None:
        """Where each row went: indexing a sorted tensor with it gives the rows in their own order again."""
        return None if self.order is None else torch.argsort(self.order)

    def cut(self, tensor: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return each group's part of a tensor of (rows, …) or (rows · positions, …); one of (1, …) belongs to every group."""
        if len(tensor) == 1:
            return [tensor] * len(self.sizes)
        positions = positions_per_row(tensor, self.rows)
        if self.order is not None:
            tensor = tensor.index_select(0, self._index(self.order, positions, tensor.device))
        return torch.split(tensor, [size * positions for size in self.sizes])

    def join(self, parts: Sequence[Any]) -> Any:
        """Return results of the groups as the result for the batch; tensors of (1, …) are repeated for each row of their group."""
        first = parts[0]
        if isinstance(first, torch.Tensor):
            return self._join_tensors(parts)
        if isinstance(first, Mapping):
            return type(first)(**{name: self.join([part[name] for part in parts]) for name in first})
        if isinstance(first, (tuple, list)):
            return type(first)(self.join(some) for some in zip(*parts, strict=True))
        return first

    def _join_tensors(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        if all(len(part) == 1 for part in parts):
            parts = [part.expand(size, *part.shape[1:]) for part, size in zip(parts, self.sizes, strict=True)]
        joined = torch.cat(list(parts))
        if self.inverse is None:
            return joined
        positions = positions_per_row(joined, self.rows)
        return joined.index_select(0, self._index(self.inverse, positions, joined.device))

    def _index(self, rows: torch.Tensor, positions: int, device: torch.device) -> torch.Tensor:
        """Return indices of rows as indices of their positions, flattened; a GPU would wait for them at every module."""
        key = (rows is self.order, positions, device)
        found = self._indices.get(key)
        if found is None:
            found = _spread(rows, positions).to(device)
            remember(self._indices, key, found)
        return found


def positions_per_row(tensor: torch.Tensor, rows: int) -> int:
    """Return how many entries of a tensor's first dimension belong to one row: modules may flatten rows and positions.

    Raises:
        UsageError: the dimension is no multiple of the rows, so nobody can tell which entry belongs to which row.
    """
    positions, rest = divmod(tensor.shape[0], rows)
    if rest or not positions:
        raise UsageError(
            f"A module of this model computes on a tensor of {list(tensor.shape)} for {rows} rows, so its rows cannot be told apart.",
            hint="Graft with mode='fused', or leave out the packs that change this module.",
        )
    return positions


def remember(kept: dict[Any, Any], key: Any, value: Any) -> None:
    """Keep a value, and forget the oldest beyond :data:`KEPT`."""
    kept[key] = value
    for old in list(kept)[:-KEPT]:
        kept.pop(old, None)


def _spread(rows: torch.Tensor, positions: int) -> torch.Tensor:
    """Return indices of rows as indices of their positions, flattened."""
    if positions == 1:
        return rows
    return (rows[:, None] * positions + torch.arange(positions)).reshape(-1)


@dataclass(eq=False)
class Batch:
    """One forward of a routed model, decided.

    Attributes:
        owner: the routed model's identity; modules of another model have nothing to do with this batch.
        decision: what was decided, one row each of this forward.
        indices: for each name of the decision, which of the owner's packs it is.
    """

    owner: object
    decision: Decision
    indices: tuple[int, ...]
    scratch: Any = None
    _groups: dict[tuple[int, ...], Groups] = field(default_factory=dict)
    _masks: dict[Any, torch.Tensor] = field(default_factory=dict)
    _places: dict[Any, torch.Tensor] = field(default_factory=dict)

    @cached_property
    def choices(self) -> tuple[int, ...]:
        """For each row its pack, or :data:`BASE`."""
        return tuple(BASE if choice is None else self.indices[choice] for choice in self.decision.choices)

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self.decision.choices)

    @property
    def is_soft(self) -> bool:
        """Whether rows get weighted mixtures of packs."""
        return self.decision.mixture is not None

    @cached_property
    def weights(self) -> dict[int, torch.Tensor]:
        """Pack → its weight in every row, fp32; packs that no row uses are left out."""
        if self.decision.mixture is None:
            chosen = torch.tensor(self.choices)
            return {pack: (chosen == pack).float() for pack in sorted(set(self.choices) - {BASE})}
        columns = self.decision.mixture.detach().to("cpu", torch.float32)
        found = {pack: columns[:, column] for column, pack in enumerate(self.indices) if bool(columns[:, column].any())}
        return dict(sorted(found.items()))

    def rest(self, packs: Sequence[int]) -> torch.Tensor:
        """Return the base's weight in every row, where only these packs matter."""
        return 1 - torch.stack([self.weights[pack] for pack in packs]).sum(0)

    @cached_property
    def packs(self) -> tuple[int, ...]:
        """The packs that any row uses, in ascending order."""
        return tuple(self.weights)

    @cached_property
    def single(self) -> int | None:
        """The pack (or :data:`BASE`) of all rows, where they agree."""
        if self.is_soft:
            return None if self.packs else BASE
        return self.choices[0] if len(set(self.choices)) == 1 else None

    def groups(self, packs: tuple[int, ...]) -> Groups:
        """Return the rows by pack, where only these packs matter and all others count as the base."""
        found = self._groups.get(packs)
        if found is None:
            of_rows = [choice if choice in packs else BASE for choice in self.choices]
            order = sorted(range(len(of_rows)), key=of_rows.__getitem__)
            present = sorted(set(of_rows))
            sizes = tuple(of_rows.count(pack) for pack in present)
            is_sorted = order == list(range(len(order)))
            found = Groups(tuple(present), sizes, None if is_sorted else torch.tensor(order))
            self._groups[packs] = found
        return found

    def places(self, packs: tuple[int, ...], device: torch.device) -> torch.Tensor:
        """Return for each row the place of its pack among these, from 1; 0 where it has none of them."""
        found = self._places.get((packs, device))
        if found is None:
            numbers = {pack: place for place, pack in enumerate(packs, start=1)}
            found = torch.tensor([numbers.get(choice, 0) for choice in self.choices], device=device)
            self._places[packs, device] = found
        return found

    def part(self, groups: Groups, place: int) -> Batch:
        """Return the batch of the rows of one group."""
        rows = list(range(groups.rows)) if groups.order is None else groups.order.tolist()
        begin = sum(groups.sizes[:place])
        return Batch(self.owner, self.decision.select(rows[begin : begin + groups.sizes[place]]), self.indices)

    def shares(self, site: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return which of the packs a site computes grouped, and which factored."""
        found: tuple[tuple[int, ...], tuple[int, ...]] = site.split(self.packs, self.single)
        return found

    def rows_of(self, pack: int, device: torch.device) -> torch.Tensor:
        """Return the numbers of the rows that have a pack, on a device."""
        key = (pack, device)
        found = self._places.get(key)
        if found is None:
            rows = [row for row, choice in enumerate(self.choices) if choice == pack]
            found = self._places[key] = torch.tensor(rows, device=device)
        return found

    def mask(self, widths: Widths, like: torch.Tensor) -> torch.Tensor:
        """Return what factors that lie side by side count in each row: (rows, columns), in the dtype and on the device of ``like``."""
        key = (widths, like.dtype, like.device)
        found = self._masks.get(key)
        if found is None:
            columns = [self.weights[pack][:, None].expand(-1, width) for pack, width in widths]
            found = self._masks[key] = torch.cat(columns, dim=1).to(like.device, like.dtype)
        return found


class Identity:
    """Tells one routed model from another, over all changes of its packs; a deep copy of a model has another."""


def refuse_pickling() -> NoReturn:
    """Refuse to pickle a part of a routed model.

    Raises:
        UsageError: always.
    """
    raise UsageError(
        "A routed model cannot be pickled: its packs are not part of its weights.",
        hint="Save the base (model.save_pretrained) and graft again where it is loaded, or ungraft first.",
    )


_active: ContextVar[Batch | None] = ContextVar("skillhub_batch", default=None)


def active_batch(owner: object) -> Batch | None:
    """Return the batch that a routed model is computing in this thread (or task), or None."""
    batch = _active.get()
    return batch if batch is not None and batch.owner is owner else None


@contextmanager
def activated(batch: Batch | None) -> Iterator[None]:
    """Let modules compute a batch while the block runs; None lets them compute the base."""
    token = _active.set(batch)
    try:
        yield
    finally:
        _active.reset(token)
