"""Opening what a model is to carry: before a weight is written, packs must be for this model, and its tensors able to take them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn

from skillhub.compose.compatibility import check_dtypes, check_packs, common_fingerprints, open_contributions
from skillhub.compose.graftstates import Grafts, check_recipe, state_of
from skillhub.compose.layouts import graft_modules, graft_repeats
from skillhub.compose.merging import Contribution
from skillhub.compose.modelbases import ModelBase
from skillhub.compose.quantizedlayouts import check_hidden
from skillhub.compose.recipes import Recipe
from skillhub.compose.sidepaths import is_hidden
from skillhub.compose.trainable import train_beside, trainable_names, trained_names
from skillhub.compose.verification import verify_base
from skillhub.errors import UsageError
from skillhub.interop.adapterdeltas import Target
from skillhub.layout import Layout


def open_grafts(model: nn.Module, layout: Layout, wanted: Grafts, *, verify: str = "auto") -> list[Contribution]:
    """Open the deltas of the packs that are to count on a model.

    Their files are compared with the manifests here; with ``verify="full"`` what is decoded of them is, tensor by tensor, instead.

    Raises:
        SkillhubError: as :func:`skillhub.compose.compatibility.open_contributions`.
        IntegrityError: a pack's file was altered.
    """
    state = state_of(model)
    originals = state.originals if state else {}
    opened = open_contributions(
        wanted.active,
        wanted.fingerprint,
        layout.names,
        lambda: _target(model, layout, originals, wanted.repeats),
        None if is_hidden(layout) else ModelBase(layout, originals, wanted.repeats),
    )
    return opened if verify == "full" else [one.with_checked_files() for one in opened]


def _target(
    model: nn.Module, layout: Layout, originals: Mapping[str, torch.Tensor], repeats: Mapping[str, str]
) -> Target:
    """Return what adapters are applied to: the model, with the tensors that it had before any pack."""

    def base(name: str) -> torch.Tensor:
        return originals[name] if name in originals else layout.slots[name].read()

    return Target(graft_modules(model, layout), base, repeats)


def open_more(
    model: nn.Module, layout: Layout, added: Recipe, *, verify: str, trust_base: bool
) -> tuple[Grafts, list[Contribution]]:
    """Return what a model carries with more packs, and the deltas of all, after it was checked that it is their base and can take them.

    Args:
        model: the model.
        layout: its tensors by canonical name.
        added: the packs that are added to those it carries.
        verify: one of :data:`skillhub.compose.verification.VERIFICATIONS`.
        trust_base: believe that the model is the packs' base.

    Raises:
        UsageError: the packs do not go together, or the model cannot take them in memory.
        WrongBaseError: the model is not the packs' base.
        IntegrityError: a pack's file is missing or damaged.
    """
    state = state_of(model)
    recipe = check_recipe(state.recipe.extended(added)) if state else added
    fingerprint = verify_base(
        model,
        layout,
        recipe,
        common_fingerprints(recipe),
        originals=state.originals if state else {},
        verify=verify,
        trust_base=trust_base,
    )
    wanted = replace(state or Grafts(recipe, None, graft_repeats(layout)), recipe=recipe, fingerprint=fingerprint)
    contributions = open_grafts(model, layout, wanted, verify=verify)
    check_packs(contributions, {name: tuple(slot.shape) for name, slot in layout.slots.items()}, in_memory=True)
    check_dtypes(contributions, layout)
    check_hidden(recipe, contributions, layout)
    return wanted, contributions


def check_trainable(recipe: Recipe, state: Grafts | None) -> None:
    """Refuse to train what is more than one pack.

    Raises:
        UsageError: there are several packs, or the method does more than add the one.
    """
    if state or len(recipe.packs) != 1 or recipe.method != "linear" or recipe.options:
        raise UsageError(
            "One pack is trained at a time, by the method 'linear' and on a model without other packs.",
            hint="To train on top of other packs, fuse those into a checkpoint with `skillhub fuse` first.",
        )


def open_trained(model: nn.Module, layout: Layout, wanted: Grafts, contribution: Contribution) -> tuple[Grafts, Layout]:
    """Return what a model carries whose one pack is trained, and its layout with the pack's factors beside their layers.

    Raises:
        UsageError: the pack holds no factors of linear layers.
    """
    names = trainable_names(model, layout, contribution)
    wanted = replace(wanted, trained=names, frozen=tuple(trained_names(model)))
    return wanted, train_beside(model, layout, names)
