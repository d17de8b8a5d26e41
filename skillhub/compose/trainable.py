"""Going on to train a pack: its factors become parameters beside linear layers, all else of the model is frozen."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import nn

from skillhub.compose.merging import Contribution
from skillhub.compose.sidepaths import SideSlot, weighted_factors
from skillhub.errors import UsageError
from skillhub.interop.modules import is_transposed
from skillhub.layout import Layout, Slot, ViewSlot


def trainable_names(model: nn.Module, layout: Layout, contribution: Contribution) -> frozenset[str]:
    """Return the canonical names of the tensors whose deltas a pack stores as factors, of linear layers of their own.

    Raises:
        UsageError: there are none.
        IntegrityError: the pack is damaged.
    """
    names = frozenset(
        name
        for name in contribution.names
        if _beside(model, layout.slots[name]) and weighted_factors(contribution, name) is not None
    )
    if not names:
        raise UsageError(
            f"{contribution.item.pack} holds no low-rank factors of linear layers, and only those can be trained.",
            hint="Graft it without trainable=True and train the whole weights; or give a pack of low rank, or an adapter.",
        )
    return names


def train_beside(model: nn.Module, layout: Layout, names: Collection[str]) -> Layout:
    """Return a layout in which some tensors are parameters beside their layers."""
    return Layout({n: _beside(model, slot) or slot if n in names else slot for n, slot in layout.slots.items()})


def trained_names(model: nn.Module) -> list[str]:
    """Return the names of the parameters that require gradients."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def require_gradients(model: nn.Module, names: Iterable[str], value: bool) -> None:
    """Let some of a model's parameters require gradients, or not."""
    for name in names:
        model.get_parameter(name).requires_grad_(value)


def _beside(model: nn.Module, slot: Slot) -> SideSlot | None:
    """Return the place beside the linear layer whose weight a slot is; None where there is no such layer."""
    if isinstance(slot, SideSlot):
        module_name, transposed = slot.module_name, slot.transposed
    elif isinstance(slot, ViewSlot) and slot.is_whole and slot.parameter_name.endswith(".weight"):
        module_name = slot.parameter_name.removesuffix(".weight")
        module: Any = model.get_submodule(module_name)
        kind = is_transposed(module)
        if kind is None or _is_shared(model, module.weight):
            return None
        transposed = kind
    else:
        return None
    return SideSlot(slot.name, slot.saved_name, slot.shape, (), model, module_name, transposed, trainable=True)


def _is_shared(model: nn.Module, parameter: torch.Tensor) -> bool:
    return sum(one is parameter for _, one in model.named_parameters(remove_duplicate=False)) > 1
