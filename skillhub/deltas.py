"""What a fine-tune changed, between two checkpoints; :mod:`skillhub.packdeltas` is what a pack stores of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from skillhub.bfloat16 import FLOATS
from skillhub.canonical import is_vocabulary_tensor
from skillhub.checkpoints import DTYPES, Checkpoint
from skillhub.errors import UsageError, WrongBaseError
from skillhub.tensorfiles import raw_bytes


@dataclass(frozen=True)
class Delta:
    """The difference between a tuned checkpoint and its base, tensor by tensor and on demand."""

    base: Checkpoint
    tuned: Checkpoint

    @property
    def names(self) -> list[str]:
        """Canonical names of the tensors of either checkpoint, sorted."""
        return sorted(set(self.base.tensors) | set(self.tuned.tensors))

    def change(self, name: str) -> str:
        """Return ``delta``, ``added`` (the base has no such tensor) or ``removed`` (the tuned checkpoint has none)."""
        if name not in self.base.tensors:
            return "added"
        return "delta" if name in self.tuned.tensors else "removed"

    def is_unchanged(self, name: str, *, to_the_bit: bool = False) -> bool:
        """Say whether both checkpoints hold the same values under ``name``, in one dtype the same bits.

        Args:
            name: canonical name.
            to_the_bit: whether another dtype is a change, too; otherwise what only rounding to the fine-tune's moved is none.
        """
        if self.change(name) != "delta" or self.base.tensors[name].shape != self.tuned.tensors[name].shape:
            return False
        base, tuned = self.base.tensors[name], self.tuned.tensors[name]
        if base.dtype == tuned.dtype:
            return np.array_equal(raw_bytes(base), raw_bytes(tuned))
        if to_the_bit or not {base.dtype, tuned.dtype} <= FLOATS:
            return False
        # A fine-tune that was saved in a narrower dtype did not change what only rounding moved.
        return torch.equal(self.base.tensor(name).to(self.tuned.tensor(name).dtype), self.tuned.tensor(name))

    def is_additive(self, name: str) -> bool:
        """Say whether the change can be stored as a floating-point difference (else the tuned values are stored).

        Not so for dtypes that sums are not rounded to (float8, integers), nor for values that are not finite, in either
        checkpoint: they have no difference that would give the tuned ones when added.

        Raises:
            WrongBaseError: the shapes differ in more than the rows of a vocabulary.
        """
        if self.change(name) != "delta":
            return False
        self._check_shapes(name)
        floats = {checkpoint.tensors[name].dtype for checkpoint in (self.base, self.tuned)} <= FLOATS
        return floats and bool(self.tensor(name).isfinite().all())

    def tensor(self, name: str) -> torch.Tensor:
        """Return tuned − base of a tensor as fp32, of the tuned tensor's shape.

        Both are widened before they are subtracted: in published bf16 fine-tunes more than half of the delta would
        vanish otherwise. Rows that only the tuned tensor has (added tokens) are taken against zero.

        Raises:
            WrongBaseError: the shapes differ in more than the rows of a vocabulary.
        """
        self._check_shapes(name)
        return difference(self.tuned.tensor(name), self.base.tensor(name))

    def values(self, name: str) -> torch.Tensor:
        """Return the tuned tensor itself, in its own dtype.

        Raises:
            UsageError: a pack cannot hold its dtype.
        """
        dtype = self.tuned.tensors[name].dtype
        if dtype not in DTYPES:
            raise UsageError(
                f"{name} is stored as {dtype}, which a pack cannot hold.",
                hint="Save the fine-tune in another dtype, such as bfloat16.",
                tensor=name,
            )
        return self.tuned.tensor(name)

    def _check_shapes(self, name: str) -> None:
        base, tuned = self.base.tensors[name].shape, self.tuned.tensors[name].shape
        if not shapes_fit(name, base, tuned):
            raise WrongBaseError(
                f"{name} is {list(base)} in the base and {list(tuned)} in the tuned checkpoint.",
                hint="Give the base model that the fine-tune started from.",
                tensor=name,
            )

    def added_rows(self, name: str) -> int:
        """Return how many rows the tuned tensor has beyond the base's."""
        base, tuned = self.base.tensors[name].shape, self.tuned.tensors[name].shape
        return max(0, tuned[0] - base[0]) if base and tuned else 0


def shapes_fit(name: str, base: tuple[int, ...], tuned: tuple[int, ...]) -> bool:
    """Say whether a tensor may have these shapes in a base and its fine-tune: one shape, or other rows of a vocabulary.

    What is fused has the base's config.json, which follows another vocabulary and no other size.
    """
    return base == tuned or (is_vocabulary_tensor(name) and base[1:] == tuned[1:] and len(base) == len(tuned))


def difference(tuned: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """Return tuned − base as fp32, of the shape of ``tuned``; both are widened before, and rows that the base lacks count as zero."""
    wide = torch.float64 if torch.float64 in (base.dtype, tuned.dtype) else torch.float32
    delta = tuned.to(wide, copy=True)
    if base.dim() == 0:
        return delta.sub_(base.to(wide)).to(torch.float32)
    rows = min(len(base), len(tuned))
    delta[:rows].sub_(base[:rows].to(wide))
    return delta.to(torch.float32)
