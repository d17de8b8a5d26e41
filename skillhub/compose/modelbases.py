"""A model in memory as the base of whole fine-tuned checkpoints: their delta is taken to its tensors as they were before any pack."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch

from skillhub.checkpoints import dtype_tag
from skillhub.layout import Layout
from skillhub.tensorfiles import TensorInfo
from skillhub.tensorreaders import FileReader, MemoryReader, Shape, TensorReader, row_shape


@dataclass(frozen=True, eq=False)
class ModelBase:
    """A base that is a model in memory.

    Attributes:
        layout: the model's, of tensors that can be read.
        originals: canonical name → what a tensor was before packs, where they changed it.
        repeats: canonical name of an untied copy of another tensor → the other's; copies are not the base's own tensors.
    """

    layout: Layout
    originals: Mapping[str, torch.Tensor]
    repeats: Mapping[str, str]
    _kept: dict[str, torch.Tensor] = field(default_factory=dict)

    @cached_property
    def shapes(self) -> Mapping[str, Shape]:
        """Canonical name → shape."""
        return {name: tuple(slot.shape) for name, slot in self.layout.slots.items() if name not in self.repeats}

    @cached_property
    def dtypes(self) -> Mapping[str, str]:
        """Canonical name → safetensors dtype tag."""
        found = {name: self.originals.get(name) for name in self.shapes}
        return {
            name: dtype_tag(self.layout.slots[name].dtype if original is None else original.dtype)
            for name, original in found.items()
        }

    def reader(self, name: str) -> TensorReader:
        """Return a reader of a tensor as it is at this moment, or was before packs."""
        return MemoryReader(self.tensor(name))

    def equals(self, name: str, info: TensorInfo) -> bool:
        """Say whether a tensor has the bytes of one in a file."""
        if self.shapes[name] != info.shape or self.dtypes[name] != info.dtype:
            return False
        stored, present = FileReader(info).read_stored(0, row_shape(info.shape)[0]), self.tensor(name)
        return torch.equal(_bytes(stored), _bytes(present))

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor on the CPU as it is at this moment, or was before packs."""
        if name in self.originals:
            return self.originals[name]
        present = self.layout.slots[name].read()
        if name not in self.repeats.values():
            return present.to("cpu")
        # Read for its copies too, which may be after the tensor itself was written.
        return self._kept.setdefault(name, present.to("cpu", copy=True))


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)
