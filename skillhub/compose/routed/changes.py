"""Changing what is routed on a model: packs leave, weigh otherwise, and are switched off and on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from skillhub.compose.graftstates import GraftedPack
from skillhub.compose.layouts import plain_model
from skillhub.compose.packsources import PackSource
from skillhub.compose.recipes import Recipe
from skillhub.compose.routed.grafting import build_routing
from skillhub.compose.routed.states import Routing, build_entries, present_routing, replace_routing, routing_of
from skillhub.compose.schedules import Amount
from skillhub.compose.selection import grafted_digest, reweighed
from skillhub.layout import layout_of
from skillhub.progress import Progress, silence
from skillhub.routing.decisions import Router


def routed_packs(model: nn.Module) -> tuple[GraftedPack, ...]:
    """Return the packs that are routed on a model, with their weights and whether they are enabled, sorted by digest."""
    present = routing_of(model)
    return present.packs if present else ()


def ungraft_routed(model: nn.Module, pack: PackSource | None = None, *, progress: Progress | None = None) -> nn.Module:
    """Take a pack out of a routed model, or all of them: then the model has its own forward and ``generate`` back.

    While other packs stay, the router given to ``graft`` goes on to decide (``auto`` is set up anew for them); it may not choose the
    pack that left.

    Raises:
        UsageError: no pack is routed on the model, or a name means several.
        NotFoundError: this pack is not.
    """
    present = present_routing(model)
    recipe = Recipe(()) if pack is None else present.recipe.without(grafted_digest(present.recipe, pack))
    if recipe.packs:
        return _rebuild(model, present, recipe, None, progress)
    present.remove()
    return model


def weigh_routed(
    model: nn.Module, weights: Mapping[PackSource, Amount], *, progress: Progress | None = None
) -> nn.Module:
    """Change how much routed packs count, as :func:`skillhub.compose.grafts.set_weights`; only what changes is computed again.

    While that goes on, the weights of before and after are in memory.

    Raises:
        SkillhubError: as there, or there is not enough memory; the model stays as it was.
    """
    present = present_routing(model)
    return _rebuild(model, present, reweighed(present.recipe, weights), present.rules.router, progress)


def switch_routed(model: nn.Module, pack: PackSource | None, *, on: bool) -> nn.Module:
    """Switch a routed pack (None: all) on or off. No pack is read; what a pack takes of memory it keeps while it is off.

    Raises:
        UsageError: no pack is routed on the model, or a name means several.
        NotFoundError: this pack is not.
    """
    present = present_routing(model)
    meant = present.recipe.digests if pack is None else [grafted_digest(present.recipe, pack)]
    off = present.disabled.difference(meant) if on else present.disabled.union(meant)
    named = zip(present.rules.labels, present.recipe.digests, strict=True)
    rules = present.rules.switched([label for label, digest in named if digest in off])
    replace_routing(model, replace(present, rules=rules, entries=build_entries(rules)))
    return model


def _rebuild(
    model: nn.Module, present: Routing, recipe: Recipe, router: Router | None, progress: Progress | None
) -> nn.Module:
    """Let a routed model carry other packs than at present, or others of their weights; returns it."""
    base = plain_model(model)
    made = build_routing(
        base,
        layout_of(base),
        recipe,
        present.fingerprint,
        present.options,
        router=router,
        progress=progress,
        notice=silence,
    )
    replace_routing(base, made)
    return model
