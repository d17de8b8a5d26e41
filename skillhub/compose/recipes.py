"""Recipes: which packs are composed, with which weights, by which method, rounded how. ``graft`` and ``fuse`` share them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, TypedDict

from skillhub.adapters import Adapter
from skillhub.compose.methods import MergeMethod, find_method
from skillhub.compose.packsources import AnyPack, EnvironmentSource, PackSource, find_pack
from skillhub.compose.schedules import Amount, Schedule, amount_at, amounts_in, read_amount
from skillhub.compose.tunedcheckpoints import TunedCheckpoint
from skillhub.errors import UsageError
from skillhub.packs import Pack

ROUNDINGS = ("auto", "nearest", "stochastic")
"""``auto``: to nearest where every pack that changes a tensor holds it exactly, else stochastic."""


WEIGHT_LIMIT = 1e6
"""Largest weight, of either sign."""


class Composition(TypedDict, total=False):
    """How packs are composed: the keyword arguments of :func:`make_recipe`, for functions that hand them on."""

    method: str
    weights: Sequence[Amount] | None
    densities: Sequence[Amount] | None
    options: Mapping[str, Amount] | None
    seed: int
    rounding: str
    environment: EnvironmentSource | None


@dataclass(frozen=True)
class WeightedPack:
    """One pack of a recipe.

    Attributes:
        pack: the pack, or an adapter, or a fine-tuned checkpoint.
        weight: factor of its delta; negative to unlearn it.
        density: share of its delta's elements that a trimming method keeps, over 0 and at most 1.

    Both may be schedules, which give a number for each tensor.
    """

    pack: AnyPack
    weight: float | Schedule = 1.0
    density: float | Schedule = 1.0

    def weight_at(self, name: str, layers: int) -> float:
        """Return the weight for a tensor of a model of so many layers; 0 where a schedule does not name it."""
        return amount_at(self.weight, name, layers, 0.0)

    def density_at(self, name: str, layers: int) -> float:
        """Return the density for a tensor of a model of so many layers; 1 where a schedule does not name it."""
        return amount_at(self.density, name, layers, 1.0)


@dataclass(frozen=True)
class Recipe:
    """What is composed. The packs are sorted by digest, so the result does not depend on the order they came in.

    Attributes:
        packs: the packs, each once.
        method: name of a merge method.
        rounding: one of :data:`ROUNDINGS`.
        options: what else the method was told, by name.
        seed: of random masks.
    """

    packs: tuple[WeightedPack, ...]
    method: str = "linear"
    rounding: str = "auto"
    options: Mapping[str, float | Schedule] = field(default_factory=dict)
    seed: int = 0

    def options_at(self, name: str, layers: int) -> dict[str, float]:
        """Return the value of every option of the method for a tensor."""
        known = find_method(self.method).options
        return {
            key: amount_at(self.options[key], name, layers, option.default) if key in self.options else option.default
            for key, option in known.items()
        }

    @cached_property
    def digests(self) -> tuple[str, ...]:
        """The packs' digests, sorted."""
        return tuple(item.pack.digest for item in self.packs)

    @property
    def skill_packs(self) -> list[Pack]:
        """The packs proper, which say by fingerprint what their base is."""
        return [item.pack for item in self.packs if isinstance(item.pack, Pack)]

    @property
    def adapters(self) -> list[Adapter]:
        """The adapters of peft, which only declare a base."""
        return [item.pack for item in self.packs if isinstance(item.pack, Adapter)]

    @property
    def checkpoints(self) -> list[TunedCheckpoint]:
        """The fine-tuned checkpoints, of which nothing says what their base is."""
        return [item.pack for item in self.packs if isinstance(item.pack, TunedCheckpoint)]

    def extended(self, other: Recipe) -> Recipe:
        """Return this recipe with the packs of ``other``.

        Raises:
            UsageError: they have a pack in common, or another method, rounding, seed or options.
        """
        for attribute in ("method", "rounding", "options", "seed"):
            mine, theirs = getattr(self, attribute), getattr(other, attribute)
            if mine != theirs:
                raise UsageError(
                    f"The packs that are grafted already use {attribute} {mine!r}; {theirs!r} cannot be mixed with it.",
                    hint=f"Pass {attribute}={mine!r}, or ungraft first and graft all packs in one call.",
                )
        return replace(self, packs=sort_packs((*self.packs, *other.packs)))

    def without(self, digest: str) -> Recipe:
        """Return this recipe without one pack."""
        return replace(self, packs=tuple(item for item in self.packs if item.pack.digest != digest))


def make_recipe(
    packs: Sequence[PackSource],
    *,
    method: str = "linear",
    weights: Sequence[Amount] | None = None,
    densities: Sequence[Amount] | None = None,
    options: Mapping[str, Amount] | None = None,
    seed: int = 0,
    rounding: str = "auto",
    environment: EnvironmentSource | None = None,
    fingerprint: Callable[[], str] | None = None,
) -> Recipe:
    """Check what the caller asked for and open the packs.

    Args:
        packs: at least one.
        method: name of a merge method.
        weights: one per pack, each a number or a schedule (:mod:`skillhub.compose.schedules`); all 1 by default.
        densities: one per pack, likewise; all 1 by default.
        options: of the method, by name.
        seed: of random masks.
        rounding: one of :data:`ROUNDINGS`.
        environment: where names are looked up; see :func:`skillhub.compose.packsources.find_pack`.
        fingerprint: gives the base's fingerprint; called only where it decides which pack a name means.

    Raises:
        UsageError: no packs, a pack twice, an unknown method or rounding, or weights and densities that make no sense.
        NotFoundError: a pack does not exist.
        IntegrityError: a pack's manifest is not valid.
    """
    if isinstance(packs, PackSource):
        raise UsageError("packs must be a list.", hint=f"Write [{str(packs)!r}].")
    packs = _listed("packs", packs)
    wrong = [source for source in packs if not isinstance(source, PackSource)]
    if wrong:
        raise UsageError(
            f"{wrong[0]!r} is not a pack.",
            hint="Give names, folders, or what open_pack, open_adapter or open_tuned returned.",
        )
    if not packs:
        raise UsageError("No pack was given.", hint="Name at least one installed pack or pack folder.")
    if rounding not in ROUNDINGS:
        raise UsageError(f"There is no rounding {rounding!r}.", hint=f"Use one of: {', '.join(ROUNDINGS)}.")
    if not isinstance(seed, int):
        raise UsageError(f"A seed is a whole number, not {seed!r}.", hint="Give any, such as 0.")
    chosen = find_method(method)
    chosen_weights = _one_each("weights", weights, len(packs), WEIGHT_LIMIT)
    chosen_densities = _one_each("densities", densities, len(packs))
    chosen_options = _check_options(chosen, options or {})
    _check_use(chosen, len(packs), chosen_weights, chosen_densities)
    opened = [find_pack(source, environment=environment, fingerprint=fingerprint) for source in packs]
    weighted = map(WeightedPack, opened, chosen_weights, chosen_densities)
    return Recipe(sort_packs(weighted), method, rounding, chosen_options, seed)


def _check_use(
    method: MergeMethod, count: int, weights: Sequence[float | Schedule], densities: Sequence[float | Schedule]
) -> None:
    """Refuse what a method has no use for, rather than ignore it."""
    method.check_members(count)
    if any(not 0 < density <= 1 for amount in densities for density in amounts_in(amount)):
        raise UsageError("A density is the share of elements to keep.", hint="Use densities over 0 and at most 1.")
    if not method.uses_density and any(density != 1 for density in densities):
        raise UsageError(
            f"The method {method.name!r} does not use densities.", hint="Leave them out, or use method='ties'."
        )
    if not method.uses_weights and any(weight != 1 for weight in weights):
        raise UsageError(f"The method {method.name!r} does not use weights.", hint="Leave them out.")


def _check_options(method: MergeMethod, options: Mapping[str, Any]) -> dict[str, float | Schedule]:
    """Read the options of a method.

    Raises:
        UsageError: it has no such option, or a value is none or out of range.
    """
    if not isinstance(options, Mapping):
        raise UsageError(f"options must be a mapping, not {options!r}.", hint='Write {"lambda": 0.5}.')
    read = {}
    for name, value in options.items():
        if name not in method.options:
            known = ", ".join(method.options) or "none"
            raise UsageError(f"The method {method.name!r} has no option {name!r}.", hint=f"Its options: {known}.")
        option = method.options[name]
        read[name] = read_amount(name, float(value) if isinstance(value, bool) else value)
        if not all(option.low <= one <= option.high for one in amounts_in(read[name])):
            raise UsageError(
                f"{name} is {value}, for the method {method.name!r}.",
                hint=f"Use values from {option.low:g} to {option.high:g}: {option.help}",
            )
    return read


def sort_packs(packs: Iterable[WeightedPack]) -> tuple[WeightedPack, ...]:
    """Return packs in the order of their digests.

    Raises:
        UsageError: one appears twice.
    """
    ordered = tuple(sorted(packs, key=lambda item: item.pack.digest))
    for one, other in pairwise(ordered):
        if one.pack.digest == other.pack.digest:
            raise UsageError(f"The pack {one.pack} is there twice.", hint="Name it once, with one weight.")
    return ordered


def _one_each(what: str, values: Sequence[Amount] | None, count: int, limit: float = 1e30) -> list[float | Schedule]:
    given: list[Any] = [1.0] * count if values is None else _listed(what, values)
    chosen = [read_amount(what, value) for value in given]
    if len(chosen) != count:
        raise UsageError(f"There are {count} packs and {what} {given}.", hint="Give one per pack.")
    largest = max(abs(number) for amount in chosen for number in amounts_in(amount))
    if largest > limit:
        raise UsageError(f"{largest:g} is too much for {what}.", hint=f"Give {limit:g} at most, of either sign.")
    return chosen


def _listed(what: str, values: Iterable[Any]) -> list[Any]:
    if isinstance(values, Mapping):  # of which a list would be the keys
        raise UsageError(
            f"{what} must be a list, not a mapping.", hint="Write packs=[…] and weights=[…], in one order."
        )
    if hasattr(values, "tolist"):  # of torch or numpy
        values = values.tolist()
    try:
        return list(values)
    except TypeError as error:
        raise UsageError(f"{what} must be a list, not {values!r}.", hint=f"Write [{values!r}].") from error
