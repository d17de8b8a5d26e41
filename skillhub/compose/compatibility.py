"""What must be right before any weight moves: one base for all packs, every name, every shape, no contradictions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch

from skillhub.basemodel import tokenizer_digest
from skillhub.canonical import is_vocabulary_tensor, refuse_changed_layers
from skillhub.compose.merging import AnyDelta, Contribution, changed_names, contributing, result_dtype
from skillhub.compose.packsources import AnyPack
from skillhub.compose.recipes import Recipe
from skillhub.compose.schedules import Schedule, count_layers
from skillhub.compose.tunedcheckpoints import BaseTensors, CheckpointDelta, TunedCheckpoint, open_checkpoint_delta
from skillhub.errors import SkillhubError, UnsafeContentError, UsageError, WrongBaseError
from skillhub.interop.adapterdeltas import Target, open_adapter_delta
from skillhub.layout import Layout
from skillhub.packdeltas import PackDelta, open_delta
from skillhub.packs import Pack, describe_base
from skillhub.rounding import TARGETS

Shape = tuple[int, ...]

_FUSE = "Write a checkpoint that has it with `skillhub fuse`, then load that."
_FUSE_ADDED = (
    "Write a checkpoint that has it with `skillhub fuse`, then load that with the fine-tune's class: its config.json still "
    "names the base's."
)
_SHOWN = 3

ADDED_ELEMENTS = 1 << 24
"""Values that a pack may add to a base of any size; to a larger base as many as it has."""

ADDED_ROWS = 1 << 16
"""Rows that a tensor may gain beyond twice those of the base."""


def common_fingerprints(recipe: Recipe) -> list[str]:
    """Return the fingerprints of the bases that every pack of a recipe has a variant for, in the first pack's order.

    Adapters have no fingerprints; a recipe of nothing else has none.

    Raises:
        WrongBaseError: there is none.
    """
    if not recipe.skill_packs:
        return []
    first, *rest = recipe.skill_packs
    common = [
        variant.base.fingerprint
        for variant in first.manifest.variants
        if all(pack.manifest.variant_for(variant.base.fingerprint) for pack in rest)
    ]
    if not common:
        fits = "; ".join(
            f"{pack} is for {', '.join(map(describe_base, pack.manifest.variants)) or 'no base'}"
            for pack in recipe.skill_packs
        )
        raise WrongBaseError(f"The packs have no base in common: {fits}.", hint="Compose packs of one base model.")
    return common


def open_contributions(
    recipe: Recipe,
    fingerprint: str | None,
    names: Iterable[str],
    find_target: Callable[[], Target] | None = None,
    base: BaseTensors | None = None,
) -> list[Contribution]:
    """Open the delta of every pack of a recipe for one base, in the recipe's order.

    Args:
        recipe: the packs, adapters and checkpoints.
        fingerprint: of the base; None where nothing says it, which does for all but packs.
        names: canonical names of the base's tensors.
        find_target: gives what adapters are applied to; called only where there are any.
        base: what fine-tuned checkpoints are compared with, and what packs restore tensors from bit for bit; None where that cannot be.

    Raises:
        WrongBaseError: a pack has no variant for the base, or an adapter's names or shapes are not the model's.
        IntegrityError: a pack's file is missing or damaged.
        NewerSchemaError: a pack's files are of a schema that this version does not read.
        UsageError: an adapter or checkpoint holds something that is not read, or there are checkpoints and no ``base``.
    """
    target = find_target() if find_target and recipe.adapters else None

    def delta(pack: AnyPack) -> AnyDelta:
        if isinstance(pack, Pack):
            return _open_pack_delta(pack, fingerprint, base)
        if isinstance(pack, TunedCheckpoint):
            return open_checkpoint_delta(pack, _required(base, pack))
        assert target is not None
        return open_adapter_delta(pack, target)

    layers = count_layers(names)
    return [Contribution(item, delta(item.pack), layers) for item in recipe.packs]


def _open_pack_delta(pack: Pack, fingerprint: str | None, base: BaseTensors | None) -> PackDelta:
    """Open the delta of a pack, unless it restores tensors from a base that is not there."""
    delta = open_delta(pack, fingerprint, base)
    if base is None and any(delta.restores(name) for name in delta.names):
        raise UsageError(
            f"{pack} stores its fine-tune bit for bit, which takes the base's weights, and this model is quantized.",
            hint="Graft a pack of another preset; or fuse into the original checkpoint, then quantize the result.",
        )
    return delta


def _required(base: BaseTensors | None, tuned: TunedCheckpoint) -> BaseTensors:
    if base is None:
        raise UsageError(
            f"{tuned} is a whole checkpoint, and the model is quantized: it lacks the weights that the difference is taken to.",
            hint="Graft a pack of it (skillhub pack); or fuse into the original checkpoint, then quantize the result.",
        )
    return base


def check_packs(contributions: Sequence[Contribution], shapes: Mapping[str, Shape], *, in_memory: bool) -> None:
    """Check from headers and manifests alone that packs fit what they are composed into, and each other.

    Args:
        contributions: the packs.
        shapes: canonical name → shape, of the base checkpoint or of the model's parameters and buffers.
        in_memory: a loaded model keeps its tensors and their shapes; a checkpoint may gain, lose or resize some.

    Raises:
        WrongBaseError: a pack changes nothing that is there, or names or shapes differ.
        UnsafeContentError: a pack adds far more than a base of this size would gain.
        UsageError: a pack adds, removes or resizes a tensor of a model in memory, or two packs contradict each other.
    """
    for error in find_problems(contributions, shapes, in_memory=in_memory):
        raise error


def find_problems(
    contributions: Sequence[Contribution], shapes: Mapping[str, Shape], *, in_memory: bool
) -> Iterator[SkillhubError]:
    """Yield everything that :func:`check_packs` would refuse."""
    fitting = []
    for one in contributions:
        lost = _lost_names(one.delta, shapes)
        if lost:
            yield lost
            continue
        fitting.append(one.delta)
        yield from _idle_patterns(one, shapes)
        yield from _changed_layers(one.delta, shapes)
        yield from _growth(one.delta, shapes)
        for name in one.delta.names:
            error = _misfit(one.delta, name, shapes.get(name), in_memory=in_memory)
            if error:
                yield error
    for name in sorted(set().union(*(delta.names for delta in fitting))):
        yield from _disagreement([delta for delta in fitting if name in delta.tensors], name, shapes.get(name))


def _idle_patterns(one: Contribution, shapes: Mapping[str, Shape]) -> Iterator[SkillhubError]:
    """Yield the errors for patterns that mean no tensor of the model: with a misspelt one a pack would do nothing, and none would say."""
    names = {*shapes, *one.delta.names}
    for what, amount in (("weight", one.item.weight), ("density", one.item.density)):
        for pattern in amount.idle(names) if isinstance(amount, Schedule) else []:
            yield UsageError(
                f"{pattern!r}, in the {what} of {one.item.pack}, matches no tensor of this model.",
                hint=f"Patterns are searched in names like {min(names)}.",
            )


def _lost_names(delta: AnyDelta, shapes: Mapping[str, Shape]) -> SkillhubError | None:
    """Return the error for names that lead nowhere."""
    needed = [name for name in delta.names if delta.entry(name).change == "delta"]
    missing = [name for name in needed if name not in shapes]
    if not delta.names or len(missing) == len(needed) > 0 or not _has_common(delta, needed, shapes):
        return WrongBaseError(
            f"None of the {len(delta.names)} tensors of {delta.pack} is in this model.",
            hint="Give the model that the pack was made for, or the class that loads all of it.",
        )
    if not missing:
        return None
    more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
    return WrongBaseError(
        f"{delta.pack} changes {', '.join(missing[:_SHOWN])}{more}, which this model does not have.",
        hint="Give the model that the pack was made for, or the class that loads all of it.",
        missing=missing,
    )


def _has_common(delta: AnyDelta, needed: Sequence[str], shapes: Mapping[str, Shape]) -> bool:
    """Say whether a checkpoint has any tensor of the model; a pack may well only add some."""
    return bool(needed) or not shapes or not isinstance(delta, CheckpointDelta)


def _changed_layers(delta: AnyDelta, shapes: Mapping[str, Shape]) -> Iterator[SkillhubError]:
    """Yield the errors for tensors that a pack adds to the model's layers, or that a checkpoint lacks there."""
    changes = {name: delta.entry(name).change for name in delta.names}
    added = [name for name, change in changes.items() if change == "added" and shapes.get(name) is None]
    removed = [name for name, change in changes.items() if change == "removed" and isinstance(delta, CheckpointDelta)]
    for names, verb in ((added, "adds"), (removed, "lacks")):
        try:
            refuse_changed_layers(str(delta.pack), names, verb=verb)
        except UsageError as error:
            yield error


def _growth(delta: AnyDelta, shapes: Mapping[str, Shape]) -> Iterator[SkillhubError]:
    """Yield the error for a pack that would fill memory or disk: a few bytes of it can claim any number of zeros."""
    entries = [(name, delta.entry(name)) for name in delta.names]
    added = sum(math.prod(entry.shape) for _, entry in entries if entry.change == "added")
    limit = max(ADDED_ELEMENTS, sum(math.prod(shape) for shape in shapes.values()))
    longest = [
        name
        for name, entry in entries
        if entry.change == "delta" and shapes[name] and entry.shape
        if entry.shape[0] > 2 * shapes[name][0] + ADDED_ROWS
    ]
    if added > limit or longest:
        what = f"resizes {longest[0]} to {delta.entry(longest[0]).shape[0]} rows" if longest else f"adds {added} values"
        yield UnsafeContentError(
            f"{delta.pack} {what}, far more than its base has.",
            hint="Do not use this pack; tell its publisher.",
        )


def _misfit(delta: AnyDelta, name: str, present: Shape | None, *, in_memory: bool) -> SkillhubError | None:
    """Return what is wrong with one tensor of one pack, or None."""
    entry = delta.entry(name)
    shape = tuple(entry.shape)
    if entry.change == "added":
        if in_memory and present != shape:
            return UsageError(
                f"{delta.pack} adds the tensor {name}, for which this model has no place.", hint=_FUSE_ADDED
            )
        if not in_memory and present is not None:
            return WrongBaseError(f"{delta.pack} adds {name}, which the base has already.", hint="Give its own base.")
    elif entry.change == "removed":
        if in_memory and present is not None:
            return UsageError(f"{delta.pack} removes the tensor {name}, which this model uses.", hint=_FUSE)
    elif present is not None and present != shape:
        # the config follows another vocabulary, and no other size
        may_grow = is_vocabulary_tensor(name) and len(present) == len(shape) and shape[0] > 0
        if not may_grow or present[1:] != shape[1:]:
            return WrongBaseError(
                f"{name} is {list(shape)} in {delta.pack} and {list(present)} in this model.",
                hint="Give the model that the pack was made for.",
                tensor=name,
            )
        if in_memory:
            return UsageError(
                f"{delta.pack} resizes {name} from {present[0]} to {shape[0]} rows (its vocabulary differs).",
                hint="Write the resized checkpoint with `skillhub fuse`, then load that.",
                tensor=name,
            )
    return None


def _disagreement(deltas: Sequence[AnyDelta], name: str, present: Shape | None) -> Iterator[SkillhubError]:
    """Yield the error for packs that want different things of one tensor where no merge method could help."""
    if len(deltas) == 1:
        return
    entries = [delta.entry(name) for delta in deltas]
    resizing = [delta for delta in deltas if tuple(delta.entry(name).shape) != present]
    one, other = deltas[0].pack, deltas[1].pack
    contradiction = ""
    if len({entry.change for entry in entries}) > 1:
        contradiction = "one removes it and another does not"
    elif len(resizing) > 1 and entries[0].change == "delta" and not _same_vocabulary(resizing, name):
        contradiction = "several of them resize it"
    elif any(delta.sets_values(name) for delta in deltas) and len({entry.digest for entry in entries}) > 1:
        contradiction = "they set it to different values"
    if contradiction:
        yield UsageError(
            f"{one} and {other} cannot be composed: of the tensor {name}, {contradiction}.",
            hint="Compose them one at a time, or leave one out.",
            tensor=name,
        )


def _same_vocabulary(deltas: Sequence[AnyDelta], name: str) -> bool:
    """Say whether checkpoints that resize a tensor do so for the same vocabulary, so that their rows mean the same."""
    found = {
        (tuple(delta.entry(name).shape), tokenizer_digest(delta.pack.checkpoint.folder))
        if isinstance(delta, CheckpointDelta)
        else None
        for delta in deltas
    }
    return len(found) == 1 and None not in found and all(one is not None and one[1] for one in found)


def check_dtypes(contributions: Sequence[Contribution], layout: Layout) -> None:
    """Refuse what the tensors of a model in memory cannot hold: differences on quantized ones, values of another kind.

    Raises:
        UsageError: a pack changes such a tensor.
    """
    for name in changed_names(contributions):
        dtype = layout.slots[name].dtype
        wanted = result_dtype(contributions, name, dtype)
        if wanted != dtype:
            raise UsageError(
                f"A pack sets {name} to values of {wanted}, where this model holds {dtype}.",
                hint="Write a checkpoint with `skillhub fuse`, then load that.",
            )
        adds = not contributing(contributions, name)[0].delta.sets_values(name)
        if adds and dtype not in (*TARGETS, torch.float64):
            raise UsageError(
                f"{name} is {dtype} in this model, to which a difference cannot be added.",
                hint="Fuse into the original checkpoint with `skillhub fuse`, then quantize the result.",
            )
