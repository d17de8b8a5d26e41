"""The codec ``zero``: the tensor did not change, so nothing is stored."""

from __future__ import annotations

import torch

from skillhub.codecs.encoding import EncodedPart, EncodedTensor, check_keys

ID = "zero"


def encode(shape: tuple[int, ...]) -> EncodedTensor:
    """Return the encoding of an unchanged tensor of ``shape``."""
    return EncodedTensor(shape, (EncodedPart(ID, {}, {}),))


def decode(part: EncodedPart, shape: tuple[int, ...], delta: torch.Tensor | None) -> torch.Tensor:
    """Return ``delta`` unchanged, or fp32 zeros of ``shape`` when this is the first part.

    Raises:
        IntegrityError: the part carries anything.
    """
    check_keys(part, set(), set())
    return torch.zeros(shape, dtype=torch.float32, device="cpu") if delta is None else delta
