"""The plan of a fusion: what will be read, written and needed, and everything that would fail, before any weight moves."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Unpack

from skillhub.basemodel import read_config
from skillhub.bases import LocatedBase, find_base
from skillhub.checkpoints import Checkpoint, open_checkpoint
from skillhub.compose.compatibility import common_fingerprints, find_problems, open_contributions
from skillhub.compose.merging import KEPT_BYTES, Contribution, contributing
from skillhub.compose.methods import find_method
from skillhub.compose.methods.interface import CHUNK
from skillhub.compose.packsources import PackSource
from skillhub.compose.recipes import Composition, Recipe, make_recipe
from skillhub.compose.sharding import SHARD_BYTES, Shard, plan_tensors, room_error, split_shards
from skillhub.compose.tunedcheckpoints import CheckpointBase
from skillhub.compose.verification import base_records, wrong_base
from skillhub.errors import SkillhubError, UsageError
from skillhub.files import expanded
from skillhub.fingerprint import BaseRecord, fingerprint_checkpoint, known_fingerprint
from skillhub.interop.adapterdeltas import AdapterDelta, target_of
from skillhub.packdeltas import PackDelta
from skillhub.tensorfiles import BITS

DTYPE_TAGS: Mapping[str, str] = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
"""What users call the dtypes that a checkpoint can be written in → safetensors dtype tag."""

RUNTIME_BYTES = 250 << 20
"""What Python, torch and their libraries take before anything is merged."""

_MEASURED_PASSES = 3
"""Most often that a delta is read by a method that measures a tensor before it merges it."""

_TOLD = 3


@dataclass(frozen=True)
class FusionPlan:
    """What a fusion will do.

    Attributes:
        located: where the base was found.
        base: the base.
        fingerprint: of the base; None where no weights were read and none was remembered, or no pack needs it.
        recipe: what is composed.
        contributions: the packs with their deltas; those that could be opened.
        shards: the files of weights.
        dtype: tag of the dtype that floating-point tensors are written in; None keeps each one's.
        problems: everything that would fail; empty where nothing would.
        read_bytes: of weights, deltas and factors, by one pass over them.
        passes: how many times a delta is read at most.
        memory_bytes: most that is held at a time, roughly, with what Python and torch take.
        free_bytes: on the disk that is written to.
    """

    located: LocatedBase
    base: CheckpointBase
    fingerprint: str | None
    recipe: Recipe
    contributions: tuple[Contribution, ...]
    shards: tuple[Shard, ...]
    dtype: str | None
    problems: tuple[SkillhubError, ...]
    read_bytes: int
    passes: int
    memory_bytes: int
    free_bytes: int

    @property
    def checkpoint(self) -> Checkpoint:
        """The base's files and tensors."""
        return self.base.checkpoint

    @property
    def write_bytes(self) -> int:
        """Bytes of weights that will be written."""
        return sum(shard.nbytes for shard in self.shards)

    @property
    def is_verified(self) -> bool:
        """Whether the base is known to be the one that the packs were made for; True where no pack says."""
        return self.fingerprint is not None or not self.recipe.skill_packs

    def check(self) -> None:
        """Raise the first problem, with the others in its message.

        Raises:
            SkillhubError: there is one.
        """
        if not self.problems:
            return
        first, *others = self.problems
        if not others:
            raise first
        more = len(others) - _TOLD
        also = " ".join(error.message for error in others[:_TOLD]) + (f" And {more} more." if more > 0 else "")
        details = {**first.details, "problems": [error.message for error in self.problems]}
        raise type(first)(f"{first.message} Also: {also}", hint=first.hint, **details) from first


def plan_fusion(
    base: str | Path,
    packs: Sequence[PackSource],
    out: str | Path = ".",
    *,
    dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    reads_base: bool = False,
    **composition: Unpack[Composition],
) -> FusionPlan:
    """Plan a fusion from headers and manifests alone: no weight is read, nothing is written.

    Args:
        base: as :func:`skillhub.compose.fusion.fuse` takes it, and so all but ``reads_base``.
        packs: what is fused.
        out: where the checkpoint is to be written.
        dtype: of all floating-point tensors.
        shard_bytes: most bytes of one file.
        reads_base: fingerprint the base where its fingerprint is not remembered, which reads all of it.
        composition: how the packs are merged.

    Raises:
        UsageError: what was asked for makes no sense on its own: an unknown method, weights of another number than packs.
        NotFoundError: the base or a pack does not exist.
        IntegrityError: a header or manifest is damaged.
    """
    if dtype is not None and dtype not in DTYPE_TAGS:
        raise UsageError(f"There is no dtype {dtype!r} to write.", hint=f"Use one of: {', '.join(DTYPE_TAGS)}.")
    located = find_base(base)
    tensors = CheckpointBase(open_checkpoint(located.folder))
    files = tensors.checkpoint.files
    read_config(tensors.checkpoint.folder)  # a damaged one is told here, and not when all has been merged
    recipe = make_recipe(packs, fingerprint=lambda: fingerprint_checkpoint(files).fingerprint, **composition)
    record = (fingerprint_checkpoint if reads_base else known_fingerprint)(files) if recipe.skill_packs else None
    tag = None if dtype is None else DTYPE_TAGS[dtype]
    method_measures = find_method(recipe.method).measure is not None
    contributions, problems = _open_all(recipe, record, tensors)
    shards: list[Shard] = []
    try:
        if not problems:
            shards = split_shards(plan_tensors(tensors.checkpoint, contributions, tag), shard_bytes)
    except SkillhubError as error:
        problems.append(error)
    free = shutil.disk_usage(_existing(expanded(out))).free
    if lack := room_error(free, shards):
        problems.append(lack)
    return FusionPlan(
        located=located,
        base=tensors,
        fingerprint=record.fingerprint if record else None,
        recipe=recipe,
        contributions=tuple(contributions),
        shards=tuple(shards),
        dtype=tag,
        problems=tuple(problems),
        read_bytes=_read_bytes(tensors.checkpoint, contributions),
        passes=_MEASURED_PASSES if method_measures else 1,
        memory_bytes=RUNTIME_BYTES + _memory_bytes(contributions, shards, measures=method_measures),
        free_bytes=free,
    )


def _open_all(
    recipe: Recipe, record: BaseRecord | None, base: CheckpointBase
) -> tuple[list[Contribution], list[SkillhubError]]:
    """Open what can be opened, and say what is wrong with the packs."""
    fingerprint = record.fingerprint if record else None
    try:
        fingerprints = common_fingerprints(recipe)
        if record and fingerprint not in fingerprints:
            raise wrong_base(recipe, base_records(recipe, fingerprints), record)
    except SkillhubError as error:
        return [], [error]
    if fingerprint is None and fingerprints:
        fingerprint = _likely(recipe, fingerprints, base)
    find_target = cache(partial(target_of, base.checkpoint))  # one empty model does for all adapters
    contributions: list[Contribution] = []
    problems: list[SkillhubError] = []
    for item in recipe.packs:
        alone = replace(recipe, packs=(item,))
        try:
            contributions += open_contributions(alone, fingerprint, base.shapes, find_target, base)
        except SkillhubError as error:
            problems.append(error)
    return contributions, [*problems, *find_problems(contributions, base.shapes, in_memory=False)]


def _likely(recipe: Recipe, fingerprints: Sequence[str], base: CheckpointBase) -> str:
    """Return the packs' base whose tensors have the names and shapes of the one at hand; the first where none has."""
    shapes = dict(base.shapes)
    for fingerprint, record in base_records(recipe, fingerprints).items():
        if {tensor.name: tensor.shape for tensor in record.tensors} == shapes:
            return fingerprint
    return fingerprints[0]


def _existing(path: Path) -> Path:
    path = path.absolute()
    return next(parent for parent in (path, *path.parents) if parent.exists())


def _read_bytes(checkpoint: Checkpoint, contributions: Sequence[Contribution]) -> int:
    stored = sum(info.nbytes for info in checkpoint.stored.values())
    return stored + sum(one.delta.entry(name).bytes for one in contributions for name in one.names)


def _memory_bytes(contributions: Sequence[Contribution], shards: Sequence[Shard], *, measures: bool) -> int:
    """Estimate the most that merging one tensor holds: chunks of all packs, and what each keeps of the tensor."""
    most = 0
    for name in {tensor.source for shard in shards for tensor in shard.tensors if tensor.source}:
        members = contributing(contributions, name)
        shape = tuple(members[0].delta.entry(name).shape)
        row = math.prod(shape[1:])
        chunk = 4 * min(max(CHUNK, row), math.prod(shape))
        kept = sum(_kept_bytes(one, name) for one in members)
        kept += min(KEPT_BYTES, 4 * math.prod(shape) * len(members)) if measures else 0
        most = max(most, kept + chunk * (2 * len(members) + 8))
    return most


def _kept_bytes(one: Contribution, name: str) -> int:
    """Estimate what a pack keeps in memory of one tensor while it is merged."""
    entry = one.delta.entry(name)
    whole = 4 * math.prod(entry.shape)
    if isinstance(one.delta, PackDelta):
        ranks = [part.config.get("rank", 0) for part in one.delta.encoded(name).parts]
        if one.delta.restores(name):
            return entry.bytes + 4 * whole
        codes = sum(ranks) * (entry.shape[0] + math.prod(entry.shape[1:])) * 12 if any(ranks) else 2 * whole
        return entry.bytes + codes
    if isinstance(one.delta, AdapterDelta):
        return 2 * (whole if entry.max_error == 0 else entry.bytes)
    if one.delta.sets_values(name):
        return math.prod(entry.shape) * BITS[one.delta.pack.checkpoint.tensors[name].dtype] // 8
    return 0
