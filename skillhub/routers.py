"""Routers: how an input finds its pack, as far as a pack's files say it.

To *route* is to choose for each input the pack that fits it, or none. A pack brings a *routing card*,
``router.safetensors``, made from its example prompts with the base's hidden states; the manifest says how it was made.
This version keeps, checks and carries both. It does not make cards, and grafts packs fused only.
"""

from __future__ import annotations

from msgspec import Struct

from skillhub.fields import Count, Label, Text


class RouterInfo(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a routing card was made with; the card itself is ``router.safetensors``.

    Attributes:
        path: the card's path, one of the variant's files.
        layer: index of the base's layer whose hidden states were taken.
        pooling: how the states of a prompt became one vector.
        template: the template put around each prompt; None for bare text.
        rank: dimensions of the subspace.
        threshold: score below which an input belongs to no pack.
    """

    path: str
    layer: Count
    pooling: Label
    template: Text | None = None
    rank: Count
    threshold: float
