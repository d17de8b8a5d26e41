"""Grafting: packs onto a model in memory, and out of it again, bit for bit.

A grafted model carries the recipe and the original values of the tensors that packs changed. Every change, adding a pack or taking
one out, is computed from those originals and all packs that remain, never by adding to or subtracting from what is there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from skillhub.compose.compatibility import check_dtypes, check_packs, common_fingerprints, open_contributions
from skillhub.compose.declarations import repository_of, tell_declared_bases
from skillhub.compose.merging import Contribution, changed_names, merge_tensor
from skillhub.compose.recipes import (
    EnvironmentSource,
    PackSource,
    Recipe,
    WeightedPack,
    make_recipe,
)
from skillhub.compose.schedules import Amount
from skillhub.compose.selection import grafted_digest
from skillhub.compose.verification import verify_base
from skillhub.errors import UsageError
from skillhub.interop.adapterdeltas import Target
from skillhub.interop.modules import modules_of
from skillhub.layout import Layout, Slot, fingerprint_slots, layout_of
from skillhub.progress import Notice, Progress

_STATE = "_skillhub_grafts"


@dataclass(frozen=True)
class Grafts:
    """What a grafted model carries, as its attribute ``_skillhub_grafts``.

    Attributes:
        recipe: the packs that are grafted, and how.
        fingerprint: of the base that the model is; None where only adapters are grafted, which do not say.
        originals: canonical name → the tensor before any pack changed it, on the CPU.
        repeats: canonical name of an untied copy of another tensor → the other's. A fingerprint leaves copies out and packs
            do not mention them, so they take what the other takes.
    """

    recipe: Recipe
    fingerprint: str | None
    originals: Mapping[str, torch.Tensor]
    repeats: Mapping[str, str]


def graft(
    model: nn.Module,
    packs: Sequence[PackSource],
    *,
    mode: str = "fused",
    method: str = "linear",
    weights: Sequence[Amount] | None = None,
    densities: Sequence[Amount] | None = None,
    options: Mapping[str, Amount] | None = None,
    seed: int = 0,
    verify: str = "auto",
    trust_base: bool = False,
    rounding: str = "auto",
    environment: EnvironmentSource | None = None,
    progress: Progress | None = None,
    notice: Notice | None = None,
) -> nn.Module:
    """Graft packs onto a model of transformers; on an error the model stays exactly as it was.

    Every tensor becomes base + merged delta, summed in fp32 and rounded once into the parameter's dtype. Parameters stay the same
    objects: ties, views, ``requires_grad``, training mode and device do not change, and untouched tensors are not written. Packs may
    be added by further calls with the same method; the result depends on the set of packs and weights alone. The originals of the
    changed tensors are kept in CPU memory; while packs are added to a grafted model, so are its present values.

    ``save_pretrained`` of a grafted model writes the grafted weights; a deep copy is a grafted model of its own.

    Args:
        model: the base model the packs were made for.
        packs: installed names, folders or opened packs, and adapters of peft; at least one.
        mode: ``fused``; routing per input is not in this version.
        method: ``linear`` or ``ties``.
        weights: one per pack: a number, a list of numbers over the layers, or patterns of names with either; 1 by default.
        densities: one per pack, for ``ties``; 1 by default.
        options: what else the method is told, by name; ``skillhub.compose.methods`` has them.
        seed: of the random masks of methods that drop elements at random.
        verify: ``full`` hashes all weights of the model, ``sample`` some; ``auto`` samples over 8 GB.
        trust_base: skip hashing (names and shapes are still checked) when you know that the model is the packs' base.
        rounding: ``auto`` (to nearest where the packs hold a tensor exactly, else stochastic, seeded by packs and tensor name),
            ``nearest`` or ``stochastic``.
        environment: where names are looked up: an environment or its folder; the per-user environments by default.
        progress: called with (``tensors``, done, all).
        notice: told what could not be verified; by default that is logged.

    Returns:
        The same module.

    Raises:
        UsageError: packs, weights or methods do not go together, or the model cannot take them in memory.
        WrongBaseError: the model is not the packs' base; nothing was touched.
        NotFoundError: a pack does not exist.
        IntegrityError: a pack's file is damaged.
    """
    _check_mode(mode)
    layout = layout_of(model)
    state = _state_of(model)
    originals = state.originals if state else {}
    recipe = make_recipe(
        packs,
        method=method,
        weights=weights,
        densities=densities,
        options=options,
        seed=seed,
        rounding=rounding,
        environment=environment,
        fingerprint=lambda: fingerprint_slots(layout, originals).fingerprint,
    )
    wanted = recipe
    if state:
        recipe = state.recipe.extended(recipe)
    fingerprint = verify_base(
        model,
        layout,
        recipe,
        common_fingerprints(recipe),
        originals=originals,
        verify=verify,
        trust_base=trust_base,
    )
    repeats = state.repeats if state else layout.repeats()
    contributions = open_contributions(
        recipe, fingerprint, layout.names, lambda: _target(model, layout, originals, repeats)
    )
    check_packs(contributions, {name: tuple(slot.shape) for name, slot in layout.slots.items()}, in_memory=True)
    check_dtypes(contributions, layout)
    if wanted.adapters:
        tell_declared_bases(wanted, repository_of(model), notice)
    _apply(model, layout, Grafts(recipe, fingerprint, {}, repeats), contributions, progress)
    return model


def ungraft(model: nn.Module, pack: PackSource | None = None, *, progress: Progress | None = None) -> nn.Module:
    """Take packs out of a model: the bytes of before come back.

    Args:
        model: a model with grafts.
        pack: the one to take out (name, folder or opened pack); what remains is computed from the originals again. None takes out
            all, for which no pack is read.
        progress: called with (``tensors``, done, all).

    Returns:
        The same module.

    Raises:
        UsageError: no pack is grafted, or a name means several.
        NotFoundError: this pack is not grafted.
        IntegrityError: a remaining pack's file is damaged; the model stays as it was.
    """
    state = _state_of(model)
    if state is None:
        raise UsageError("The model has no grafted pack.", hint="Graft one with skillhub.graft(model, [pack]).")
    recipe = Recipe(()) if pack is None else state.recipe.without(grafted_digest(state.recipe, pack))
    layout = layout_of(model)
    contributions = open_contributions(
        recipe, state.fingerprint, layout.names, lambda: _target(model, layout, state.originals, state.repeats)
    )
    _apply(model, layout, replace(state, recipe=recipe), contributions, progress)
    return model


def grafted_packs(model: nn.Module) -> tuple[WeightedPack, ...]:
    """Return the packs that are grafted onto a model, with their weights and densities, sorted by digest."""
    state = _state_of(model)
    return state.recipe.packs if state else ()


def _target(
    model: nn.Module, layout: Layout, originals: Mapping[str, torch.Tensor], repeats: Mapping[str, str]
) -> Target:
    """Return what adapters are applied to: the model, with the tensors that it had before any pack."""

    def base(name: str) -> torch.Tensor:
        return originals[name] if name in originals else layout.slots[name].read()

    return Target(modules_of(model, layout), base, repeats)


def _state_of(model: nn.Module) -> Grafts | None:
    state = model.__dict__.get(_STATE)
    return state if isinstance(state, Grafts) else None


def _apply(
    model: nn.Module,
    layout: Layout,
    wanted: Grafts,
    contributions: Sequence[Contribution],
    progress: Progress | None,
) -> None:
    """Write every tensor of the composition, and the originals of what no pack changes any more; all or nothing."""
    state = _state_of(model)
    originals = state.originals if state else {}
    sources = _sources(changed_names(contributions), wanted.repeats)
    names = sorted(sources.keys() | originals.keys())
    _check_unaltered(layout, names, originals)
    kept: dict[str, torch.Tensor] = {}
    undo: list[tuple[Slot, torch.Tensor]] = []
    try:
        for done, name in enumerate(names, start=1):
            slot = layout.slots[name]
            present = slot.read().to("cpu", copy=True)
            base = originals.get(name, present)
            value = base.to(slot.dtype)
            if name in sources:
                kept[name] = base
                value = merge_tensor(wanted.recipe, contributions, sources[name], base, slot.dtype)
            undo.append((slot, present))
            slot.write(value)
            if progress:
                progress("tensors", done, len(names))
    except BaseException:
        for slot, present in reversed(undo):
            slot.write(present)
        raise
    if wanted.recipe.packs:
        setattr(model, _STATE, replace(wanted, originals=kept))
    elif state:
        delattr(model, _STATE)


def _check_unaltered(layout: Layout, names: Sequence[str], originals: Mapping[str, torch.Tensor]) -> None:
    """Refuse a model that lost or resized tensors after packs were grafted: the originals have no place in it."""
    lost = [name for name in names if name not in layout.slots]
    if lost:
        raise UsageError(
            f"The model's tensors changed since packs were grafted: it has no {lost[0]} any more.",
            hint="Load the base model again, and change it after the packs were taken out.",
            tensor=lost[0],
        )
    for name, original in originals.items():
        before, now = list(original.shape), list(layout.slots[name].shape)
        if before != now:
            raise UsageError(
                f"The model was resized since packs were grafted: {name} was {before} and is {now}.",
                hint="Resize it back (model.resize_token_embeddings with the number of rows before), then try again; "
                "or load the base model again.",
                tensor=name,
            )


def _sources(changed: Sequence[str], repeats: Mapping[str, str]) -> dict[str, str]:
    """Return canonical name of each tensor to write → name of the tensor whose deltas it takes."""
    sources = {alias: original for alias, original in repeats.items() if original in changed}
    return {**sources, **{name: name for name in changed}}


def _check_mode(mode: str) -> None:
    if mode == "routed":
        raise UsageError(
            "Routed grafting (a pack per input) is not in this version of skillhub.",
            hint="Use mode='fused', which adds the packs to the weights.",
        )
    if mode != "fused":
        raise UsageError(f"There is no mode {mode!r}.", hint="Use mode='fused'.")
