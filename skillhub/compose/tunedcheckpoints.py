"""Whole fine-tuned checkpoints as sources of a composition: their delta is tuned − base, read a chunk at a time."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch

from skillhub.basemodel import CONFIG_FILE
from skillhub.bases import LocatedBase, find_base
from skillhub.bfloat16 import FLOATS
from skillhub.checkpointfiles import ADAPTER_FILE
from skillhub.checkpoints import DTYPES, Checkpoint, open_checkpoint
from skillhub.errors import UsageError
from skillhub.files import disk_errors
from skillhub.fingerprint import same_content
from skillhub.manifest import TensorEntry
from skillhub.names import PackName
from skillhub.tensorfiles import TensorInfo
from skillhub.tensorreaders import DifferenceReader, FileReader, RememberingReader, Shape, TensorReader, row_shape

CHECKPOINT_PREFIX = "checkpoint:"
"""What stands before the repository of a fine-tuned checkpoint; a folder needs no prefix."""

DIGEST_PREFIX = "sample:"

_PIECES, _PIECE_BYTES = 4, 1024
_HASH_BYTES = 1 << 20


@dataclass(frozen=True, eq=False)
class TunedCheckpoint:
    """A fine-tuned checkpoint, opened: its headers were read, its weights were not.

    Attributes:
        checkpoint: its tensors.
        located: where it was found.
        name: of its repository, or its folder's.
    """

    checkpoint: Checkpoint
    located: LocatedBase
    name: PackName

    @property
    def version(self) -> str:
        """The first digits of its commit; empty for a folder."""
        return (self.located.revision or "")[:12]

    @cached_property
    def digest(self) -> str:
        """What tells it apart: a SHA-256 over the names, dtypes and shapes of its tensors and four kilobytes of each.

        It orders sources and seeds random masks, for which a sample does: to hash all the weights would take longer than to
        merge them. It proves nothing, and neither needs it to, for a checkpoint promises nothing that it could be held to.
        """
        digest = hashlib.sha256()
        with disk_errors(self.checkpoint.folder):
            for name, info in self.checkpoint.tensors.items():
                head = f"{name} {info.dtype} {list(info.shape)}".encode()
                digest.update(len(head).to_bytes(8, "little") + head + _sample(info))
        return DIGEST_PREFIX + digest.hexdigest()

    def __str__(self) -> str:
        return f"{self.name} {self.version}".strip()


def open_tuned(source: str | Path) -> TunedCheckpoint:
    """Open a fine-tuned checkpoint: a folder, one safetensors file, or ``repo[@revision]``, also with ``checkpoint:`` before it.

    Raises:
        SkillhubError: as :func:`skillhub.bases.find_base` and :func:`skillhub.checkpoints.open_checkpoint`.
    """
    located = find_base(str(source).removeprefix(CHECKPOINT_PREFIX))
    checkpoint = open_checkpoint(located.folder)
    owner, _, bare = (located.repo or "").rpartition("/")
    return TunedCheckpoint(checkpoint, located, PackName(owner or None, bare or checkpoint.folder.resolve().name))


def is_checkpoint(path: Path) -> bool:
    """Say whether a path is a checkpoint, by its files' names alone."""
    if path.is_file():
        return path.suffix == ".safetensors"
    return any(file.name != ADAPTER_FILE for file in path.glob("*.safetensors")) or (path / CONFIG_FILE).is_file()


class BaseTensors(Protocol):
    """The base that a fine-tuned checkpoint is compared with."""

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """Canonical name → shape."""

    @property
    def dtypes(self) -> Mapping[str, str]:
        """Canonical name → safetensors dtype tag."""

    def reader(self, name: str) -> TensorReader:
        """Return a reader of a tensor."""

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor on the CPU, in the dtype that the base holds it in."""

    def equals(self, name: str, info: TensorInfo) -> bool:
        """Say whether a tensor has the bytes of one in a file."""


@dataclass(frozen=True, eq=False)
class CheckpointBase:
    """A base that is a checkpoint. The reader of the tensor that was asked for last is shared, and so is what it read."""

    checkpoint: Checkpoint

    @cached_property
    def shapes(self) -> Mapping[str, Shape]:
        """Canonical name → shape."""
        return {name: info.shape for name, info in self.checkpoint.tensors.items()}

    @cached_property
    def dtypes(self) -> Mapping[str, str]:
        """Canonical name → safetensors dtype tag."""
        return {name: info.dtype for name, info in self.checkpoint.tensors.items()}

    def reader(self, name: str) -> TensorReader:
        """Return a reader of a tensor."""
        if name not in self._last:
            self._last.clear()
            self._last[name] = RememberingReader(FileReader(self.checkpoint.tensors[name]))
        return self._last[name]

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor in the dtype that it is stored in."""
        return self.checkpoint.tensor(name)

    def equals(self, name: str, info: TensorInfo) -> bool:
        """Say whether a tensor has the bytes of one in a file."""
        return same_content(self.checkpoint.tensors[name], info)

    @cached_property
    def _last(self) -> dict[str, TensorReader]:
        return {}


@dataclass(frozen=True, eq=False)
class CheckpointDelta:
    """The delta of a fine-tuned checkpoint; it answers what :class:`skillhub.packdeltas.PackDelta` does.

    Every tensor of both counts as changed, since only reading could tell; what is equal differs by zeros, which change no bits.

    Attributes:
        pack: the checkpoint.
        tensors: canonical name → what becomes of that tensor.
    """

    pack: TunedCheckpoint
    tensors: Mapping[str, TensorEntry]
    _base: BaseTensors

    @property
    def names(self) -> list[str]:
        """Canonical names of the tensors that it changes, sorted."""
        return sorted(self.tensors)

    def entry(self, name: str) -> TensorEntry:
        """Return what becomes of a tensor."""
        return self.tensors[name]

    def sets_values(self, name: str) -> bool:
        """Say whether the tuned tensor itself is taken: where the base has none, and where one of them is no float."""
        change = self.tensors[name].change
        return change == "added" or (change == "delta" and not self._is_additive(name))

    def decode(self, name: str) -> torch.Tensor:
        """Return the fp32 delta of a tensor, or where values are *set* the tuned tensor in its own dtype."""
        info = self.pack.checkpoint.tensors[name]
        if self.sets_values(name):
            return FileReader(info).read_stored(0, row_shape(info.shape)[0]).reshape(info.shape)
        reader = self.reader(name)
        return reader.read(0, reader.shape[0]).reshape(info.shape)

    def reader(self, name: str) -> TensorReader:
        """Return a reader of a tensor's delta; not for tensors whose values are set."""
        return DifferenceReader(FileReader(self.pack.checkpoint.tensors[name]), self._base.reader(name))

    def value_dtype(self, name: str) -> torch.dtype:
        """Return the dtype of the values that are set."""
        return DTYPES[self.pack.checkpoint.tensors[name].dtype]

    def _is_additive(self, name: str) -> bool:
        return {self._base.dtypes[name], self.pack.checkpoint.tensors[name].dtype} <= FLOATS


def open_checkpoint_delta(tuned: TunedCheckpoint, base: BaseTensors) -> CheckpointDelta:
    """Open the delta of a fine-tuned checkpoint; only headers are read, and what is no float.

    Raises:
        UsageError: it holds a dtype that torch has no elements for.
    """
    there = tuned.checkpoint.tensors
    delta = CheckpointDelta(tuned, {}, base)
    entries = {}
    for name in sorted(there.keys() | base.shapes.keys()):
        change = "added" if name not in base.shapes else "delta" if name in there else "removed"
        if change != "removed" and there[name].dtype not in DTYPES:
            raise UsageError(
                f"{name} is stored as {there[name].dtype} in {tuned}, which cannot be merged.",
                hint="Give the fine-tune as it was before it was quantized.",
                tensor=name,
            )
        sets = change == "added" or (change == "delta" and not delta._is_additive(name))
        if sets and change == "delta" and base.equals(name, there[name]):
            continue
        entries[name] = _entry(
            change, base.shapes[name] if change == "removed" else there[name].shape, there.get(name), sets
        )
    return CheckpointDelta(tuned, entries, base)


def _entry(change: str, shape: Shape, info: TensorInfo | None, sets: bool) -> TensorEntry:
    return TensorEntry(
        shape=list(shape),
        change=change,
        codecs=[] if info is None else ["whole"],
        bytes=0 if info is None else info.nbytes,
        relative_error=0.0,
        max_error=0.0,
        digest=_content_digest(info) if sets and info is not None else None,
    )


def _content_digest(info: TensorInfo) -> str:
    """Return the SHA-256 of a stored tensor's bytes, so that two checkpoints that add the same agree."""
    digest = hashlib.sha256()
    with info.file.open("rb") as stream:
        stream.seek(info.begin)
        left = info.nbytes
        while left and (piece := stream.read(min(left, _HASH_BYTES))):
            digest.update(piece)
            left -= len(piece)
    return digest.hexdigest()


def _sample(info: TensorInfo) -> bytes:
    """Return evenly spaced bytes of a stored tensor; all of a small one."""
    with info.file.open("rb") as stream:
        if info.nbytes <= _PIECES * _PIECE_BYTES:
            stream.seek(info.begin)
            return stream.read(info.nbytes)
        pieces = []
        for number in range(_PIECES):
            stream.seek(info.begin + (info.nbytes - _PIECE_BYTES) * number // (_PIECES - 1), os.SEEK_SET)
            pieces.append(stream.read(_PIECE_BYTES))
        return b"".join(pieces)
