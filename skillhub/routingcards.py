"""What a manifest says of a routing card.

To *route* is to choose for each input the pack that fits it, or none. A pack brings a *routing card*, ``router.safetensors``, made
from its example prompts with the base's hidden states; ``skillhub.routing`` makes, reads and follows cards.
"""

from __future__ import annotations

from msgspec import Struct

from skillhub.fields import Count, Label, Text


class RouterInfo(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a routing card was made with; the card itself is ``router.safetensors``.

    Attributes:
        path: the card's path, one of the variant's files.
        layer: index of the deepest of the base's layers whose inputs are judged; the card names the others.
        pooling: how the states of a prompt became one vector.
        template: the chat template around each prompt, which is ``{}`` in it; prompts were taken bare as well. None: only bare.
        rank: dimensions of the subspace of the base's states that is rescaled.
        threshold: score up to which an input belongs to no pack.
    """

    path: str
    layer: Count
    pooling: Label
    template: Text | None = None
    rank: Count
    threshold: float
