"""Writing adapters of peft: factors by the names of modules, every scale 1.

So they mean the same to readers that know nothing of ``rank_pattern`` and ``alpha_pattern``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from skillhub.adapters import CONFIG_FILE, Adapter
from skillhub.checkpointfiles import ADAPTER_FILE
from skillhub.codecs.streams import Bytes, tensor_bytes
from skillhub.interop.factors import PREFIX, read_changes, read_values
from skillhub.interop.fits import Fit, Layer, Reason, Whole
from skillhub.interop.products import Product, nearest_product, product_of
from skillhub.packdeltas import PackDelta
from skillhub.tensorfiles import write_tensors

_TASKS = {"ForCausalLM": "CAUSAL_LM", "LMHeadModel": "CAUSAL_LM", "ForConditionalGeneration": "SEQ_2_SEQ_LM"}
"""End of a class's name → what peft calls the task; other classes need no wrapper of their own."""

ROUNDING = 1e-12
"""Share of a sum of squares that is no more than fp32's rounding."""

_WITHOUT_DIFFERENCE = (Reason.REMOVED, Reason.ADDED, Reason.VALUES)


@dataclass(frozen=True)
class Measured:
    """How near an adapter is to its pack, as shares of the sum of squares of the pack's whole delta.

    Attributes:
        error: of what its layers say other than the pack.
        left_out: of what is in tensors that do not fit.
        worst: name of the layer's tensor that is said worst; None where all are said as they are.
        worst_error: share of that tensor's own sum of squares.
    """

    error: float
    left_out: float
    worst: str | None = None
    worst_error: float = 0.0

    @property
    def total(self) -> float:
        """Share of all that the adapter does not say: the square of the relative error in the Frobenius norm."""
        return self.error + self.left_out


@dataclass
class _Energies:
    """Sums of squares by tensor: of the pack's differences, and of what the factors miss of them."""

    wanted: dict[str, float] = field(default_factory=dict)
    missed: dict[str, float] = field(default_factory=dict)

    def measured(self, left_out: float) -> Measured:
        """Return the shares of all of them and of ``left_out``, the sum of squares in tensors that do not fit."""
        total = (sum(self.wanted.values()) + left_out) or 1.0
        own = {name: missed / (self.wanted[name] or 1.0) for name, missed in self.missed.items()}
        worst = max(own, key=lambda name: own[name], default=None)
        error = own[worst] if worst is not None else 0.0
        if error < ROUNDING:
            worst, error = None, 0.0
        return Measured(sum(self.missed.values()) / total, left_out / total, worst, error)


def write_pack(
    folder: Path,
    delta: PackDelta,
    fit: Fit,
    config: Mapping[str, Any],
    *,
    weight: Callable[[str], float],
    read_base: Callable[[str], torch.Tensor],
) -> Measured:
    """Write what fits of a pack's delta as an adapter, one layer at a time.

    Args:
        folder: the adapter's folder, which exists.
        delta: the delta.
        fit: what :func:`skillhub.interop.fits.fit_pack` said of it.
        config: of :func:`adapter_config`.
        weight: canonical name → factor of that tensor's delta.
        read_base: returns the base's tensor of a canonical name.

    Raises:
        IntegrityError: a file of the pack is damaged.
        DiskError: the disk is full.
    """
    energies = _Energies()

    def whole(name: str) -> torch.Tensor:
        values = read_base(name).to(torch.float32)
        if name not in delta.tensors:
            return values
        difference = delta.decode(name)
        energies.wanted[name] = _energy(difference)
        return values + weight(name) * difference

    write_factors(
        folder, fit.layers, _products(delta, fit.layers, weight, energies), config, wholes=fit.wholes, read=whole
    )
    differences = [one.tensor for one in fit.misfits if one.reason not in _WITHOUT_DIFFERENCE]
    left_out = sum(_energy(delta.decode(name)) for name in differences)
    return energies.measured(left_out)


def _products(
    delta: PackDelta, layers: Sequence[Layer], weight: Callable[[str], float], energies: _Energies
) -> Iterator[Product]:
    """Yield the factors of each layer; layers that share a weight follow each other."""
    name, product = "", None
    for layer in layers:
        if product is None or layer.tensor != name:
            name = layer.tensor
            matrix = delta.decode(name)
            stored = product_of(delta.encoded(name)) if layer.is_exact else None
            product = stored or nearest_product(name, matrix, layer.rank)
            energies.wanted[name] = _energy(matrix)
            energies.missed[name] = _energy(matrix.sub_(product.multiply()))
            product = Product(product.left * weight(name), product.right)
        yield product


def _energy(tensor: torch.Tensor) -> float:
    return float(tensor.square().sum(dtype=torch.float64))


def write_scaled(folder: Path, adapter: Adapter, fit: Fit, config: Mapping[str, Any]) -> None:
    """Write the factors of an adapter again, with their scales multiplied into them.

    Raises:
        IntegrityError: a factor holds a value that is not finite.
        DiskError: the disk is full.
    """
    changes = read_changes(adapter)

    def products() -> Iterator[Product]:
        for layer in fit.layers:
            left, right = map(read_values, changes[layer.tensor].factors)
            yield Product(left * changes[layer.tensor].scale, right)

    write_factors(folder, fit.layers, products(), config)


def write_factors(
    folder: Path,
    layers: Sequence[Layer],
    products: Iterable[Product],
    config: Mapping[str, Any],
    *,
    wholes: Sequence[Whole] = (),
    read: Callable[[str], torch.Tensor] | None = None,
) -> None:
    """Write an adapter's two files.

    Args:
        folder: where to; it exists.
        layers: what is changed by factors.
        products: the factors of each layer, of its weight's shape.
        config: of :func:`adapter_config`.
        wholes: what is saved as a whole.
        read: returns the fp32 values of a tensor that is saved as a whole.
    """
    vectors = {f"{PREFIX}{one.module}.{role}": name for one in wholes for role, name in one.tensors.items()}
    values = {key: read(name) for key, name in vectors.items()} if read else {}
    specs: dict[str, tuple[str, Sequence[int]]] = {key: ("F32", one.shape) for key, one in values.items()}
    for layer in layers:
        first, second = _names_of(layer)
        outputs, inputs = layer.shape[::-1] if layer.is_transposed or layer.is_embedding else layer.shape
        specs[first] = ("F32", (layer.rank, inputs))
        specs[second] = ("F32", (outputs, layer.rank))

    def data() -> Iterator[Bytes]:
        yield from map(tensor_bytes, values.values())
        for layer, product in zip(layers, products, strict=True):
            is_turned = layer.is_transposed or layer.is_embedding
            down, up = (product.left.T, product.right.T) if is_turned else (product.right, product.left)
            yield tensor_bytes(down.contiguous())
            yield tensor_bytes(up.contiguous())

    write_tensors(folder / ADAPTER_FILE, specs, data(), {"format": "pt"})
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _names_of(layer: Layer) -> tuple[str, str]:
    """Return the names of the factors A and B, as peft saves them."""
    if layer.is_embedding:
        return f"{PREFIX}{layer.module}.lora_embedding_A", f"{PREFIX}{layer.module}.lora_embedding_B"
    return f"{PREFIX}{layer.module}.lora_A.weight", f"{PREFIX}{layer.module}.lora_B.weight"


def adapter_config(fit: Fit, model: nn.Module, *, base: str | None, revision: str | None = None) -> dict[str, Any]:
    """Return the ``adapter_config.json`` of an adapter: ``lora_alpha`` is the rank everywhere, so nothing is scaled.

    Args:
        fit: what it changes; at least one layer.
        model: an instance of the base's class.
        base: the base's repository, where it is known.
        revision: of that repository.
    """
    pattern = {f"^{layer.module}": layer.rank for layer in fit.layers if layer.rank != fit.rank}
    return {
        "peft_type": "LORA",
        "task_type": _task_of(model),
        "base_model_name_or_path": base,
        "revision": revision,
        "inference_mode": True,
        "r": fit.rank,
        "lora_alpha": fit.rank,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "target_modules": _shortened([layer.module for layer in fit.layers], model),
        "fan_in_fan_out": any(layer.is_transposed for layer in fit.layers),
        "bias": "none",
        "lora_dropout": 0.0,
        "modules_to_save": [one.module for one in fit.wholes] or None,
        "use_dora": False,
        "use_rslora": False,
    }


def _shortened(modules: Sequence[str], model: nn.Module) -> list[str]:
    """Return the last components of names where they mean these modules and no others, else the whole names."""
    ends = {module.rpartition(".")[2] for module in modules}
    meant = {name for name, _ in model.named_modules() if name.rpartition(".")[2] in ends}
    return sorted(ends if meant == set(modules) else set(modules))


def _task_of(model: nn.Module) -> str | None:
    kind = type(model).__name__
    task = next((task for end, task in _TASKS.items() if kind.endswith(end)), None)
    is_decoder_alone = task == "SEQ_2_SEQ_LM" and not getattr(model.config, "is_encoder_decoder", False)
    return "CAUSAL_LM" if is_decoder_alone else task
