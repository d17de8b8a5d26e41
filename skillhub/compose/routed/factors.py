"""Low-rank factors of packs and adapters, as linear modules use them: in the base's dtype, those of several packs side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from skillhub.codecs import factors as adapterfactors
from skillhub.codecs import lowrank
from skillhub.compose.merging import Contribution
from skillhub.compose.routed.batches import Batch, Widths
from skillhub.compose.routed.weights import size_of
from skillhub.compose.sidepaths import weighted_factors
from skillhub.packdeltas import PackDelta

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
        if not codecs <= {lowrank.ID, adapterfactors.ID}:
            return None  # a row that is stored exactly would be a component of its own
    found = weighted_factors(contribution, name)
    if found is None:
        return None
    rows, columns = found
    return Factors(columns, rows) if transposed else Factors(rows, columns)


@dataclass(frozen=True, eq=False)
class Stack:
    """The factors of some packs for modules that read the same input, side by side.

    Attributes:
        right: (columns, inputs), of all modules.
        constant: (columns,): 1 in columns of biases, else 0; None without biases.
        lefts: (columns, outputs) of each module, for its own columns.
        places: begin and end of each module's columns.
        widths: columns of each pack, in order.
    """

    right: torch.Tensor
    constant: torch.Tensor | None
    lefts: Sequence[torch.Tensor]
    places: Sequence[tuple[int, int]]
    widths: Widths

    @property
    def nbytes(self) -> int:
        """How much memory it takes."""
        return size_of([self.right, *self.lefts])

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
    modules: Sequence[Mapping[int, Factors]], packs: Sequence[int], dtype: torch.dtype, device: torch.device
) -> Stack:
    """Lay the factors of some packs side by side.

    Args:
        modules: for each module pack → its factors; at least one module has some of one of the packs.
        packs: the packs.
        dtype: to compute in.
        device: of the modules.
    """
    right: list[torch.Tensor] = []
    constant: list[torch.Tensor] = []
    lefts, places, widths = [], [], []
    for factors in modules:
        begin = sum(map(len, constant))
        left = []
        for pack in (pack for pack in packs if pack in factors):
            one = factors[pack]
            right.append(one.right)
            left.append(one.left)
            constant.append(torch.zeros(len(one.right)))
            if one.bias is not None:
                right.append(torch.zeros(1, one.right.shape[1]))
                left.append(one.bias[None])
                constant.append(torch.ones(1))
            widths.append((pack, one.width))
        lefts.append(_laid(left, dtype, device) if left else torch.empty(0, device=device, dtype=dtype))
        places.append((begin, sum(map(len, constant))))
    constants = torch.cat(constant)
    return Stack(
        _laid(right, dtype, device),
        constants.to(device, dtype) if bool(constants.any()) else None,
        lefts,
        places,
        tuple(widths),
    )


def _laid(parts: Sequence[torch.Tensor], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return matrices one below the other; each is converted by itself, so that no wide copy of all of them is made."""
    laid = torch.empty(sum(map(len, parts)), parts[0].shape[1], dtype=dtype, device=device)
    begin = 0
    for part in parts:
        laid[begin : begin + len(part)] = part
        begin += len(part)
    return laid
