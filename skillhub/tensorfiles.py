"""Safetensors files without torch: strict reading of headers, memory-mapped bytes, streaming writes.

The format (https://huggingface.co/docs/safetensors): eight bytes with the header's length (unsigned, little-endian),
a JSON header ``{name: {dtype, shape, data_offsets}, "__metadata__": {text: text}}``, then the tensors' bytes without
gaps. Everything that can be wrong with such a file is found in :func:`read_header`, before a byte of a tensor is used.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skillhub.errors import IntegrityError, UnsafeContentError
from skillhub.files import staged_file

HEADER_LIMIT = 100_000_000
"""Longest header that is read, in bytes: the safetensors library's own limit."""

BITS: Mapping[str, int] = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
"""Bits of one element, by safetensors dtype tag."""

_METADATA = "__metadata__"
_LENGTH_BYTES = 8
_LARGEST_DIMENSION = 2**63 - 1
_DAMAGED = "Fetch or save the file again."

Bytes = bytes | bytearray | memoryview | NDArray[Any]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies: ``begin`` and ``end`` are byte offsets from the start of ``file``."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        """Size of the tensor in bytes."""
        return self.end - self.begin

    @property
    def elements(self) -> int:
        """Number of elements; 1 for a scalar, 0 for an empty tensor."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class TensorFile:
    """The checked header of one safetensors file; ``tensors`` in the file's order of bytes."""

    path: Path
    metadata: Mapping[str, str]
    tensors: Mapping[str, TensorInfo]


def read_header(path: Path, *, limit: int = HEADER_LIMIT) -> TensorFile:
    """Read and check the header of the safetensors file ``path``.

    Args:
        path: the file.
        limit: longest header to read, in bytes.

    Raises:
        UnsafeContentError: the header claims more than ``limit`` bytes.
        IntegrityError: the file is truncated or longer than its header says, or the header is not valid: JSON, types,
            duplicate names, unknown dtypes, offsets that leave gaps, overlap or do not fit dtype and shape.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        prefix = stream.read(_LENGTH_BYTES)
        length = int.from_bytes(prefix, "little")
        if len(prefix) == _LENGTH_BYTES and length > limit:
            raise UnsafeContentError(
                f"{path.name}: the header claims {length} bytes, more than the {limit} that are read.",
                hint="Do not use this file; it is damaged or made to exhaust memory.",
                file=str(path),
            )
        if len(prefix) < _LENGTH_BYTES or size < _LENGTH_BYTES + length:
            raise _broken(path, "the file is truncated: it ends inside its header")
        text = stream.read(length)
    header = _parse_header(path, text)
    metadata = _check_metadata(path, header.pop(_METADATA, {}))
    start = _LENGTH_BYTES + length
    infos = sorted((_tensor_info(path, name, entry, start) for name, entry in header.items()), key=_by_offset)
    _check_coverage(path, infos, start, size)
    return TensorFile(path, metadata, {info.name: info for info in infos})


def raw_bytes(info: TensorInfo) -> NDArray[np.uint8]:
    """Return the tensor's bytes as a one-dimensional U8 array, memory-mapped and read-only.

    Raises:
        FileNotFoundError: the file is gone.
        ValueError: it is shorter than its header said.
    """
    if not info.nbytes:
        return np.empty(0, np.uint8)
    before = info.begin % mmap.ALLOCATIONGRANULARITY
    with info.file.open("rb") as stream:  # ten times as quick as numpy's memmap, of which a model takes thousands
        mapped = mmap.mmap(stream.fileno(), before + info.nbytes, access=mmap.ACCESS_READ, offset=info.begin - before)
    return np.frombuffer(mapped, np.uint8, info.nbytes, before)


def write_tensors(
    path: Path,
    specs: Mapping[str, tuple[str, Sequence[int]]],
    data: Iterable[Bytes | Iterator[Bytes]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file, holding one tensor at a time, or one piece of it.

    The file's bytes depend on names, dtypes, shapes, values and metadata alone, not on the order of ``specs``: the
    header's keys are sorted and padded to a multiple of eight bytes, and tensors lie by falling element size, then by
    name, so that each is aligned to its dtype.

    Args:
        path: the file; it appears whole or not at all.
        specs: dtype tag and shape of every tensor, by name.
        data: each tensor's bytes (C order, little-endian), in the order of ``specs``; as a whole, or an iterator of pieces.
        metadata: text entries for the header.

    Raises:
        IntegrityError: ``data`` does not fit ``specs``.
        DiskError: the disk is full or the folder may not be written.
    """
    sizes = {name: _nbytes(path, name, dtype, tuple(shape)) for name, (dtype, shape) in specs.items()}
    offsets: dict[str, tuple[int, int]] = {}
    position = 0
    for name in sorted(specs, key=lambda name: (-BITS[specs[name][0]], name)):
        offsets[name] = (position, position + sizes[name])
        position += sizes[name]
    header = _header_bytes(specs, offsets, metadata or {})
    with staged_file(path) as staged, staged.open("r+b") as stream:
        stream.write(header)
        names = iter(specs)
        for item in data:
            current = next(names, None)
            if current is None:
                raise _broken(path, "there is more data than tensors")
            stream.seek(len(header) + offsets[current][0])
            given = 0
            for piece in item if isinstance(item, Iterator) else (item,):
                payload = _as_bytes(piece)
                given += len(payload)
                if given > sizes[current]:  # it would run into the next tensor
                    break
                stream.write(payload)
            if given != sizes[current]:
                more = "or more " if given > sizes[current] else ""
                raise _broken(path, f"{given} bytes {more}were given for {sizes[current]}", current)
        if (missing := next(names, None)) is not None:
            raise _broken(path, "its data is missing", missing)


def _header_bytes(
    specs: Mapping[str, tuple[str, Sequence[int]]], offsets: Mapping[str, tuple[int, int]], metadata: Mapping[str, str]
) -> bytes:
    entries: dict[str, Any] = {
        name: {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets[name])}
        for name, (dtype, shape) in specs.items()
    }
    if metadata:
        entries[_METADATA] = dict(metadata)
    text = json.dumps(entries, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def _as_bytes(item: Bytes) -> memoryview:
    if isinstance(item, np.ndarray):
        return np.ascontiguousarray(item).reshape(-1).view(np.uint8).data
    return memoryview(item).cast("B")


def _parse_header(path: Path, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) < len(pairs):
            names = [name for name, _ in pairs]
            raise _broken(path, "the name appears twice", next(name for name in names if names.count(name) > 1))
        return entries

    try:
        header = json.loads(text.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise _broken(path, "the header is not JSON") from error
    if not isinstance(header, dict):
        raise _broken(path, "the header is not a JSON object")
    return header


def _check_metadata(path: Path, metadata: Any) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _broken(path, "its metadata is not a table of texts")
    return metadata


def _tensor_info(path: Path, name: str, entry: Any, start: int) -> TensorInfo:
    """Check one entry of the header on its own."""
    try:
        name.encode()
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (TypeError, KeyError, ValueError) as error:
        raise _broken(path, "its entry is not {dtype, shape, data_offsets}", name) from error
    if not (isinstance(shape, list) and all(_is_size(value) for value in (*shape, begin, end))):
        raise _broken(path, "its shape or offsets are not whole numbers", name)
    nbytes = _nbytes(path, name, dtype, tuple(shape))
    if end - begin != nbytes:
        raise _broken(path, f"{dtype} {shape} takes {nbytes} bytes, but its offsets span {end - begin}", name)
    return TensorInfo(name, dtype, tuple(shape), path, start + begin, start + end)


def _nbytes(path: Path, name: str, dtype: Any, shape: tuple[int, ...]) -> int:
    if not isinstance(dtype, str) or dtype not in BITS:
        raise _broken(path, f"its dtype {dtype!r} is not known", name, hint="A newer skillhub may read this file.")
    bits = math.prod(shape) * BITS[dtype]
    if bits % 8:
        raise _broken(path, f"{dtype} {list(shape)} does not fill whole bytes", name)
    return bits // 8


def _check_coverage(path: Path, infos: Sequence[TensorInfo], start: int, size: int) -> None:
    """Check that the tensors follow each other without gap or overlap and end with the file."""
    position = start
    for info in infos:
        if info.begin != position:
            raise _broken(path, "its bytes overlap another's or leave a gap", info.name)
        position = info.end
    if size < position:
        raise _broken(path, f"the file is truncated: {size} bytes of {position}")
    if size > position:
        raise _broken(path, f"{size - position} bytes after the last tensor belong to none")


def _by_offset(info: TensorInfo) -> tuple[int, int, str]:
    return info.begin, info.end, info.name


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _LARGEST_DIMENSION


def _broken(path: Path, what: str, name: str | None = None, *, hint: str = _DAMAGED) -> IntegrityError:
    where = path.name if name is None else f"{path.name}, tensor {name!r}"
    return IntegrityError(f"{where}: {what}.", hint=hint, file=str(path), tensor=name)
