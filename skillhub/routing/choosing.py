"""``router="auto"``: by routing cards where every pack has one, else by the weights."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Protocol

from torch import nn

from skillhub.packs import Pack
from skillhub.progress import Notice
from skillhub.routing.arrow import make_arrow
from skillhub.routing.cardrouter import CardRouter
from skillhub.routing.cards import RoutingCard, read_card
from skillhub.routing.decisions import Router

_log = logging.getLogger(__name__)


class Routable(Protocol):
    """A pack or adapter with its delta for the base at hand, as grafting opens it."""

    @property
    def delta(self) -> Any:
        """A :class:`skillhub.deltas.PackDelta`, or what answers the same."""


def find_router(
    packs: Sequence[Routable],
    model: nn.Module,
    *,
    names: Sequence[str] | None = None,
    tokenizer: Any = None,
    notice: Notice | None = None,
) -> Router:
    """Choose a router for packs.

    Args:
        packs: the packs, with their deltas for the model.
        model: the base model.
        names: what decisions call the packs; by default by their names.
        tokenizer: the model's, for packs without a card; None loads it from where the model came from, where that is known.
        notice: told when packs have no card; by default that is logged.

    Returns:
        A :class:`~skillhub.routing.cardrouter.CardRouter` where every pack has a card, else an
        :class:`~skillhub.routing.arrow.ArrowRouter`.

    Raises:
        UsageError: a pack has neither a card nor a delta that could be routed by.
        IntegrityError, UnsafeContentError, NewerSchemaError: a card may not be used.
    """
    names = list(names) if names is not None else [str(one.delta.pack.name) for one in packs]
    cards = {name: _card_of(one) for name, one in zip(names, packs, strict=True)}
    present = {name: card for name, card in cards.items() if card is not None}
    if len(present) == len(packs):
        return CardRouter(present)
    tell = notice or _log.warning
    lacking = ", ".join(name for name, card in cards.items() if card is None)
    tokenizer = tokenizer if tokenizer is not None else _find_tokenizer(model)
    never = (
        "" if tokenizer is not None else " Without a tokenizer nothing is known of other inputs: every row gets a pack."
    )
    tell(f"Routing by the weights (Arrow), which is less sure than by routing cards: {lacking} has none.{never}")
    return make_arrow({name: one.delta for name, one in zip(names, packs, strict=True)}, model, tokenizer)


def _card_of(one: Routable) -> RoutingCard | None:
    pack = one.delta.pack
    return read_card(pack, one.delta.variant) if isinstance(pack, Pack) else None


def _find_tokenizer(model: nn.Module) -> Any:
    """Return the tokenizer beside the model's files, where they are on this machine."""
    source = str(getattr(model, "name_or_path", "") or "")
    if not source:
        return None
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError):  # there is none, or the model was made in memory
        return None
