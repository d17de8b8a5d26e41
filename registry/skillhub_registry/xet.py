"""Xet uploads: reading xorbs (packs of chunks) and shards (which chunks make which file), and rebuilding files.

The client always uploads this way when ``hf_xet`` is installed. Both formats come from the network, so every length is
checked before it is used. Hashes in hexadecimal have each group of eight bytes reversed.
"""

from __future__ import annotations

import mmap
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import lz4.frame

from skillhub_registry import limits
from skillhub_registry.errors import HubError

_FOOTER = b"XETBLOB"
_SHARD_HEADER = struct.Struct("<32sQQ")
_FILE_HEADER = struct.Struct("<32sII8x")
_TERM = struct.Struct("<32sIIII")
_RECORD = 48
_LAST_FILE = b"\xff" * 32
_WITH_VERIFICATION = 1 << 31
_WITH_METADATA = 1 << 30
_OPEN_XORBS = 32
_UNCOMPRESSED, _LZ4, _GROUPED_LZ4 = range(3)


class XetError(HubError):
    """A xorb or shard that is not what the format says."""

    def __init__(self, message: str) -> None:
        super().__init__(400, "InvalidXet", message)


@dataclass(frozen=True)
class Chunk:
    """Where a chunk lies in its xorb, and its length when unpacked, in bytes."""

    offset: int
    packed_length: int
    scheme: int
    length: int


@dataclass(frozen=True)
class Term:
    """A run of a file: the chunks ``first`` to ``end`` (exclusive) of a xorb, ``length`` bytes when unpacked."""

    xorb: str
    first: int
    end: int
    length: int


@dataclass(frozen=True)
class ShardFile:
    """A file as a shard describes it."""

    sha256: str
    terms: tuple[Term, ...]

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return sum(term.length for term in self.terms)


@dataclass(frozen=True)
class Xorb:
    """A xorb that is open for reading."""

    data: bytes | mmap.mmap
    chunks: Sequence[Chunk]


def parse_xorb(data: bytes | mmap.mmap) -> list[Chunk]:
    """Return the chunks of a xorb, without unpacking them.

    Raises:
        XetError: the bytes are not a xorb.
    """
    chunks: list[Chunk] = []
    position = 0
    while position < len(data) and data[position : position + len(_FOOTER)] != _FOOTER:
        header = data[position : position + 8]
        if len(header) < 8 or header[0] != 0:
            raise XetError(f"The xorb has no chunk header at byte {position}")
        packed_length, scheme = int.from_bytes(header[1:4], "little"), header[4]
        length = int.from_bytes(header[5:8], "little")
        position += 8
        if scheme not in (_UNCOMPRESSED, _LZ4, _GROUPED_LZ4):
            raise XetError(f"The xorb's chunk {len(chunks)} is packed in an unknown way ({scheme})")
        if not 0 < length <= limits.CHUNK or packed_length > len(data) - position:
            raise XetError(f"The xorb's chunk {len(chunks)} has an impossible length")
        if scheme == _UNCOMPRESSED and packed_length != length:
            raise XetError(f"The xorb's chunk {len(chunks)} has two lengths")
        chunks.append(Chunk(position, packed_length, scheme, length))
        if len(chunks) > limits.XORB_CHUNKS:
            raise XetError(f"The xorb has more than {limits.XORB_CHUNKS} chunks")
        position += packed_length
    if not chunks:
        raise XetError("The xorb is empty")
    return chunks


def unpack_chunk(xorb: Xorb, number: int) -> bytes:
    """Return a chunk's bytes.

    Raises:
        XetError: they are not what its header says.
    """
    chunk = xorb.chunks[number]
    packed = xorb.data[chunk.offset : chunk.offset + chunk.packed_length]
    if chunk.scheme == _UNCOMPRESSED:
        return packed
    decompressor = lz4.frame.LZ4FrameDecompressor()
    try:
        # One byte more than announced: enough to notice too much, never enough to fill the memory.
        data: bytes = decompressor.decompress(packed, max_length=chunk.length + 1)
    except (RuntimeError, EOFError) as error:
        raise XetError(f"The xorb's chunk {number} is not valid LZ4") from error
    if len(data) != chunk.length:
        raise XetError(f"The xorb's chunk {number} does not have the length that it says")
    return data if chunk.scheme == _LZ4 else _ungroup(data)


def _ungroup(data: bytes) -> bytes:
    """Put bytes back that were sorted into four planes by their position modulo 4."""
    whole = bytearray(len(data))
    start = 0
    for plane in range(4):
        length = (len(data) + 3 - plane) // 4
        whole[plane::4] = data[start : start + length]
        start += length
    return bytes(whole)


def parse_shard(data: bytes) -> list[ShardFile]:
    """Return the files that a shard describes; what follows them is of use to nobody here.

    Raises:
        XetError: the bytes are not a shard, or a file comes without its sha256.
    """
    if len(data) < _SHARD_HEADER.size:
        raise XetError("The shard is too short")
    _, version, _ = _SHARD_HEADER.unpack_from(data)
    if version != 2:
        raise XetError(f"The shard is of version {version}; version 2 is understood here")
    files: list[ShardFile] = []
    position, total = _SHARD_HEADER.size, 0
    while True:
        file_hash, flags, count = _FILE_HEADER.unpack(_take(data, position, 1))
        position += _RECORD
        if file_hash == _LAST_FILE:
            return files
        if len(files) >= limits.SHARD_FILES:
            raise XetError(f"The shard describes more than {limits.SHARD_FILES} files")
        records = _take(data, position, count)
        terms = tuple(_to_term(_TERM.unpack_from(records, start)) for start in range(0, len(records), _RECORD))
        position += count * _RECORD * (2 if flags & _WITH_VERIFICATION else 1)
        if not flags & _WITH_METADATA:
            raise XetError("The shard describes a file without its sha256")
        sha256 = _to_hex(_take(data, position, 1)[:32])
        position += _RECORD
        files.append(ShardFile(sha256, terms))
        total += files[-1].size
        if total > limits.FILE:
            raise XetError(f"The shard describes more than {limits.FILE} bytes")


def _take(data: bytes, position: int, count: int) -> bytes:
    if count * _RECORD > len(data) - position:
        raise XetError("The shard ends in the middle of a file")
    return data[position : position + count * _RECORD]


def _to_term(fields: tuple[bytes, int, int, int, int]) -> Term:
    xorb, _, length, first, end = fields
    if first >= end or length == 0:
        raise XetError("The shard has a term without chunks")
    return Term(_to_hex(xorb), first, end, length)


def _to_hex(value: bytes) -> str:
    return b"".join(value[start : start + 8][::-1] for start in range(0, 32, 8)).hex()


def rebuild_file(file: ShardFile, open_xorb: Callable[[str], Xorb]) -> Iterator[bytes]:
    """Yield a file's bytes, chunk by chunk.

    Raises:
        XetError: a term does not fit its xorb, or a chunk is damaged.
    """
    for term in file.terms:
        xorb = open_xorb(term.xorb)
        if term.end > len(xorb.chunks):
            raise XetError(f"The shard refers to chunk {term.end - 1} of a xorb that has {len(xorb.chunks)}")
        # From the headers alone, so that a lie about the size costs nothing.
        if sum(chunk.length for chunk in xorb.chunks[term.first : term.end]) != term.length:
            raise XetError("The shard has a term whose length is not that of its chunks")
        for number in range(term.first, term.end):
            yield unpack_chunk(xorb, number)


@contextmanager
def opening_xorbs(locate: Callable[[str], AbstractContextManager[Path]]) -> Iterator[Callable[[str], Xorb]]:
    """Yield a function that opens xorbs by hash. The latest few stay open; a xorb is for use until the next is opened.

    Args:
        locate: opens a xorb's file, or raises; it may be gone once the file is mapped.
    """
    opened: OrderedDict[str, tuple[mmap.mmap, Xorb]] = OrderedDict()

    def open_xorb(xorb_hash: str) -> Xorb:
        if xorb_hash not in opened:
            with locate(xorb_hash) as path, path.open("rb") as file:
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            opened[xorb_hash] = data, Xorb(data, parse_xorb(data))
            if len(opened) > _OPEN_XORBS:
                opened.popitem(last=False)[1][0].close()
        opened.move_to_end(xorb_hash)
        return opened[xorb_hash][1]

    try:
        yield open_xorb
    finally:
        for data, _ in opened.values():
            data.close()
