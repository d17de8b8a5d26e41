"""Side paths: what packs add to a linear layer whose weight cannot be written, because it is quantized, or is not to be.

A quantized layer computes y = Q(x). Its weight has no room for a small difference, so the difference runs beside it, in floating
point: y = Q(x) + x·Δᵀ; as two thin products where all that is added is of low rank. The tensors are buffers of the layer that are
not saved (they follow it to other devices), and a hook adds what they compute.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn import functional

from skillhub.compose.merging import Contribution, contributing, merge_tensor
from skillhub.compose.recipes import Recipe
from skillhub.errors import UsageError
from skillhub.interop.adapterdeltas import AdapterDelta
from skillhub.interop.products import balanced, product_of
from skillhub.layout import Layout, Slot
from skillhub.packdeltas import PackDelta
from skillhub.rounding import TARGETS

DELTA = "_skillhub_delta"
RIGHT, LEFT = "_skillhub_right", "_skillhub_left"

NAMES = (DELTA, RIGHT, LEFT)

Held: TypeAlias = dict[str, torch.Tensor]
"""What runs beside a layer: ``DELTA`` (outputs × inputs), or ``RIGHT`` (rank × inputs) and ``LEFT`` (outputs × rank); or nothing."""


@dataclass(frozen=True, eq=False)
class SideSlot(Slot):
    """The canonical weight of a linear layer that is left as it is: what packs add runs beside it.

    It reads as zeros, to which differences are added; no parameter holds it.

    Attributes:
        module_name: qualified name of the layer.
        transposed: the tensor is inputs × outputs (GPT-2's ``Conv1D``).
        trainable: what runs beside the layer are factors, as parameters in fp32.
    """

    module_name: str
    transposed: bool
    trainable: bool = False

    @property
    def parameter_name(self) -> str:
        """Qualified name that the weight has in the layer."""
        return f"{self.module_name}.weight"

    @property
    def module(self) -> nn.Module:
        """The layer."""
        found: nn.Module = self._model.get_submodule(self.module_name)
        return found

    @property
    def dtype(self) -> torch.dtype:
        """Dtype in which the layer's inputs come."""
        held = self.held()
        if held or self.trainable:
            return next(iter(held.values())).dtype if held else torch.float32
        return compute_dtype(self._model)

    def parameters(self) -> list[torch.Tensor]:
        """Return nothing: the layer's own weight is neither read nor written."""
        return []

    def read(self) -> torch.Tensor:
        """Return zeros, which take no memory."""
        return torch.zeros((), dtype=self.dtype).expand(self.shape)

    def arrange(self, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the value of the layer's weight."""
        return values[self.parameter_name]

    def held(self) -> Held:
        """Return what runs beside the layer."""
        module = self.module
        return {name: getattr(module, name) for name in NAMES if hasattr(module, name)}

    def put(self, values: Held) -> None:
        """Let other tensors run beside the layer; none removes the side path."""
        module = self.module
        _remove(module)
        for name, value in values.items():
            placed = value.to(_device_of(module))
            if self.trainable:
                module.register_parameter(name, placed if isinstance(placed, nn.Parameter) else nn.Parameter(placed))
            else:
                module.register_buffer(name, placed, persistent=False)
        if values:
            module.register_forward_hook(_add_delta if DELTA in values else _add_product)

    def difference(self) -> torch.Tensor:
        """Return what runs beside the layer as a difference of its weight: fp32, on the CPU, of the tensor's shape."""
        held = {name: value.detach().to("cpu", torch.float32) for name, value in self.held().items()}
        if not held:
            return torch.zeros(self.shape)
        delta = held[DELTA] if DELTA in held else held[LEFT] @ held[RIGHT]
        return delta.T if self.transposed else delta

    def compose(self, recipe: Recipe, contributions: Sequence[Contribution], name: str) -> Held:
        """Return what a recipe adds to the layer.

        Args:
            recipe: method, options and packs.
            contributions: the recipe's packs.
            name: canonical name of the tensor whose deltas the layer takes.

        Raises:
            IntegrityError: a pack's bytes are damaged.
        """
        found = _product(recipe, contributions, name, transposed=self.transposed, is_needed=self.trainable)
        if found is None:  # not so where the slot is trainable
            # Beside the weight a small difference is not lost on the grid of large values, so the nearest value is best.
            delta = merge_tensor(replace(recipe, rounding="nearest"), contributions, name, self.read(), self.dtype)
            return {DELTA: delta.T.contiguous() if self.transposed else delta}
        left, right = found
        return {RIGHT: right.to(self.dtype), LEFT: left.T.to(self.dtype).contiguous()}

    def _write(self, tensor: torch.Tensor) -> None:
        self.put({DELTA: tensor.T.contiguous() if self.transposed else tensor} if bool(tensor.any()) else {})


@dataclass(frozen=True, eq=False)
class HiddenSlot(Slot):
    """A canonical tensor that a quantized model holds in a way that packs cannot change."""

    @property
    def dtype(self) -> torch.dtype:
        """Dtype in which the model computes."""
        return compute_dtype(self._model)

    def parameters(self) -> list[torch.Tensor]:
        """Return nothing."""
        return []

    def read(self) -> torch.Tensor:
        """Refuse.

        Raises:
            UsageError: always.
        """
        raise hidden_error(self.name)

    def arrange(self, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Refuse.

        Raises:
            UsageError: always.
        """
        raise hidden_error(self.name)

    def _write(self, tensor: torch.Tensor) -> None:
        raise hidden_error(self.name)


def hidden_error(name: str) -> UsageError:
    """Return the error for a tensor that packs cannot change in a quantized model."""
    return UsageError(
        f"{name} is quantized in this model, and is not the weight of a linear layer, beside which a difference could run.",
        hint="Fuse into the original checkpoint with `skillhub fuse`, then quantize the result.",
        tensor=name,
    )


def is_hidden(layout: Layout) -> bool:
    """Say whether some of a model's tensors cannot be read."""
    return any(isinstance(slot, (SideSlot, HiddenSlot)) for slot in layout.slots.values())


def readable(layout: Layout) -> Layout:
    """Return the part of a layout that can be read."""
    return Layout({n: slot for n, slot in layout.slots.items() if not isinstance(slot, (SideSlot, HiddenSlot))})


def compute_dtype(model: Any) -> torch.dtype:
    """Return the dtype in which a model computes what it does not quantize."""
    dtype = getattr(model, "dtype", None)
    return dtype if isinstance(dtype, torch.dtype) and dtype in TARGETS else torch.bfloat16


def refuse_saving(model: nn.Module, *_: object) -> None:
    """Hook of a model with side paths: what would be saved lacks the packs.

    Raises:
        UsageError: always.
    """
    raise UsageError(
        "Packs run beside this model's quantized layers, and a checkpoint of it would lack them.",
        hint="Ungraft before you save (skillhub.ungraft(model)); or fuse into the original checkpoint with `skillhub fuse`.",
    )


def guard_saving(model: nn.Module, layout: Layout) -> None:
    """Let a model refuse to be saved while it has side paths."""
    hooks = model._state_dict_pre_hooks
    for key in [key for key, hook in hooks.items() if hook is refuse_saving]:
        del hooks[key]
    beside = [slot for slot in layout.slots.values() if isinstance(slot, SideSlot) and not slot.trainable]
    if any(slot.held() for slot in beside):
        register: Any = model.register_state_dict_pre_hook
        register(refuse_saving)


def _product(
    recipe: Recipe, contributions: Sequence[Contribution], name: str, *, transposed: bool, is_needed: bool
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return (rank, outputs) and (rank, inputs) fp32 whose product is the merged delta, where it is a sum of low rank; else None."""
    members = contributing(contributions, name)
    options = recipe.options_at(name, members[0].layers)
    if recipe.method != "linear" or options.get("normalize") or options.get("lambda", 1) != 1:
        return None
    found = [weighted_factors(one, name) for one in members]
    if not all(found):
        return None
    rows = torch.cat([one[0] for one in found if one])
    columns = torch.cat([one[1] for one in found if one])
    if not is_needed and len(rows) * (rows.shape[1] + columns.shape[1]) >= rows.shape[1] * columns.shape[1]:
        return None
    for one in members:
        if isinstance(one.delta, PackDelta):
            one.delta.decode(name)  # its digest says whether the factors are the pack's
    return (columns, rows) if transposed else (rows, columns)


def weighted_factors(contribution: Contribution, name: str) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return (rank, rows) and (rank, columns), fp32, of what a pack adds to a matrix by its weight, where it is stored so; else None.

    Raises:
        IntegrityError: the stored factors are damaged.
    """
    delta, found = contribution.delta, None
    if isinstance(delta, AdapterDelta):
        found = delta.factors(name)
    elif isinstance(delta, PackDelta) and (product := product_of(delta.encoded(name))):
        found = (product.left.T, product.right)
    if found is None:
        return None
    return balanced(found[0] * contribution.item.weight_at(name, contribution.layers), found[1])


def _remove(module: nn.Module) -> None:
    for key in [key for key, hook in module._forward_hooks.items() if hook in (_add_delta, _add_product)]:
        del module._forward_hooks[key]
    for name in NAMES:
        if hasattr(module, name):
            delattr(module, name)


def _device_of(module: nn.Module) -> torch.device:
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return own[0].device if own else torch.device("cpu")


def _add_delta(module: Any, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    delta = module._skillhub_delta
    return output + functional.linear(arguments[0].to(delta), delta).to(output)


def _add_product(module: Any, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    right, left = module._skillhub_right, module._skillhub_left
    return output + functional.linear(functional.linear(arguments[0].to(right), right), left).to(output)
