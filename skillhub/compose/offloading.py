"""Reaching the weights of a model that accelerate keeps in CPU memory while a device does not need them.

Such parameters are on the meta device; hooks of the modules hold a map to the weights, and load from it before each forward. What
is written into the map's tensors counts from then on. Weights that are offloaded to disk are read from files, mostly the base's own,
and are not written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from skillhub.errors import UsageError
from skillhub.layout import Layout, Slot


def reach_offloaded(model: Any, layout: Layout) -> Layout:
    """Return a layout whose slots lead to the weights in CPU memory where the model's parameters are offloaded.

    Raises:
        UsageError: weights are on disk, or one tensor lies in offloaded and other parameters.
    """
    offloaded = {
        name: weight
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if parameter.device.type == "meta" and (weight := _weight(model, name)) is not None
    }
    if not offloaded:
        return layout
    slots = {name: _reached(slot, offloaded) for name, slot in layout.slots.items()}
    return Layout(_without_aliases(slots, getattr(model, "all_tied_weights_keys", {}), offloaded))


def _reached(slot: Slot, offloaded: Mapping[str, torch.Tensor]) -> Slot:
    found = {name: offloaded[name] for name in slot.parameter_names if name in offloaded}
    if not found:
        return slot
    if len(found) < len(slot.parameter_names):
        raise UsageError(
            f"{slot.name} lies in {', '.join(slot.parameter_names)}, of which only a part is offloaded.",
            hint="Load the model with a device_map that keeps each layer in one place.",
            tensor=slot.name,
        )
    return slot.within(found)


def _without_aliases(
    slots: Mapping[str, Slot], tied: Mapping[str, str], offloaded: Mapping[str, torch.Tensor]
) -> dict[str, Slot]:
    """Return slots without those of tied parameters, which on the meta device do not tell that they are.

    Args:
        slots: by canonical name.
        tied: parameter that shares another's memory → the other, unless it was untied.
        offloaded: the weights of offloaded parameters.
    """
    addresses = {name: weight.data_ptr() for name, weight in offloaded.items()}
    shared = {alias for alias, name in tied.items() if alias in addresses and addresses[alias] == addresses.get(name)}
    return {name: slot for name, slot in slots.items() if not shared.intersection(slot.parameter_names)}


def _weight(model: Any, name: str) -> torch.Tensor | None:
    """Return the tensor in CPU memory that a parameter is loaded from; None where no hook has it.

    Raises:
        UsageError: it is loaded from disk.
    """
    for weights, key in _maps(model, name):
        if key not in weights:
            continue
        found = weights[key]
        if found is not weights[key]:  # made anew whenever it is asked for
            raise UsageError(
                f"{name} is offloaded to disk, where packs are not written to.",
                hint="Write a checkpoint with `skillhub fuse`, and load that with the same device_map; or load the model without "
                "offloading to disk.",
                parameter=name,
            )
        return found if isinstance(found, torch.Tensor) else None
    return None


def _maps(model: Any, name: str) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Yield the maps of the hooks that may load a parameter, the innermost first, with its name in each."""
    path = name.split(".")
    for end in range(len(path) - 1, -1, -1):
        hook = getattr(model.get_submodule(".".join(path[:end])), "_hf_hook", None)
        for one in getattr(hook, "hooks", [hook]):
            if getattr(one, "offload", False) and getattr(one, "weights_map", None) is not None:
                yield one.weights_map, ".".join(path[end:])
