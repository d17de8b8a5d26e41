"""Grafting packs onto a model so that each row of a batch gets its own, and taking them out again."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from skillhub.compose.compatibility import check_dtypes, check_packs, common_fingerprints, open_contributions
from skillhub.compose.declarations import repository_of, tell_declared_bases
from skillhub.compose.layouts import plain_model
from skillhub.compose.merging import Contribution
from skillhub.compose.recipes import EnvironmentSource, PackSource, Recipe, WeightedPack, make_recipe
from skillhub.compose.routed.batches import Identity
from skillhub.compose.routed.choices import as_router, pack_labels
from skillhub.compose.routed.construction import EXECUTORS, Plan, build_sites, plan_sites
from skillhub.compose.routed.entries import Entry, Generate, Rules
from skillhub.compose.routed.sites import Site
from skillhub.compose.routed.weights import PackWeights, check_room, parameter_families, readable_bytes
from skillhub.compose.schedules import Amount
from skillhub.compose.selection import grafted_digest
from skillhub.compose.verification import verify_base
from skillhub.deltas import PackDelta
from skillhub.devices import available_bytes
from skillhub.errors import UsageError
from skillhub.interop.adapterdeltas import Target
from skillhub.interop.modules import modules_of
from skillhub.layout import Layout, fingerprint_slots, layout_of
from skillhub.packs import Pack, check_file
from skillhub.progress import Notice, Progress

MEMORIES = ("auto", "weights", "factors", "codes")
"""What of the packs is kept in memory."""

_STATE = "_skillhub_routing"
_FUSED = "_skillhub_grafts"

_log = logging.getLogger(__name__)


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
    """

    rules: Rules
    recipe: Recipe
    options: Mapping[str, Any]
    fingerprint: str | None
    weights: PackWeights
    sites: list[Site]
    entries: list[Entry | Generate]

    def __deepcopy__(self, memo: dict[int, Any]) -> Routing:
        """Return what the copied model carries; packs and their weights are shared, as nobody changes them."""
        made = copy.copy(self)
        memo[id(self)] = made
        made.rules = copy.deepcopy(self.rules, memo)
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
        packs: installed names, folders or opened packs, and adapters of peft; at least one. Those already routed stay.
        router: decides for all packs that are then routed: ``auto`` by their routing cards; a router, or a function from
            :class:`skillhub.routing.decisions.Prefill` to a decision or a list of names and None; or labels, as a list (one per row)
            or a mapping (number of a row → name).
        weights: one per pack; 1 by default.
        rounding: of weights that are kept, as for grafting fused.
        executor: ``factored`` computes all that is stored as factors of linear modules beside the base's weights, ``grouped``
            nothing; ``auto`` what is of low rank. What is not computed from factors runs once per group of rows with one pack.
        memory: ``weights`` keeps the packs' weights in memory, in the model's dtype; how much that is is told before it is taken.
            Batches whose rows agree then run as fast as the base. ``factors`` keeps those weights only that are not computed from
            factors; ``auto`` is ``weights`` where that takes at most half of the memory that is free, else ``factors``.
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
    made = _make(model, layout, recipe, fingerprint, options, progress, notice)
    if wanted.adapters:
        tell_declared_bases(wanted, repository_of(model), notice)
    replace_routing(model, made)
    return given


def ungraft_routed(model: nn.Module, pack: PackSource | None = None, *, progress: Progress | None = None) -> nn.Module:
    """Take a pack out of a routed model, or all of them: then the model has its own forward and ``generate`` back.

    While other packs stay, the router given to ``graft`` goes on to decide (``auto`` is set up anew for them); it may not choose the
    pack that left.

    Raises:
        UsageError: no pack is routed on the model, or a name means several.
        NotFoundError: this pack is not.
    """
    present = routing_of(model)
    if present is None:
        raise UsageError("No pack is routed on this model.", hint="Graft with mode='routed' first.")
    recipe = Recipe(()) if pack is None else present.recipe.without(grafted_digest(present.recipe, pack))
    if not recipe.packs:
        present.remove()
        return model
    base = plain_model(model)
    made = _make(base, layout_of(base), recipe, present.fingerprint, present.options, progress, None)
    replace_routing(base, made)
    return model


def routed_packs(model: nn.Module) -> tuple[WeightedPack, ...]:
    """Return the packs that are routed on a model, with their weights, sorted by digest."""
    present = routing_of(model)
    return present.recipe.packs if present else ()


def _make(
    model: nn.Module,
    layout: Layout,
    recipe: Recipe,
    fingerprint: str | None,
    options: Mapping[str, Any],
    progress: Progress | None,
    notice: Notice | None,
) -> Routing:
    """Make all that a routed model needs; the model is only read."""
    present = routing_of(model)
    repeats = layout.repeats()
    modules = modules_of(model, layout)
    contributions = open_contributions(
        recipe, fingerprint, layout.names, lambda: Target(modules, lambda name: layout.slots[name].read(), repeats)
    )
    _check_contributions(contributions, layout)
    known = present.weights if present else None
    store = PackWeights(
        layout,
        parameter_families(layout),
        [replace(recipe, packs=(item,)) for item in recipe.packs],
        contributions,
        {name: repeats.get(name, name) for name in layout.slots},
        _limit(options["memory"]),
        known,
    )
    plan = plan_sites(model, store, contributions, options["executor"])
    labels = pack_labels(contributions)
    _choose_memory(model, plan, store, options["memory"])
    if store.limit is None:
        _take_memory(model, plan, store, labels, progress, notice)
    owner = present.rules.owner if present else Identity()
    deltas = {label: one.delta for label, one in zip(labels, contributions, strict=True)}
    router = as_router(options["router"], deltas, model, notice)
    rules = Rules(owner, model, router, labels)
    sites = build_sites(owner, model, plan, store)
    entries = build_entries(rules)
    return Routing(rules, recipe, options, fingerprint, store, sites, entries)


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


def _choose_memory(model: nn.Module, plan: Plan, store: PackWeights, memory: str | int) -> None:
    """Leave out of a plan the weights that are not to be in memory beside their factors."""
    left = available_bytes(next(model.parameters()).device)
    fits = left is None or 2 * store.missing_bytes(plan.kept) <= left
    if memory != "weights" and not (memory == "auto" and fits):
        plan.whole.clear()


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
    (notice or _log.warning)(
        f"Routing keeps {readable_bytes(sum(sizes.values()))} of the packs' weights beside the model: {listed}."
    )
    device = next(model.parameters()).device
    check_room(store.missing_bytes(plan.kept), device)
    for done, (pack, parameter) in enumerate(plan.kept, start=1):
        store.get(pack, parameter)
        if progress:
            progress("tensors", done, len(plan.kept))


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
        pack = one.item.pack
        if isinstance(one.delta, PackDelta) and isinstance(pack, Pack):
            for (
                entry
            ) in one.delta.variant.files:  # factors are used as they are stored, and have no digests of their own
                check_file(pack.path_of(entry), entry)
