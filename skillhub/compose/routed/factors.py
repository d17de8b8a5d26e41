"""Low-rank factors of packs and adapters, as linear modules use them: in the base's dtype, those of several packs side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from skillhub.codecs import lowrank
from skillhub.compose.merging import Contribution
from skillhub.compose.routed.batches import Batch, Widths
from skillhub.compose.sidepaths import weighted_factors
from skillhub.deltas import PackDelta

SMALL_PRODUCT = 1 << 21
"""Multiplications up to which fp32 is faster than bf16 (measured with AMX, which is bf16's best case)."""


@dataclass(frozen=True, eq=False)
class Factors:
    """A difference of low rank of a linear module's weight (outputs × inputs): ``leftᵀ @ right``, and perhaps one of its bias.

    Attributes:
        left: (rank, outputs) fp32.
        right: (rank, inputs) fp32.
        bias: (outputs,) fp32, or None.
    """

    left: torch.Tensor
    right: torch.Tensor
    bias: torch.Tensor | None = None

    @property
    def elements(self) -> int:
        """How many numbers the factors are."""
        return self.left.numel() + self.right.numel()

    @property
    def width(self) -> int:
        """Columns that it takes side by side with others: its rank, and one for the bias."""
        return len(self.right) + (self.bias is not None)


def read_factors(contribution: Contribution, name: str, *, transposed: bool) -> Factors | None:
    """Return what a pack adds to a weight if that is stored as factors alone, scaled by the pack's weight; else None.

    Args:
        contribution: the pack.
        name: canonical name of the weight.
        transposed: the weight is inputs × outputs (GPT-2's ``Conv1D``).

    Raises:
        IntegrityError: the stored factors are damaged.
    """
    delta = contribution.delta
    if isinstance(delta, PackDelta):
        codecs = {part.codec for part in delta.encoded(name).parts}
        if codecs != {lowrank.ID}:  # a row that is stored exactly would be a component of its own
            return None
    found = weighted_factors(contribution, name)
    if found is None:
        return None
    rows, columns = found
    return Factors(columns, rows) if transposed else Factors(rows, columns)


@dataclass(frozen=True, eq=False)
class Stack:
    """The factors of some packs for one module, or for several that read the same input, side by side.

    Attributes:
        right: (columns, inputs).
        constant: (columns,): 1 in columns of biases, else 0; None without biases.
        left: (columns, outputs), for one module.
        widths: columns of each pack, in order.
    """

    right: torch.Tensor
    constant: torch.Tensor | None
    left: torch.Tensor
    widths: Widths

    def hidden(self, inputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return (rows · positions, columns): the input on the right factors, each row's by what its packs count in it."""
        flat = inputs.reshape(-1, inputs.shape[-1]).to(self.right.dtype)
        hidden = functional.linear(flat, self.right, self.constant)
        if batch.single is not None:
            return hidden
        mask = batch.mask(self.widths, hidden)
        if hidden.shape[0] == batch.rows:
            return hidden.mul_(mask)
        hidden.view(batch.rows, -1, hidden.shape[1]).mul_(mask[:, None])
        return hidden


def factor_dtype(inputs: torch.Tensor, elements: int) -> torch.dtype:
    """Return the dtype to compute factors in: the input's, but fp32 for few numbers on a processor.

    There oneDNN takes ten times as long to begin a product of bf16 as MKL one of fp32.

    Args:
        inputs: the module's.
        elements: of the factors.
    """
    is_small = inputs.device.type == "cpu" and inputs.numel() // inputs.shape[-1] * elements <= SMALL_PRODUCT
    return torch.float32 if is_small and inputs.dtype == torch.bfloat16 else inputs.dtype


@torch.inference_mode(False)  # what is kept for later forwards may be needed with gradients there
def stack_factors(
    factors: Mapping[int, Factors], packs: Sequence[int], dtype: torch.dtype, device: torch.device
) -> Stack:
    """Lay the factors of some packs side by side."""
    chosen = [factors[pack] for pack in packs]
    right, left, constant = [], [], []
    for one in chosen:
        right.append(one.right)
        left.append(one.left)
        constant.append(torch.zeros(len(one.right)))
        if one.bias is not None:
            right.append(torch.zeros(1, one.right.shape[1]))
            left.append(one.bias[None])
            constant.append(torch.ones(1))
    place: dict[str, Any] = {"device": device, "dtype": dtype}
    has_bias = any(one.bias is not None for one in chosen)
    widths = tuple((pack, one.width) for pack, one in zip(packs, chosen, strict=True))
    return Stack(
        torch.cat(right).to(**place),
        torch.cat(constant).to(**place) if has_bias else None,
        torch.cat(left).to(**place),
        widths,
    )


@torch.inference_mode(False)
def join_stacks(stacks: Sequence[Stack]) -> Stack:
    """Lay stacks of modules that read the same input side by side; the left factors stay with each module."""
    constants = [stack.constant for stack in stacks]
    constant = None
    if any(one is not None for one in constants):
        constant = torch.cat([s.right.new_zeros(len(s.right)) if s.constant is None else s.constant for s in stacks])
    widths = tuple(width for stack in stacks for width in stack.widths)
    return Stack(torch.cat([stack.right for stack in stacks]), constant, stacks[0].left, widths)
