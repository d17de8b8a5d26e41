"""Siblings: linear modules that read the same input, whose low-rank factors are laid side by side and kept so for a while."""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from skillhub.compose.routed.batches import Batch
from skillhub.compose.routed.factors import Stack, factor_dtype, stack_factors
from skillhub.compose.routed.weights import resized_error
from skillhub.interop.modules import is_transposed

if TYPE_CHECKING:
    from skillhub.compose.routed.sites import Site

SIDE_BY_SIDE = (
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("query", "key", "value"),
    ("q", "k", "v"),
    ("wi_0", "wi_1"),
)
"""Names of linear modules of one parent that mostly read the same input, so that their right factors make one matrix."""


STACKED_SHARE = 1 / 2
"""Rows are multiplied with the factors of all packs of their batch where those have at most such a part of the weight's elements."""


@dataclass(eq=False)
class Stacks:
    """The stacks of a routed model, as many as some memory holds: those of the sets of packs that batches had last.

    All modules compute a batch with the same set, so whole sets stay or go; that of the batch that is computed stays in any case.

    Attributes:
        limit: bytes.
    """

    limit: int
    _sets: OrderedDict[tuple[int, ...], dict[Any, Stack]] = field(default_factory=OrderedDict)
    _bytes: int = 0

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> Stacks:
        """Return the empty stacks of the copied model."""
        made = memo[id(self)] = Stacks(self.limit)
        return made

    def get(self, packs: tuple[int, ...], place: Any, make: Callable[[], Stack]) -> Stack:
        """Return the stack of a set of packs for one place in the model, made when it is not there."""
        with self._lock:
            found = self._sets[packs].get(place) if packs in self._sets else None
            if found is not None:
                self._sets.move_to_end(packs)
                return found
        made = make()
        with self._lock:
            places = self._sets.setdefault(packs, {})
            self._sets.move_to_end(packs)
            if place not in places:  # no other thread was faster
                places[place] = made
                self._bytes += made.nbytes
            while self._bytes > self.limit and len(self._sets) > 1:
                _, gone = self._sets.popitem(last=False)
                self._bytes -= sum(stack.nbytes for stack in gone.values())
        return made


@dataclass(eq=False)
class Siblings:
    """Sites that mostly read the same input, or one alone: the right factors' part is computed once for all of them.

    Attributes:
        sites: the sites, in the order in which they run.
        stacks: of the model.
    """

    sites: list[Site]
    stacks: Stacks
    _counted: tuple[tuple[int, ...], int] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Siblings:
        """Return the copies of the sites."""
        made = Siblings([], copy.deepcopy(self.stacks, memo))
        memo[id(self)] = made
        made.sites.extend(copy.deepcopy(site, memo) for site in self.sites)
        return made

    def add(self, site: Site, batch: Batch, inputs: torch.Tensor, result: torch.Tensor) -> None:
        """Add what the packs of a batch add to a site's output by their factors.

        Where all their factors together are small, every row is multiplied with all of them, masked; else each pack's rows with its own.

        Args:
            site: one of the sites.
            batch: the batch.
            inputs: (rows, …, inputs), or flattened.
            result: the output of the base, contiguous; it is changed.
        """
        most = STACKED_SHARE * max(site.module.weight.numel() for site in self.sites)  # type: ignore[operator]
        if batch.single is not None or batch.is_soft or self._elements(batch.packs) <= most:
            hidden, left = self._hidden(site, batch, inputs)
            flat = result.view(-1, result.shape[-1])
            if hidden.dtype == flat.dtype == left.dtype:  # under autocast they may differ
                flat.addmm_(hidden, left)
            else:
                flat.add_(hidden @ left)
            return
        for pack in (pack for pack in batch.packs if pack in site.factors):
            self._add_rows(site, pack, batch, inputs, result)

    def _add_rows(self, site: Site, pack: int, batch: Batch, inputs: torch.Tensor, result: torch.Tensor) -> None:
        """Add what one pack adds to its rows."""
        index = batch.rows_of(pack, result.device)
        rows, sums = (one.view(batch.rows, -1, one.shape[-1]) for one in (inputs, result))
        mine = rows.index_select(0, index)
        dtype, own = factor_dtype(mine, self._elements((pack,))), site.factors[pack]
        right, left, constant = own.right, own.left, None
        if own.bias is not None or (dtype, inputs.device) != (right.dtype, right.device):
            stack, number = self._stack((pack,), dtype, inputs.device), self.sites.index(site)
            part = slice(*stack.places[number])
            right, left = stack.right[part], stack.lefts[number]
            constant = None if stack.constant is None else stack.constant[part]
        hidden = functional.linear(mine.flatten(0, 1).to(right.dtype), right, constant)
        before = sums.index_select(0, index)
        if hidden.dtype == before.dtype == left.dtype:
            after = torch.addmm(before.flatten(0, 1), hidden, left)
        else:
            after = before.flatten(0, 1) + (hidden @ left).to(before.dtype)
        sums.index_copy_(0, index, after.view(before.shape))

    def _hidden(self, site: Site, batch: Batch, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a site's part of the input on the right factors, (rows · positions, columns), and its left factors.

        What siblings share is kept with the batch until another input comes, so nothing outlives the forward.
        """
        known = batch.scratch
        if known is None or known[0] is not self or known[1] is not inputs:
            stack = self._stack(batch.packs, factor_dtype(inputs, self._elements(batch.packs)), inputs.device)
            known = (self, inputs, stack, stack.hidden(inputs, batch))
            batch.scratch = known if len(self.sites) > 1 else None
        _, _, stack, hidden = known
        number = self.sites.index(site)
        begin, end = stack.places[number]
        return hidden[:, begin:end], stack.lefts[number]

    def _stack(self, packs: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Stack:
        def make() -> Stack:
            stack = stack_factors([site.factors for site in self.sites], packs, dtype, device)
            for site, left in zip(self.sites, stack.lefts, strict=True):
                _check_shape(site, left, stack.right)
            return stack

        return self.stacks.get(packs, (self, dtype, device), make)

    def _elements(self, packs: tuple[int, ...]) -> int:
        """Return how many numbers the factors of some packs are, of the site that has most."""
        known = self._counted  # of the last set: most batches have the one before's
        if known is None or known[0] != packs:
            counts = [sum(one.elements for pack, one in site.factors.items() if pack in packs) for site in self.sites]
            known = self._counted = (packs, max(counts))
        return known[1]


def _check_shape(site: Site, left: torch.Tensor, right: torch.Tensor) -> None:
    """Refuse a weight that was resized since factors were read for it."""
    weight: torch.Tensor = site.module.weight  # type: ignore[assignment]
    shape = tuple(weight.shape[::-1] if is_transposed(site.module) else weight.shape)
    if len(left) and shape != (left.shape[1], right.shape[1]):
        raise resized_error(f"The weight of {type(site.module).__name__}", tuple(weight.shape))
