"""What of a pack an adapter of peft can say, from headers alone: its layers, and everything that does not fit, with the reason.

LoRA adds a product of two factors to the weight of a linear layer or an embedding, and what a pack stores as components is such a
product as it is. peft also takes small modules as a whole, which norms go into. Servers know factors of linear layers and nothing else.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import msgspec
from torch import nn

from skillhub.adapters import CONFIG_FILE, Adapter
from skillhub.canonical import is_vocabulary_tensor
from skillhub.deltas import PackDelta
from skillhub.interop.factors import read_changes
from skillhub.interop.modules import Modules
from skillhub.interop.products import product_rank
from skillhub.layout import ViewSlot


class Reason(StrEnum):
    """Why a tensor does not fit an adapter."""

    EMBEDDING = "embedding"
    HEAD = "output head"
    NORM = "norm"
    BIAS = "bias"
    EXPERT = "tensor of fused experts"
    LAYER = "not of a linear layer"
    DENSE = "stored densely"
    RANK = "of too high a rank"
    ADDED = "added tensor"
    REMOVED = "removed tensor"
    RESIZED = "resized tensor"
    VALUES = "not a difference"
    WHOLE = "trained as a whole"


@dataclass(frozen=True)
class Misfit:
    """A tensor that an adapter cannot change.

    Attributes:
        tensor: its canonical name; of an adapter's array, the parameter as the adapter names it.
        reason: why.
    """

    tensor: str
    reason: Reason


@dataclass(frozen=True)
class Layer:
    """A linear layer or embedding that an adapter changes.

    Attributes:
        tensor: canonical name of its weight; layers that share a weight have one name.
        module: its qualified name in the model.
        shape: of the weight, as checkpoints store it.
        rank: of its factors.
        is_exact: whether the factors are what the pack stores, not the nearest ones of that rank.
        is_transposed: the weight is stored as inputs × outputs (GPT-2's ``Conv1D``).
        is_embedding: it is an embedding.
    """

    tensor: str
    module: str
    shape: tuple[int, ...]
    rank: int
    is_exact: bool = True
    is_transposed: bool = False
    is_embedding: bool = False


@dataclass(frozen=True)
class Whole:
    """A norm that an adapter holds as a whole.

    Attributes:
        module: its qualified name in the model.
        tensors: name of each of its parameters within it → canonical name.
    """

    module: str
    tensors: Mapping[str, str]


@dataclass(frozen=True)
class Fit:
    """What of a pack an adapter can say, and what it cannot."""

    layers: tuple[Layer, ...]
    misfits: tuple[Misfit, ...]
    wholes: tuple[Whole, ...] = ()

    @property
    def rank(self) -> int:
        """The highest rank of a layer."""
        return max((layer.rank for layer in self.layers), default=0)

    @property
    def is_shared(self) -> bool:
        """Whether layers that share a weight are among those that change."""
        return len({layer.tensor for layer in self.layers}) < len(self.layers)


@dataclass(frozen=True)
class Reader:
    """What a program can do that reads adapters.

    Attributes:
        linear_only: it takes factors of linear layers within the model: no embeddings, heads, or modules as a whole.
        highest_rank: that it can do; None for any.
    """

    linear_only: bool = False
    highest_rank: int | None = None


def fit_pack(
    delta: PackDelta,
    model: nn.Module,
    modules: Modules,
    repeats: Mapping[str, str],
    reader: Reader,
    *,
    rank: int | None = None,
) -> Fit:
    """Say what of a pack's delta fits an adapter, from headers alone.

    Args:
        delta: the delta for the base.
        model: an instance of the base's class; its weights are not read.
        modules: of that model.
        repeats: canonical name of an untied copy of another tensor → the other's, whose delta it takes.
        reader: what the adapter is for.
        rank: highest rank; what is stored densely or with a higher one is taken as the nearest product of this rank. None takes
            stored products of any rank, and nothing else.
    """
    layers: list[Layer] = []
    misfits: list[Misfit] = []
    norms: dict[str, dict[str, str]] = defaultdict(dict)
    for name in delta.names:
        reason = _misfit_of(delta, name, model, modules, reader)
        if reason == Reason.NORM and not reader.linear_only:
            module = modules.layout.slots[name].parameter_name.rpartition(".")[0]
            norms[module] = _tensors_of(module, model, modules)
            reason = None if norms[module] else Reason.NORM
        elif reason is None:
            copies = [
                alias for alias, original in repeats.items() if original == name and alias in modules.layout.slots
            ]
            found = _layers_of(delta, [name, *copies], model, modules, reader, rank)
            if isinstance(found, Reason):
                reason = found
            else:
                layers += found
        if reason is not None:
            misfits.append(Misfit(name, reason))
    wholes = tuple(Whole(module, tensors) for module, tensors in norms.items() if tensors)
    return Fit(tuple(layers), tuple(misfits), wholes)


def _misfit_of(delta: PackDelta, name: str, model: nn.Module, modules: Modules, reader: Reader) -> Reason | None:
    """Return why a tensor is no difference of the weight of a linear layer or embedding, or None."""
    entry, slot = delta.entry(name), modules.layout.slots.get(name)
    if entry.change != "delta":
        return Reason.REMOVED if entry.change == "removed" else Reason.ADDED
    if delta.sets_values(name):
        return Reason.VALUES
    if slot is None:
        return Reason.LAYER
    if tuple(entry.shape) != slot.shape:
        return Reason.RESIZED
    module, _, role = slot.parameter_name.rpartition(".")
    kind = model.get_submodule(module)
    if len(slot.shape) < 2:
        if _is_linear(slot.parameter_name, kind, modules) or role not in ("weight", "bias"):
            return Reason.BIAS
        return Reason.NORM
    if isinstance(kind, nn.Embedding):
        return Reason.EMBEDDING if reader.linear_only else None
    if "experts" in slot.parameter_name.split(".") and len(modules.shapes[slot.parameter_name]) > 2:
        return Reason.EXPERT
    is_whole = isinstance(slot, ViewSlot) and slot.is_whole
    if not _is_linear(slot.parameter_name, kind, modules) or role != "weight" or not is_whole:
        return Reason.LAYER
    return Reason.HEAD if reader.linear_only and is_vocabulary_tensor(name) else None


def _is_linear(parameter: str, module: nn.Module, modules: Modules) -> bool:
    return isinstance(module, nn.Linear) or f"{parameter.rpartition('.')[0]}.weight" in modules.transposed


def _layers_of(
    delta: PackDelta, names: list[str], model: nn.Module, modules: Modules, reader: Reader, rank: int | None
) -> list[Layer] | Reason:
    """Return the layers that have a weight: one, or all that share it or have a copy; none where it stays as it is."""
    name = names[0]
    slot, stored = modules.layout.slots[name], product_rank(delta.encoded(name))
    is_exact = stored is not None and (rank is None or stored <= rank)
    if not is_exact and rank is None:
        return Reason.DENSE
    chosen = stored if is_exact and stored is not None else min(rank or 0, *slot.shape)
    if reader.highest_rank is not None and chosen > reader.highest_rank:
        return Reason.RANK
    layers = []
    first = [modules.layout.slots[one].parameter_name for one in names]
    for parameter in [*first, *(tied for one in first for tied in modules.tied.get(one, ()))]:
        module = parameter.rpartition(".")[0]
        kind, is_transposed = model.get_submodule(module), parameter in modules.transposed
        if not (is_transposed or isinstance(kind, nn.Embedding | nn.Linear)):
            return Reason.LAYER
        layers.append(Layer(name, module, slot.shape, chosen, is_exact, is_transposed, isinstance(kind, nn.Embedding)))
    return layers if chosen else []


def _tensors_of(module: str, model: nn.Module, modules: Modules) -> dict[str, str]:
    """Return the parameters of a norm and their canonical names; none where it is more than a few vectors."""
    kind, found = model.get_submodule(module), {}
    for role, parameter in kind.named_parameters():
        names = modules.held.get(f"{module}.{role}", [])
        slot = modules.layout.slots[names[0]] if len(names) == 1 else None
        if parameter.dim() != 1 or not isinstance(slot, ViewSlot) or not slot.is_whole:
            return {}
        found[role] = names[0]
    return {} if any(True for _ in kind.children()) or any(True for _ in kind.buffers()) else found


def fit_adapter(adapter: Adapter, reader: Reader) -> Fit:
    """Say which layers an adapter of peft changes by factors, and what of it a reader cannot do.

    Raises:
        SkillhubError: as :func:`skillhub.interop.factors.read_changes`.
    """
    layers, misfits = [], []
    for name, change in read_changes(adapter).items():
        if change.is_embedding or change.whole or change.is_bias:
            plain = Reason.WHOLE if change.whole else Reason.BIAS
            misfits.append(Misfit(name, Reason.EMBEDDING if change.is_embedding else plain))
            continue
        left, right = change.factors
        if len(left.shape) > 2:  # a convolution
            misfits.append(Misfit(name, Reason.LAYER))
        elif is_vocabulary_tensor(name):
            misfits.append(Misfit(name, Reason.HEAD))
        elif reader.highest_rank is not None and right.shape[0] > reader.highest_rank:
            misfits.append(Misfit(name, Reason.RANK))
        else:
            layers.append(Layer(name, change.module, (left.shape[0], right.shape[1]), right.shape[0]))
    return Fit(tuple(layers), tuple(misfits if reader.linear_only else ()))


def needs_patterns(adapter: Adapter) -> bool:
    """Say whether readers that know no patterns would scale some factors wrongly: by the config's ``lora_alpha`` and ``r``."""
    rank = json.loads((adapter.folder / CONFIG_FILE).read_bytes()).get("r")
    plain = msgspec.structs.replace(adapter.config, alpha_pattern=None)
    products = [change for change in read_changes(adapter).values() if change.has_product and not change.is_bias]
    return not isinstance(rank, int) or rank < 1 or any(one.scale != plain.scale(one.module, rank) for one in products)
