"""The base fingerprint: which model this is, whatever files, dtype or class it was saved with.

``skb1:<sha256>`` digests the sorted, length-framed records (canonical name, shape, kind, digest) of a checkpoint's
tensors. Floats are digested as canonical bfloat16, everything else by its exact bytes, so the fingerprint survives
re-sharding, float32 and bfloat16 saves, tied and untied heads and wrappers, and changes when a weight moves by one
bfloat16 step, layers swap or repeat, or a name changes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skillhub.bfloat16 import FLOATS, canonical_bfloat16
from skillhub.canonical import canonical_names, tied_aliases
from skillhub.checkpointfiles import checkpoint_files, read_tensors
from skillhub.documents import canonical_json
from skillhub.errors import IntegrityError, NewerSchemaError, UnsafeContentError
from skillhub.files import sha256_of_file
from skillhub.remembered import remembered
from skillhub.tensorfiles import BITS, TensorInfo, raw_bytes

SCHEMA = 0
PREFIX = "skb1:"
FLOAT_KIND = "float"
SKETCH_VALUES = 32
SIZE_LIMIT = 1 << 28
"""Most bytes that a ``base.json.zst`` may unpack to: some 700,000 tensors."""

_CHUNK = 1 << 18
_MEMO = "tensors-0"
_DIGEST_MEMO = "sha256-0"
_DAMAGED = "Fetch the file again."

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """What is known of one tensor without its values.

    Attributes:
        name: canonical name.
        shape: its shape.
        kind: ``float`` (digested as bfloat16), else the dtype tag (digested as stored).
        dtype: dtype tag as stored; not part of the fingerprint.
        digest: hex SHA-256 of the canonical bytes.
        exact_digest: hex SHA-256 of the bytes as stored.
        sketch: base64 of up to 32 evenly strided values (indices ``i * n // 32``) in little-endian bfloat16, enough to
            see whether two tensors are near each other; empty for other kinds.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    dtype: str
    digest: str
    exact_digest: str
    sketch: str

    @property
    def elements(self) -> int:
        """Number of elements; 1 for a scalar, 0 for an empty tensor."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class BaseRecord:
    """The fingerprint of a base and its tensors' records, sorted by name: the content of ``base.json.zst``."""

    fingerprint: str
    tensors: tuple[TensorRecord, ...]

    def to_bytes(self) -> bytes:
        """Return the record as zstd-compressed canonical JSON."""
        import zstandard

        value = {"schema": SCHEMA, "fingerprint": self.fingerprint, "tensors": [astuple(t) for t in self.tensors]}
        return zstandard.ZstdCompressor(level=10).compress(canonical_json(value))

    @staticmethod
    def from_bytes(data: bytes) -> BaseRecord:
        """Read what :meth:`to_bytes` wrote, and check it against its own fingerprint.

        Raises:
            NewerSchemaError: it is of another schema.
            IntegrityError: it is damaged.
            UnsafeContentError: it unpacks to more than :data:`SIZE_LIMIT` bytes.
        """
        try:
            value = json.loads(_unpack(data))
            schema = value["schema"]
            if schema == SCHEMA:
                records = tuple(_record_from_json(entry) for entry in value["tensors"])
                fingerprint = value["fingerprint"]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise IntegrityError("The base's record is damaged.", hint=_DAMAGED) from error
        if schema != SCHEMA:
            raise NewerSchemaError(
                f"The base's record has schema {schema!r}; this skillhub reads {SCHEMA}.",
                hint="Upgrade skillhub: pip install --upgrade skillhub-packs.",
            )
        if fingerprint != fingerprint_of(records):
            raise IntegrityError("The base's record does not match its own fingerprint.", hint=_DAMAGED)
        return BaseRecord(fingerprint, records)


def fingerprint_checkpoint(
    source: Path | Iterable[Path], *, threads: int | None = None, progress: Progress | None = None
) -> BaseRecord:
    """Fingerprint a checkpoint; each file's records are remembered until the file changes.

    Args:
        source: a checkpoint folder, one safetensors file, or all the files of a checkpoint.
        threads: how many to use; by default one a processor.
        progress: called with the number of bytes done, from any thread.

    Raises:
        SkillhubError: as :func:`skillhub.checkpointfiles.checkpoint_files` and ``read_tensors``.
    """
    files = checkpoint_files(source) if isinstance(source, Path) else list(source)
    by_file: dict[Path, list[TensorInfo]] = {path: [] for path in files}
    for info in read_tensors(files).values():
        by_file[info.file].append(info)
    with ThreadPoolExecutor(threads or processors()) as pool:
        records = [r for path, infos in by_file.items() for r in _records_of_file(path, infos, pool, progress)]
    return base_record(canonical_records(records))


def known_fingerprint(source: Path | Iterable[Path]) -> BaseRecord | None:
    """Return what :func:`fingerprint_checkpoint` would, where that is remembered of every file; None otherwise. Reads no weights."""
    files = checkpoint_files(source) if isinstance(source, Path) else list(source)
    by_file: dict[Path, list[TensorInfo]] = {path: [] for path in files}
    for info in read_tensors(files).values():
        by_file[info.file].append(info)
    try:
        records = [record for path, infos in by_file.items() for record in _records_of_file(path, infos, None, None)]
    except _NotRememberedError:
        return None
    return base_record(canonical_records(records))


class _NotRememberedError(Exception):
    """A file's records would have to be computed."""


def canonical_records(records: Iterable[TensorRecord]) -> Iterator[TensorRecord]:
    """Yield the records of a whole checkpoint under canonical names; listed buffers are left out."""
    by_name = {record.name: record for record in records}
    for name, canonical in canonical_names({name: record.shape for name, record in by_name.items()}).items():
        yield replace(by_name[name], name=canonical)


def base_record(records: Iterable[TensorRecord]) -> BaseRecord:
    """Make a base's record from the records of all its tensors under canonical names; tied aliases are left out."""
    by_name = {record.name: record for record in records}
    content = {name: (record.shape, record.kind, record.digest) for name, record in by_name.items()}
    aliases = tied_aliases(by_name, lambda first, second: content[first] == content[second])
    kept = tuple(by_name[name] for name in sorted(by_name.keys() - aliases.keys()))
    return BaseRecord(fingerprint_of(kept), kept)


def fingerprint_of(records: Iterable[TensorRecord]) -> str:
    """Return ``skb1:<sha256>`` over the records, sorted by name.

    Each of name (UTF-8), shape (decimal, comma-separated), kind and digest (hex) is preceded by its length in bytes, as
    eight little-endian bytes, so no two different lists of records run together to the same bytes.
    """
    digest = hashlib.sha256(PREFIX.encode())
    for record in sorted(records, key=lambda record: record.name.encode()):
        for field in (record.name, ",".join(map(str, record.shape)), record.kind, record.digest):
            data = field.encode()
            digest.update(len(data).to_bytes(8, "little") + data)
    return PREFIX + digest.hexdigest()


def record_array(
    name: str,
    array: NDArray[Any],
    dtype: str,
    *,
    shape: tuple[int, ...] | None = None,
    progress: Progress | None = None,
) -> TensorRecord:
    """Make the record of one tensor, a chunk at a time.

    Args:
        name: the tensor's name.
        array: its values; dtypes that numpy lacks as integers of the same size (bfloat16 as U16), or raw bytes as U8.
        dtype: its safetensors dtype tag.
        shape: its shape, if not the array's.
        progress: called with the number of bytes done.
    """
    shape = array.shape if shape is None else shape
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    if dtype not in FLOATS:
        digest = hashlib.sha256()
        for begin in range(0, flat.size, _CHUNK):
            digest.update(flat[begin : begin + _CHUNK].data)
            if progress:
                progress(flat[begin : begin + _CHUNK].size)
        return TensorRecord(name, shape, dtype, dtype, digest.hexdigest(), digest.hexdigest(), "")
    canonical, exact, sketch = _digest_floats(flat, dtype, progress)
    return TensorRecord(name, shape, FLOAT_KIND, dtype, canonical, exact, sketch)


def processors() -> int:
    """Return how many processors this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS or Windows
        return os.cpu_count() or 1


def same_content(first: TensorInfo, second: TensorInfo) -> bool:
    """Say whether two stored tensors have the same shape, kind and digest, reading only up to the first difference."""
    kinds = [FLOAT_KIND if info.dtype in FLOATS else info.dtype for info in (first, second)]
    if first.shape != second.shape or kinds[0] != kinds[1]:
        return False
    if kinds[0] != FLOAT_KIND:
        return np.array_equal(raw_bytes(first), raw_bytes(second))
    for begin in range(0, first.elements, _CHUNK):
        if not np.array_equal(_canonical_part(first, begin), _canonical_part(second, begin)):
            return False
    return True


def packaging_digests(folder: Path) -> dict[str, str]:
    """Return the hex SHA-256 of each file of weights of a checkpoint, by file name: what the Hub calls its LFS digest.

    Raises:
        SkillhubError: as :func:`skillhub.checkpointfiles.checkpoint_files`.
    """

    def digest(path: Path) -> str:
        return remembered(path, _DIGEST_MEMO, _checked_digest, str, lambda: sha256_of_file(path))

    files = checkpoint_files(folder)
    with ThreadPoolExecutor(processors()) as pool:
        return dict(zip((path.name for path in files), pool.map(digest, files), strict=True))


def base_files_digest(sha256s: Iterable[str]) -> str:
    """Return the ``base_files`` of a release's event: the hex SHA-256 over one packaging's sorted digests, a line each."""
    return hashlib.sha256("".join(f"{digest}\n" for digest in sorted(sha256s)).encode()).hexdigest()


def _canonical_part(info: TensorInfo, begin: int) -> NDArray[np.uint16]:
    size = BITS[info.dtype] // 8
    return canonical_bfloat16(raw_bytes(info)[begin * size : (begin + _CHUNK) * size], info.dtype)


def _digest_floats(flat: NDArray[np.uint8], dtype: str, progress: Progress | None) -> tuple[str, str, str]:
    """Return the canonical digest, the exact digest and the sketch of a float tensor's bytes."""
    itemsize = BITS[dtype] // 8
    elements = flat.size // itemsize
    wanted = np.unique(np.arange(SKETCH_VALUES) * elements // SKETCH_VALUES) if elements else np.empty(0, np.int64)
    values = np.empty(wanted.size, "<u2")
    canonical = hashlib.sha256()
    exact = None  # the same as canonical as long as rounding changed nothing
    step = _CHUNK // itemsize
    for begin in range(0, elements, step):
        raw = flat[begin * itemsize : (begin + step) * itemsize]
        bits = canonical_bfloat16(raw, dtype)
        if exact is None and not np.may_share_memory(bits, raw):
            exact = canonical.copy()
        canonical.update(bits.data)
        if exact is not None:
            exact.update(raw.data)
        here = (wanted >= begin) & (wanted < begin + step)
        values[here] = bits[wanted[here] - begin]
        if progress:
            progress(raw.size)
    sketch = base64.b64encode(values.tobytes()).decode()
    return canonical.hexdigest(), (exact or canonical).hexdigest(), sketch


def _records_of_file(
    path: Path, infos: list[TensorInfo], pool: ThreadPoolExecutor | None, progress: Progress | None
) -> list[TensorRecord]:
    """Return the records of one file's tensors under their names in it, from its memo if there is one; else ``pool`` computes them."""
    done = False

    def record(info: TensorInfo) -> TensorRecord:
        return record_array(info.name, raw_bytes(info), info.dtype, shape=info.shape, progress=progress)

    def compute() -> list[TensorRecord]:
        nonlocal done
        done = True
        if pool is None:
            raise _NotRememberedError
        return list(pool.map(record, sorted(infos, key=lambda info: -info.nbytes)))

    def decode(value: Any) -> list[TensorRecord]:
        records = [_record_from_json(entry) for entry in value]
        if {(r.name, r.shape, r.dtype) for r in records} != {(i.name, i.shape, i.dtype) for i in infos}:
            raise ValueError("the memo is of other tensors")
        return records

    records = remembered(path, _MEMO, decode, lambda records: [astuple(record) for record in records], compute)
    if progress and not done:
        progress(sum(info.nbytes for info in infos))
    return records


def _record_from_json(entry: Any) -> TensorRecord:
    """Read one record; raises ValueError or TypeError for anything that is not one."""
    name, shape, kind, dtype, digest, exact_digest, sketch = entry
    texts = (name, kind, dtype, digest, exact_digest, sketch)
    if not all(isinstance(text, str) for text in texts) or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError("a field has another type")
    base64.b64decode(sketch, validate=True)
    return TensorRecord(name, tuple(shape), kind, dtype, _checked_digest(digest), _checked_digest(exact_digest), sketch)


def _checked_digest(digest: Any) -> str:
    if not isinstance(digest, str) or len(bytes.fromhex(digest)) != hashlib.sha256().digest_size:
        raise ValueError("not a SHA-256")
    return digest


def _unpack(data: bytes) -> bytes:
    """Decompress, but never more than :data:`SIZE_LIMIT` bytes, whatever the frame claims."""
    import zstandard

    too_large = UnsafeContentError(
        f"The base's record unpacks to more than {SIZE_LIMIT} bytes.", hint="Do not use this pack."
    )
    try:
        frame = zstandard.get_frame_parameters(data)
        if frame.window_size > SIZE_LIMIT:
            raise too_large
        with zstandard.ZstdDecompressor(max_window_size=SIZE_LIMIT).stream_reader(data) as stream:
            unpacked = stream.read(SIZE_LIMIT + 1)
    except zstandard.ZstdError as error:
        raise IntegrityError("The base's record is not a zstd file.", hint=_DAMAGED) from error
    if len(unpacked) > SIZE_LIMIT:
        raise too_large
    return unpacked
