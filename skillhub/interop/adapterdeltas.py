"""An adapter as a delta for one model: canonical name → tensor, on demand, like that of a pack.

Factors are multiplied in fp32, which promises a tolerance and not bits. An adapter only declares its base, so names and
shapes are all that can be checked; every one of them is, and a name that leads nowhere is an error.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from skillhub.adapters import Adapter
from skillhub.checkpoints import Checkpoint
from skillhub.codecs.factors import HALF_STEP, AdapterFactors, rounding_bound
from skillhub.errors import UsageError, WrongBaseError
from skillhub.interop.factors import Change, Shape, read_changes, read_values
from skillhub.interop.modules import Modules, empty_model, modules_of
from skillhub.layout import Slot, ViewSlot
from skillhub.manifest import TensorEntry
from skillhub.tensorreaders import MemoryReader, TensorReader

_SHOWN = 3
_OTHER_MODEL = "Give the model that the adapter was trained on, loaded with the class that it was trained with."
_MERGE = "Merge it with peft into a model whose embeddings are not tied, then pack the result: skillhub pack."

_DIRECT = ""
"""Stands for a parameter where an adapter's change is of the tensor in the checkpoint, made for an older class."""

Parts = dict[str, dict[str, Change]]
"""Canonical name → parameter that holds it (or part of it) → what becomes of that parameter."""


@dataclass(frozen=True)
class Target:
    """What adapters are applied to.

    Attributes:
        modules: of the model.
        read_base: returns the base's tensor of a canonical name.
        repeats: canonical name of an untied copy of another tensor → the other's.
    """

    modules: Modules
    read_base: Callable[[str], torch.Tensor]
    repeats: Mapping[str, str] = field(default_factory=dict)


def target_of(checkpoint: Checkpoint) -> Target:
    """Return a checkpoint as what adapters are applied to, by the modules of an empty model of its class.

    Raises:
        UsageError: as :func:`skillhub.interop.modules.empty_model`.
    """
    modules = modules_of(empty_model(checkpoint.folder))
    return Target(modules, checkpoint.tensor, checkpoint.aliases)


@dataclass(frozen=True, eq=False)
class StoredDelta:
    """The delta of a tensor in the form in which an adapter holds it: the sum of both parts.

    Attributes:
        dense: fp32 of the tensor's shape; None where factors are all there is.
        factors: as the file has them; None where there are none that can be kept.
        max_error: how far an element may be from the true sum, by fp32's rounding; 0 where nothing was multiplied.
    """

    dense: torch.Tensor | None
    factors: AdapterFactors | None
    max_error: float


@dataclass(frozen=True, eq=False)
class AdapterDelta:
    """The delta of an adapter for a model; it answers what :class:`skillhub.packdeltas.PackDelta` does.

    Attributes:
        pack: the adapter.
        tensors: canonical name → what becomes of that tensor; of errors it says only whether there are any.
    """

    pack: Adapter
    tensors: Mapping[str, TensorEntry]
    _target: Target
    _parts: Parts

    @property
    def names(self) -> list[str]:
        """Canonical names of the tensors that the adapter changes, sorted."""
        return sorted(self.tensors)

    def entry(self, name: str) -> TensorEntry:
        """Return what becomes of a tensor."""
        return self.tensors[name]

    def sets_values(self, name: str) -> bool:
        """Say that every tensor is a difference, also where the file holds the trained tensor itself."""
        return False

    def decode(self, name: str) -> torch.Tensor:
        """Return the fp32 delta of a tensor.

        Raises:
            IntegrityError: the file holds a value that is not finite.
        """
        modules, parts = self._target.modules, self._parts[name]
        delta = self._replaced(name)
        products = {
            key: change.product(transposed=key in modules.transposed)
            for key, change in parts.items()
            if change.has_product
        }
        return delta.add_(_arranged(modules, name, products)) if products else delta

    def _replaced(self, name: str) -> torch.Tensor:
        """Return the fp32 difference of what the file holds of a tensor as a whole; zeros where it holds nothing so."""
        delta = torch.zeros(self.tensors[name].shape)
        whole = {key: read_values(change.whole) for key, change in self._parts[name].items() if change.whole}
        if whole:
            base = self._target.read_base(name).to("cpu", torch.float32)
            delta += _arranged(self._target.modules, name, whole)
            rows = min(len(base), len(delta))
            delta[:rows] -= base[:rows]
        return delta

    def stored(self, name: str) -> StoredDelta:
        """Return a tensor's delta with its factors as the file holds them, unless they are of a part of the tensor only.

        Raises:
            IntegrityError: the file holds a value that is not finite.
        """
        parts, slot = self._parts[name], self._target.modules.layout.slots[name]
        error = max(map(_rounding_bound, parts.values()))
        (parameter, change), *others = parts.items()
        transposed = parameter in self._target.modules.transposed
        is_whole = parameter == _DIRECT or (isinstance(slot, ViewSlot) and slot.is_whole)
        is_matrix = len(slot.shape) == 2 or (len(slot.shape) > 2 and not transposed)
        if others or change.is_bias or not change.has_product or not is_whole or not is_matrix:
            return StoredDelta(self.decode(name), None, error)
        dense = self._replaced(name)
        if change.whole:
            error += float(dense.abs().max()) * HALF_STEP
        return StoredDelta(dense if dense.any() else None, change.stored_factors(transposed=transposed), error)

    def factors(self, name: str) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return factors whose product ``leftᵀ @ right`` is the delta of a matrix, where the adapter holds it so; else None.

        Returns:
            (rank, rows) and (rank, columns) fp32, scaled.

        Raises:
            IntegrityError: the file holds a value that is not finite.
        """
        parts, slot = self._parts[name], self._target.modules.layout.slots[name]
        (parameter, change), *others = parts.items()
        is_whole = isinstance(slot, ViewSlot) and slot.is_whole
        if others or change.whole or change.is_bias or change.is_embedding or not is_whole or len(slot.shape) != 2:
            return None
        left, right = map(read_values, change.factors)
        outputs, inputs = left.T * change.scale, right
        return (inputs, outputs) if parameter in self._target.modules.transposed else (outputs, inputs)

    def reader(self, name: str) -> TensorReader:
        """Return a reader of a tensor's delta.

        Raises:
            IntegrityError: as :meth:`decode`.
        """
        return MemoryReader(self.decode(name))


def open_adapter_delta(adapter: Adapter, target: Target) -> AdapterDelta:
    """Open the delta of an adapter for a model; names and shapes are checked, values are not read.

    Raises:
        WrongBaseError: the adapter changes something that the model does not have, or in another shape.
        UsageError: it holds something that is not read, or tells tensors apart that the model shares.
        IntegrityError: its file is missing or damaged.
        UnsafeContentError: its file has a header longer than any adapter's.
    """
    modules, changes = target.modules, read_changes(adapter)
    places = {name: _places(modules, name) for name in changes}
    _refuse_lost(adapter, [changes[name].module for name, found in places.items() if not found], len(changes))
    parts: Parts = defaultdict(dict)
    users: dict[str, list[str]] = defaultdict(list)
    for name, found in places.items():
        for canonical, key in found:
            parts[canonical][key] = changes[name]
        users[found[0][1] or found[0][0]].append(name)
    for parameter, names in users.items():
        _check_shared(adapter, modules, parameter, {name: changes[name] for name in names})
    for alias, original in target.repeats.items():
        if alias in modules.layout.slots and (alias in parts or original in parts):
            raise _told_apart(adapter, alias, original)
    entries = {name: _entry(adapter, modules, name, found) for name, found in parts.items()}
    return AdapterDelta(adapter, entries, target, dict(parts))


def _places(modules: Modules, name: str) -> list[tuple[str, str]]:
    """Return where a parameter that an adapter names is: canonical names, and the parameter that holds them."""
    parameter = modules.parameter(name)
    slot = None if parameter else modules.slot(name)
    if isinstance(slot, ViewSlot) and slot.is_whole:
        parameter = slot.parameter_name
    if parameter is not None:
        return [(canonical, parameter) for canonical in modules.held[parameter]]
    return [(slot.name, _DIRECT)] if slot else []


def _refuse_lost(adapter: Adapter, lost: Sequence[str], count: int) -> None:
    if count == 0 or len(lost) == count:
        raise WrongBaseError(f"None of the {count} tensors of {adapter} is in this model.", hint=_OTHER_MODEL)
    if lost:
        names = sorted(set(lost))
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        raise WrongBaseError(
            f"{adapter} changes {', '.join(names[:_SHOWN])}{more}, which this model does not have.",
            hint=_OTHER_MODEL,
            missing=names,
        )


def _check_shared(adapter: Adapter, modules: Modules, parameter: str, changes: Mapping[str, Change]) -> None:
    """Refuse to change one of several modules that share a parameter, unless all are changed alike."""
    if len(changes) == 1 and parameter not in modules.tied:
        return
    one, *others = changes.values()
    if len(changes) <= len(modules.tied.get(parameter, ())):
        raise _told_apart(adapter, modules.tied[parameter][0], parameter)
    for other in others:
        if not _equal(modules, parameter, one, other):
            raise _told_apart(adapter, other.module, one.module)


def _equal(modules: Modules, parameter: str, one: Change, other: Change) -> bool:
    transposed = parameter in modules.transposed
    if (one.whole is None) != (other.whole is None) or one.has_product != other.has_product:
        return False
    if one.whole and other.whole and not torch.equal(read_values(one.whole), read_values(other.whole)):
        return False
    if not one.has_product:
        return True
    if one.product_shape(transposed=transposed) != other.product_shape(transposed=transposed):
        return False
    return torch.allclose(one.product(transposed=transposed), other.product(transposed=transposed), atol=1e-6)


def _told_apart(adapter: Adapter, alias: str, original: str) -> UsageError:
    return UsageError(
        f"{adapter} does not change {alias} and {original} alike, which this model holds as one.", hint=_MERGE
    )


def _rounding_bound(change: Change) -> float:
    """Return how far an element of what a change adds may be from the true product."""
    if not change.has_product:
        return 0.0
    if change.is_bias:
        return HALF_STEP * abs(change.scale) * float(read_values(change.arrays["lora_B.bias"]).abs().max())
    return rounding_bound(change.stored_factors(transposed=False))


def _entry(adapter: Adapter, modules: Modules, name: str, parts: Mapping[str, Change]) -> TensorEntry:
    """Return what becomes of a tensor, after the shapes of all arrays were checked."""
    slot = modules.layout.slots[name]
    shape = slot.shape
    for key, change in parts.items():
        held = slot.shape if key == _DIRECT else modules.shapes[key]
        if change.whole and change.whole.shape != held:
            if not _may_be_resized(slot, change.whole.shape):
                raise _misfit(adapter, change, change.whole.shape, held)
            shape = held = change.whole.shape
        if change.has_product and (found := change.product_shape(transposed=key in modules.transposed)) != held:
            raise _misfit(adapter, change, found, held)
    whole = [change for change in parts.values() if change.whole]
    if _DIRECT in parts and len(parts) > 1:
        raise _told_apart(adapter, parts[_DIRECT].module, name)
    if whole and _DIRECT not in parts and len(whole) != len(slot.parameter_names):
        raise WrongBaseError(
            f"{adapter} replaces a part of {name} only, which checkpoints hold in one piece.", hint=_OTHER_MODEL
        )
    is_exact = not any(change.has_product for change in parts.values())
    return TensorEntry(
        shape=list(shape),
        change="delta",
        codecs=["whole" if is_exact else "lora"],
        bytes=sum(info.nbytes for change in parts.values() for info in change.arrays.values()),
        relative_error=0.0 if is_exact else math.nan,
        max_error=0.0 if is_exact else math.nan,
    )


def _may_be_resized(slot: Slot, shape: Shape) -> bool:
    return isinstance(slot, ViewSlot) and slot.is_whole and bool(shape) and shape[1:] == slot.shape[1:]


def _misfit(adapter: Adapter, change: Change, found: Shape | None, held: Shape) -> WrongBaseError:
    what = "factors that do not go together" if found is None else str(list(found))
    return WrongBaseError(
        f"{change.module} is {list(held)} in this model, and {adapter} has {what}.",
        hint=_OTHER_MODEL,
        module=change.module,
    )


def _arranged(modules: Modules, name: str, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return values of parameters as the tensor that a checkpoint has of them; zeros for parameters without a value."""
    if _DIRECT in values:
        return values[_DIRECT]
    slot = modules.layout.slots[name]
    given = {key: values[key] if key in values else torch.zeros(modules.shapes[key]) for key in slot.parameter_names}
    return slot.arrange(given)
