"""What a grafted model carries, and how its weights come to be what that says: all of them, or none."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import nn

from skillhub.compose.alterations import Mark, refuse_altered, take_marks
from skillhub.compose.merging import (
    Contribution,
    changed_names,
    contributing,
    merge_tensor,
    merged_packs,
    rounding_mode,
)
from skillhub.compose.recipes import Recipe, WeightedPack, make_recipe
from skillhub.compose.sidepaths import SideSlot, guard_saving
from skillhub.compose.trainable import require_gradients
from skillhub.compose.workers import made_ahead, worker_count
from skillhub.errors import UsageError
from skillhub.layout import Layout, Slot
from skillhub.progress import Progress

_STATE = "_skillhub_grafts"

Key: TypeAlias = tuple[Any, ...]


@dataclass(frozen=True)
class GraftedPack(WeightedPack):
    """One pack on a model.

    Attributes:
        enabled: whether it has an effect now.
    """

    enabled: bool = True


@dataclass(frozen=True, eq=False)
class Grafts:
    """What a grafted model carries, as its attribute ``_skillhub_grafts``.

    Attributes:
        recipe: the packs that are grafted, and how.
        fingerprint: of the base that the model is; None where only adapters are grafted, which do not say.
        repeats: canonical name of an untied copy of another tensor → the other's. A fingerprint leaves copies out and packs
            do not mention them, so they take what the other takes.
        disabled: digests of the packs that are switched off.
        originals: canonical name → the tensor before any pack changed it, on the CPU.
        keys: canonical name → all that the tensor's value was computed from, beside its original.
        marks: parameters as they were left, by qualified name.
        trained: canonical names of the tensors whose deltas are parameters beside their layers.
        frozen: qualified names of the parameters that required gradients before others were trained.
    """

    recipe: Recipe
    fingerprint: str | None
    repeats: Mapping[str, str]
    disabled: frozenset[str] = frozenset()
    originals: Mapping[str, torch.Tensor] = field(default_factory=dict)
    keys: Mapping[str, Key] = field(default_factory=dict)
    marks: Mapping[str, Mark] = field(default_factory=dict)
    trained: frozenset[str] = frozenset()
    frozen: tuple[str, ...] = ()

    @cached_property
    def active(self) -> Recipe:
        """The recipe without the packs that are switched off.

        Raises:
            UsageError: its method cannot do with the packs that are left.
        """
        return check_recipe(
            replace(self.recipe, packs=tuple(one for one in self.recipe.packs if one.pack.digest not in self.disabled))
        )

    @property
    def packs(self) -> tuple[GraftedPack, ...]:
        """The packs, sorted by digest."""
        return tuple(
            GraftedPack(one.pack, one.weight, one.density, one.pack.digest not in self.disabled)
            for one in self.recipe.packs
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Grafts:
        """Return what a copy of the model carries: marks of its own parameters, all else is shared as nobody changes it."""
        made = replace(self, marks={name: mark.copied(memo) for name, mark in self.marks.items()})
        memo[id(self)] = made
        return made


def state_of(model: nn.Module) -> Grafts | None:
    """Return what a grafted model carries; None for other models."""
    state = model.__dict__.get(_STATE)
    return state if isinstance(state, Grafts) else None


def grafts_of(model: nn.Module) -> Grafts:
    """Return what a grafted model carries.

    Raises:
        UsageError: no pack is grafted.
    """
    state = state_of(model)
    if state is None:
        raise UsageError("The model has no grafted pack.", hint="Graft one with skillhub.graft(model, [pack]).")
    return state


def set_state(model: nn.Module, state: Grafts | None) -> None:
    """Let a model carry a state, or none."""
    if state is None:
        model.__dict__.pop(_STATE, None)
    else:
        model.__dict__[_STATE] = state


def check_recipe(recipe: Recipe) -> Recipe:
    """Return a recipe that was put together from checked parts, after its method was asked whether it takes them.

    Raises:
        UsageError: it does not; a recipe without packs is always right.
    """
    if not recipe.packs:
        return recipe
    items = recipe.packs
    return make_recipe(
        [item.pack for item in items],
        method=recipe.method,
        weights=[item.weight for item in items],  # type: ignore[misc]  # schedules are taken as they are
        densities=[item.density for item in items],  # type: ignore[misc]
        options=recipe.options,  # type: ignore[arg-type]
        seed=recipe.seed,
        rounding=recipe.rounding,
    )


def apply(
    model: nn.Module,
    layout: Layout,
    wanted: Grafts,
    contributions: Sequence[Contribution],
    progress: Progress | None,
    *,
    force: bool = False,
) -> None:
    """Write every tensor of a composition, and the originals of what no pack changes any more; all or nothing.

    Tensors that were computed from the same packs, weights and options before are left as they are: they would get the same bits.

    Args:
        model: the model.
        layout: its tensors by canonical name.
        wanted: what it is to carry; originals, keys and marks are those of the present state, whatever it says.
        contributions: the packs of ``wanted.active``.
        progress: called with (``tensors``, done, all).
        force: overwrite also what somebody else changed since packs were grafted.

    Raises:
        UsageError: the model's tensors changed since packs were grafted.
        IntegrityError: a pack's file is damaged.
    """
    state = state_of(model)
    originals = state.originals if state else {}
    sources = _sources(changed_names(contributions), wanted.repeats)
    _check_present(layout, sources.keys() | originals.keys(), originals)
    if state and not force:
        refuse_altered(layout, state.marks)
    keys = {
        name: _key(wanted.active, contributions, source, layout.slots[name].dtype) for name, source in sources.items()
    }
    before = state.keys if state and not force else {}
    stale = sorted(name for name in sources.keys() | originals.keys() if keys.get(name, ()) != before.get(name))

    def compose(name: str) -> _Composed:
        return _compose(layout.slots[name], originals.get(name), wanted.active, contributions, sources.get(name))

    made = made_ahead(compose, stale, lambda name: math.prod(layout.slots[name].shape), worker_count(contributions))
    with _Undo(model, layout, state, wanted.frozen) as undo, closing(made):
        require_gradients(model, wanted.frozen, not wanted.trained or not wanted.recipe.packs)
        kept = {name: original for name, original in originals.items() if name in sources and name not in stale}
        for done, (name, composed) in enumerate(zip(stale, made, strict=True), start=1):
            base = _write(layout.slots[name], composed, undo)
            if name in sources:
                kept[name] = base
            if progress:
                progress("tensors", done, len(stale))
        guard_saving(model, layout)
        finished = replace(wanted, originals=kept, keys=keys, marks=take_marks(layout, kept))
        set_state(model, finished if wanted.recipe.packs else None)


@dataclass(frozen=True, eq=False)
class _Composed:
    """A slot's new content, with its present one and what it was before any pack."""

    value: Any
    present: Any
    base: torch.Tensor


def _compose(
    slot: Slot,
    original: torch.Tensor | None,
    recipe: Recipe,
    contributions: Sequence[Contribution],
    source: str | None,
) -> _Composed:
    """Compute one tensor; without a ``source`` no pack changes it."""
    if isinstance(slot, SideSlot):
        beside = {} if source is None else slot.compose(recipe, contributions, source)
        return _Composed(beside, slot.held(), slot.read())
    present = slot.read().to("cpu", copy=True)
    base = present if original is None else original
    value = base.to(slot.dtype)
    if source is not None:
        value = merge_tensor(recipe, contributions, source, base, slot.dtype)
    return _Composed(value, present, base)


def _write(slot: Slot, composed: _Composed, undo: _Undo) -> torch.Tensor:
    """Write one tensor, and return what it was before any pack."""
    undo.remember(slot, composed.present)
    slot.put(composed.value) if isinstance(slot, SideSlot) else slot.write(composed.value)
    return composed.base


class _Undo:
    """Gives a model back the tensors and the state of before where the block does not end well."""

    def __init__(self, model: nn.Module, layout: Layout, state: Grafts | None, frozen: Sequence[str]) -> None:
        self._model, self._layout, self._state, self._frozen = model, layout, state, frozen
        self._written: list[tuple[Slot, Any]] = []

    def remember(self, slot: Slot, present: Any) -> None:
        """Note what a slot holds that is written next."""
        self._written.append((slot, present))

    def __enter__(self) -> _Undo:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            return
        while True:
            try:
                self._restore()
                return
            except KeyboardInterrupt:  # a second one waits until the model is whole again
                continue

    def _restore(self) -> None:
        while self._written:
            slot, present = self._written[-1]
            slot.put(present) if isinstance(slot, SideSlot) else slot.write(present)
            self._written.pop()
        state = self._state
        require_gradients(self._model, self._frozen, state is None)
        guard_saving(self._model, self._layout)
        set_state(self._model, state and replace(state, marks=take_marks(self._layout, state.originals)))


def _key(recipe: Recipe, contributions: Sequence[Contribution], name: str, dtype: torch.dtype) -> Key:
    """Return all that :func:`skillhub.compose.merging.merge_chunks` computes a tensor from, beside the base."""
    members = contributing(contributions, name)
    if members[0].delta.sets_values(name):
        return (dtype, members[0].delta.entry(name).digest)
    taking_part = merged_packs(recipe, contributions, name)
    amounts = tuple(
        (one.item.pack.digest, one.item.weight_at(name, one.layers), one.item.density_at(name, one.layers))
        for one in taking_part
    )
    options = tuple(sorted(recipe.options_at(name, members[0].layers).items()))
    mode = rounding_mode(recipe, members, name)
    noise = recipe.digests if mode == "stochastic" and dtype in (torch.bfloat16, torch.float16) else ()
    return (dtype, recipe.method, recipe.seed, options, amounts, mode, noise)


def _sources(changed: Iterable[str], repeats: Mapping[str, str]) -> dict[str, str]:
    """Return canonical name of each tensor to write → name of the tensor whose deltas it takes."""
    names = set(changed)
    sources = {alias: original for alias, original in repeats.items() if original in names}
    return {**sources, **{name: name for name in names}}


def _check_present(layout: Layout, names: Iterable[str], originals: Mapping[str, torch.Tensor]) -> None:
    """Refuse a model that lost or resized tensors after packs were grafted: the originals have no place in it."""
    lost = sorted(name for name in names if name not in layout.slots)
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
