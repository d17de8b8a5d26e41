"""Which kind of module a tensor belongs to, by its canonical name, and how much of a pack each kind takes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from skillhub.manifest import TensorEntry

_CLASSES: Final = (
    ("norms", re.compile(r"norm|(^|[._])ln(_|\.|\d|$)", re.IGNORECASE)),
    ("experts", re.compile(r"experts?\b|moe", re.IGNORECASE)),
    ("attention", re.compile(r"attn|attention|[qkvo]_proj|qkv|(^|\.)(query|key|value)\.", re.IGNORECASE)),
    (
        "feed-forward",
        re.compile(
            r"mlp|ffn|feed_forward|(gate|up|down)_proj|(^|\.)(fc\d|w[io](_\d)?|dense|intermediate)\b", re.IGNORECASE
        ),
    ),
    ("embeddings", re.compile(r"embed|(^|\.)(wte|wpe|shared)\.", re.IGNORECASE)),
    ("head", re.compile(r"head|classifier|pooler|score|embed_out|predictions", re.IGNORECASE)),
)
"""By families of names in published architectures; the first that fits decides."""


@dataclass(frozen=True)
class ModuleClass:
    """What the tensors of one kind take together.

    Attributes:
        tensors: how many were encoded.
        bytes: of their payload.
        weights: how many numbers they hold.
        share: of the payload of all, from 0 to 1.
    """

    name: str
    tensors: int
    bytes: int
    weights: int
    share: float

    @property
    def bits_per_weight(self) -> float:
        """Bits of payload for each number."""
        return self.bytes * 8 / self.weights if self.weights else 0.0


def classify(tensor: str) -> str:
    """Return the kind of module of a tensor; ``other`` where its name says nothing."""
    return next((name for name, pattern in _CLASSES if pattern.search(tensor)), "other")


def sum_classes(tensors: Mapping[str, TensorEntry]) -> list[ModuleClass]:
    """Return what each kind of module takes of a variant, the largest first."""
    sums: dict[str, list[int]] = {}
    for name, entry in tensors.items():
        counts = sums.setdefault(classify(name), [0, 0, 0])
        for place, number in enumerate((1, entry.bytes, math.prod(entry.shape))):
            counts[place] += number
    whole = sum(size for _, size, _ in sums.values())
    classes = [
        ModuleClass(name, count, size, weights, size / whole if whole else 0.0)
        for name, (count, size, weights) in sums.items()
    ]
    return sorted(classes, key=lambda one: (-one.bytes, one.name))
