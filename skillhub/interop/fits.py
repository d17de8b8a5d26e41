"""What of a pack an adapter of peft can say, from headers alone: its layers, and everything that does not fit, with the reason.

LoRA adds a product of two factors to the weight of a linear layer or an embedding, and what a pack stores as components is such a
product as it is. peft also takes small modules as a whole, which norms go into. Servers know factors of linear layers and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import msgspec
from torch import nn

from skillhub.adapters import CONFIG_FILE, Adapter
from skillhub.canonical import is_vocabulary_tensor
from skillhub.interop.factors import read_changes
from skillhub.interop.modules import Modules
from skillhub.interop.products import product_rank
from skillhub.layout import ViewSlot
from skillhub.packdeltas import PackDelta


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


@dataclass(frozen=True)
class Fitting:
    """What packs are fitted to.

    Attributes:
        model: an instance of the base's class; its weights are not read.
        modules: of that model.
        repeats: canonical name of an untied copy of another tensor → the other's, whose delta it takes.
        reader: what the adapter is for.
        rank: highest rank; what is stored densely or with a higher one is taken as the nearest product of this rank. None takes
            stored products of any rank, and nothing else.
    """

    model: nn.Module
    modules: Modules
    repeats: Mapping[str, str]
    reader: Reader
    rank: int | None = None

    def is_linear(self, module: str) -> bool:
        """Say whether a module is a linear layer."""
        return isinstance(self.model.get_submodule(module), nn.Linear) or f"{module}.weight" in self.modules.transposed

    def is_embedding(self, module: str) -> bool:
        """Say whether a module is an embedding."""
        return isinstance(self.model.get_submodule(module), nn.Embedding)

    def users(self, name: str) -> list[str]:
        """Return the parameters that take the delta of a tensor: its own, those tied to it, and those of its copies."""
        slots = self.modules.layout.slots
        copies = [alias for alias, original in self.repeats.items() if original == name and alias in slots]
        held = [slots[one].parameter_name for one in (name, *copies)]
        return [*held, *(tied for one in held for tied in self.modules.tied.get(one, ()))]


def fit_pack(delta: PackDelta, fitting: Fitting) -> Fit:
    """Say what of a pack's delta fits an adapter, from headers alone."""
    layers: list[Layer] = []
    misfits: list[Misfit] = []
    norms: dict[str, Whole] = {}
    for name in delta.names:
        found: Reason | Whole | list[Layer] = _misfit_of(delta, name, fitting) or _layers_of(delta, name, fitting)
        if found == Reason.NORM and not fitting.reader.linear_only:
            found = _norm_of(name, fitting) or Reason.NORM
        if isinstance(found, Reason):
            misfits.append(Misfit(name, found))
        elif isinstance(found, Whole):
            norms[found.module] = found
        else:
            layers += found
    return Fit(tuple(layers), tuple(misfits), tuple(norms.values()))


def _misfit_of(delta: PackDelta, name: str, fitting: Fitting) -> Reason | None:
    """Return why a tensor is no difference of the weight of a linear layer or embedding, or None."""
    entry, slot = delta.entry(name), fitting.modules.layout.slots.get(name)
    if entry.change != "delta":
        return Reason.REMOVED if entry.change == "removed" else Reason.ADDED
    if delta.sets_values(name):
        return Reason.VALUES
    if slot is None:
        return Reason.LAYER
    if tuple(entry.shape) != slot.shape:
        return Reason.RESIZED
    module, _, role = slot.parameter_name.rpartition(".")
    is_linear, is_embedding = fitting.is_linear(module), fitting.is_embedding(module)
    if len(slot.shape) < 2 and role in ("weight", "bias"):
        return Reason.BIAS if is_linear else Reason.NORM
    if "experts" in slot.parameter_name.split(".") and not is_linear:
        return Reason.EXPERT
    is_whole = isinstance(slot, ViewSlot) and slot.is_whole
    if not (is_linear or is_embedding) or role != "weight" or not is_whole:
        return Reason.LAYER
    if not fitting.reader.linear_only:
        return None
    return Reason.EMBEDDING if is_embedding else Reason.HEAD if is_vocabulary_tensor(name) else None


def _layers_of(delta: PackDelta, name: str, fitting: Fitting) -> list[Layer] | Reason:
    """Return the layers that have a weight: one, or all that share it or have a copy; none where it stays as it is."""
    slot, stored = fitting.modules.layout.slots[name], product_rank(delta.encoded(name))
    if stored is not None and (fitting.rank is None or stored <= fitting.rank):
        rank, is_exact = stored, True
    elif fitting.rank is not None:
        rank, is_exact = min(fitting.rank, *slot.shape), False
    else:
        return Reason.DENSE
    if fitting.reader.highest_rank is not None and rank > fitting.reader.highest_rank:
        return Reason.RANK
    layers = []
    for parameter in fitting.users(name) if rank else ():
        module, is_transposed = parameter.rpartition(".")[0], parameter in fitting.modules.transposed
        is_embedding = fitting.is_embedding(module)
        if not is_embedding and not fitting.is_linear(module):
            return Reason.LAYER
        layers.append(Layer(name, module, slot.shape, rank, is_exact, is_transposed, is_embedding))
    return layers


def _norm_of(name: str, fitting: Fitting) -> Whole | None:
    """Return the norm that a tensor belongs to; None where its module is more than a few vectors."""
    modules = fitting.modules
    module = modules.layout.slots[name].parameter_name.rpartition(".")[0]
    kind, found = fitting.model.get_submodule(module), {}
    if any(True for _ in kind.children()) or any(True for _ in kind.buffers()):
        return None
    for role, parameter in kind.named_parameters():
        names = modules.held.get(f"{module}.{role}", [])
        slot = modules.layout.slots[names[0]] if len(names) == 1 else None
        if parameter.dim() != 1 or not isinstance(slot, ViewSlot) or not slot.is_whole:
            return None
        found[role] = names[0]
    return Whole(module, found)


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
