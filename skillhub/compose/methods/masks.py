"""Random masks that depend on the pack, the tensor's name, the element's index and the user's seed, and on nothing else."""

from __future__ import annotations

import torch

from skillhub.compose.methods.interface import MergeInputs
from skillhub.rounding import random_words

_MANTISSA = 24


def uniforms(first: int, count: int, key: int, device: torch.device | None = None) -> torch.Tensor:
    """Return a random number for each of some elements of a tensor.

    Args:
        first: index of the first element within the whole tensor (row-major).
        count: how many elements.
        key: 64 bits, from :func:`skillhub.rounding.rounding_key`.
        device: where the result lies; the CPU by default.

    Returns:
        fp32 ``[count]``: multiples of 2**-24 from 0 to below 1, each as likely as the others.
    """
    words = random_words(first, count, key, device).bitwise_right_shift_(32 - _MANTISSA)
    return words.bitwise_and_((1 << _MANTISSA) - 1).to(torch.float32).mul_(2.0**-_MANTISSA)


def uniforms_for(inputs: MergeInputs, index: int, delta: torch.Tensor, first: int) -> torch.Tensor:
    """Return the random numbers of some rows of one delta, of their shape."""
    return uniforms(first, delta.numel(), inputs.key(index), delta.device).view(delta.shape)
