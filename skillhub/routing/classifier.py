"""A small classifier trained on prompts of each pack: for packs that lie close together, where there are rows to train on."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from skillhub.errors import UsageError
from skillhub.routing.background import background_prompts
from skillhub.routing.cardmaking import RANK, card_layers, encode, pool_prompts
from skillhub.routing.contents import ChatMarkers, chat_markers, chat_text
from skillhub.routing.decisions import Decision, Prefill
from skillhub.routing.pooling import pooled_states
from skillhub.routing.whitening import Whitening, fit_whitening

STEPS = 100
DECAY = 1e-3


@dataclass(frozen=True, eq=False)
class ClassifierRouter:
    """Routes by a softmax regression over the base and the packs.

    Attributes:
        packs: names of the packs.
        layers: index of a layer → the whitening of its states; the classifier sees their unit vectors side by side.
        weights: (1 + packs, layers · hidden) fp32; the first row is the base's.
        offsets: (1 + packs,) fp32.
        markers: of the chat template that may stand around the content.
    """

    packs: tuple[str, ...]
    layers: Mapping[int, Whitening]
    weights: torch.Tensor
    offsets: torch.Tensor
    markers: ChatMarkers | None

    def route(self, prefill: Prefill) -> Decision:
        """Choose the likeliest class of each row; ``scores`` are log-odds against the base, so the threshold is 0."""
        pooled = pooled_states(prefill, list(self.layers), self.markers)
        logits = _features(self.layers, pooled) @ self.weights.T + self.offsets
        scores = logits[:, 1:] - logits[:, :1]
        best = scores.argmax(1).tolist()
        choices = tuple(place if scores[row, place] > 0 else None for row, place in enumerate(best))
        return Decision(self.packs, choices, scores)

    def among(self, packs: Collection[str]) -> ClassifierRouter:
        """Return a router that chooses among the base and some of the packs."""
        kept = [place for place, name in enumerate(self.packs) if name in packs]
        rows = [0, *(1 + place for place in kept)]
        chosen = tuple(self.packs[place] for place in kept)
        return replace(self, packs=chosen, weights=self.weights[rows], offsets=self.offsets[rows])


def train_classifier(
    model: nn.Module,
    tokenizer: Any,
    prompts: Mapping[str, Sequence[str]],
    *,
    others: Sequence[str] | None = None,
) -> ClassifierRouter:
    """Train a classifier in seconds: one early run over all prompts, bare and in the chat template, then full-batch L-BFGS.

    Args:
        model: the base model.
        tokenizer: its tokenizer.
        prompts: name of the pack → prompts for it.
        others: prompts for the base alone; None takes the background.

    Raises:
        UsageError: there is no pack, or one side has no prompts.
    """
    sides = [list(others if others is not None else background_prompts()), *map(list, prompts.values())]
    if len(sides) < 2 or not all(sides):
        raise UsageError("A classifier needs prompts for every pack and for the base.", hint="Give some of each.")
    markers, layers = chat_markers(tokenizer), card_layers(model)
    texts = [text for side in sides for text in side]
    encoded = [encode(tokenizer, text, is_chat=False) for text in texts]
    if markers is not None:
        encoded += [encode(tokenizer, chat_text(tokenizer, text), is_chat=True) for text in texts]
    labels = torch.cat([torch.full((len(side),), place) for place, side in enumerate(sides)])
    labels = labels.repeat(len(encoded) // len(texts))
    pooled = pool_prompts(model, encoded, layers, markers)
    whitenings = {layer: fit_whitening(states[labels == 0], RANK) for layer, states in zip(layers, pooled, strict=True)}
    weights, offsets = _fit(_features(whitenings, pooled), labels, len(sides))
    return ClassifierRouter(tuple(prompts), whitenings, weights, offsets, markers)


def _features(whitenings: Mapping[int, Whitening], pooled: torch.Tensor) -> torch.Tensor:
    return torch.cat([whiten(states) for whiten, states in zip(whitenings.values(), pooled, strict=True)], dim=1)


def _fit(features: torch.Tensor, labels: torch.Tensor, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weights and offsets of a softmax regression; all classes weigh the same."""
    weights = torch.zeros(classes, features.shape[1], requires_grad=True)
    offsets = torch.zeros(classes, requires_grad=True)
    balance = 1 / torch.bincount(labels, minlength=classes).clamp(min=1)
    optimizer = torch.optim.LBFGS([weights, offsets], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        with torch.enable_grad():
            value = nn.functional.cross_entropy(features @ weights.T + offsets, labels, weight=balance)
            value = value + DECAY * weights.square().sum()
            value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return weights.detach(), offsets.detach()
