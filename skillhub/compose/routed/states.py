"""What a routed model carries: how it decides, its packs, and the parts that stand in its modules' places."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from skillhub.compose.graftstates import GraftedPack
from skillhub.compose.layouts import plain_model
from skillhub.compose.merging import Contribution
from skillhub.compose.recipes import Recipe
from skillhub.compose.routed.construction import KnownFactors
from skillhub.compose.routed.entries import Entry, Generate
from skillhub.compose.routed.rules import Rules
from skillhub.compose.routed.sites import Site
from skillhub.compose.routed.weights import PackWeights
from skillhub.errors import UsageError

_STATE = "_skillhub_routing"


@dataclass(eq=False)
class Routing:
    """What a routed model carries, as its attribute ``_skillhub_routing``.

    Attributes:
        rules: how it decides.
        recipe: the packs, with their weights.
        options: what else the caller asked for, for when packs are added or taken out.
        fingerprint: of the base; None where only adapters are grafted.
        weights: what packs make of parameters.
        sites: the modules that packs change.
        entries: the modules that callers call.
        contributions: the packs with their deltas, in the recipe's order.
        factors: that were read of them.
    """

    rules: Rules
    recipe: Recipe
    options: Mapping[str, Any]
    fingerprint: str | None
    weights: PackWeights
    sites: list[Site]
    entries: list[Entry | Generate]
    contributions: Sequence[Contribution]
    factors: KnownFactors

    @property
    def disabled(self) -> frozenset[str]:
        """Digests of the packs that are switched off."""
        named = zip(self.rules.labels, self.recipe.digests, strict=True)
        return frozenset(digest for label, digest in named if label in self.rules.disabled)

    @property
    def packs(self) -> tuple[GraftedPack, ...]:
        """The packs, sorted by digest."""
        off = self.disabled
        return tuple(GraftedPack(one.pack, one.weight, enabled=one.pack.digest not in off) for one in self.recipe.packs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Routing:
        """Return what the copied model carries; packs and their weights are shared, as nobody changes them."""
        made = copy.copy(self)
        memo[id(self)] = made
        made.rules = copy.deepcopy(self.rules, memo)
        made.weights = copy.deepcopy(self.weights, memo)
        made.sites, made.entries = copy.deepcopy(self.sites, memo), copy.deepcopy(self.entries, memo)
        return made

    def install(self) -> None:
        """Put sites and entries in their places."""
        for part in (*self.sites, *self.entries):
            part.install()
        self.rules.model.__dict__[_STATE] = self

    def remove(self) -> None:
        """Give all modules their own methods back."""
        for part in (*self.entries, *self.sites):
            part.remove()
        self.rules.model.__dict__.pop(_STATE, None)


def routing_of(model: nn.Module) -> Routing | None:
    """Return what a routed model carries, also within the one that ``torch.compile`` returned; None for other models."""
    found = plain_model(model).__dict__.get(_STATE)
    return found if isinstance(found, Routing) else None


def present_routing(model: nn.Module) -> Routing:
    """Return what a routed model carries.

    Raises:
        UsageError: no pack is routed on it.
    """
    found = routing_of(model)
    if found is None:
        raise UsageError("No pack is routed on this model.", hint="Graft with mode='routed' first.")
    return found


def replace_routing(model: nn.Module, wanted: Routing | None) -> None:
    """Let a model carry what it is wanted to, or nothing, in place of what it carries."""
    present = routing_of(model)
    try:
        if present:
            present.remove()
        if wanted:
            wanted.install()
    except BaseException:  # such as an interruption, half-way
        if wanted:
            wanted.remove()
        if present:
            present.install()
        raise


def build_entries(rules: Rules) -> list[Entry | Generate]:
    """Return the entries of a model: itself, the model without its head, and of an encoder-decoder both halves."""
    model: Any = rules.model
    places = [(model, False), (getattr(model, "base_model", model), False)]
    if rules.has_encoder:
        places += [(model.get_encoder(), True), (model.get_decoder(), False)]
    entries: dict[int, Entry | Generate] = {}
    for module, encodes in places:
        entries.setdefault(id(module), Entry(rules, module, encodes))
    return [*entries.values(), *([Generate(rules, model)] if hasattr(model, "generate") else [])]
