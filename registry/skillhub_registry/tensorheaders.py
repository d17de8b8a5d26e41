"""The headers of safetensors files: which tensors they hold, of which types and shapes.

A file begins with the header's length in eight bytes, little-endian, and the header: JSON that gives each tensor's
``dtype``, ``shape`` and ``data_offsets`` (https://huggingface.co/docs/safetensors). All of it comes from whoever uploaded
it, so what is read is bounded and checked.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

from skillhub_registry import limits
from skillhub_registry.blobs import BlobStore
from skillhub_registry.errors import HubError
from skillhub_registry.trees import File

SINGLE_FILE: Final = "model.safetensors"
INDEX_FILE: Final = "model.safetensors.index.json"


def read_headers(store: BlobStore, files: Mapping[str, File]) -> dict[str, dict[str, Any]]:
    """Return the headers of safetensors files, given as path → file.

    Raises:
        HubError: 400, one is not in that format, or the headers together are longer than is read here.
    """
    _check_lengths(store, files)
    return {path: _read_header(store, file, path) for path, file in files.items()}


def read_index(store: BlobStore, file: File, path: str) -> dict[str, Any]:
    """Return the index of a model in several files, whose ``weight_map`` says which tensor is in which.

    Raises:
        HubError: 400, it is no such index, or longer than is read here.
    """
    if file.size > limits.TENSOR_HEADER:
        raise _invalid(path)
    try:
        index = json.loads(_read(store, file, 0, file.size))
    except (ValueError, RecursionError) as error:
        raise _invalid(path) from error
    if not isinstance(index, dict) or not isinstance(index.get("weight_map"), dict):
        raise _invalid(path)
    if not all(isinstance(shard, str) for shard in index["weight_map"].values()):
        raise _invalid(path)
    return index


def count_parameters(store: BlobStore, files: Mapping[str, File]) -> dict[str, int]:
    """Return how many numbers of each type safetensors files, given as path → file, hold together.

    Raises:
        HubError: as :func:`read_headers`.
    """
    _check_lengths(store, files)
    total: dict[str, int] = {}
    for path, file in files.items():
        for dtype, count in _count(store, file, path).items():
            total[dtype] = total.get(dtype, 0) + count
    return total


@lru_cache(maxsize=4096)  # a file never changes
def _count(store: BlobStore, file: File, path: str) -> Mapping[str, int]:
    counts: dict[str, int] = {}
    for name, tensor in _read_header(store, file, path).items():
        if name != "__metadata__":
            counts[tensor["dtype"]] = counts.get(tensor["dtype"], 0) + math.prod(tensor["shape"])
    return counts


def _check_lengths(store: BlobStore, files: Mapping[str, File]) -> None:
    total = 0
    for path, file in files.items():
        total += _header_length(store, file, path)
        if total > limits.TENSOR_HEADER:
            raise HubError(400, "InvalidSafetensors", f"More than {limits.TENSOR_HEADER} bytes of headers up to {path}")


@lru_cache(maxsize=16384)
def _header_length(store: BlobStore, file: File, path: str) -> int:
    length = int.from_bytes(_read(store, file, 0, 8), "little")
    if file.size < 8 or length > file.size - 8:
        raise _invalid(path)
    return length


def _read_header(store: BlobStore, file: File, path: str) -> dict[str, Any]:
    try:
        header = json.loads(_read(store, file, 8, _header_length(store, file, path)))
    except (ValueError, RecursionError) as error:
        raise _invalid(path) from error
    if not isinstance(header, dict) or not all(_is_tensor(header[name]) for name in header if name != "__metadata__"):
        raise _invalid(path)
    return header


def _is_tensor(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("dtype"), str):
        return False
    shape, offsets = value.get("shape"), value.get("data_offsets")
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(shape) > 32 or len(offsets) != 2:
        return False
    return all(type(one) is int and 0 <= one < 2**63 for one in [*shape, *offsets])


def _read(store: BlobStore, file: File, start: int, length: int) -> bytes:
    return store.read(file.sha256, start, max(min(length, file.size - start), 0))


def _invalid(path: str) -> HubError:
    return HubError(400, "InvalidSafetensors", f"{path} is not a safetensors file, or not the index of some")
