"""What of a pack an adapter of peft can say, and the adapter's folder.

LoRA adds a product of two factors to the weight of a linear layer, and nothing else. What a pack stores as components is such a
product as it is; everything that is none is listed. Names are those of modules, and every scale is 1, also for readers that know
nothing of ``rank_pattern`` and ``alpha_pattern``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn

from skillhub.adapters import CONFIG_FILE, Adapter
from skillhub.checkpointfiles import ADAPTER_FILE
from skillhub.codecs.streams import Bytes, tensor_bytes
from skillhub.deltas import PackDelta
from skillhub.interop.factors import Change, read_changes, read_values
from skillhub.interop.modules import Modules
from skillhub.interop.products import Product, nearest_product, product_of, product_rank
from skillhub.layout import ViewSlot
from skillhub.tensorfiles import write_tensors

_TASKS = {"ForCausalLM": "CAUSAL_LM", "LMHeadModel": "CAUSAL_LM", "ForConditionalGeneration": "SEQ_2_SEQ_LM"}
"""End of a class's name → what peft calls the task; other classes need no wrapper of their own."""


class Reason(StrEnum):
    """Why a tensor does not fit a LoRA adapter."""

    EMBEDDING = "embedding"
    VECTOR = "norm or bias"
    EXPERT = "tensor of fused experts"
    LAYER = "not of a linear layer"
    SHARED = "tied weight"
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
    """A linear layer that an adapter changes.

    Attributes:
        tensor: canonical name of its weight.
        module: its qualified name in the model.
        shape: of the weight, as checkpoints store it.
        rank: of its factors.
        is_exact: whether the factors are what the pack stores, not the nearest ones of that rank.
        is_transposed: the weight is stored as inputs × outputs (GPT-2's ``Conv1D``).
    """

    tensor: str
    module: str
    shape: tuple[int, ...]
    rank: int
    is_exact: bool = True
    is_transposed: bool = False


@dataclass(frozen=True)
class Fit:
    """What of a pack an adapter can say, and what it cannot."""

    layers: tuple[Layer, ...]
    misfits: tuple[Misfit, ...]

    @property
    def rank(self) -> int:
        """The highest rank of a layer."""
        return max((layer.rank for layer in self.layers), default=0)


@dataclass(frozen=True)
class Measured:
    """How near an adapter is to its pack, as shares of the sum of squares of the pack's whole delta.

    Attributes:
        error: of what its layers say other than the pack.
        left_out: of what is in tensors that do not fit.
    """

    error: float
    left_out: float


def fit_pack(
    delta: PackDelta, model: nn.Module, modules: Modules, *, rank: int | None = None, limit: int | None = None
) -> Fit:
    """Say what of a pack's delta fits an adapter, from headers alone.

    Args:
        delta: the delta for the base.
        model: an instance of the base's class; its weights are not read.
        modules: of that model.
        rank: highest rank; what is stored densely or with a higher one is taken as the nearest product of this rank. None takes
            stored products of any rank, and nothing else.
        limit: highest rank that the reader can do.
    """
    layers, misfits = [], []
    for name in delta.names:
        found = _misfit_of(delta, name, model, modules) or _layer_of(delta, name, modules, rank)
        if isinstance(found, Layer) and limit is not None and found.rank > limit:
            found = Reason.RANK
        if isinstance(found, Reason):
            misfits.append(Misfit(name, found))
        elif found is not None:
            layers.append(found)
    return Fit(tuple(layers), tuple(misfits))


def _misfit_of(delta: PackDelta, name: str, model: nn.Module, modules: Modules) -> Reason | None:
    """Return why a tensor is no difference of a linear layer's weight, or None."""
    entry, slot = delta.entry(name), modules.layout.slots.get(name)
    if entry.change != "delta":
        return Reason.REMOVED if entry.change == "removed" else Reason.ADDED
    if delta.sets_values(name):
        return Reason.VALUES
    if slot is None:
        return Reason.LAYER
    if tuple(entry.shape) != slot.shape:
        return Reason.RESIZED
    if len(slot.shape) < 2:
        return Reason.VECTOR
    module, _, role = slot.parameter_name.rpartition(".")
    if isinstance(model.get_submodule(module), nn.Embedding):
        return Reason.EMBEDDING
    if len(modules.shapes.get(slot.parameter_name, ())) > 2 and "experts" in slot.parameter_name.split("."):
        return Reason.EXPERT
    is_linear = isinstance(model.get_submodule(module), nn.Linear) or slot.parameter_name in modules.transposed
    if not is_linear or role != "weight" or not isinstance(slot, ViewSlot) or not slot.is_whole:
        return Reason.LAYER
    return Reason.SHARED if slot.parameter_name in modules.tied else None


def _layer_of(delta: PackDelta, name: str, modules: Modules, rank: int | None) -> Layer | Reason | None:
    """Return the layer of a linear layer's weight; None where the pack leaves it as it is."""
    slot, stored = modules.layout.slots[name], product_rank(delta.encoded(name))
    if stored == 0:
        return None
    is_exact = stored is not None and (rank is None or stored <= rank)
    if not is_exact and rank is None:
        return Reason.DENSE
    chosen = stored if is_exact else min(rank or 0, *slot.shape)
    module = slot.parameter_name.rpartition(".")[0]
    return Layer(name, module, slot.shape, int(chosen or 0), is_exact, slot.parameter_name in modules.transposed)


def write_pack(
    folder: Path, delta: PackDelta, fit: Fit, weights: Mapping[str, float], config: Mapping[str, Any]
) -> Measured:
    """Write what fits of a pack's delta as an adapter, one layer at a time.

    Args:
        folder: the adapter's folder, which exists.
        delta: the delta.
        fit: what :func:`fit_pack` said of it.
        weights: canonical name → factor of that tensor's delta.
        config: of :func:`adapter_config`.

    Raises:
        IntegrityError: a file of the pack is damaged.
        DiskError: the disk is full.
    """
    wrong, fitting = [0.0], [0.0]

    def products() -> Iterator[Product]:
        for layer in fit.layers:
            matrix = delta.decode(layer.tensor)
            stored = product_of(delta.encoded(layer.tensor)) if layer.is_exact else None
            product = stored or nearest_product(layer.tensor, matrix, layer.rank)
            wrong.append(_energy(product.multiply() - matrix))
            fitting.append(_energy(matrix))
            yield Product(product.left * weights[layer.tensor], product.right)

    write_factors(folder, fit.layers, products(), config)
    differences = [one.tensor for one in fit.misfits if one.reason not in (Reason.REMOVED, Reason.ADDED, Reason.VALUES)]
    left_out = sum(_energy(delta.decode(name)) for name in differences)
    whole = (sum(fitting) + left_out) or 1.0
    return Measured(sum(wrong) / whole, left_out / whole)


def _energy(tensor: torch.Tensor) -> float:
    return float(tensor.square().sum(dtype=torch.float64))


def fit_adapter(adapter: Adapter) -> Fit:
    """Say which layers an adapter of peft changes by factors, and what else it holds, for readers that know only factors.

    Raises:
        SkillhubError: as :func:`skillhub.interop.factors.read_changes`.
    """
    changes = read_changes(adapter)
    layers, misfits = [], []
    for name, change in changes.items():
        if change.whole or change.is_bias or change.is_embedding:
            misfits.append(Misfit(name, Reason.EMBEDDING if change.is_embedding else Reason.WHOLE))
            continue
        left, right = change.factors
        if len(left.shape) > 2:  # a convolution
            misfits.append(Misfit(name, Reason.LAYER))
            continue
        layers.append(Layer(name, change.module, (left.shape[0], *right.shape[1:]), right.shape[0]))
    return Fit(tuple(layers), tuple(misfits))


def needs_patterns(adapter: Adapter) -> bool:
    """Say whether readers that know no patterns would scale some factors wrongly: by the config's ``lora_alpha`` and ``r``."""
    rank = json.loads((adapter.folder / CONFIG_FILE).read_bytes()).get("r")
    plain = msgspec.structs.replace(adapter.config, alpha_pattern=None)
    products = [change for change in read_changes(adapter).values() if change.has_product and not change.is_bias]
    return not isinstance(rank, int) or rank < 1 or any(one.scale != plain.scale(one.module, rank) for one in products)


def write_scaled(folder: Path, adapter: Adapter, fit: Fit, config: Mapping[str, Any]) -> None:
    """Write the factors of an adapter again, with their scales multiplied into them.

    Raises:
        IntegrityError: a factor holds a value that is not finite.
        DiskError: the disk is full.
    """
    changes: dict[str, Change] = read_changes(adapter)

    def products() -> Iterator[Product]:
        for layer in fit.layers:
            left, right = map(read_values, changes[layer.tensor].factors)
            yield Product(left * changes[layer.tensor].scale, right)

    write_factors(folder, fit.layers, products(), config)


def write_factors(
    folder: Path, layers: Sequence[Layer], products: Iterable[Product], config: Mapping[str, Any]
) -> None:
    """Write an adapter's two files.

    Args:
        folder: where to; it exists.
        layers: what is changed.
        products: the factors of each layer, of its weight's shape.
        config: of :func:`adapter_config`.
    """
    specs: dict[str, tuple[str, Sequence[int]]] = {}
    for layer in layers:
        outputs, inputs = layer.shape[::-1] if layer.is_transposed else layer.shape
        specs[f"base_model.model.{layer.module}.lora_A.weight"] = ("F32", (layer.rank, inputs))
        specs[f"base_model.model.{layer.module}.lora_B.weight"] = ("F32", (outputs, layer.rank))

    def data() -> Iterator[Bytes]:
        for layer, product in zip(layers, products, strict=True):
            down, up = (product.left.T, product.right.T) if layer.is_transposed else (product.right, product.left)
            yield tensor_bytes(down.contiguous())
            yield tensor_bytes(up.contiguous())

    write_tensors(folder / ADAPTER_FILE, specs, data(), {"format": "pt"})
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def adapter_config(
    layers: Sequence[Layer], model: nn.Module, *, base: str | None, revision: str | None = None
) -> dict[str, Any]:
    """Return the ``adapter_config.json`` of an adapter: ``lora_alpha`` is the rank everywhere, so nothing is scaled.

    Args:
        layers: what it changes.
        model: an instance of the base's class.
        base: the base's repository, where it is known.
        revision: of that repository.
    """
    rank = max(layer.rank for layer in layers)
    pattern = {f"^{layer.module}": layer.rank for layer in layers if layer.rank != rank}
    return {
        "peft_type": "LORA",
        "task_type": _task_of(model),
        "base_model_name_or_path": base,
        "revision": revision,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "target_modules": _targets(layers, model),
        "fan_in_fan_out": any(layer.is_transposed for layer in layers),
        "bias": "none",
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": False,
    }


def _targets(layers: Sequence[Layer], model: nn.Module) -> list[str]:
    """Return the last components of the modules' names where they mean these modules and no others, else the whole names."""
    modules = {layer.module for layer in layers}
    ends = {module.rpartition(".")[2] for module in modules}
    meant = {name for name, _ in model.named_modules() if name.rpartition(".")[2] in ends}
    return sorted(ends if meant == modules else modules)


def _task_of(model: nn.Module) -> str | None:
    kind = type(model).__name__
    task = next((task for end, task in _TASKS.items() if kind.endswith(end)), None)
    is_decoder_alone = task == "SEQ_2_SEQ_LM" and not getattr(model.config, "is_encoder_decoder", False)
    return "CAUSAL_LM" if is_decoder_alone else task
