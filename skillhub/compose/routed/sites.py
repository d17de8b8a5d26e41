"""Sites: the modules whose parameters packs change, and how each computes a batch whose rows have different packs.

*Grouped*: the module runs once per group of rows, as a stand-in that has the pack's weights. *Factored*: the module runs once on all
rows, and what low-rank packs add is added to its output. A site does both where a batch asks for both.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import torch
from torch import nn

from skillhub.compose.routed.batches import BASE, Batch, Identity, activated, active_batch, positions_per_row, remember
from skillhub.compose.routed.bindings import is_cache
from skillhub.compose.routed.codereads import has_parts
from skillhub.compose.routed.factors import Factors
from skillhub.compose.routed.siblings import Siblings
from skillhub.compose.routed.standins import stand_in
from skillhub.compose.routed.weights import PackWeights, resized_error
from skillhub.errors import UsageError
from skillhub.interop.modules import is_transposed


@dataclass(eq=False)
class Site:
    """A module that computes each row with its pack; it takes the place of the module's ``forward`` (or another method).

    Attributes:
        owner: the routed model's identity.
        module: the module.
        method: name of the method that is replaced.
        parameters: name of each parameter that packs change, as the module reaches it → its qualified name in the model.
        weights: gives parameters under packs.
        dense: the packs that change the parameters otherwise than by factors.
        factors: pack → what it adds to the weight of a linear module.
        whole: packs with factors whose weights are in memory besides, for batches of that one pack.
        siblings: the sites that read the same input, this one among them; None without factors.
    """

    owner: Identity
    module: nn.Module
    method: str
    parameters: Mapping[str, str]
    weights: PackWeights
    dense: frozenset[int]
    factors: Mapping[int, Factors]
    whole: frozenset[int] = frozenset()
    siblings: Siblings | None = None
    _ready: dict[int, Any] = field(default_factory=dict)
    _shares: dict[tuple[int, ...], tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._adopt()
        self.has_parts = self.method == "forward" and has_parts(self.module)

    def _adopt(self) -> None:
        # of the class: the module's own may be the site of packs that were routed before
        self.original = getattr(type(self.module), self.method).__get__(self.module)

    def __deepcopy__(self, memo: dict[int, Any]) -> Site:
        """Return a site of the copied module; what packs hold is shared, as nobody changes it."""
        made = copy.copy(self)
        memo[id(self)] = made
        made.owner, made.module = copy.deepcopy(self.owner, memo), copy.deepcopy(self.module, memo)
        made.weights = copy.deepcopy(self.weights, memo)
        made.siblings, made._ready = copy.deepcopy(self.siblings, memo), {}
        made._adopt()
        return made

    def install(self) -> None:
        """Put the site in its place."""
        setattr(self.module, self.method, self)

    def remove(self) -> None:
        """Give the module its own method back."""
        self.module.__dict__.pop(self.method, None)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the module."""
        batch = active_batch(self.owner)
        if batch is None or batch.single == BASE:
            return self.original(*args, **kwargs)
        dense, factored = batch.shares(self)
        result = self._run_dense(batch, dense, args, kwargs) if dense else self.original(*args, **kwargs)
        return self._add_factored(batch, args[0], result) if factored else result

    def split(self, packs: tuple[int, ...], single: int | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return which of a batch's packs are computed grouped here, and which factored."""
        if single is not None and single in self.whole:
            return (single,), ()
        found = self._shares.get(packs)
        if found is None:
            found = tuple(p for p in packs if p in self.dense), tuple(p for p in packs if p in self.factors)
            remember(self._shares, packs, found)
        return found

    # Grouped

    def _run_dense(self, batch: Batch, packs: tuple[int, ...], args: Any, kwargs: Any) -> Any:
        if batch.single is not None:
            return self._run(batch.single, args, kwargs)
        self._check_rows(batch, (*args, *kwargs.values()))
        if self._scales_rows(batch, args):
            return self._as_with(self._row_scales(batch, packs, args[0]))(*args, **kwargs)
        if batch.is_soft:
            return self._run_mixed(batch, packs, args, kwargs)
        groups = batch.groups(batch.packs if self.has_parts else packs)  # modules in it then see rows that agree
        if len(groups.packs) == 1:
            return self._run(groups.packs[0], args, kwargs)
        columns = [_cut(groups, value) for value in args]
        named = {name: _cut(groups, value) for name, value in kwargs.items()}
        results = []
        for g, pack in enumerate(groups.packs):
            some, others = [column[g] for column in columns], {name: column[g] for name, column in named.items()}
            with activated(batch.part(groups, g)) if self.has_parts else nullcontext():
                results.append(self._run(pack, some, others))
        return groups.join(results)

    def _check_rows(self, batch: Batch, values: Sequence[Any]) -> None:
        """Refuse to compute rows apart where the module's inputs are not theirs alone.

        Raises:
            UsageError: the module looks up the same for all rows; or other modules are in it, and a cache or such is among its inputs.
        """
        tensors = [value for value in values if isinstance(value, torch.Tensor) and value.dim()]
        of_rows = all(len(tensor) in (1, batch.rows) for tensor in tensors)
        is_shared = isinstance(self.module, nn.Embedding) and not (of_rows and all(one.dim() > 1 for one in tensors))
        if is_shared or (self.has_parts and (batch.is_soft or not of_rows or any(map(is_cache, values)))):
            names = ", ".join(self.parameters.values())
            raise UsageError(
                f"The rows of a batch cannot have several packs in this model: {names} is used for all of them at once.",
                hint="Give batches whose rows have the same pack, leave out the packs that change it, or graft with mode='fused'.",
                tensor=names,
            )

    def _run(self, pack: int, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Run the module as one pack has it."""
        if pack == BASE:
            return self.original(*args, **kwargs)
        own = self._own()
        ready, known = self._ready.get(pack), (type(self.module), own.dtype, own.device, own.shape)
        if ready is None or ready[0] != known:
            method = self._as_with(self._values(pack))
            ready = (known, method)
            if self.weights.limit is None:  # else the weights would stay in memory here
                self._ready[pack] = ready
        return ready[1](*args, **kwargs)

    def _own(self) -> torch.Tensor:
        """Return one of the module's parameters that packs change, as it is now."""
        name = next(iter(self.parameters))
        found = self.module._parameters.get(name)
        return found if found is not None else attrgetter(name)(self.module)

    def _as_with(self, values: Mapping[str, torch.Tensor]) -> Any:
        """Return the module's method as it is with other parameters."""
        return getattr(type(self.module), self.method).__get__(stand_in(self.module, values, without=self.method))

    def _values(self, pack: int) -> dict[str, torch.Tensor]:
        """Return the parameters that a pack changes, by the names that the module has for them."""
        found = {}
        for name, parameter in self.parameters.items():
            if self.weights.changes(pack, parameter):
                own, value = attrgetter(name)(self.module), self.weights.get(pack, parameter)
                found[name] = _fitting(value, own, parameter)
        return found

    def _run_mixed(self, batch: Batch, packs: tuple[int, ...], args: Any, kwargs: Any) -> Any:
        """Return the weighted sum of the base's and the packs' outputs, which is the output of the weighted sum of their weights."""
        if not is_linear_in_weights(self.module):
            raise UsageError(
                f"{type(self.module).__name__} cannot compute mixtures of packs: its output is not linear in its weights.",
                hint="Choose one pack a row, or leave out the packs that change this module.",
            )
        rest = batch.rest(packs)
        of_base = self.original(*args, **kwargs)
        total = _weighted(of_base, rest, batch.rows)
        for pack in packs:
            total = total + _weighted(self._run(pack, args, kwargs), batch.weights[pack], batch.rows)
        return total.to(of_base.dtype)

    def _scales_rows(self, batch: Batch, args: Any) -> bool:
        """Say whether the module multiplies its input by a vector, which may then differ from row to row."""
        is_scale = type(self.module).__name__.endswith(("RMSNorm", "T5LayerNorm")) and list(self.parameters) == [
            "weight"
        ]
        return is_scale and bool(args) and len(args[0]) == batch.rows and args[0].dim() > 1

    def _row_scales(self, batch: Batch, packs: tuple[int, ...], inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the module's vector for every row, (rows, 1, …, size)."""
        own = self.module.weight
        assert isinstance(own, torch.Tensor)
        table = torch.stack([own.detach(), *(self._values(pack)["weight"] for pack in packs)])
        if batch.is_soft:
            shares = torch.stack([batch.rest(packs), *(batch.weights[pack] for pack in packs)], dim=1)
            rows = (shares.to(table.device) @ table.float()).to(own.dtype)
        else:
            rows = table[batch.places(packs, table.device)]
        return {"weight": rows.view(batch.rows, *[1] * (inputs.dim() - 2), -1)}

    # Factored

    def _add_factored(self, batch: Batch, inputs: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
        if inputs.shape[0] == 1 < batch.rows:  # the same for all rows so far
            inputs = inputs.expand(batch.rows, *inputs.shape[1:])
            result = result.expand(batch.rows, *result.shape[1:]).contiguous()
        positions_per_row(inputs, batch.rows)
        assert self.siblings is not None
        self.siblings.add(self, batch, inputs, result)  # what a linear module returns is contiguous, and nobody else's
        return result


def is_linear_in_weights(module: nn.Module) -> bool:
    """Say whether the module's output is linear in its parameters, but for a constant."""
    kinds = (nn.Embedding, nn.LayerNorm)
    known = isinstance(module, kinds) or is_transposed(module) is not None
    has_biases = hasattr(module, "compute_bias") or hasattr(module, "compute_position_bias")
    return known or type(module).__name__.endswith(("RMSNorm", "T5LayerNorm")) or has_biases


def _cut(groups: Any, value: Any) -> Sequence[Any]:
    """Return each group's part of an argument."""
    if isinstance(value, torch.Tensor) and value.dim():
        return list(groups.cut(value))
    if isinstance(value, (tuple, list)):
        columns = [_cut(groups, one) for one in value]
        return [type(value)(column[g] for column in columns) for g in range(len(groups.packs))]
    return [value] * len(groups.packs)


def _weighted(output: Any, weights: torch.Tensor, rows: int) -> torch.Tensor:
    """Multiply the rows of an output, (rows, …), (rows · positions, …) or (1, …), by their weights, in fp32."""
    if len(output) == 1 < rows:
        output = output.expand(rows, *output.shape[1:])
    factors = weights.to(output.device).repeat_interleave(positions_per_row(output, rows))
    weighted: torch.Tensor = output.float() * factors.view(-1, *[1] * (output.dim() - 1))
    return weighted


@torch.inference_mode(False)
def _fitting(value: torch.Tensor, own: torch.Tensor, parameter: str) -> torch.Tensor:
    """Return a pack's parameter in the dtype and on the device that the model has now."""
    if value.shape != own.shape:
        raise resized_error(parameter, tuple(own.shape))
    return value if (value.dtype, value.device) == (own.dtype, own.device) else value.to(own.device, own.dtype)
