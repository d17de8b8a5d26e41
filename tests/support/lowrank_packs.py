"""Packs built by hand of random low-rank factors, with dense parts where wanted."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from skillhub.checkpoints import open_checkpoint
from skillhub.codecs import EncodedTensor, exact, lowrank
from skillhub.packs import Pack
from tests.support.handmade_packs import Handmade, write_pack

LINEAR = r"(proj|c_attn|c_fc|query|key|value|dense|\.[qkvo]|wi_?\d?|wo|gate|up|down)\.weight$"


def build_lowrank_pack(
    base: Path,
    folder: Path,
    *,
    name: str = "",
    seed: int = 1,
    rank: int = 2,
    size: float = 0.05,
    linear: str = LINEAR,
    dense: str = "^$",
) -> Pack:
    """Build a pack for a base.

    Args:
        base: the base's checkpoint.
        folder: of the pack.
        name: of the pack; its folder's by default.
        seed: of all values.
        rank: of the factors.
        size: about the size of the differences.
        linear: pattern of the names of matrices that get factors.
        dense: pattern of the names of tensors that get any difference, stored exactly.
    """
    draw, tensors = np.random.default_rng(seed), []
    for tensor, info in sorted(open_checkpoint(base).tensors.items()):
        if re.search(dense, tensor):
            encoded = exact.encode(torch.from_numpy(draw.normal(size=info.shape, scale=size).astype(np.float32)))
        elif re.search(linear, tensor) and len(info.shape) == 2:
            part = _factors(draw, tuple(info.shape), min(rank, *info.shape), size)
            encoded = EncodedTensor(tuple(info.shape), (part,))
        else:
            continue
        tensors.append(Handmade(tensor, encoded.shape, encoded, error=(0.0, 0.001)))
    return write_pack(folder, base, tensors, name=name, preset="near")


def _factors(draw: Any, shape: tuple[int, int], rank: int, size: float) -> Any:
    left = draw.integers(-7, 8, size=(rank, shape[0])).astype(np.int16)
    right = draw.integers(-7, 8, size=(rank, shape[1])).astype(np.int16)
    left[:, 0] = right[:, 0] = 7  # no component of zeros
    scales = np.full(rank, size / (20 * rank**0.5))
    components = lowrank.choose_groups(left, right, scales)
    assert components is not None
    return lowrank.encode(components)
