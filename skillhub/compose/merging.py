"""One tensor of a composition: base + merged delta, summed in fp32 and rounded once.

``graft`` and ``fuse`` both go through :func:`merge_chunks`, so a fused checkpoint holds the bits that grafting puts into memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

import torch

from skillhub.codecs import exact
from skillhub.compose.methods import MergeInputs, MergeMethod, find_method
from skillhub.compose.methods.interface import CHUNK, chunk_rows
from skillhub.compose.methods.linear import LINEAR
from skillhub.compose.recipes import Recipe, WeightedPack
from skillhub.compose.sums import add_delta, check_finite, fits, put_back_nan, rounded
from skillhub.compose.tunedcheckpoints import CheckpointDelta
from skillhub.errors import IntegrityError
from skillhub.interop.adapterdeltas import AdapterDelta
from skillhub.packdeltas import PackDelta
from skillhub.rounding import TARGETS, rounding_key
from skillhub.tensorreaders import (
    FactorReader,
    KeepingReader,
    MemoryReader,
    TensorReader,
    ZeroReader,
    moved,
    resized,
    row_shape,
)

KEPT_BYTES = 1 << 27
"""Most memory for keeping one tensor's deltas between the passes of a method that measures before it merges; larger ones are read
again."""

AnyDelta: TypeAlias = PackDelta | AdapterDelta | CheckpointDelta


@dataclass(frozen=True)
class Contribution:
    """A pack of a recipe with its delta for the base at hand.

    Attributes:
        item: the pack, with its weight and density.
        delta: its delta.
        layers: how many layers the base has, for what differs from layer to layer.
    """

    item: WeightedPack
    delta: AnyDelta
    layers: int = 0

    @cached_property
    def names(self) -> frozenset[str]:
        """Canonical names of the tensors that the pack changes or adds; without those of weight 0."""
        return frozenset(name for name in self._weighed if self.delta.entry(name).change != "removed")

    @cached_property
    def removed(self) -> frozenset[str]:
        """Canonical names of the tensors that the pack removes; without those of weight 0."""
        return frozenset(self._weighed) - self.names

    def with_checked_files(self) -> Contribution:
        """Return this one after a pack's files were compared with its manifest: what is decoded of them is then as promised.

        Raises:
            IntegrityError: a file is missing or was altered.
            DiskError: one may not be read.
        """
        return replace(self, delta=self.delta.with_checked_files()) if isinstance(self.delta, PackDelta) else self

    @cached_property
    def _weighed(self) -> list[str]:
        return [name for name in self.delta.names if self.item.weight_at(name, self.layers)]


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
    """Return one tensor of the composition, on the CPU: all the chunks of :func:`merge_chunks`.

    Args:
        recipe: method, rounding and all packs.
        contributions: the recipe's packs, in its order.
        name: canonical name of a tensor that at least one of them changes.
        base: the base's tensor, on the CPU; None where the base has none.
        dtype: of the result.

    Returns:
        A new tensor of the packs' shape (of the one that resizes it, if one does).

    Raises:
        IntegrityError: a pack's bytes are damaged.
        UsageError: a sum of finite values is too large for the dtype.
    """
    shape = result_shape(contributions, name, None if base is None else tuple(base.shape))
    result = torch.empty(row_shape(shape), dtype=dtype)
    row = 0
    reader = None if base is None else MemoryReader(base.detach())
    for chunk in merge_chunks(recipe, contributions, name, reader, dtype):
        result[row : row + len(chunk)] = chunk
        row += len(chunk)
    return result.reshape(shape)


def merge_chunks(
    recipe: Recipe,
    contributions: Sequence[Contribution],
    name: str,
    base: TensorReader | None,
    dtype: torch.dtype,
    *,
    device: torch.device | None = None,
) -> Iterator[torch.Tensor]:
    """Yield one tensor of the composition, some rows at a time.

    The packs' deltas are decoded, merged, added to the base in fp32 (to an fp64 base in fp64) and rounded to ``dtype`` once. Where
    packs *set* a tensor (integers, added tensors), its values are taken as they are, whatever the weights. Where one pack alone restores it
    bit for bit, and all of its difference would be added, its values are taken likewise.

    Args:
        recipe: method, rounding and all packs.
        contributions: the recipe's packs, in its order.
        name: canonical name of a tensor that at least one of them changes.
        base: reads the base's tensor; None where the base has none. Rows that only the result has count as zero.
        dtype: of the result.
        device: where the chunks are merged and rounded, which gives the same bits everywhere for methods that work element by
            element; None is the CPU.

    Raises:
        IntegrityError: a pack's bytes are damaged.
        UsageError: a sum of finite values is too large for the dtype.
    """
    members = contributing(contributions, name)
    if members[0].delta.sets_values(name):
        values = members[0].delta.decode(name)
        result = rounded(values, dtype, key=rounding_key(recipe.digests, name), mode="nearest")
        check_finite(result, [values], name)
        yield result.reshape(row_shape(tuple(result.shape)))
        return
    key, mode = rounding_key(recipe.digests, name), rounding_mode(recipe, members, name)
    restoring = _restoring(recipe, contributions, name)
    if restoring is not None:
        values = restoring.restored(name)
        result = rounded(values, dtype, key=key, mode=mode)
        check_finite(result, [values], name)
        yield result.reshape(row_shape(tuple(result.shape)))
        return
    method = find_method(recipe.method)
    inputs = merge_inputs(recipe, contributions, name, base)
    if method is LINEAR and not inputs.options["normalize"]:
        inputs = _joined(inputs)
    yield from merge_rows(method, inputs, dtype, key=key, mode=mode, device=device)


def _restoring(recipe: Recipe, contributions: Sequence[Contribution], name: str) -> PackDelta | None:
    """Return the delta of the pack whose very tensor is the result: restored bit for bit, by no other and no other weight than 1."""
    first, *others = merged_packs(recipe, contributions, name)
    options = recipe.options_at(name, first.layers)
    is_plain = find_method(recipe.method) is LINEAR and options["lambda"] == 1 and not others
    if not is_plain or first.item.weight_at(name, first.layers) != 1 or not isinstance(first.delta, PackDelta):
        return None
    return first.delta if first.delta.restores(name) else None


def merge_rows(
    method: MergeMethod,
    inputs: MergeInputs,
    dtype: torch.dtype,
    *,
    key: int,
    mode: str,
    device: torch.device | None = None,
) -> Iterator[torch.Tensor]:
    """Yield base + merged delta of one tensor (the merged deltas themselves where there is no base), some rows at a time.

    Args:
        method: how the deltas are merged.
        inputs: the tensor of the base and the deltas.
        dtype: of the result.
        key: of the random bits of stochastic rounding, from :func:`skillhub.rounding.rounding_key`.
        mode: ``nearest`` or ``stochastic``.
        device: where chunks are merged, and where the result is; None for the CPU.

    Raises:
        IntegrityError: a pack's bytes are damaged.
        UsageError: a sum of finite values is too large for the dtype.
    """
    if device is not None and device.type != "cpu":
        inputs = _moved(inputs, device)
    if method.measure:
        inputs = replace(inputs, deltas=_kept(inputs.deltas))
    measured = method.begin(inputs)
    for begin, end in inputs.spans():
        chunk = inputs.chunk(begin, end)
        wide = chunk.base
        if inputs.base is not None and dtype == torch.float64:
            wide = inputs.base.read(begin, end)
        merged = method.merge(inputs, chunk, measured)
        total = merged if wide is None else add_delta(wide, merged)
        result = rounded(total, dtype, key=key, first=chunk.first, mode=mode)
        if not fits(total, dtype):
            check_finite(result, chunk.deltas, inputs.name, base=wide)
            if wide is not None:
                put_back_nan(result, wide)
        yield result


def merged_packs(recipe: Recipe, contributions: Sequence[Contribution], name: str) -> Sequence[Contribution]:
    """Return the packs that take part in merging a tensor: those that change it; all where the method averages whole models."""
    members = contributing(contributions, name)
    options = recipe.options_at(name, members[0].layers)
    return contributions if find_method(recipe.method).takes_untouched(options) else members


def merge_inputs(
    recipe: Recipe, contributions: Sequence[Contribution], name: str, base: TensorReader | None
) -> MergeInputs:
    """Return one tensor of the base and of the packs, as the recipe's method sees it."""
    members = contributing(contributions, name)
    shape = row_shape(result_shape(members, name, None if base is None else base.shape))
    taking_part = merged_packs(recipe, contributions, name)
    return MergeInputs(
        name=name,
        base=None if base is None else resized(base, shape[0]),
        deltas=[
            resized(_reader(one.delta, name), shape[0]) if one in members else ZeroReader(shape) for one in taking_part
        ],
        weights=[one.item.weight_at(name, one.layers) for one in taking_part],
        densities=[one.item.density_at(name, one.layers) for one in taking_part],
        options=recipe.options_at(name, members[0].layers),
        keys=[rounding_key([one.item.pack.digest, f"mask {recipe.seed}"], name) for one in taking_part],
    )


def _reader(delta: AnyDelta, name: str) -> TensorReader:
    """Return a reader of a pack's delta; of an adapter's factors one that multiplies them by rows, where it holds just those."""
    factors = None if isinstance(delta, CheckpointDelta) else delta.factors(name)
    return FactorReader(*factors) if factors else delta.reader(name)


def _joined(inputs: MergeInputs) -> MergeInputs:
    """Return inputs of a plain sum with all adapters' factors side by side, so that one product adds them up."""
    weighed = zip(inputs.deltas, inputs.weights, strict=True)
    adapters = [(delta, weight) for delta, weight in weighed if isinstance(delta, FactorReader)]
    if len(adapters) < 2:
        return inputs
    others = [number for number, delta in enumerate(inputs.deltas) if not isinstance(delta, FactorReader)]
    left = torch.cat([delta.left * weight for delta, weight in adapters])
    joined = FactorReader(left, torch.cat([delta.right for delta, _ in adapters]))
    return replace(
        inputs,
        deltas=[*(inputs.deltas[number] for number in others), joined],
        weights=[*(inputs.weights[number] for number in others), 1.0],
        densities=[*(inputs.densities[number] for number in others), 1.0],
        keys=[*(inputs.keys[number] for number in others), 0],
    )


def _kept(deltas: Sequence[TensorReader]) -> list[TensorReader]:
    """Return readers that keep in memory what they read, as many of them as :data:`KEPT_BYTES` allow."""
    left, kept = KEPT_BYTES, []
    for delta in deltas:
        size = 4 * math.prod(delta.shape)
        keeps = size <= left and not isinstance(delta, (MemoryReader, ZeroReader))
        left -= size if keeps else 0
        kept.append(KeepingReader(delta) if keeps else delta)
    return kept


def _moved(inputs: MergeInputs, device: torch.device) -> MergeInputs:
    """Return what a method sees, on a device."""
    readers = [*inputs.deltas, *([] if inputs.base is None else [inputs.base])]
    *deltas, last = moved(readers, device, chunk_rows(inputs.shape, CHUNK))
    if inputs.base is None:
        return replace(inputs, deltas=[*deltas, last], device=device)
    return replace(inputs, deltas=deltas, base=last, device=device)


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


def _stored_dtype(delta: PackDelta | CheckpointDelta, name: str) -> torch.dtype:
    if isinstance(delta, CheckpointDelta):
        return delta.value_dtype(name)
    found = exact.DTYPES.get(str(delta.encoded(name).parts[-1].config.get("dtype")))
    if found is None:
        raise IntegrityError(f"{delta.pack} does not say of which dtype {name} is.", hint="Install the pack again.")
    return found
