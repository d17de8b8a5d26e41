"""An unfinished pack: what packing has found out so far, kept beside the output, so that an interrupted run goes on where it was.

The folder ``.<name>.partial`` holds a folder for one set of inputs, named by their digest, and in it a file for each *record*:
any value of numbers, texts, arrays and the data classes of :data:`KINDS`. A record begins with the SHA-256 of all that follows, and of
files that a value names it holds size and digest. One that is missing, cut off or altered is as if it had never been
written. Records are data alone: reading one runs nothing that it says.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import torch
from msgspec.msgpack import Ext

from skillhub import __version__
from skillhub.calibration.moments import Calibration, LayerRecord
from skillhub.calibration.texts import Row
from skillhub.codecs.allocation import Analysis
from skillhub.codecs.encoding import EncodedPart, EncodedTensor
from skillhub.deltas import Delta
from skillhub.documents import canonical_json
from skillhub.errors import may_pass
from skillhub.files import disk_errors, sha256_of_file
from skillhub.locks import locked
from skillhub.manifest import TensorEntry
from skillhub.progress import Notice
from skillhub.ranks import Ranks

KINDS: dict[str, Any] = {
    kind.__name__: kind for kind in (Analysis, Calibration, EncodedPart, EncodedTensor, LayerRecord, Row, TensorEntry)
}
"""What a record may hold beside plain values, by name."""

RECORDS_SCHEMA = 1
"""To be raised with whatever changes records or what they say: another field, another way to find something out."""

_FIELDS, _ARRAY, _TUPLE, _FILE = range(4)
"""Codes of what msgpack has no types for."""

_LOCK = "lock"

_CONFIGS = {".json", ".jinja", ".model", ".txt"}
"""Endings of files beside the weights that may change what a model says."""

_DIGEST = hashlib.sha256().digest_size

T = TypeVar("T")


class _AlteredFileError(Exception):
    """A file that a record names is not as it was."""


@dataclass(frozen=True)
class Partial:
    """A folder of records.

    Attributes:
        folder: on a file system that all processes share; beside records it may hold files that they name.
    """

    folder: Path

    def write(self, kind: str, key: str, value: object) -> None:
        """Keep a value; what is read later is all of it or nothing.

        Args:
            kind: a word, the same for records of the same sort.
            key: tells the records of a kind apart.
            value: see :data:`KINDS`; files that it names lie in ``folder``.

        Raises:
            DiskError: the disk is full.
        """
        path = self._path(kind, key)
        with disk_errors(path):
            data = msgspec.msgpack.encode([kind, key, self._packed(value)])
            with (staged := path.with_suffix(".part")).open("wb") as stream:
                stream.write(hashlib.sha256(data).digest())
                stream.write(data)
            staged.replace(path)

    def read(self, kind: str, key: str) -> Any | None:
        """Return what was kept; None where nothing was, or where it is not as it was: a bit of it, a file that it names, a kind."""
        try:
            data = self._path(kind, key).read_bytes()
        except OSError:
            return None
        if hashlib.sha256(data[_DIGEST:]).digest() != data[:_DIGEST]:
            return None
        with suppress(_AlteredFileError, KeyError, TypeError):  # the last two: of a version with other kinds or fields
            found_kind, found_key, packed = msgspec.msgpack.decode(data[_DIGEST:], ext_hook=self._unpacked)
            return packed if (found_kind, found_key) == (kind, key) else None
        return None

    def made(self, kind: str, key: str, make: Callable[[], T]) -> T:
        """Return what was kept; else make it, and keep it."""
        found: T | None = self.read(kind, key)
        if found is None:
            self.write(kind, key, found := make())
        return found

    def count(self, kind: str) -> int:
        """Return how many records of a kind there are, of which some may turn out to be damaged."""
        return sum(1 for _ in self.folder.glob(f"{kind}-*.record"))

    def _path(self, kind: str, key: str) -> Path:
        return self.folder / f"{kind}-{hashlib.sha256(key.encode()).hexdigest()[:32]}.record"

    def _packed(self, value: Any) -> Any:
        """Return a value in the types of msgpack."""
        if isinstance(value, msgspec.Struct):
            return Ext(_FIELDS, self._encoded([type(value).__name__, msgspec.to_builtins(value)]))
        if dataclasses.is_dataclass(value) and KINDS[type(value).__name__]:
            fields = {one.name: self._packed(getattr(value, one.name)) for one in dataclasses.fields(value)}
            return Ext(_FIELDS, self._encoded([type(value).__name__, fields]))
        if isinstance(value, np.ndarray):
            return Ext(_ARRAY, self._encoded([value.dtype.str, list(value.shape), value.tobytes()]))
        if isinstance(value, Path):
            name = value.relative_to(self.folder).as_posix()
            return Ext(_FILE, self._encoded([name, value.stat().st_size, sha256_of_file(value)]))
        if isinstance(value, tuple):
            return Ext(_TUPLE, self._encoded([self._packed(one) for one in value]))
        if isinstance(value, dict):
            return {key: self._packed(one) for key, one in value.items()}
        if isinstance(value, list):
            return [self._packed(one) for one in value]
        return value.item() if isinstance(value, np.generic) else value

    @staticmethod
    def _encoded(value: Any) -> bytes:
        return msgspec.msgpack.encode(value)

    def _unpacked(self, code: int, data: memoryview) -> Any:
        """Undo :meth:`_packed`."""
        value: Any = msgspec.msgpack.decode(data, ext_hook=self._unpacked)
        if code == _TUPLE:
            return tuple(value)
        if code == _ARRAY:
            dtype, shape, content = value
            return np.frombuffer(bytearray(content), dtype).reshape(shape)
        if code == _FILE:
            path = self.folder / value[0]
            if not path.is_file() or path.stat().st_size != value[1] or sha256_of_file(path) != value[2]:
                raise _AlteredFileError(path)
            return path
        return KINDS[value[0]](**value[1])


@contextmanager
def partial_pack(
    ranks: Ranks, out: Path, inputs: Callable[[], str], *, resume: bool, notice: Notice
) -> Iterator[Partial]:
    """Yield the records of an earlier, interrupted run with the same inputs, or none, to all processes that pack together.

    They stay where the block is interrupted (also for want of disk or memory), so that the same command can go on; otherwise they go.

    Args:
        ranks: the processes; the first makes the folder and tidies up.
        out: folder of the pack.
        inputs: returns the digest (hex) of all that the records depend on; called in the first process.
        resume: whether to take up earlier records; else they are removed.
        notice: told of records that stay.

    Raises:
        EnvironmentLockedError: another process is packing into ``out``.
        DiskError: the folder cannot be made.
    """
    place = out.with_name(f".{out.name[:40]}.partial")
    with ExitStack() as held:
        held.callback(_remove_if_empty, place, ranks)  # after the lock was let go

        def prepare() -> str:
            held.enter_context(locked(place / _LOCK, timeout_seconds=1))
            return str(_opened(place, inputs(), resume))

        folder = Path(ranks.share(lambda: prepare() if ranks.leads else "")[0])
        try:
            yield Partial(folder)
        except BaseException as error:
            if ranks.leads and may_pass(error) and any(folder.glob("*.record")):
                notice(f"What was found out so far is kept in {place}: the same command goes on from there.")
            elif ranks.leads:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        if ranks.leads:
            shutil.rmtree(folder, ignore_errors=True)


def _opened(place: Path, inputs: str, resume: bool) -> Path:
    """Return the folder for inputs with that digest, after those of others were removed."""
    folder = place / inputs[:32]
    for other in place.iterdir():
        if other.is_dir() and (other != folder or not resume):
            shutil.rmtree(other)
    folder.mkdir(exist_ok=True)
    return folder


def _remove_if_empty(place: Path, ranks: Ranks) -> None:
    if ranks.leads and place.is_dir() and {path.name for path in place.iterdir()} <= {_LOCK}:
        shutil.rmtree(place, ignore_errors=True)


def digest_inputs(delta: Delta, *options: object) -> str:
    """Return the digest (hex) of all that records depend on: weights, configs and tokenizers, options, and the versions that compute.

    Args:
        delta: between the two checkpoints.
        options: what else there is, of the types of JSON.
    """
    digest = hashlib.sha256(canonical_json([RECORDS_SCHEMA, __version__, torch.__version__, np.__version__, *options]))
    for checkpoint in (delta.base, delta.tuned):
        beside = [checkpoint.folder / path for path in checkpoint.companions() if path.suffix in _CONFIGS]
        for path in (*checkpoint.files, *beside):
            digest.update(f"{path.name} {sha256_of_file(path)}\n".encode())
    return digest.hexdigest()
