"""Grafting packs onto a model so that each row of a batch gets its own."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from skillhub.compose.compatibility import check_dtypes, check_packs, common_fingerprints, open_contributions
from skillhub.compose.declarations import repository_of, tell_declared_bases
from skillhub.compose.layouts import plain_model
from skillhub.compose.merging import Contribution
from skillhub.compose.modelbases import ModelBase
from skillhub.compose.packsources import EnvironmentSource, PackSource
from skillhub.compose.recipes import Recipe, make_recipe
from skillhub.compose.routed.batches import Identity
from skillhub.compose.routed.choices import as_router, pack_labels
from skillhub.compose.routed.construction import (
    EXECUTORS,
    KnownFactors,
    Plan,
    build_sites,
    packs_beside_text,
    plan_sites,
)
from skillhub.compose.routed.entries import Entry
from skillhub.compose.routed.rules import Rules
from skillhub.compose.routed.sites import Site
from skillhub.compose.routed.states import Routing, build_entries, replace_routing, routing_of
from skillhub.compose.routed.weights import PackWeights, check_room, parameter_families, readable_bytes
from skillhub.compose.schedules import Amount
from skillhub.compose.verification import verify_base
from skillhub.compose.workers import made_ahead, worker_count
from skillhub.devices import available_bytes
from skillhub.errors import UsageError
from skillhub.interop.adapterdeltas import Target
from skillhub.interop.modules import modules_of
from skillhub.layout import Layout, fingerprint_slots, layout_of
from skillhub.packdeltas import PackDelta
from skillhub.packs import Pack, check_file
from skillhub.progress import Notice, Progress
from skillhub.routing.decisions import Router

MEMORIES = ("auto", "weights", "factors", "codes")
"""What of the packs is kept in memory."""

_FUSED = "_skillhub_grafts"

_log = logging.getLogger(__name__)


def graft_routed(
    model: nn.Module,
    packs: Sequence[PackSource],
    *,
    router: Any = "auto",
    weights: Sequence[Amount] | None = None,
    rounding: str = "auto",
    executor: str = "auto",
    memory: str | int = "auto",
    verify: str = "auto",
    trust_base: bool = False,
    environment: EnvironmentSource | None = None,
    progress: Progress | None = None,
    notice: Notice | None = None,
) -> nn.Module:
    """Let each row of a batch have one of the packs, or none, as a router decides; on an error the model stays as it was.

    The model's own weights are not changed. ``skillhub.compose.routed`` says when a row is decided, and what keeps the decision.

    Args:
        model: the base model the packs were made for.
        packs: as for grafting fused; at least one. Those already routed stay.
        router: decides for all packs that are then routed: ``auto`` by their routing cards; a router, or a function from
            :class:`skillhub.routing.decisions.Prefill` to a decision or a list of names and None; or labels, as a list (one per row)
            or a mapping (number of a row → name).
        weights: one per pack; 1 by default.
        rounding: of weights that are kept, as for grafting fused.
        executor: ``factored`` computes all that is stored as factors of linear modules beside the base's weights, ``grouped``
            nothing; ``auto`` what is of low rank. What is not computed from factors runs once per group of rows with one pack.
        memory: ``weights`` keeps the packs' weights in memory, in the model's dtype; how much that is is told before it is taken.
            Batches whose rows agree then run as fast as the base. ``factors`` keeps those weights only that are not computed from
            factors, and ``auto`` executes from factors whatever takes less memory so, which is slower; ``auto`` is ``weights`` where that takes at most half of the memory that is free, else ``factors``.
            ``codes`` decodes weights whenever they are used, and a number keeps so many bytes of those used last.
        verify: as for grafting fused.
        trust_base: likewise.
        environment: where names are looked up.
        progress: called with (``tensors``, done, all).
        notice: told how much memory is taken and what could not be verified; by default that is logged.

    Returns:
        The same module.

    Raises:
        UsageError: the packs or the router do not fit the model, there is not enough memory, or fused packs are on it.
        WrongBaseError: the model is not the packs' base.
        NotFoundError: a pack does not exist.
        IntegrityError: a pack's file is damaged.
    """
    _check_options(executor, memory)
    given, model = model, plain_model(model)
    _check_model(model)
    present = routing_of(model)
    layout = layout_of(model)
    recipe = wanted = make_recipe(
        packs,
        weights=weights,
        rounding=rounding,
        environment=environment,
        fingerprint=lambda: fingerprint_slots(layout).fingerprint,
    )
    if present:
        recipe = present.recipe.extended(wanted)
    fingerprint = verify_base(
        model, layout, recipe, common_fingerprints(recipe), originals={}, verify=verify, trust_base=trust_base
    )
    options = {"router": router, "executor": executor, "memory": memory}
    made = build_routing(model, layout, recipe, fingerprint, options, progress=progress, notice=notice)
    if wanted.adapters:
        tell_declared_bases(wanted, repository_of(model), notice)
    replace_routing(model, made)
    return given


def build_routing(
    model: nn.Module,
    layout: Layout,
    recipe: Recipe,
    fingerprint: str | None,
    options: Mapping[str, Any],
    *,
    router: Router | None = None,
    progress: Progress | None = None,
    notice: Notice | None = None,
) -> Routing:
    """Make all that a routed model needs; the model is only read, and what it carries now is used again where it fits.

    Args:
        model: the model.
        layout: its layout.
        recipe: the packs.
        fingerprint: of the base; None where nothing says it.
        options: ``router``, ``executor`` and ``memory``, as :func:`graft_routed` takes them.
        router: one that is there already for these packs; None makes that of the options.
        progress: called with (``tensors``, done, all) for weights that are to be in memory and are not yet.
        notice: told how much memory is taken and how rows are decided; None logs it.

    Raises:
        SkillhubError: as :func:`graft_routed`.
    """
    present, repeats = routing_of(model), layout.repeats()
    contributions = _open(model, layout, recipe, fingerprint, repeats)
    store = PackWeights(
        layout,
        parameter_families(layout),
        [replace(recipe, packs=(item,)) for item in recipe.packs],
        contributions,
        {name: repeats.get(name, name) for name in layout.slots},
        _limit(options["memory"]),
        present.weights if present else None,
    )
    plan, memory = _plan(model, store, options, present.factors if present else {})
    labels = pack_labels(contributions)
    if store.limit is None:
        _take_memory(model, plan, store, labels, progress, notice)
    owner, off = (present.rules.owner, present.disabled) if present else (Identity(), frozenset())
    disabled = frozenset(label for label, digest in zip(labels, recipe.digests, strict=True) if digest in off)
    deltas = {label: one.delta for label, one in zip(labels, contributions, strict=True)}
    decides = router or as_router(options["router"], deltas, model, notice)
    rules = Rules(owner, model, decides, labels, disabled, packs_beside_text(model, plan))
    return Routing(
        rules,
        recipe,
        {**options, "memory": memory},
        fingerprint,
        store,
        build_sites(owner, model, plan, store),
        build_entries(rules),
        contributions,
        {(store.key_of(pack), path): found for (pack, path), found in plan.factors.items()},
    )


def _open(
    model: nn.Module, layout: Layout, recipe: Recipe, fingerprint: str | None, repeats: Mapping[str, str]
) -> list[Contribution]:
    """Open the packs of a recipe and check them; packs that the model has with the same weight are not read again."""
    present = routing_of(model)
    reusable = present.contributions if present and present.fingerprint == fingerprint else ()
    known = {one.item.pack.digest: one for one in reusable if isinstance(one.delta, PackDelta)}  # of no certain model
    lacking = [
        item
        for item in recipe.packs
        if item.pack.digest not in known or known[item.pack.digest].item.weight != item.weight
    ]
    modules = modules_of(model, layout)
    opened = open_contributions(
        replace(recipe, packs=tuple(lacking)),
        fingerprint,
        layout.names,
        lambda: Target(modules, lambda name: layout.slots[name].read(), repeats),
        ModelBase(layout, {}, repeats),
    )
    found = {one.item.pack.digest: one for one in (*known.values(), *opened)}
    contributions = [found[digest] for digest in recipe.digests]
    _check_contributions(contributions, layout)
    _check_files(opened)
    return contributions


def _plan(
    model: nn.Module, store: PackWeights, options: Mapping[str, Any], known: KnownFactors
) -> tuple[Plan, str | int]:
    """Return what is computed how, without weights that are not to be in memory, and what ``memory="auto"`` means here."""
    executor, memory = options["executor"], options["memory"]
    plan = plan_sites(model, store, executor, known, saves_memory=memory == "factors")
    if memory == "auto":
        left = available_bytes(next(model.parameters()).device)
        memory = "weights" if left is None or 2 * store.missing_bytes(plan.kept) <= left else "factors"
        if memory == "factors":
            plan = plan_sites(model, store, executor, known, saves_memory=True)
    if memory != "weights":
        plan.whole.clear()
    return plan, memory


def _take_memory(
    model: nn.Module,
    plan: Plan,
    store: PackWeights,
    labels: Sequence[str],
    progress: Progress | None,
    notice: Notice | None,
) -> None:
    """Say how much memory the packs take, check that it is there, and make their weights."""
    sizes = {
        label: store.bytes_of(one for one in plan.kept if one[0] == pack) + plan.factor_bytes(pack)
        for pack, label in enumerate(labels)
    }
    listed = ", ".join(f"{label} {readable_bytes(size)}" for label, size in sizes.items())
    more = f" Mixed batches take up to {readable_bytes(plan.stack_bytes)} more." if plan.factors else ""
    (notice or _log.warning)(
        f"Routing keeps {readable_bytes(sum(sizes.values()))} of the packs' weights beside the model: {listed}.{more}"
    )
    device = next(model.parameters()).device
    check_room(store.missing_bytes(plan.kept), device)
    missing = store.missing(plan.kept)
    made = made_ahead(
        lambda one: store.get(*one), missing, lambda one: store.bytes_of([one]), worker_count(store.contributions)
    )
    for done, _ in enumerate(made, start=1):
        if progress:
            progress("tensors", done, len(missing))


def _limit(memory: str | int) -> int | None:
    return memory if isinstance(memory, int) else 0 if memory == "codes" else None


def _check_options(executor: str, memory: str | int) -> None:
    if executor not in EXECUTORS:
        raise UsageError(f"There is no executor {executor!r}.", hint=f"Use one of: {', '.join(EXECUTORS)}.")
    is_count = isinstance(memory, int) and not isinstance(memory, bool) and memory >= 0
    if memory not in MEMORIES and not is_count:
        raise UsageError(
            f"memory={memory!r} is no way to keep weights.", hint=f"Use {', '.join(MEMORIES)} or a number of bytes."
        )


def _check_model(model: nn.Module) -> None:
    """Refuse models whose modules are not computed by their own forward."""
    if _FUSED in model.__dict__:
        raise UsageError(
            "Packs are fused on this model, so its weights are not those of the base.",
            hint="Ungraft them first, then graft all packs with mode='routed'.",
        )
    for path, module in model.named_modules():
        own = module.__dict__.get("forward")
        if own is not None and not isinstance(own, (Site, Entry)):
            raise UsageError(
                f"The forward of {path or 'the model'} was replaced, as accelerate does for models on several devices.",
                hint="Load the model onto one device, without a device_map.",
            )


def _check_contributions(contributions: Sequence[Contribution], layout: Layout) -> None:
    """Check each pack by itself: rows have one or another, so they need not agree."""
    shapes = {name: tuple(slot.shape) for name, slot in layout.slots.items()}
    for one in contributions:
        check_packs([one], shapes, in_memory=True)
        check_dtypes([one], layout)


def _check_files(contributions: Sequence[Contribution]) -> None:
    """Compare packs' files with their digests: factors are used as they are stored, and have no digests of their own."""
    for one in contributions:
        pack = one.item.pack
        if isinstance(one.delta, PackDelta) and isinstance(pack, Pack):
            for entry in one.delta.variant.files:
                check_file(pack.path_of(entry), entry)
