"""The default router: each row goes to the pack whose card it passes by most, or to the base."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import torch

from skillhub.errors import UsageError
from skillhub.routing.cards import RoutingCard
from skillhub.routing.contents import ChatMarkers
from skillhub.routing.decisions import Decision, Prefill
from skillhub.routing.pooling import pooled_states


@dataclass(frozen=True, eq=False)
class CardRouter:
    """Routes by the packs' routing cards.

    Attributes:
        cards: name of the pack → its card, all for one base.
        margin: how far beyond its threshold a score must be; more keeps more rows at the base.
    """

    cards: Mapping[str, RoutingCard]
    margin: float = 0.0

    def route(self, prefill: Prefill) -> Decision:
        """Score each row by every card; ``scores`` holds what was measured, thresholds not subtracted.

        Raises:
            UsageError: there are no cards, or the model lacks a layer that one judges.
            WrongBaseError: a card is for hidden states of another width.
        """
        if not self.cards:
            raise UsageError("There is no routing card to route by.", hint="Give at least one pack with a card.")
        scores = torch.empty(prefill.rows, len(self.cards))
        for markers, names in self._by_markers().items():
            layers = sorted({one.layer for name in names for one in self.cards[name].layers})
            pooled = dict(zip(layers, pooled_states(prefill, layers, markers), strict=True))
            for name in names:
                scores[:, list(self.cards).index(name)] = self.cards[name].scores(pooled)
        return self.decide(scores)

    @property
    def packs(self) -> tuple[str, ...]:
        """Names of the packs."""
        return tuple(self.cards)

    def among(self, packs: Collection[str]) -> CardRouter:
        """Return a router by the cards of some of the packs."""
        return replace(self, cards={name: card for name, card in self.cards.items() if name in packs})

    def decide(self, scores: torch.Tensor) -> Decision:
        """Return the choices that (rows, packs) scores lead to."""
        excess = scores - self.thresholds - self.margin
        best = excess.argmax(1).tolist()
        choices = tuple(place if excess[row, place] > 0 else None for row, place in enumerate(best))
        return Decision(tuple(self.cards), choices, scores)

    @property
    def thresholds(self) -> torch.Tensor:
        """(packs,) fp32: what each score must exceed, without the margin."""
        return torch.tensor([card.threshold for card in self.cards.values()])

    def _by_markers(self) -> dict[ChatMarkers | None, list[str]]:
        """Return the names of cards by chat template: mostly one for all, so that the base runs once."""
        groups: dict[ChatMarkers | None, list[str]] = {}
        for name, card in self.cards.items():
            groups.setdefault(card.markers, []).append(name)
        return groups
