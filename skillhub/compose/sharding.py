"""The files of weights of a fused checkpoint: which tensors there will be, in which files, and writing them piece by piece."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from skillhub.bfloat16 import FLOATS
from skillhub.checkpointfiles import INDEX_FILE, WEIGHTS_FILE
from skillhub.checkpoints import DTYPES, Checkpoint, dtype_tag
from skillhub.codecs.streams import Bytes, tensor_bytes
from skillhub.compose.merging import Contribution, changed_names, merge_chunks, result_dtype, result_shape
from skillhub.compose.methods.interface import CHUNK
from skillhub.compose.recipes import Recipe
from skillhub.compose.sums import check_finite, fits, rounded
from skillhub.compose.tunedcheckpoints import CheckpointBase
from skillhub.errors import DiskError, UsageError
from skillhub.progress import Progress
from skillhub.ranks import Ranks
from skillhub.tensorfiles import BITS, TensorInfo, write_tensors
from skillhub.tensorreaders import FileReader

SHARD_BYTES = 5 * 10**9

_PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class FusedTensor:
    """One tensor of the checkpoint that is written.

    Attributes:
        name: in the files.
        dtype: safetensors dtype tag.
        shape: its shape.
        source: canonical name of the tensor that is merged; None copies the base's bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    source: str | None

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * BITS[self.dtype] // 8


@dataclass(frozen=True)
class Shard:
    """One file of weights.

    Attributes:
        file: its name.
        tensors: what it holds.
    """

    file: str
    tensors: tuple[FusedTensor, ...]

    @property
    def nbytes(self) -> int:
        """Size of its tensors in bytes."""
        return sum(tensor.nbytes for tensor in self.tensors)


def plan_tensors(
    checkpoint: Checkpoint, contributions: Sequence[Contribution], dtype: str | None = None
) -> list[FusedTensor]:
    """Return the tensors that will be written, sorted by name, from headers and manifests alone.

    Args:
        checkpoint: the base.
        contributions: the packs.
        dtype: tag of the dtype that floating-point tensors are written in; None keeps each one's.

    Raises:
        UsageError: a pack changes a tensor of a dtype that torch has no elements for.
        IntegrityError: a pack does not say of which dtype its values are.
    """
    changed = set(changed_names(contributions))
    removed = {name for one in contributions for name in one.removed}
    planned = []
    for name, info in checkpoint.stored.items():
        bare = checkpoint.canonical.get(name)
        source = bare if bare in changed else checkpoint.aliases.get(bare or "")
        if bare in removed:
            continue
        if source in changed:
            planned.append(_fused(name, source, checkpoint, contributions, dtype))
        else:
            planned.append(FusedTensor(name, _written_dtype(info.dtype, dtype), info.shape, None))
    for bare in sorted(changed - set(checkpoint.canonical.values())):
        planned.append(_fused(stored_name(bare, checkpoint.canonical), bare, checkpoint, contributions, dtype))
    return sorted(planned, key=lambda tensor: tensor.name)


def stored_name(canonical: str, known: Mapping[str, str]) -> str:
    """Return the name in the files for an added tensor: with the wrapper of the tensors that begin with the same component.

    Args:
        canonical: the added tensor's canonical name.
        known: name in the files → canonical name of the base's tensors.
    """
    component = canonical.partition(".")[0]
    for name, bare in known.items():
        if bare.partition(".")[0] == component:
            return f"{name.removesuffix(bare)}{canonical}"
    return canonical


def _fused(
    name: str, source: str, checkpoint: Checkpoint, contributions: Sequence[Contribution], dtype: str | None
) -> FusedTensor:
    info = checkpoint.tensors.get(source)
    if info is not None and info.dtype not in DTYPES:
        raise UsageError(
            f"{source} is stored as {info.dtype}, which cannot be changed.", hint="Save the base in another dtype."
        )
    base = None if info is None else DTYPES[info.dtype]
    shape = result_shape(contributions, source, None if info is None else info.shape)
    tag = dtype_tag(result_dtype(contributions, source, base))
    return FusedTensor(name, _written_dtype(tag, dtype), shape, source)


def _written_dtype(tag: str, wanted: str | None) -> str:
    return wanted if wanted and tag in FLOATS else tag


def split_shards(tensors: Sequence[FusedTensor], limit: int) -> list[Shard]:
    """Cut a list of tensors into files of at most ``limit`` bytes (or of one larger tensor), in order."""
    parts: list[list[FusedTensor]] = [[]]
    size = 0
    for tensor in tensors:
        if parts[-1] and size + tensor.nbytes > limit:
            parts.append([])
            size = 0
        parts[-1].append(tensor)
        size += tensor.nbytes
    if len(parts) == 1:
        return [Shard(WEIGHTS_FILE, tuple(parts[0]))]
    count = len(parts)
    return [
        Shard(f"model-{number:05d}-of-{count:05d}.safetensors", tuple(part)) for number, part in enumerate(parts, 1)
    ]


def own_shards(ranks: Ranks, shards: Sequence[Shard]) -> list[Shard]:
    """Return the files that this process writes, of all that several write together."""
    own = set(ranks.own({shard.file: shard.nbytes for shard in shards}))
    return [shard for shard in shards if shard.file in own]


def room_error(free: int, shards: Sequence[Shard]) -> DiskError | None:
    """Return the error for a disk that has less free (in bytes) than files of weights need; None where there is enough."""
    needed = sum(shard.nbytes for shard in shards)
    if needed <= free:
        return None
    return DiskError(
        f"The checkpoint takes {needed} bytes, and {free} are free where it is to be written.",
        hint="Free some space, or choose another disk with -o.",
    )


def write_shards(
    folder: Path,
    shards: Sequence[Shard],
    pieces: Callable[[FusedTensor], Iterator[Bytes]],
    *,
    progress: Progress | None = None,
) -> None:
    """Write some files of weights.

    Args:
        folder: where to.
        shards: the files.
        pieces: gives the bytes of a tensor, some at a time.
        progress: called with (``tensors``, done, all).

    Raises:
        SkillhubError: as ``pieces``, and :func:`skillhub.tensorfiles.write_tensors`.
    """
    count, done = sum(len(shard.tensors) for shard in shards), 0

    def data(shard: Shard) -> Iterator[Iterator[Bytes]]:
        nonlocal done
        for tensor in shard.tensors:
            yield pieces(tensor)
            done += 1
            if progress:
                progress("tensors", done, count)

    for shard in shards:
        specs = {tensor.name: (tensor.dtype, tensor.shape) for tensor in shard.tensors}
        write_tensors(folder / shard.file, specs, data(shard), {"format": "pt"})


def write_index(folder: Path, shards: Sequence[Shard]) -> None:
    """Write which file holds which tensor, where there are several."""
    if len(shards) == 1:
        return
    weight_map = {tensor.name: shard.file for shard in shards for tensor in shard.tensors}
    index = {
        "metadata": {"total_size": sum(shard.nbytes for shard in shards)},
        "weight_map": dict(sorted(weight_map.items())),
    }
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def fused_pieces(
    tensor: FusedTensor,
    base: CheckpointBase,
    recipe: Recipe,
    contributions: Sequence[Contribution],
    device: torch.device | None = None,
) -> Iterator[Bytes]:
    """Return the bytes of one tensor of a fused checkpoint, some at a time.

    Args:
        tensor: the tensor.
        base: the base.
        recipe: how the packs are merged.
        contributions: the packs.
        device: where chunks are merged; None is the CPU.

    Raises:
        IntegrityError: a pack's bytes are damaged, or a file has become shorter.
        UsageError: a sum of finite values is too large for the dtype.
    """
    checkpoint = base.checkpoint
    if tensor.source is None:
        info = checkpoint.stored[tensor.name]
        return stored_pieces(info) if info.dtype == tensor.dtype else _converted(info, DTYPES[tensor.dtype])
    reader = base.reader(tensor.source) if tensor.source in checkpoint.tensors else None
    chunks = merge_chunks(recipe, contributions, tensor.source, reader, DTYPES[tensor.dtype], device=device)
    return map(tensor_bytes, chunks)


def stored_pieces(info: TensorInfo) -> Iterator[Bytes]:
    """Yield the bytes of a tensor as a file has them, a megabyte at a time."""
    for begin in range(info.begin, info.end, _PIECE_BYTES):
        yield np.fromfile(info.file, np.uint8, count=min(_PIECE_BYTES, info.end - begin), offset=begin)


def _converted(info: TensorInfo, dtype: torch.dtype) -> Iterator[Bytes]:
    """Yield a tensor's bytes in another dtype, rounded to nearest."""
    reader = FileReader(info)
    step = max(1, CHUNK // max(1, math.prod(reader.shape[1:])))
    for begin in range(0, reader.shape[0], step):
        values = reader.read(begin, min(begin + step, reader.shape[0]))
        result = rounded(values, dtype, key=0, mode="nearest")
        if not fits(values, dtype):
            check_finite(result, [values], info.name)
        yield tensor_bytes(result)
