"""``router="auto"``: by routing cards where every pack has one, else by the weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch import nn

from skillhub.errors import WrongBaseError
from skillhub.interop.modules import HERE_ALONE
from skillhub.packdeltas import PackDelta
from skillhub.progress import Notice
from skillhub.routing.arrow import RoutableDelta, make_arrow
from skillhub.routing.cardrouter import CardRouter
from skillhub.routing.cards import RoutingCard, read_card
from skillhub.routing.decisions import Router, find_layers

_log = logging.getLogger(__name__)


def find_router(
    deltas: Mapping[str, RoutableDelta],
    model: nn.Module,
    *,
    tokenizer: Any = None,
    notice: Notice | None = None,
) -> Router:
    """Choose a router for packs.

    Args:
        deltas: what decisions call each pack → its delta for the model.
        model: the base model.
        tokenizer: the model's, for packs without a card; None loads it from where the model came from, where that is known.
        notice: told when packs have no card; by default that is logged.

    Returns:
        A :class:`~skillhub.routing.cardrouter.CardRouter` where every pack has a card, else an
        :class:`~skillhub.routing.arrow.ArrowRouter`.

    Raises:
        UsageError: a pack has neither a card nor a delta that could be routed by.
        WrongBaseError: a card judges a layer that the model does not have.
        IntegrityError, UnsafeContentError, NewerSchemaError: a card may not be used.
    """
    cards = {name: _card_of(delta) for name, delta in deltas.items()}
    present = {name: card for name, card in cards.items() if card is not None}
    if len(present) == len(deltas):
        _check_depths(present, len(find_layers(model)[1]))
        return CardRouter(present)
    tell = notice or _log.warning
    lacking = ", ".join(name for name, card in cards.items() if card is None)
    tokenizer = tokenizer if tokenizer is not None else _find_tokenizer(model)
    never = (
        "" if tokenizer is not None else " Without a tokenizer nothing is known of other inputs: every row gets a pack."
    )
    tell(f"Routing by the weights (Arrow), which is less sure than by routing cards: {lacking} has none.{never}")
    return make_arrow(deltas, model, tokenizer)


def _check_depths(cards: Mapping[str, RoutingCard], layers: int) -> None:
    for name, card in cards.items():
        if card.deepest >= layers:
            raise WrongBaseError(
                f"The routing card of {name} judges the layer {card.deepest}, and the model has {layers}.",
                hint="Use the base model that the pack was made for; if it is that, tell the pack's publisher.",
            )


def _card_of(delta: RoutableDelta) -> RoutingCard | None:
    return read_card(delta.pack, delta.variant) if isinstance(delta, PackDelta) else None


def _find_tokenizer(model: nn.Module) -> Any:
    """Return the tokenizer beside the model's files, where they are on this machine."""
    source = str(getattr(model, "name_or_path", "") or "")
    if not source:
        return None
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source, **HERE_ALONE)
    except Exception:  # there is none, the model was made in memory, or its files make transformers raise anything
        return None
