"""Noticing that somebody else changed the weights of a grafted model, such as an optimizer, before they would be overwritten."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from skillhub.compose.sidepaths import SideSlot
from skillhub.errors import UsageError
from skillhub.layout import Layout, Slot

SAMPLE = 64
"""Elements of each parameter whose values are kept."""

_NARROW = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, eq=False)
class Mark:
    """A parameter as it was left.

    Torch counts the writes to a tensor; a write by way of ``parameter.data``, or to a parameter that took another's place, it does
    not count, so evenly spaced values are compared too.

    Attributes:
        parameter: the parameter itself.
        version: how often it had been written; None for tensors of inference mode, which do not count.
        sample: some of its values.
    """

    parameter: torch.Tensor
    version: int | None
    sample: torch.Tensor

    def copied(self, memo: dict[int, Any]) -> Mark:
        """Return the mark of the parameter's deep copy."""
        parameter = copy.deepcopy(self.parameter, memo)
        return Mark(parameter, _version(parameter), self.sample)

    def agrees(self, present: torch.Tensor) -> bool:
        """Say whether a parameter is as it was left; its dtype and device may be others."""
        if present is self.parameter and _version(present) != self.version:
            return False
        now = _sample(present)
        if now.shape != self.sample.shape:
            return False
        # A model that went from fp32 to bf16 and back holds what was rounded in between.
        casts = (self.sample, *(self.sample.to(narrow) for narrow in _NARROW if self.sample.is_floating_point()))
        return any(_same_bits(cast.to(now.dtype), now) for cast in casts)


def take_marks(layout: Layout, names: Iterable[str]) -> dict[str, Mark]:
    """Return marks of the parameters that hold some canonical tensors, by qualified name."""
    marks: dict[str, Mark] = {}
    for name in names:
        for parameter_name, parameter in _held(layout.slots[name]).items():
            if parameter_name not in marks:
                marks[parameter_name] = Mark(parameter, _version(parameter), _sample(parameter))
    return marks


def is_altered(slot: Slot, marks: Mapping[str, Mark]) -> bool:
    """Say whether what a slot holds is not as it was left."""
    return any(name in marks and not marks[name].agrees(parameter) for name, parameter in _held(slot).items())


def refuse_altered(layout: Layout, marks: Mapping[str, Mark]) -> None:
    """Refuse to go on where a marked parameter is not as it was left.

    Raises:
        UsageError: one was changed, or its tensors are not in the layout any more.
    """
    held: dict[str, torch.Tensor] = {}
    for slot in layout.slots.values():
        if isinstance(slot, SideSlot) or not marks.keys().isdisjoint(slot.parameter_names):
            held.update(_held(slot))
    altered = [name for name, mark in marks.items() if name not in held or not mark.agrees(held[name])]
    if altered:
        more = f" and {len(altered) - 1} more" if len(altered) > 1 else ""
        raise UsageError(
            f"{altered[0]}{more} changed since packs were grafted: the model was trained, or written to.",
            hint="To keep that, save it (model.save_pretrained) or make a pack of it (skillhub.pack_grafted). "
            "skillhub.ungraft(model, force=True) gives the base back and drops it.",
            parameter=altered[0],
        )


def _held(slot: Slot) -> dict[str, torch.Tensor]:
    """Return the parameters that hold a slot's tensor, or run beside its layer, by qualified name."""
    if isinstance(slot, SideSlot):
        return {f"{slot.module_name}.{name}": value for name, value in slot.held().items()}
    return dict(zip(slot.parameter_names, slot.parameters(), strict=True))


def _version(tensor: torch.Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


def _sample(tensor: torch.Tensor) -> torch.Tensor:
    """Return up to :data:`SAMPLE` evenly spaced values, on the CPU."""
    flat = tensor.detach().reshape(-1)
    step = max(1, flat.numel() // SAMPLE)
    return flat[::step][:SAMPLE].to("cpu", copy=True)


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Compare bytes, so that NaN equals itself."""
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))
