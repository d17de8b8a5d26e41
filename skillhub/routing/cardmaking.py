"""Making a routing card: a pack's prompts against the background, as the base sees both.

Every prompt is taken twice, bare and in the base's chat template, so that either is recognised. The threshold lies well above the
scores of the background, each judged by functions that it had no part in. How many of the pack's own prompts pass when all those
that are most like them are left out is reported: an estimate for other wordings than those of the examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.nn.functional import normalize

from skillhub.errors import UsageError
from skillhub.halves import quick_products
from skillhub.interop.modules import check_tokens
from skillhub.progress import Progress
from skillhub.routing.background import background_digest, background_prompts, background_weights
from skillhub.routing.cards import CardLayer, RoutingCard
from skillhub.routing.contents import ChatMarkers, chat_markers, chat_text
from skillhub.routing.decisions import Prefill, find_layers
from skillhub.routing.discriminants import fit_discriminant
from skillhub.routing.pooling import pooled_states
from skillhub.routing.whitening import Whitening, fit_whitening

MIN_PROMPTS = 16
"""From fewer prompts no card is made: nothing could be left out to see what it is worth."""
MAX_PROMPTS = 128

RANK = 64
DEPTHS = (1 / 30, 1 / 10, 1 / 6)
"""The layers that cards judge, as shares of the base's depth: those that told wordings apart best that were left out (see
benchmarks/routing.py). The same for all packs, so one early run serves all cards."""

MOST_OF_DEPTH = 1 / 4
MAX_TOKENS = 256
_MOST_CHARACTERS = 64
"""Of one token, on average: what lies beyond is not looked at, or a long text would be cut into tokens for minutes."""
BATCH = 16

DEVIATIONS = 2.6
"""How far above the background's mean score the threshold lies, in its standard deviations: steadier than a quantile, which hangs on
the few prompts that are nearest to the pack."""
FOLDS = 5
CLUSTERS = 4


@dataclass(frozen=True, eq=False)
class CardReport:
    """What was measured while a card was made; of rows that the judging function had not seen.

    Attributes:
        prompts: number of the pack's prompts.
        own: share of them that would pass, each judged without those that are most like it.
        background: share of the background that would pass.
    """

    prompts: int
    own: float
    background: float


def card_layers(model: nn.Module) -> tuple[int, ...]:
    """Return the layers of a base that cards judge, rising."""
    depth = len(find_layers(model)[1])
    deepest = int(depth * MOST_OF_DEPTH)
    return tuple(sorted({min(max(round(depth * share), 1), deepest) for share in DEPTHS}))


def make_card(
    model: nn.Module, tokenizer: Any, prompts: Sequence[str], *, progress: Progress | None = None
) -> tuple[RoutingCard, CardReport]:
    """Make the routing card of a pack.

    Args:
        model: the base model, with nothing grafted onto it.
        tokenizer: its tokenizer.
        prompts: what users of the pack might write, without any template; 32 to 128 in several wordings do best. Of more than 128
            as many are taken, evenly.
        progress: called with (``prompts``, done, all).

    Raises:
        UsageError: there are fewer than 16 different prompts, the model has no layers, or the tokenizer has tokens that it does not embed.
    """
    chosen = choose_prompts(prompts)
    markers = chat_markers(tokenizer)
    texts = [*background_prompts(), *chosen]
    layers = card_layers(model)
    forms = [texts] if markers is None else [texts, [chat_text(tokenizer, text) for text in texts]]
    encoded = [[encode(tokenizer, text, is_chat=number == 1) for text in form] for number, form in enumerate(forms)]
    check_tokens(model, [row for rows in encoded for row in rows])
    states = [
        _run(model, rows, layers, markers, progress, number * len(texts), len(forms) * len(texts))
        for number, rows in enumerate(encoded)
    ]
    pooled = torch.stack(states)  # (forms, layers, prompts, hidden)
    others, own = pooled[:, :, : -len(chosen)], pooled[:, :, -len(chosen) :]
    examples = [_Examples(others[:, place], own[:, place]) for place in range(len(layers))]
    threshold, report = _calibrate(examples)
    judged = [
        CardLayer(layer, one.whitening, fit_discriminant(one.whitening(flat(one.own)), one.whitened_background))
        for layer, one in zip(layers, examples, strict=True)
    ]
    return RoutingCard(tuple(judged), markers, threshold, background_digest()), report


def choose_prompts(prompts: Sequence[str]) -> list[str]:
    """Return different, not empty prompts, at most 128 of them, evenly taken.

    Raises:
        UsageError: there are fewer than 16.
    """
    different = list(dict.fromkeys(prompt.strip() for prompt in prompts if prompt.strip()))
    if len(different) < MIN_PROMPTS:
        raise UsageError(
            f"A routing card needs at least {MIN_PROMPTS} different prompts; there are {len(different)}.",
            hint="Give 32 to 128, worded as differently as users would.",
        )
    count = min(len(different), MAX_PROMPTS)
    return [different[place * len(different) // count] for place in range(count)]


def encode(tokenizer: Any, text: str, *, is_chat: bool) -> list[int]:
    """Return the token ids of a text, the first 256 of them; a chat text brings its special tokens itself."""
    begin = text[: MAX_TOKENS * _MOST_CHARACTERS]
    return list(tokenizer(begin, add_special_tokens=not is_chat).input_ids)[:MAX_TOKENS]


def prefill_of(model: nn.Module, encoded: Sequence[Sequence[int]]) -> Prefill:
    """Return token sequences as one batch, padded on the right and cut where the model takes no more; an empty one becomes the token 0.

    Raises:
        UsageError: the model does not embed one of the tokens.
    """
    check_tokens(model, encoded)
    limit = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    rows = [list(row)[:limit] or [0] for row in encoded]
    width, device = max(map(len, rows)), next(model.parameters()).device
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
    return Prefill(model, ids, mask)


def pool_prompts(
    model: nn.Module,
    encoded: Sequence[Sequence[int]],
    layers: Sequence[int],
    markers: ChatMarkers | None,
) -> torch.Tensor:
    """Return the pooled states of token sequences: (layers, prompts, hidden) fp32."""
    return _run(model, encoded, layers, markers, None, 0, len(encoded))


def _run(
    model: nn.Module,
    encoded: Sequence[Sequence[int]],
    layers: Sequence[int],
    markers: ChatMarkers | None,
    progress: Progress | None,
    done: int,
    total: int,
) -> torch.Tensor:
    order = sorted(range(len(encoded)), key=lambda place: len(encoded[place]))
    parts = []
    for begin in range(0, len(order), BATCH):
        prefill = prefill_of(model, [encoded[place] for place in order[begin : begin + BATCH]])
        with quick_products():
            parts.append(pooled_states(prefill, layers, markers))
        if progress:
            progress("prompts", done + min(begin + BATCH, len(order)), total)
    pooled = torch.cat(parts, dim=1)
    return pooled[:, torch.tensor(order).argsort()]


def flat(states: torch.Tensor) -> torch.Tensor:
    """Return (forms, rows, hidden) as (forms · rows, hidden)."""
    return states.flatten(0, 1)


@dataclass(frozen=True, eq=False)
class _Examples:
    """The pooled states at one layer: (forms, rows, hidden) each."""

    others: torch.Tensor
    own: torch.Tensor

    @cached_property
    def whitening(self) -> Whitening:
        return fit_whitening(flat(self.others), RANK)

    @cached_property
    def whitened_background(self) -> torch.Tensor:
        return self.whitening(flat(self.others))

    def background_scores(self) -> torch.Tensor:
        """Return (forms, rows) scores of the background, each from a whitening and a discriminant made without that prompt."""
        scores = torch.empty(self.others.shape[:2])
        fold = torch.arange(self.others.shape[1]) % FOLDS
        for number in range(FOLDS):
            rest, held = self.others[:, fold != number], self.others[:, fold == number]
            whitening = fit_whitening(flat(rest), RANK)
            judge = fit_discriminant(whitening(flat(self.own)), whitening(flat(rest)))
            scores[:, fold == number] = judge(whitening(flat(held))).reshape(held.shape[:2])
        return scores

    def own_scores(self) -> torch.Tensor:
        """Return (forms, rows) scores of the pack's prompts, each from a discriminant made without its cluster."""
        units = self.whitening(flat(self.own)).reshape(self.own.shape)
        clusters = cluster(normalize(units.mean(0), dim=1), CLUSTERS)
        scores = torch.empty(self.own.shape[:2])
        for number in range(CLUSTERS):
            held = clusters == number
            if not held.any():
                continue
            rest = units if held.all() else units[:, ~held]
            judge = fit_discriminant(flat(rest), self.whitened_background)
            scores[:, held] = judge(flat(units[:, held])).reshape(len(units), -1)
        return scores


def _calibrate(examples: Sequence[_Examples]) -> tuple[float, CardReport]:
    """Return the threshold, and what would pass it."""
    background = torch.stack([one.background_scores() for one in examples]).mean(0)
    own = torch.stack([one.own_scores() for one in examples]).mean(0)
    weights = torch.tensor(background_weights()).expand_as(background) / len(background)
    mean = (weights * background).sum()
    threshold = float(mean + DEVIATIONS * (weights * (background - mean).square()).sum().sqrt())
    shares = [float((own > threshold).float().mean()), float(weights[background > threshold].sum())]
    return threshold, CardReport(own.shape[1], *shares)


def cluster(units: torch.Tensor, count: int) -> torch.Tensor:
    """Return the (rows,) cluster of each unit vector: spherical k-means from vectors that are far apart (Dhillon and Modha 2001)."""
    centers = units[(units @ units.mean(0)).argmin()][None]
    while len(centers) < min(count, len(units)):
        centers = torch.cat([centers, units[(units @ centers.T).amax(1).argmin()][None]])
    for _ in range(20):
        nearest = (units @ centers.T).argmax(1)
        sums = torch.zeros_like(centers).index_add_(0, nearest, units)
        centers = normalize(torch.where(sums.any(1, keepdim=True), sums, centers), dim=1)
    return (units @ centers.T).argmax(1)
