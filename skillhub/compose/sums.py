"""Base + merged delta: one sum, one rounding, and no value that became infinite unnoticed."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from skillhub.errors import UsageError
from skillhub.rounding import TARGETS, round_to

_QUIET = 0x400000
"""The bit by which fp32 tells a NaN that raises no signal, as sums are, from an infinity."""


def add_delta(base: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    """Return base + delta, in the wider dtype of both; where the delta is zero, the base's bits."""
    if _has_negative_zero(base):
        # x + (+0) would turn −0 into +0; x + (−0) is x, so what did not change keeps its bits.
        delta = torch.where(delta == 0, -0.0, delta)
    return base + delta


def _has_negative_zero(values: torch.Tensor) -> bool:
    """Whether a −0 is among values of fp32 or fp64: read as an integer it is the least there is."""
    integers = values.view(torch.int64 if values.dtype == torch.float64 else torch.int32)
    return values.numel() > 0 and int(integers.min()) == torch.iinfo(integers.dtype).min


def rounded(values: torch.Tensor, dtype: torch.dtype, *, key: int, first: int = 0, mode: str) -> torch.Tensor:
    """Return values in another dtype.

    Args:
        values: of any dtype; fp32 and fp64 are rounded to bf16, fp16 and fp32.
        dtype: of the result.
        key: of the random bits of stochastic rounding.
        first: index, in the whole tensor, of the first value.
        mode: ``nearest`` or ``stochastic``.
    """
    if values.dtype == dtype or dtype not in TARGETS:
        return values.to(dtype)
    return round_to(dtype, values.to(torch.float32), key=key, offset=first, mode=mode)


def put_back_nan(result: torch.Tensor, base: torch.Tensor) -> None:
    """Give what is no number in the base its own bits in the result: a GPU, unlike a processor, adds up any NaN to one of its own.

    Args:
        result: base + delta, rounded; changed in place.
        base: fp32 or fp64.
    """
    places = base.isnan() & result.isnan()
    lost = base[places]
    if result.dtype == torch.bfloat16:  # torch's conversion keeps their bits in long tensors, but not in short ones
        bits = lost.to(torch.float32).view(torch.int32).bitwise_or_(_QUIET).bitwise_right_shift_(16)
        result.view(torch.int16)[places] = bits.to(torch.int16)
    else:
        result[places] = lost.cpu().to(result.dtype).to(result.device)


def fits(values: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether all values are finite and surely stay so in ``dtype``."""
    if values.numel() == 0 or not dtype.is_floating_point:
        return True
    low, high = torch.aminmax(values)
    largest = torch.finfo(dtype).max
    return -largest <= float(low) and float(high) <= largest  # not so for NaN


def check_finite(
    result: torch.Tensor, sources: Sequence[torch.Tensor], name: str, *, base: torch.Tensor | None = None
) -> None:
    """Refuse a result that is not finite where the base is, or without one where any of the sources is.

    Args:
        result: what is about to be written.
        sources: what was added to the base, or merged.
        name: canonical name of the tensor.
        base: what the sources were added to.

    Raises:
        UsageError: a value has become infinite, or a source brings one that is infinite or no number.
    """
    if result.dtype not in (*TARGETS, torch.float64) or fits(
        result, result.dtype
    ):  # a thirtieth of the time of isfinite
        return
    finite = [tensor.isfinite() for tensor in ([*sources] if base is None else [base, *sources])]
    lost = ~result.isfinite() & (torch.stack(finite).any(0) if base is None else finite[0])
    if not lost.any():
        return
    if (lost & torch.stack(finite).all(0)).any():
        raise UsageError(
            f"{name} would have values that {result.dtype} cannot hold.",
            hint="Use smaller weights, or a wider dtype.",
            tensor=name,
        )
    raise UsageError(
        f"{name} would have values that are infinite or no numbers, as one of the sources has.",
        hint="Leave that source out: it may have diverged in training.",
        tensor=name,
    )
