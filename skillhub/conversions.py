"""What ``save_pretrained`` makes of a model's parameters, learned by running its weight conversions on empty tensors.

In transformers 5 module names are not checkpoint names: experts are fused, projections are split, modules are renamed,
and a save undoes that by running the model's weight conversions backwards. :func:`trace_save` runs the same code once
on meta tensors, which hold no data, and watches what becomes of each parameter. Most results are views: a slice, a
transpose. A result that is no view (projections that are saved fused, rows permuted for rotary embeddings) is learned
by :func:`positions`, which sends element numbers instead of weights through the conversion.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from skillhub.errors import UsageError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class View:
    """A saved tensor that is a strided view of one parameter.

    Attributes:
        parameter: the parameter's qualified name.
        shape: of the saved tensor.
        stride: of the view, in elements.
        offset: of the view from the parameter's first element.
        geometry: the parameter's own shape and stride, of which the rest holds.
    """

    parameter: str
    shape: Shape
    stride: tuple[int, ...]
    offset: int
    geometry: tuple[Shape, tuple[int, ...]]


@dataclass(frozen=True)
class Mixture:
    """Saved tensors that a conversion computes from several parameters together, or by moving their elements.

    Attributes:
        parameters: their qualified names, sorted.
        outputs: name and shape of each saved tensor, sorted.
    """

    parameters: tuple[str, ...]
    outputs: tuple[tuple[str, Shape], ...]


def trace_save(model: nn.Module) -> dict[str, View | Mixture]:
    """Return what ``save_pretrained`` of a transformers model writes, by saved name; of tied weights the kept one.

    Raises:
        UsageError: it is not a transformers model, it is quantized or carries adapters, or its weights are shared in a
            way that cannot be saved.
    """
    _check_supported(model)
    kept = _saved_parameters(model)
    meta = {n: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta") for n, t in kept.items()}
    owners = {_storage(tensor): name for name, tensor in meta.items()}
    with _no_mode_left(), _Tracer(owners) as tracer:
        outputs = _revert(model, dict(meta))
    computed = {name: tracer.sources[_storage(t)] for name, t in outputs.items() if _storage(t) not in owners}
    result: dict[str, View | Mixture] = dict(_mixtures(computed, {n: tuple(outputs[n].shape) for n in computed}))
    for name in outputs.keys() - computed.keys():
        tensor, owner = outputs[name], owners[_storage(outputs[name])]
        geometry = (tuple(meta[owner].shape), meta[owner].stride())
        result[name] = View(owner, tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()), geometry)
    return result


def positions(model: nn.Module, mixture: Mixture) -> dict[str, torch.Tensor]:
    """Return where each element of a mixture's saved tensors lives.

    Returns:
        By saved name, in its shape: flat positions in the mixture's parameters, one after another (I64).

    Raises:
        UsageError: the conversion does more than move values.
    """
    numbers, begin = {}, 0
    for name in mixture.parameters:
        shape = _parameter(model, name).shape
        numbers[name] = torch.arange(begin, begin + shape.numel()).reshape(shape)
        begin += shape.numel()
    converted = _revert(model, numbers)
    moved = {name: converted[name] for name, shape in mixture.outputs if converted[name].shape == shape}
    flat = torch.cat([tensor.reshape(-1) for tensor in moved.values()])
    counts = torch.bincount(flat, minlength=begin) if flat.dtype == torch.int64 and (flat >= 0).all() else flat
    if len(moved) < len(mixture.outputs) or counts.numel() != begin or counts.max() > 1:
        raise UsageError(
            f"{type(model).__name__} saves {', '.join(mixture.parameters)} in a way that does more than move values.",
            hint="Report the model class; its weights can be packed as checkpoints, but not grafted in memory.",
        )
    return moved


def _check_supported(model: nn.Module) -> None:
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        raise UsageError(
            f"{type(model).__name__} is not a model of transformers.",
            hint="Give the model that from_pretrained returned, not one that wraps it.",
        )
    if getattr(model, "_hf_peft_config_loaded", False):
        raise UsageError("The model carries adapters.", hint="Merge or remove them, or load the base model alone.")
    quantizer = getattr(model, "hf_quantizer", None)
    method = str(getattr(getattr(quantizer, "quantization_config", None), "quant_method", ""))
    if quantizer is not None and "gguf" not in method.lower():  # GGUF weights are plain floats once loaded
        raise UsageError(
            "The model is quantized, so its weights are not those of the base model.",
            hint="Load the base model unquantized; after that it can be quantized.",
        )


def _saved_parameters(model: Any) -> dict[str, torch.Tensor]:
    """Return the parameters and buffers that a save writes, by qualified name, of each tied set the one that is kept."""
    from transformers.modeling_utils import remove_tied_weights_from_state_dict

    ignored = set(model._keys_to_ignore_on_save or ())
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in ignored}
    try:
        kept = remove_tied_weights_from_state_dict(dict(state), model)
    except RuntimeError as error:
        raise UsageError(
            f"{type(model).__name__} shares weights in a way that it cannot save.",
            hint="Load the base model again and do not tie its weights by hand.",
        ) from error
    return {name: _parameter(model, name) for name in kept}


def _revert(model: Any, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Turn tensors by module name into tensors by saved name, as ``save_pretrained`` does."""
    from transformers.core_model_loading import revert_weight_conversion

    saved: dict[str, torch.Tensor] = revert_weight_conversion(model, state)
    return saved


class _Tracer(TorchFunctionMode):
    """Keeps views as views, and notes from which parameters every new storage was computed.

    Attributes:
        sources: storage → names of parameters.
    """

    def __init__(self, owners: Mapping[int, str]) -> None:
        super().__init__()
        self.sources: dict[int, frozenset[str]] = {storage: frozenset((name,)) for storage, name in owners.items()}
        self._alive: list[torch.Tensor] = []  # a storage that is freed could lend its address to another

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.contiguous:
            return args[0]
        result = func(*args, **(kwargs or {}))
        parents = frozenset[str]().union(*(self.sources.get(_storage(t), ()) for t in _tensors((args, kwargs))))
        for tensor in _tensors(result):
            self.sources.setdefault(_storage(tensor), parents)
            self._alive.append(tensor)
        return result


@contextmanager
def _no_mode_left() -> Iterator[None]:
    """End modes that begin in the block with it, also where an interruption keeps one from ending by itself."""
    before = torch._C._len_torch_function_stack()
    try:
        yield
    finally:
        while torch._C._len_torch_function_stack() > before:
            torch._C._pop_torch_function_stack()


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _mixtures(sources: Mapping[str, frozenset[str]], shapes: Mapping[str, Shape]) -> dict[str, Mixture]:
    """Return the mixture of every computed tensor: tensors that have parameters in common belong together."""
    leader: dict[str, str] = {}

    def find(parameter: str) -> str:
        while (above := leader.setdefault(parameter, parameter)) != parameter:
            parameter = above
        return parameter

    for parameters in sources.values():
        first, *others = sorted(map(find, parameters))
        leader.update(dict.fromkeys(others, first))
    members: dict[str, tuple[set[str], set[str]]] = defaultdict(lambda: (set(), set()))
    for output, parameters in sources.items():
        group = members[find(min(parameters))]
        group[0].update(parameters)
        group[1].add(output)
    return {
        output: Mixture(tuple(sorted(parameters)), tuple((name, shapes[name]) for name in sorted(outputs)))
        for parameters, outputs in members.values()
        for output in outputs
    }


def _parameter(model: Any, name: str) -> torch.Tensor:
    parameter: torch.Tensor = model.get_parameter_or_buffer(name)
    return parameter
