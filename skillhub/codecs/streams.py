"""Streams of bytes as codecs store them: zstandard frames whose decompressed size is known beforehand.

Every frame is checked before it is decompressed: the size that it states must be the size that the caller derived from config and
shape, so a few damaged or hostile bytes can neither allocate memory nor yield a stream of another length.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import zstandard

from skillhub.codecs.encoding import damaged, read_integer

Bytes = npt.NDArray[np.uint8]

MAX_WINDOW = 1 << 27
"""Largest zstandard window (bytes) that a frame may ask for; what zstd itself accepts by default."""

LONG_STREAM = 1 << 22
"""From this many bytes on, a stream is compressed at the faster level."""


def compress(data: Bytes) -> Bytes:
    """Return ``data`` as one zstandard frame that states its size (the same bytes for the same library version)."""
    level = 19 if data.nbytes < LONG_STREAM else 9
    compressor = zstandard.ZstdCompressor(level=level, write_content_size=True, write_checksum=False)
    return np.frombuffer(compressor.compress(np.ascontiguousarray(data).data), dtype=np.uint8)


def decompress(frame: Bytes, size: int) -> Bytes:
    """Return the ``size`` bytes of ``frame``.

    Raises:
        IntegrityError: the frame is damaged, states another size, or is followed by other bytes.
    """
    source = np.ascontiguousarray(frame).data
    try:
        parameters = zstandard.get_frame_parameters(source)
        if parameters.content_size != size or parameters.window_size > MAX_WINDOW or parameters.dict_id:
            raise damaged(f"has a stream that is not of the {size} bytes that its config implies")
        data = zstandard.ZstdDecompressor().decompress(source, max_output_size=size, allow_extra_data=False)
    except (zstandard.ZstdError, MemoryError) as error:
        raise damaged("has a stream that cannot be decompressed") from error
    if len(data) != size:
        raise damaged(f"has a stream of {len(data)} bytes where its config implies {size}")
    return np.frombuffer(data, dtype=np.uint8)


def compress_frame(data: Bytes) -> Bytes:
    """Return ``data`` as :func:`compress` does; nothing stays nothing, for frames whose sizes a config lists."""
    return compress(data) if data.size else data


def decompress_frame(frame: Bytes, size: int) -> Bytes:
    """Undo :func:`compress_frame`.

    Raises:
        IntegrityError: as :func:`decompress`.
    """
    return frame if size == 0 and frame.size == 0 else decompress(frame, size)


def split_frames(data: Bytes, sizes: object, count: int) -> list[Bytes]:
    """Cut ``count`` frames out of ``data`` by the sizes that a config lists.

    Raises:
        IntegrityError: the sizes are not so many, or do not add up to the data.
    """
    if not isinstance(sizes, list) or len(sizes) != count:
        raise damaged("does not list its frames")
    sizes = [read_integer(size, "frame size", 0, data.size) for size in sizes]
    if sum(sizes) != data.size:
        raise damaged("has frames that do not add up to its bytes")
    return np.split(data, np.cumsum(sizes)[:-1])


def compress_planes(values: npt.NDArray[Any]) -> Bytes:
    """Compress an array by byte planes: first every value's lowest byte, then every second byte, and so on.

    Bytes of equal significance resemble each other (exponents, zeroed mantissas), so they compress better side by side.
    """
    width = values.dtype.itemsize
    little_endian = np.ascontiguousarray(values.reshape(-1).astype(values.dtype.newbyteorder("<"), copy=False))
    return compress(np.ascontiguousarray(little_endian.view(np.uint8).reshape(-1, width).T).reshape(-1))


def decompress_planes(frame: Bytes, count: int, width: int) -> Bytes:
    """Undo :func:`compress_planes`: the little-endian bytes of ``count`` values of ``width`` bytes each (writable).

    Raises:
        IntegrityError: as :func:`decompress`.
    """
    planes = decompress(frame, count * width).reshape(width, count)
    return np.array(planes.T, order="C").reshape(-1)


def tensor_bytes(tensor: torch.Tensor) -> Bytes:
    """Return the bytes of ``tensor`` in row-major order (a view where its layout allows one)."""
    if tensor.numel() == 0:
        return np.empty(0, dtype=np.uint8)
    flat = tensor.detach().cpu().resolve_conj().contiguous()
    flat = flat.as_strided(
        (flat.numel(),), (1,)
    )  # torch calls one element contiguous whatever its stride is, and views it by that
    data: Bytes = flat.view(torch.uint8).numpy()
    return data
