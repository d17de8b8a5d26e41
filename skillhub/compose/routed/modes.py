"""What ``graft`` is asked for in one of its modes and not in the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from skillhub.compose.routed.states import routing_of
from skillhub.errors import UsageError

MODES = ("fused", "routed")
"""``fused``: packs are added to the weights; ``routed``: each row of a batch gets one of them."""


def check_mode(mode: str, *, fused: Mapping[str, Any], routed: Mapping[str, Any]) -> None:
    """Refuse an unknown mode, and options that the mode has no use for.

    Args:
        mode: what the caller asked for.
        fused: options of the mode ``fused`` alone → whether they were given.
        routed: options of the mode ``routed`` alone, likewise.

    Raises:
        UsageError: the mode or an option is refused.
    """
    if mode not in MODES:
        raise UsageError(f"There is no mode {mode!r}.", hint=f"Use one of: {', '.join(MODES)}.")
    useless = [name for name, given in (fused if mode == "routed" else routed).items() if given]
    if useless:
        raise UsageError(f"The mode {mode!r} has no use for {useless[0]}.", hint="Leave it out, or use the other mode.")


def refuse_routed(model: nn.Module) -> None:
    """Refuse to fuse packs into a model on which others are routed.

    Raises:
        UsageError: packs are routed on it.
    """
    if routing_of(model):
        raise UsageError(
            "Packs are routed on this model, which needs the weights of the base.",
            hint="Ungraft them first, or graft this pack with mode='routed' too.",
        )
