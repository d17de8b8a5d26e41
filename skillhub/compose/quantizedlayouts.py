"""The layout of a quantized model: what is plain in it is read and written as ever, linear layers get side paths.

Which canonical tensor each layer holds is learned from a model of the same class and config without weights, which is not quantized.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch

from skillhub.compose.merging import Contribution, changed_names, contributing
from skillhub.compose.methods import find_method, merge_tensors
from skillhub.compose.recipes import Recipe
from skillhub.compose.sidepaths import HiddenSlot, SideSlot, hidden_error
from skillhub.errors import UsageError
from skillhub.interop.modules import is_transposed
from skillhub.layout import Layout, Slot, ViewSlot, layout_of
from skillhub.rounding import TARGETS


def is_quantized(model: Any) -> bool:
    """Say whether some of a model's weights are stored otherwise than as floating-point numbers."""
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None:  # GGUF weights are plain floats once loaded
        return "gguf" not in str(getattr(quantizer.quantization_config, "quant_method", "")).lower()
    by_torch = any(type(module).__module__.startswith("torch.ao.nn") for module in model.modules())
    return by_torch or any(type(one.data) is not torch.Tensor for one in model.parameters())


def plain_twin(model: Any) -> Any:
    """Return a model of the same class and config without weights, not quantized.

    Raises:
        UsageError: it is not a model of transformers.
    """
    if not hasattr(model, "config"):
        raise UsageError(
            f"{type(model).__name__} is not a model of transformers.",
            hint="Give the model that from_pretrained returned, not one that wraps it.",
        )
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        return type(model)(config)


def quantized_layout(model: Any) -> Layout:
    """Return the layout of a quantized model.

    Raises:
        UsageError: some of it is offloaded, or as :func:`skillhub.layout.layout_of`.
    """
    twin = plain_twin(model)
    if any(parameter.device.type == "meta" for parameter in model.parameters()):
        raise UsageError(
            "The model is quantized, and some of its weights are offloaded.",
            hint="Load it whole (device_map={'': device}); or fuse into the original checkpoint with `skillhub fuse`.",
        )

    def slot(own: Slot) -> Slot:
        if all(_is_plain(model, name, twin.get_parameter_or_buffer(name)) for name in own.parameter_names):
            return replace(own, _model=model)
        module_name, _, last = own.parameter_name.rpartition(".")
        transposed = is_transposed(twin.get_submodule(module_name))
        if not (isinstance(own, ViewSlot) and own.is_whole and last == "weight" and transposed is not None):
            return HiddenSlot(own.name, own.saved_name, own.shape, (), model)
        return SideSlot(own.name, own.saved_name, own.shape, (), model, module_name, transposed)

    return Layout({name: slot(own) for name, own in layout_of(twin).slots.items()})


def check_hidden(recipe: Recipe, contributions: Sequence[Contribution], layout: Layout) -> None:
    """Refuse what cannot be done to the quantized tensors of a model, before anything is.

    Raises:
        UsageError: a pack changes one that is no linear layer's weight, or sets its values, or the method needs the base's.
    """
    for name in changed_names(contributions):
        slot = layout.slots[name]
        if isinstance(slot, HiddenSlot):
            raise hidden_error(name)
        if isinstance(slot, SideSlot) and contributing(contributions, name)[0].delta.sets_values(name):
            raise UsageError(
                f"A pack sets {name}, which is quantized in this model.",
                hint="Fuse into the original checkpoint with `skillhub fuse`, then quantize the result.",
                tensor=name,
            )
        if isinstance(slot, SideSlot) and _needs_base(recipe, contributions, name):
            raise UsageError(
                f"The method {recipe.method!r} needs the base's weights, and {name} is quantized in this model.",
                hint="Use a method that merges differences, such as 'linear' or 'ties'; or fuse, then quantize the result.",
                tensor=name,
            )


def _needs_base(recipe: Recipe, contributions: Sequence[Contribution], name: str) -> bool:
    """Say whether what a recipe adds to a tensor depends on what the base holds there."""
    method, layers = find_method(recipe.method), contributions[0].layers
    members = contributions if method.counts_every_pack else contributing(contributions, name)
    spare = max(0, method.members[0] - len(members))
    weights = [one.item.weight_at(name, layers) for one in members] + [1.0] * spare
    densities = [one.item.density_at(name, layers) for one in members] + [1.0] * spare
    options = recipe.options_at(name, layers)
    return _depends_on_base(recipe.method, tuple(weights), tuple(densities), tuple(options.items()))


@lru_cache(maxsize=256)
def _depends_on_base(
    method: str, weights: tuple[float, ...], densities: tuple[float, ...], options: tuple[tuple[str, float], ...]
) -> bool:
    """Try a method out: the same random deltas on two bases."""
    draw = torch.Generator().manual_seed(0)
    first, second, *deltas = (torch.randn(32, 32, generator=draw) for _ in range(2 + len(weights)))
    merged = [
        merge_tensors(method, deltas, base=base, weights=weights, densities=densities, options=dict(options))
        for base in (first, 3 * second)
    ]
    return not torch.equal(*merged)


def _is_plain(model: Any, name: str, expected: torch.Tensor) -> bool:
    """Say whether a parameter or buffer is there and holds what it would in a model that is not quantized."""
    try:
        found = model.get_parameter_or_buffer(name)
    except AttributeError:
        return False
    if not isinstance(found, torch.Tensor) or found.shape != expected.shape or type(found.data) is not torch.Tensor:
        return False
    return found.dtype in (*TARGETS, torch.float64) or not expected.is_floating_point()
