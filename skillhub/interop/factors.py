"""What an adapter's file holds: for each parameter that it changes, low-rank factors or the whole trained tensor.

peft names them ``base_model.model.<module>.lora_A.weight`` and so on; ``<module>.weight`` without a factor's name is a
tensor that was trained, or saved, as a whole (``modules_to_save``, biases, resized embeddings).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from skillhub.adapters import Adapter
from skillhub.bfloat16 import FLOATS
from skillhub.checkpoints import DTYPES
from skillhub.codecs.factors import AdapterFactors
from skillhub.errors import IntegrityError, UsageError
from skillhub.packs import MAX_HEADER_BYTES
from skillhub.tensorfiles import TensorInfo, read_header

Shape = tuple[int, ...]

PREFIX = "base_model.model."
"""What peft puts before the names of a model's modules in an adapter's file."""

_FACTOR = re.compile(r"(?P<module>.+)\.(?P<role>lora_A\.weight|lora_B\.weight|lora_B\.bias|lora_embedding_[AB])")
_BEFORE_TRAINING = ".original_module."
"""In names of tensors that peft saves beside those that were trained in their place."""

_WRAPPED = re.compile(r"\.(base_layer|modules_to_save|original_module)\.(?=[^.]+\Z)")
_DAMAGED = "Install the adapter again; if that does not help, tell its publisher."


@dataclass(frozen=True)
class Change:
    """What an adapter does to one parameter.

    Attributes:
        module: the module that has it, as the adapter names it.
        arrays: by role (``lora_A.weight``, …, ``whole``), where the values lie.
        scale: what the product of the factors is multiplied with.
    """

    module: str
    arrays: Mapping[str, TensorInfo] = field(default_factory=dict)
    scale: float = 1.0

    @property
    def whole(self) -> TensorInfo | None:
        """The trained tensor itself, where the file has it."""
        return self.arrays.get("whole")

    @property
    def has_product(self) -> bool:
        """Whether something is added, be it to the base's tensor or to ``whole``."""
        return len(self.arrays) > (self.whole is not None)

    @property
    def is_bias(self) -> bool:
        """Whether what is added is a vector, to a bias."""
        return "lora_B.bias" in self.arrays

    @property
    def is_embedding(self) -> bool:
        """Whether the factors are those of an embedding, whose product is transposed."""
        return "lora_embedding_A" in self.arrays

    @property
    def factors(self) -> tuple[TensorInfo, TensorInfo]:
        """The factors B and A."""
        kind = "lora_embedding_{}" if self.is_embedding else "lora_{}.weight"
        return self.arrays[kind.format("B")], self.arrays[kind.format("A")]

    def product_shape(self, *, transposed: bool) -> Shape | None:
        """Return the shape of what is added; None where the factors do not go together.

        Args:
            transposed: the parameter is stored as inputs × outputs.
        """
        if self.is_bias:
            return self.arrays["lora_B.bias"].shape
        left, right = self.factors
        fits = len(left.shape) == len(right.shape) >= 2 and set(left.shape[2:]) <= {1}
        if not fits or left.shape[1] != right.shape[0] or not left.shape[1]:
            return None
        shape = (left.shape[0], *right.shape[1:])
        return shape[::-1] if transposed or self.is_embedding else shape

    def product(self, *, transposed: bool) -> torch.Tensor:
        """Return what is added, in fp32, of :meth:`product_shape`, in memory of its own.

        Raises:
            IntegrityError: a factor holds a value that is not finite.
        """
        if self.is_bias:
            return read_values(self.arrays["lora_B.bias"]) * self.scale
        left, right = map(read_values, self.factors)
        product = (left.flatten(1) @ right.flatten(1)).mul_(self.scale)
        product = product.reshape(left.shape[0], *right.shape[1:])
        return (
            product.permute(*reversed(range(product.dim()))).contiguous()
            if transposed or self.is_embedding
            else product
        )

    def stored_factors(self, *, transposed: bool) -> AdapterFactors:
        """Return the factors as the file holds them, as those of a matrix; the dimensions of a convolution count as one.

        Raises:
            IntegrityError: a factor holds a value that is not finite.
        """
        left, right = map(read_stored, self.factors)
        return AdapterFactors(right.flatten(1), left.flatten(1), self.scale, transposed or self.is_embedding)


def read_changes(adapter: Adapter) -> dict[str, Change]:
    """Return what an adapter does, by the name that it gives to the parameter; only the file's header is read.

    Raises:
        IntegrityError: the file is damaged or holds half of a pair of factors, or values that are no floats.
        UnsafeContentError: its header is longer than any adapter's.
        UsageError: it holds something else than factors and whole tensors, such as DoRA's magnitudes.
    """
    arrays: dict[str, dict[str, TensorInfo]] = {}
    modules: dict[str, str] = {}
    tensors = read_header(adapter.weights, limit=MAX_HEADER_BYTES).tensors
    for key, info in tensors.items():
        if _BEFORE_TRAINING in key and key.replace(_BEFORE_TRAINING, ".") in tensors:
            continue
        if info.dtype not in FLOATS:
            raise IntegrityError(f"{adapter}: {key} is stored as {info.dtype}, which no weights are.", hint=_DAMAGED)
        module, parameter, role = _read_key(adapter, key.removeprefix(PREFIX))
        modules[parameter] = module
        arrays.setdefault(parameter, {})[role] = info
    changes = {parameter: Change(modules[parameter], found) for parameter, found in sorted(arrays.items())}
    ranks = {one.module: _rank(adapter, one) for one in changes.values() if one.has_product and not one.is_bias}
    return {parameter: _scaled(adapter, change, ranks) for parameter, change in changes.items()}


def _read_key(adapter: Adapter, key: str) -> tuple[str, str, str]:
    """Return module, parameter and role of an array."""
    found = _FACTOR.fullmatch(key)
    if found:
        module, role = found["module"], found["role"]
        return module, f"{module}.{'bias' if role.endswith('bias') else 'weight'}", role
    if "lora_" in key:
        raise UsageError(
            f"{adapter} holds {key}, which is not read.",
            hint="Merge it into its base with peft (merge_and_unload), then pack the result: skillhub pack.",
            tensor=key,
        )
    parameter = _WRAPPED.sub(".", key)
    return parameter.rpartition(".")[0], parameter, "whole"


def _rank(adapter: Adapter, change: Change) -> int:
    try:
        return max(1, change.factors[1].shape[0])
    except (KeyError, IndexError) as error:
        raise _half(adapter, change) from error


def _scaled(adapter: Adapter, change: Change, ranks: Mapping[str, int]) -> Change:
    """Return the change with its scale, which depends on the rank: of a bias, that of its module's factors."""
    if not change.has_product:
        return change
    if change.module not in ranks:
        raise _half(adapter, change)
    return replace(change, scale=adapter.config.scale(change.module, ranks[change.module]))


def _half(adapter: Adapter, change: Change) -> IntegrityError:
    return IntegrityError(
        f"{adapter} has no pair of factors for {change.module}, only {', '.join(sorted(change.arrays))}.",
        hint=_DAMAGED,
        module=change.module,
    )


def read_values(info: TensorInfo) -> torch.Tensor:
    """Read an array in fp32, into memory of its own.

    Raises:
        IntegrityError: a value is not finite.
    """
    return read_stored(info).to(torch.float32)


def read_stored(info: TensorInfo) -> torch.Tensor:
    """Read an array in its own dtype, into memory of its own.

    Raises:
        IntegrityError: a value is not finite, or would not be in fp32.
    """
    data = np.fromfile(info.file, np.uint8, count=info.nbytes, offset=info.begin)
    values = torch.from_numpy(data).view(DTYPES[info.dtype]).reshape(info.shape)
    if not values.to(torch.float32).isfinite().all():
        raise IntegrityError(
            f"{info.name} in {info.file} holds values that are infinite or no numbers.",
            hint="Do not use this adapter; tell its publisher.",
            tensor=info.name,
        )
    return values
