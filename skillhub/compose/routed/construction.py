"""Construction: which executor computes what of which pack, and the sites that do it; a model is read here and never changed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any, TypeAlias

import torch
from torch import nn

from skillhub.compose.merging import Contribution
from skillhub.compose.routed.batches import Identity
from skillhub.compose.routed.codereads import reader_of, reads_itself
from skillhub.compose.routed.factors import Factors, read_factors
from skillhub.compose.routed.siblings import SIDE_BY_SIDE, Siblings, Stacks
from skillhub.compose.routed.sites import Site
from skillhub.compose.routed.weights import PackKey, PackWeights
from skillhub.errors import UsageError
from skillhub.interop.modules import is_transposed
from skillhub.layout import Slot, ViewSlot

EXECUTORS = ("auto", "grouped", "factored")
"""``factored``: whatever is stored as factors; ``auto``: where that computes little; ``grouped``: nothing. The rest runs in groups."""

FACTORED_SHARE = 1 / 8
"""Under ``auto``, factors may have at most such a part of their weight's elements: every row pays for all packs of its batch."""

LEAN_SHARE = 1 / 2
"""The same where memory is short: factors are kept in fp32, so of weights in bf16 they take less up to here."""

STACKS_SHARE = 1
"""Mixed batches lay factors side by side, for each set of packs anew; of that at most so many times the factors' bytes are kept."""

KnownFactors: TypeAlias = Mapping[tuple[PackKey, str], Factors]
"""(Which pack with which weight, path of a linear module) → what it adds there."""

_BIAS_METHODS, _BIAS_TABLE = ("compute_bias", "compute_position_bias"), "relative_attention_bias"
"""T5, MPNet and their relatives look up relative positions, which have no rows: the method around that has."""


@dataclass(frozen=True, eq=False)
class User:
    """A module that has a parameter as its own.

    Attributes:
        path: the module's qualified name.
        module: the module.
        name: the parameter's name in it.
    """

    path: str
    module: nn.Module
    name: str


@dataclass(eq=False)
class Plan:
    """What is computed how.

    Attributes:
        users: qualified name of a parameter that packs change → the modules that have it: several where it is tied.
        factors: (pack, path of a linear module) → what the pack adds there.
        dense: (pack, qualified name of a parameter) of all other changes.
        whole: the same of changes by factors, whose weights are to be in memory besides, for batches of one pack.
    """

    users: Mapping[str, Sequence[User]]
    factors: dict[tuple[int, str], Factors] = field(default_factory=dict)
    dense: set[tuple[int, str]] = field(default_factory=set)
    whole: set[tuple[int, str]] = field(default_factory=set)

    @property
    def kept(self) -> list[tuple[int, str]]:
        """(pack, parameter) of all weights that are in memory, sorted."""
        return sorted(self.dense | self.whole)

    @property
    def stack_bytes(self) -> int:
        """Return the bytes that factors may take once more, side by side for mixed batches."""
        return STACKS_SHARE * 4 * sum(one.elements for one in self.factors.values())

    def factor_bytes(self, pack: int) -> int:
        """Return the bytes of a pack's factors, which are kept in fp32."""
        kept = [found for (of, _), found in self.factors.items() if of == pack]
        return sum(4 * one.elements for one in kept)


def plan_sites(
    model: nn.Module,
    weights: PackWeights,
    executor: str,
    known: KnownFactors | None = None,
    *,
    saves_memory: bool = False,
) -> Plan:
    """Decide for every pack and parameter how it is computed.

    Args:
        model: the model.
        weights: of the packs.
        executor: one of :data:`EXECUTORS`.
        known: factors that were read before.
        saves_memory: whether ``auto`` is to take less memory, at the price of time.

    Raises:
        UsageError: a changed parameter belongs to no module, or to one whose rows cannot be told apart.
        IntegrityError: a pack's factors are damaged.
    """
    plan, known = Plan(parameter_users(model, weights)), known or {}
    share = inf if executor == "factored" else LEAN_SHARE if saves_memory else FACTORED_SHARE
    for pack, one in enumerate(weights.contributions):
        for parameter in plan.users:
            if weights.changes(pack, parameter):
                plan.dense.add((pack, parameter))
        if executor != "grouped":
            _factor(plan, weights, pack, one, known, share)
    return plan


def packs_beside_text(model: Any, plan: Plan) -> frozenset[int]:
    """Return the packs that change modules outside of the part that reads and writes text, such as those for images."""
    ends = [
        getattr(model, name, lambda: None) for name in ("get_decoder", "get_input_embeddings", "get_output_embeddings")
    ]
    try:
        parts = [end() for end in ends]
    except (AttributeError, NotImplementedError):  # models without token embeddings
        return frozenset()
    inner = {id(module) for part in parts if part is not None for module in part.modules()}
    outside = {
        (name, user.path) for name, users in plan.users.items() for user in users if id(user.module) not in inner
    }
    names, paths = {name for name, _ in outside}, {path for _, path in outside}
    return frozenset(pack for pack, name in plan.dense if name in names) | frozenset(
        pack for pack, path in plan.factors if path in paths
    )


def parameter_users(model: nn.Module, weights: PackWeights) -> dict[str, list[User]]:
    """Return the modules of every parameter that some pack changes."""
    wanted = {
        parameter: model.get_parameter_or_buffer(parameter)  # type: ignore[operator]
        for parameter in weights.families
        if any(weights.changes(pack, parameter) for pack in range(len(weights.contributions)))
    }
    names = {id(tensor): parameter for parameter, tensor in wanted.items()}
    found: dict[str, list[User]] = {parameter: [] for parameter in wanted}
    modules = dict(model.named_modules())
    for path, module in modules.items():
        for name, tensor in {**module._parameters, **module._buffers}.items():
            if tensor is not None and id(tensor) in names:
                reader, inner = reader_of(modules, path, name)
                found[names[id(tensor)]].append(User(reader, modules[reader], inner))
    for parameter in wanted:
        found[parameter] = users = _without_idle(found[parameter])
        if not users or any(user.module is model for user in users):
            raise UsageError(
                f"{parameter} belongs to no inner module, so it cannot differ from row to row.",
                hint="Graft with mode='fused'.",
                tensor=parameter,
            )
    return found


def _without_idle(users: Sequence[User]) -> list[User]:
    """Return users without modules that only have a name for what a module in them uses, as heads of masked models have for a bias."""

    def is_idle(user: User) -> bool:
        inside = f"{user.path}." if user.path else ""
        is_above = any(other is not user and other.path.startswith(inside) for other in users)
        return is_above and not reads_itself(user.module, user.name)

    return [user for user in users if not is_idle(user)]


def _factor(
    plan: Plan, weights: PackWeights, pack: int, contribution: Contribution, known: KnownFactors, share: float
) -> None:
    """Move what is stored as factors of linear modules from the plan's dense changes to its factors."""
    by_module: dict[str, dict[str, str]] = defaultdict(dict)
    modules: dict[str, nn.Module] = {}
    changes = [users for parameter, users in plan.users.items() if (pack, parameter) in plan.dense]
    shared = {
        user.path for users in changes if len(users) > 1 for user in users
    }  # these run with all of the pack's weights
    for parameter, users in plan.users.items():
        if (
            (pack, parameter) in plan.dense
            and users[0].path not in shared
            and is_transposed(users[0].module) is not None
        ):
            by_module[users[0].path][users[0].name] = parameter
            modules[users[0].path] = users[0].module
    for path, changed in by_module.items():
        present = known.get((weights.key_of(pack), path))
        found = _module_factors(weights, contribution, modules[path], changed, present, share)
        if found is not None:
            plan.factors[pack, path] = found
            moved = {(pack, parameter) for parameter in changed.values()}
            plan.dense -= moved
            plan.whole |= moved


def _module_factors(
    weights: PackWeights,
    contribution: Contribution,
    module: nn.Module,
    changed: Mapping[str, str],
    known: Factors | None,
    share: float,
) -> Factors | None:
    """Return all that a pack adds to a linear module, or None if some of that is no factors (or too many)."""
    slots = {name: _only_slot(weights, parameter) for name, parameter in changed.items()}
    if any(slot is None for slot in slots.values()):
        return None
    sources = {name: weights.sources[slot.name] for name, slot in slots.items() if slot is not None}
    if any(contribution.delta.sets_values(source) for source in sources.values()):
        return None
    found = known or _read_module(contribution, module, sources)
    weight: torch.Tensor = module.weight  # type: ignore[assignment]
    return found if found is not None and len(found.right) * sum(weight.shape) <= share * weight.numel() else None


def _read_module(contribution: Contribution, module: nn.Module, sources: Mapping[str, str]) -> Factors | None:
    """Read what a pack adds to a linear module; None if that to its weight is no factors.

    Args:
        contribution: the pack.
        module: the module.
        sources: ``weight`` or ``bias``, or both → canonical name of the tensor whose differences it takes.
    """
    weight: torch.Tensor = module.weight  # type: ignore[assignment]
    transposed = bool(is_transposed(module))
    outputs, inputs = weight.shape[::-1] if transposed else weight.shape
    bias = None
    if "bias" in sources:
        amount = contribution.item.weight_at(sources["bias"], contribution.layers)
        bias = contribution.delta.decode(sources["bias"]) * amount
    if "weight" not in sources:
        return Factors(torch.zeros(0, outputs), torch.zeros(0, inputs), bias)
    found = read_factors(contribution, sources["weight"], transposed=transposed)
    return found and Factors(found.left, found.right, bias)


def _only_slot(weights: PackWeights, parameter: str) -> Slot | None:
    """Return the slot that is the whole of a parameter; None where checkpoints hold it otherwise."""
    family = weights.families[parameter]
    slot = weights.layout.slots[family.tensors[0]]
    is_whole = isinstance(slot, ViewSlot) and slot.is_whole
    return slot if is_whole and len(family.tensors) == len(family.parameters) == 1 else None


def build_sites(owner: Identity, model: nn.Module, plan: Plan, weights: PackWeights) -> list[Site]:
    """Return the sites of a plan, not yet in their places."""
    modules = dict(model.named_modules())
    parameters: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    dense: dict[tuple[str, str], set[int]] = defaultdict(set)
    whole: dict[tuple[str, str], set[int]] = defaultdict(set)
    by_parameter = [_by_parameter(changes) for changes in (plan.dense, plan.whole)]
    for parameter, users in plan.users.items():
        for user in users:
            place, name = _place(modules, user)
            parameters[place][name] = parameter
            dense[place] |= by_parameter[0][parameter]
            whole[place] |= by_parameter[1][parameter]
    sites = {}
    for place, names in parameters.items():
        path, method = place
        factors = {pack: found for (pack, of), found in plan.factors.items() if of == path}
        sites[place] = Site(
            owner, modules[path], method, names, weights, frozenset(dense[place]), factors, frozenset(whole[place])
        )
    stacks = Stacks(plan.stack_bytes)
    _join_siblings({path: site for (path, _), site in sites.items() if site.factors}, stacks)
    return list(sites.values())


def _by_parameter(changes: set[tuple[int, str]]) -> dict[str, set[int]]:
    found: dict[str, set[int]] = defaultdict(set)
    for pack, parameter in changes:
        found[parameter].add(pack)
    return found


def _place(modules: Mapping[str, nn.Module], user: User) -> tuple[tuple[str, str], str]:
    """Return path and method of the site for a parameter, and the parameter's name from there."""
    parent, _, child = user.path.rpartition(".")
    methods = [method for method in _BIAS_METHODS if child == _BIAS_TABLE and hasattr(modules[parent], method)]
    if methods:
        return (parent, methods[0]), f"{child}.{user.name}"
    return (user.path, "forward"), user.name


def _join_siblings(sites: Mapping[str, Site], stacks: Stacks) -> None:
    """Let the linear modules of one parent that read the same input share their right factors."""
    parents = {path.rpartition(".")[0] for path in sites}
    for parent in parents:
        for names in SIDE_BY_SIDE:
            paths = [f"{parent}.{name}" if parent else name for name in names]
            together = [sites[path] for path in paths if path in sites]
            siblings = Siblings(together, stacks)
            for site in together:
                site.siblings = siblings
    for site in sites.values():
        site.siblings = site.siblings or Siblings([site], stacks)
