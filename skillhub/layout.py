"""Where a loaded model keeps each canonical tensor: the map between parameters and checkpoint names.

:mod:`skillhub.conversions` tells what ``save_pretrained`` would write; here that becomes slots, through which canonical
tensors of a model in memory are read and written in place, and the fingerprint of the model.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary

from skillhub.canonical import canonical_names, tied_aliases
from skillhub.checkpoints import dtype_tag
from skillhub.conversions import Mixture, View, positions, trace_save
from skillhub.errors import UsageError
from skillhub.fingerprint import BaseRecord, Progress, TensorRecord, base_record, processors, record_array

_POSITIONS_KEPT = 8
"""How many mixtures a layout keeps the positions of, at eight bytes an element."""


@dataclass(frozen=True, eq=False)
class Slot(ABC):
    """One canonical tensor inside a loaded model.

    Attributes:
        name: canonical name.
        saved_name: the name that ``save_pretrained`` gives it.
        shape: its shape in a checkpoint.
        parameter_names: qualified names of the parameters (or buffers) that hold it; mostly one.
    """

    name: str
    saved_name: str
    shape: tuple[int, ...]
    parameter_names: tuple[str, ...]
    _model: Any

    @property
    def parameter_name(self) -> str:
        """Qualified name of the first parameter that holds the tensor."""
        return self.parameter_names[0]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the parameter, now."""
        return self.parameters()[0].dtype

    def parameters(self) -> list[torch.Tensor]:
        """Return the parameters that hold the tensor, as they are now.

        Raises:
            UsageError: the weights are not in memory.
        """
        found = [self._model.get_parameter_or_buffer(name) for name in self.parameter_names]
        if any(parameter.device.type == "meta" for parameter in found):
            raise UsageError(
                f"{self.parameter_name} has no weights in memory: it is offloaded, or on the meta device.",
                hint="Load the whole model into memory, without an offloading device_map.",
            )
        return found

    @abstractmethod
    def read(self) -> torch.Tensor:
        """Return the tensor, detached; a view of the parameter wherever the layout allows it."""

    @abstractmethod
    def arrange(self, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return what the tensor would be, were ``values`` the parameters that hold it; the model itself is not read.

        Args:
            values: a tensor for each of ``parameter_names``, of that parameter's shape.
        """

    def write(self, tensor: torch.Tensor) -> None:
        """Set the tensor in place.

        Raises:
            UsageError: shape or dtype differ from the slot's. Rounding is the caller's decision.
        """
        if tensor.shape != self.shape or tensor.dtype != self.dtype:
            raise UsageError(
                f"{self.name} is {self.dtype} {list(self.shape)}; {tensor.dtype} {list(tensor.shape)} does not fit.",
                hint="Round and shape the tensor before it is written.",
            )
        with torch.no_grad():
            self._write(tensor)

    def within(self, values: Mapping[str, torch.Tensor]) -> Slot:
        """Return this slot in other tensors than the model's parameters: copies of them, by the parameters' names."""
        return replace(self, _model=_Holder(values))

    @abstractmethod
    def _write(self, tensor: torch.Tensor) -> None:
        """Set the tensor, whose shape and dtype fit."""


@dataclass(frozen=True)
class _Holder:
    """Tensors that stand for a model's parameters."""

    values: Mapping[str, torch.Tensor]

    def get_parameter_or_buffer(self, name: str) -> torch.Tensor:
        return self.values[name]


@dataclass(frozen=True, eq=False)
class ViewSlot(Slot):
    """A tensor that is a strided view of one parameter."""

    _view: View

    def read(self) -> torch.Tensor:
        """Return the view of the parameter, detached: writing to it writes to the model."""
        parameter = self.parameters()[0].detach()
        if (tuple(parameter.shape), parameter.stride()) != self._view.geometry:
            raise UsageError(
                f"{self.parameter_name} has been replaced by one of another shape.", hint="Take the layout again."
            )
        return parameter.as_strided(self.shape, self._view.stride, parameter.storage_offset() + self._view.offset)

    @property
    def is_whole(self) -> bool:
        """Whether the tensor is the parameter itself, neither a part of it nor transposed."""
        shape, stride = self._view.geometry
        return (self.shape, self._view.stride, self._view.offset) == (shape, stride, 0)

    def arrange(self, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the view of a value of the parameter; where the slot is the whole parameter, the value as it is."""
        value = values[self.parameter_name]
        if self.is_whole:
            return value
        shape, stride = self._view.geometry
        laid = torch.empty_strided(shape, stride, dtype=value.dtype).copy_(value)
        return laid.as_strided(self.shape, self._view.stride, self._view.offset)

    def _write(self, tensor: torch.Tensor) -> None:
        self.read().copy_(tensor)


@dataclass(frozen=True, eq=False)
class GatheredSlot(Slot):
    """A tensor whose elements lie scattered over one or several parameters."""

    _mixture: Mixture
    _positions_of: Callable[[Mixture], Mapping[str, torch.Tensor]]

    def read(self) -> torch.Tensor:
        """Return a copy, gathered from the parameters."""
        return self.arrange(dict(zip(self.parameter_names, self.parameters(), strict=True)))

    def arrange(self, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return a copy, gathered from values of the parameters."""
        places = self._positions_of(self._mixture)[self.saved_name]
        flat = torch.cat([values[name].detach().reshape(-1) for name in self.parameter_names])
        return flat[places.to(flat.device)]

    def _write(self, tensor: torch.Tensor) -> None:
        places = self._positions_of(self._mixture)[self.saved_name].to(tensor.device)
        begin = 0
        for parameter in self.parameters():
            flat = parameter.detach().reshape(-1)  # a copy where the parameter is not contiguous
            here = (places >= begin) & (places < begin + flat.numel())
            flat[(places[here] - begin).to(flat.device)] = tensor[here].to(flat.device)
            parameter.copy_(flat.view(parameter.shape))
            begin += flat.numel()


@dataclass(frozen=True, eq=False)
class Layout:
    """The slots of a model's canonical tensors, by name, sorted; tied aliases and listed buffers have none."""

    slots: Mapping[str, Slot]

    @property
    def names(self) -> list[str]:
        """Canonical names, sorted."""
        return list(self.slots)

    def repeats(self) -> dict[str, str]:
        """Return alias → original for slots that are not tied but hold the same values, such as a copied head.

        A fingerprint leaves them out and a pack says nothing of them: what is written to the original belongs into both.
        """

        def equal(first: str, second: str) -> bool:
            one, other = self.slots[first], self.slots[second]
            if one.shape != other.shape:
                return False
            values = one.read()
            return torch.equal(values, other.read().to(values.device))

        return tied_aliases(self.slots, equal)


def layout_of(model: nn.Module) -> Layout:
    """Learn where a transformers model keeps the tensors that its ``save_pretrained`` would write.

    Raises:
        UsageError: it is not a transformers model, it is quantized or carries adapters, or its weights are shared in a
            way that cannot be saved.
    """
    saved = trace_save(model)
    shapes = {
        name: dict(origin.outputs)[name] if isinstance(origin, Mixture) else origin.shape
        for name, origin in saved.items()
    }
    positions_of = lru_cache(maxsize=_POSITIONS_KEPT)(lambda mixture: positions(model, mixture))

    def slot(saved_name: str, name: str) -> Slot:
        origin, shape = saved[saved_name], shapes[saved_name]
        if isinstance(origin, View):
            return ViewSlot(name, saved_name, shape, (origin.parameter,), model, origin)
        return GatheredSlot(name, saved_name, shape, origin.parameters, model, origin, positions_of)

    names = sorted(canonical_names(shapes).items(), key=lambda item: item[1])
    return Layout({name: slot(saved_name, name) for saved_name, name in names})


def fingerprint_model(model: nn.Module, *, threads: int | None = None, progress: Progress | None = None) -> BaseRecord:
    """Fingerprint a loaded model: the same as :func:`skillhub.fingerprint.fingerprint_checkpoint` of it saved.

    Args:
        model: the model, in memory.
        threads: how many to use; by default one a processor.
        progress: called with the number of bytes done, from any thread.

    Raises:
        UsageError: as :func:`layout_of`, or the weights are not in memory.
    """
    return fingerprint_slots(layout_of(model), threads=threads, progress=progress)


def fingerprint_slots(
    layout: Layout,
    originals: Mapping[str, torch.Tensor] | None = None,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> BaseRecord:
    """Fingerprint a model by its layout.

    Args:
        layout: the model's layout.
        originals: by canonical name, tensors that count instead of what the model holds now.
        threads: how many to use; by default one a processor.
        progress: called with the number of bytes done, from any thread.

    Raises:
        UsageError: the weights are not in memory.
    """
    originals = originals or {}
    with ThreadPoolExecutor(threads or processors()) as pool:
        records = pool.map(lambda slot: record_slot(slot, originals.get(slot.name), progress), layout.slots.values())
        return base_record(records)


_memos: Any = WeakTensorKeyDictionary()
_memos_lock = threading.Lock()


def record_slot(slot: Slot, original: torch.Tensor | None = None, progress: Progress | None = None) -> TensorRecord:
    """Return the record of a slot's tensor.

    It is remembered by parameter, its version and address; a change by way of ``parameter.data`` goes unseen.

    Args:
        slot: the slot.
        original: a tensor that counts instead of what the model holds now.
        progress: called with the number of bytes done.

    Raises:
        UsageError: the weights are not in memory.
    """
    if original is not None:
        return _record_tensor(slot.name, original, progress)
    parameters = slot.parameters()
    if any(parameter.is_inference() for parameter in parameters):  # those count no versions
        return _record_tensor(slot.name, slot.read(), progress)
    state = (slot.name, *((parameter._version, parameter.data_ptr(), parameter.dtype) for parameter in parameters))
    with _memos_lock:
        memo: dict[str, tuple[Any, TensorRecord]] = _memos.setdefault(parameters[0], {})
    known_state, known = memo.get(slot.saved_name, (None, None))
    if known is None or known_state != state:
        known = _record_tensor(slot.name, slot.read(), progress)
        memo[slot.saved_name] = (state, known)
    elif progress:
        progress(known.elements * slot.dtype.itemsize)
    return known


def _record_tensor(name: str, tensor: torch.Tensor, progress: Progress | None) -> TensorRecord:
    data = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy()
    return record_array(name, data, dtype_tag(tensor.dtype), shape=tuple(tensor.shape), progress=progress)
