"""Routing by the weights alone, for packs without a routing card: Arrow (Ostapenko et al. 2024, arXiv 2405.11157, section 3.2).

What a pack changes most in a module is the product with inputs along the top right singular vectors of its delta; these are its
prototypes. A row fits a pack as far as the inputs of its tokens lie along them. Arrow compares |⟨v, x⟩| token by token, in every
layer; here one early run decides for a whole row, and what a prototype has in common with any input is taken away by the background.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import nn

from skillhub.errors import UsageError
from skillhub.layout import Layout, layout_of
from skillhub.manifest import TensorEntry
from skillhub.routing.background import background_prompts
from skillhub.routing.cardmaking import BATCH, card_layers, encode, prefill_of
from skillhub.routing.contents import ChatMarkers, chat_markers, chat_text
from skillhub.routing.decisions import Decision, Prefill, early_states, find_layers
from skillhub.routing.pooling import content_of

PROTOTYPES = 4
"""Right singular vectors of a module's delta."""
ITERATIONS = 8
BACKGROUND_PASSES = 0.02

Prototypes = Mapping[str, torch.Tensor]
"""Name of a module → (inputs, prototypes) fp32: orthogonal, as long as their shares of the delta's singular values."""


class RoutableDelta(Protocol):
    """What is read of a pack: see :class:`skillhub.packdeltas.PackDelta`."""

    @property
    def names(self) -> list[str]:
        """Canonical names of the tensors that it changes."""

    def entry(self, name: str) -> TensorEntry:
        """What becomes of a tensor."""

    def decode(self, name: str) -> torch.Tensor:
        """The fp32 difference."""

    def sets_values(self, name: str) -> bool:
        """Whether it holds the tuned tensor itself."""


@dataclass(frozen=True, eq=False)
class ArrowRouter:
    """Routes by prototypes.

    Attributes:
        prototypes: name of the pack → its prototypes.
        deepest: the last layer whose modules have prototypes.
        center: (packs,) mean of the background's fits.
        spread: (packs,) their deviation.
        thresholds: (packs,) standardized fits that a row must exceed; −∞ where nothing is known of the background.
        markers: of the chat template that may stand around the content.
    """

    prototypes: Mapping[str, Prototypes]
    deepest: int
    center: torch.Tensor
    spread: torch.Tensor
    thresholds: torch.Tensor
    markers: ChatMarkers | None = None

    def route(self, prefill: Prefill) -> Decision:
        """Give each row to the pack whose prototypes it fits best; ``scores`` are in deviations of the background."""
        fits = measure_fits(self.prototypes, self.deepest, prefill, self.markers)
        scores = (fits - self.center) / self.spread
        excess = scores - self.thresholds
        best = (scores if excess.isinf().any() else excess).argmax(1).tolist()
        choices = tuple(place if excess[row, place] > 0 else None for row, place in enumerate(best))
        return Decision(self.packs, choices, scores)

    @property
    def packs(self) -> tuple[str, ...]:
        """Names of the packs."""
        return tuple(self.prototypes)

    def among(self, packs: Collection[str]) -> ArrowRouter:
        """Return a router by the prototypes of some of the packs."""
        kept = [place for place, name in enumerate(self.prototypes) if name in packs]
        return replace(
            self,
            prototypes={name: found for name, found in self.prototypes.items() if name in packs},
            center=self.center[kept],
            spread=self.spread[kept],
            thresholds=self.thresholds[kept],
        )


def make_arrow(deltas: Mapping[str, RoutableDelta], model: nn.Module, tokenizer: Any = None) -> ArrowRouter:
    """Return a router by prototypes.

    Args:
        deltas: name of the pack → its delta.
        model: the base model.
        tokenizer: its tokenizer, for standardizing and abstaining by the background; None compares raw fits and never abstains.

    Raises:
        UsageError: a pack changes no linear module of the early layers.
    """
    layout, layers = layout_of(model), card_layers(model)
    prototypes = {name: find_prototypes(delta, model, layout, layers) for name, delta in deltas.items()}
    for name, found in prototypes.items():
        if not found:
            raise UsageError(
                f"{name} has no routing card and changes no linear module of the layers {layers}, so nothing tells its inputs.",
                hint="Route by labels, or by a callable.",
            )
    zeros = torch.zeros(len(deltas))
    if tokenizer is None:
        return ArrowRouter(prototypes, layers[-1], zeros, zeros + 1, zeros - torch.inf)
    markers = chat_markers(tokenizer)
    fits = torch.cat(
        [measure_fits(prototypes, layers[-1], batch, markers) for batch in _background_batches(model, tokenizer)]
    )
    center, spread = fits.mean(0), fits.std(0).clamp(min=1e-12)
    thresholds = ((fits - center) / spread).quantile(1 - BACKGROUND_PASSES, dim=0)
    return ArrowRouter(prototypes, layers[-1], center, spread, thresholds, markers)


def find_prototypes(delta: RoutableDelta, model: nn.Module, layout: Layout, layers: Sequence[int]) -> Prototypes:
    """Return the prototypes of the linear modules of some layers that a pack changes."""
    stack = find_layers(model)[1]
    inner = {id(module) for layer in layers for module in stack[layer].modules() if isinstance(module, nn.Linear)}
    found = {}
    for name in delta.names:
        slot = layout.slots.get(name)
        if slot is None or delta.entry(name).change != "delta" or len(slot.shape) != 2 or delta.sets_values(name):
            continue
        module, _, role = slot.parameter_name.rpartition(".")
        if role == "weight" and len(slot.parameter_names) == 1 and id(model.get_submodule(module)) in inner:
            matrix = delta.decode(name)
            vectors = top_right_vectors(matrix, PROTOTYPES)
            values = (matrix @ vectors).norm(dim=0)
            found[module] = vectors * (values / values.norm().clamp(min=1e-30))
    return found


def top_right_vectors(matrix: torch.Tensor, count: int) -> torch.Tensor:
    """Return the leading right singular vectors of a matrix, (columns, count) orthonormal, by subspace iteration."""
    generator = torch.Generator().manual_seed(0)
    count = min(count, *matrix.shape)
    basis = torch.randn(matrix.shape[1], count, generator=generator)
    for _ in range(ITERATIONS):
        basis = torch.linalg.qr(matrix.T @ (matrix @ basis)).Q
    return basis


def measure_fits(
    prototypes: Mapping[str, Prototypes], deepest: int, prefill: Prefill, markers: ChatMarkers | None
) -> torch.Tensor:
    """Return (rows, packs): the share of the squared inputs along a pack's prototypes, mean over content and modules."""
    content = content_of(prefill, markers)
    share = content / content.sum(1, keepdim=True).clamp(min=1)
    fits = torch.zeros(prefill.rows, len(prototypes))
    thread = threading.get_ident()

    def measure(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if threading.get_ident() != thread:  # others may run the model meanwhile
                return
            inputs = (args[0] if args else kwargs["input"]).to(torch.float32)
            inputs = torch.where(content.to(inputs.device)[..., None], inputs, 0)
            length = inputs.square().sum(-1).clamp(min=1e-12)
            for place, found in enumerate(prototypes.values()):
                if name in found:
                    along = (inputs @ found[name].to(inputs.device)).square().sum(-1) / length
                    fits[:, place] += (along.cpu() * share).sum(1) / len(found)

        return hook

    with ExitStack() as hooks:
        for name in sorted({name for found in prototypes.values() for name in found}):
            module = prefill.model.get_submodule(name)
            hooks.callback(module.register_forward_pre_hook(measure(name), with_kwargs=True).remove)
        early_states(prefill, deepest + 1)
    return fits


def _background_batches(model: nn.Module, tokenizer: Any) -> list[Prefill]:
    """Return the background, each prompt as users of the model would most likely give it."""
    is_chat = chat_markers(tokenizer) is not None
    texts = [chat_text(tokenizer, text) if is_chat else text for text in background_prompts()]
    rows = sorted((encode(tokenizer, text, is_chat=is_chat) for text in texts), key=len)
    return [prefill_of(model, rows[begin : begin + BATCH]) for begin in range(0, len(rows), BATCH)]
