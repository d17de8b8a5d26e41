"""One tensor of a composition: base + merged delta, summed in fp32 and rounded once.

``graft`` and ``fuse`` both go through :func:`merge_tensor`, so a fused checkpoint holds the bits that grafting puts into memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import torch

from skillhub.codecs import exact
from skillhub.compose.methods import find_method
from skillhub.compose.recipes import Recipe, WeightedPack
from skillhub.deltas import PackDelta
from skillhub.errors import IntegrityError, UsageError
from skillhub.interop.adapterdeltas import AdapterDelta
from skillhub.rounding import TARGETS, round_to, rounding_key

AnyDelta: TypeAlias = PackDelta | AdapterDelta


@dataclass(frozen=True)
class Contribution:
    """A pack of a recipe with its delta for the base at hand."""

    item: WeightedPack
    delta: AnyDelta

    @cached_property
    def names(self) -> frozenset[str]:
        """Canonical names of the tensors that the pack changes or adds; none with a weight of 0."""
        if not self.item.weight:
            return frozenset()
        return frozenset(name for name in self.delta.names if self.delta.entry(name).change != "removed")

    @property
    def removed(self) -> frozenset[str]:
        """Canonical names of the tensors that the pack removes; none with a weight of 0."""
        return frozenset(self.delta.names) - self.names if self.item.weight else frozenset()


def changed_names(contributions: Sequence[Contribution]) -> list[str]:
    """Return the canonical names that any of the packs changes, sorted."""
    return sorted(set().union(*(one.names for one in contributions)))


def contributing(contributions: Sequence[Contribution], name: str) -> list[Contribution]:
    """Return the packs that change a tensor."""
    return [one for one in contributions if name in one.names]


def merge_tensor(
    recipe: Recipe,
    contributions: Sequence[Contribution],
    name: str,
    base: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Return one tensor of the composition, on the CPU.

    The packs' deltas are decoded and checked against their manifests, merged, added to the base in fp32 (to an fp64 base in
    fp64) and rounded to ``dtype`` once. Where packs *set* a tensor (integers, added tensors), its values are taken as they are, whatever the weights.

    Args:
        recipe: method, rounding and all packs.
        contributions: the recipe's packs, in its order.
        name: canonical name of a tensor that at least one of them changes.
        base: the base's tensor, on the CPU; None where the base has none. Rows that only the result has count as zero.
        dtype: of the result.

    Returns:
        A new tensor of the packs' shape (of the one that resizes it, if one does).

    Raises:
        IntegrityError: a pack's bytes are damaged.
        UsageError: a sum of finite values is too large for the dtype.
    """
    members = contributing(contributions, name)
    if members[0].delta.sets_values(name):
        values = members[0].delta.decode(name)
        result = _rounded(values, dtype, recipe, name, "nearest")
        _check_finite(result, [values], name)
        return result
    shape = result_shape(members, name, None if base is None else tuple(base.shape))
    merged = find_method(recipe.method).merge(
        [resized_rows(one.delta.decode(name), shape) for one in members],
        [one.item.weight for one in members],
        [one.item.density for one in members],
    )
    # x + (+0) would turn −0 into +0; x + (−0) is x, so what did not change keeps its bits.
    merged.masked_fill_(merged == 0, -0.0)
    if base is not None:
        wide = torch.float64 if base.dtype == torch.float64 else torch.float32
        merged = resized_rows(base.to(wide, copy=True), shape).add_(merged)
    result = _rounded(merged, dtype, recipe, name, rounding_mode(recipe, members, name))
    before = (resized_rows(tensor, shape) for tensor in _inputs(members, name, base))
    _check_finite(result, before, name)
    return result


def _inputs(members: Sequence[Contribution], name: str, base: torch.Tensor | None) -> Iterator[torch.Tensor]:
    """Yield base and deltas of one tensor; decoded again, which only a result that is not finite asks for."""
    if base is not None:
        yield base
    for one in members:
        yield one.delta.decode(name)


def _check_finite(result: torch.Tensor, before: Iterable[torch.Tensor], name: str) -> None:
    """Refuse a result that is not finite where all that it was made of is."""
    if result.dtype not in (*TARGETS, torch.float64) or bool(result.isfinite().all()):
        return
    overflown = ~result.isfinite()
    for tensor in before:
        overflown &= tensor.to(torch.float64).isfinite()
    if overflown.any():
        raise UsageError(
            f"{name} would have values that {result.dtype} cannot hold.",
            hint="Use smaller weights, or a wider dtype.",
            tensor=name,
        )


def result_shape(contributions: Sequence[Contribution], name: str, base: tuple[int, ...] | None) -> tuple[int, ...]:
    """Return the shape of a tensor after composition: the one pack's that resizes it, else the base's."""
    shapes = [tuple(one.delta.entry(name).shape) for one in contributing(contributions, name)]
    return next((shape for shape in shapes if shape != base), shapes[0])


def result_dtype(contributions: Sequence[Contribution], name: str, base: torch.dtype | None) -> torch.dtype:
    """Return the dtype of a tensor after composition.

    The base's; where a pack sets values, theirs, unless both are floating point and values can be rounded to the base's.

    Raises:
        IntegrityError: a pack does not say of which dtype its values are.
    """
    first = contributing(contributions, name)[0].delta
    if isinstance(first, AdapterDelta) or not first.sets_values(name):
        if base is None:
            raise IntegrityError(
                f"{first.pack} has a difference for {name}, which its base lacks.", hint="Build it again."
            )
        return base
    own = _stored_dtype(first, name)
    return base if base in (*TARGETS, torch.float64) and own.is_floating_point else own


def rounding_mode(recipe: Recipe, members: Sequence[Contribution], name: str) -> str:
    """Return ``nearest`` or ``stochastic``: what the recipe's rounding means for one tensor."""
    if recipe.rounding != "auto":
        return recipe.rounding
    exact = all(one.delta.entry(name).max_error == 0 for one in members)
    return "nearest" if exact else "stochastic"


def resized_rows(values: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Return ``values`` with the first dimension cut or padded with zeros to ``shape``; themselves where they have it."""
    if values.shape == shape:
        return values
    resized = torch.zeros(shape, dtype=values.dtype)
    rows = min(len(values), len(resized))
    resized[:rows] = values[:rows]
    return resized


def _rounded(values: torch.Tensor, dtype: torch.dtype, recipe: Recipe, name: str, mode: str) -> torch.Tensor:
    if values.dtype == dtype or dtype not in TARGETS:
        return values.to(dtype)
    return round_to(dtype, values.to(torch.float32), key=rounding_key(recipe.digests, name), mode=mode)


def _stored_dtype(delta: PackDelta, name: str) -> torch.dtype:
    found = exact.DTYPES.get(str(delta.encoded(name).parts[-1].config.get("dtype")))
    if found is None:
        raise IntegrityError(f"{delta.pack} does not say of which dtype {name} is.", hint="Install the pack again.")
    return found
