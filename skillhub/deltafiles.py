"""The files that a pack's delta lies in, ``delta-0000N.safetensors``: writing encoded tensors into them, and finding them again.

They hold arrays of bytes only. The array ``codes`` of part 0 of the tensor ``layers.0.mlp.up_proj.weight`` is named
``layers.0.mlp.up_proj.weight/0.codes``; one longer than a file may be is cut into ``….codes#0``, ``….codes#1`` …. The metadata entry
``parts`` of a file says which codecs with which configs read the arrays of some tensors. Each tensor stands in one file's, which may be the
file before the one that its first array is in.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from skillhub.codecs import Arrays, EncodedPart, EncodedTensor
from skillhub.documents import canonical_json
from skillhub.errors import IntegrityError, NewerSchemaError
from skillhub.tensorfiles import TensorInfo, raw_bytes, read_header, write_tensors

DELTA_SCHEMA = 0
FILE_LIMIT = 120 << 20
"""Payload bytes of one delta file; with its header it stays below the 128 MB that the format allows."""

DAMAGED = "Install the pack again; if that does not help, tell its publisher."
"""What to do about a file that is not what its manifest promises."""


@dataclass
class DeltaWriter:
    """Writes encoded tensors into a variant's files of at most ``FILE_LIMIT`` payload bytes each.

    Attributes:
        folder: the variant's folder.
        file_limit: payload bytes of a file.
    """

    folder: Path
    file_limit: int = FILE_LIMIT
    files: list[Path] = field(default_factory=list)
    _pending: Arrays = field(default_factory=dict)
    _pending_bytes: int = 0
    _parts: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, encoded: EncodedTensor) -> None:
        """Append one tensor; full files are written at once, so memory stays bounded by one file."""
        self._parts[name] = {
            "shape": list(encoded.shape),
            "parts": [
                {"codec": part.codec, "config": part.config, "arrays": sorted(part.arrays)} for part in encoded.parts
            ],
        }
        for number, part in enumerate(encoded.parts):
            for key, array in sorted(part.arrays.items()):
                self._add_array(f"{name}/{number}.{key}", array)

    def _add_array(self, key: str, array: np.ndarray[Any, Any]) -> None:
        if self._pending and self._pending_bytes + array.nbytes > self.file_limit:
            self._flush()
        pieces = max(1, -(-array.nbytes // self.file_limit))
        for piece in range(pieces):
            cut = array[piece * self.file_limit : (piece + 1) * self.file_limit]
            self._pending[key if pieces == 1 else f"{key}#{piece}"] = cut
            self._pending_bytes += cut.nbytes
            if piece + 1 < pieces:
                self._flush()

    def _flush(self) -> None:
        path = self.folder / f"delta-{len(self.files) + 1:05d}.safetensors"
        metadata = {"schema": str(DELTA_SCHEMA), "parts": canonical_json(self._parts).decode().strip()}
        specs = {key: ("U8", array.shape) for key, array in self._pending.items()}
        write_tensors(path, specs, self._pending.values(), metadata)
        self.files.append(path)
        self._pending, self._parts, self._pending_bytes = {}, {}, 0

    def close(self) -> list[Path]:
        """Write what is left and return the files, in order."""
        if self._pending or self._parts or not self.files:
            self._flush()
        return self.files


@dataclass(frozen=True)
class DeltaFiles:
    """The files of one variant, opened: their headers were read and checked, their payloads were not.

    Attributes:
        arrays: name of an array → where it lies.
        parts: canonical name of a tensor → what reads its arrays.
    """

    arrays: Mapping[str, TensorInfo]
    parts: Mapping[str, Any]

    def encoded(self, name: str) -> EncodedTensor:
        """Return a tensor as it is stored; its arrays stay memory-mapped.

        Raises:
            IntegrityError: its description or an array is missing or not valid.
        """
        try:
            description = self.parts[name]
            parts = tuple(
                EncodedPart(
                    str(part["codec"]),
                    dict(part["config"]),
                    {str(key): self._array(f"{name}/{number}.{key}") for key in part["arrays"]},
                )
                for number, part in enumerate(description["parts"])
            )
            return EncodedTensor(tuple(description["shape"]), parts)
        except FileNotFoundError as error:
            raise IntegrityError(f"{error.filename} is missing.", hint=DAMAGED, tensor=name) from error
        except (KeyError, TypeError, ValueError) as error:
            raise IntegrityError(f"the description of {name} is damaged.", hint=DAMAGED, tensor=name) from error

    def _array(self, key: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
        if key in self.arrays:
            return raw_bytes(self.arrays[key])
        pieces: list[np.ndarray[Any, np.dtype[np.uint8]]] = []
        while (piece := f"{key}#{len(pieces)}") in self.arrays:
            pieces.append(raw_bytes(self.arrays[piece]))
        if not pieces:
            raise KeyError(key)
        return np.concatenate(pieces)


def open_delta_files(paths: Iterable[Path]) -> DeltaFiles:
    """Read the headers of the files of a variant.

    Raises:
        IntegrityError: a file is missing, truncated or not valid.
        NewerSchemaError: one is of a schema that this version does not read.
    """
    arrays: dict[str, TensorInfo] = {}
    parts: dict[str, Any] = {}
    for path in paths:
        if not path.is_file():
            raise IntegrityError(f"{path} is missing.", hint=DAMAGED, path=str(path))
        header = read_header(path)
        parts.update(_read_parts(path, header.metadata))
        arrays.update(header.tensors)
    return DeltaFiles(arrays, parts)


def _read_parts(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    schema = metadata.get("schema")
    if schema != str(DELTA_SCHEMA):
        raise NewerSchemaError(
            f"{path.name} has delta schema {schema}; this version of skillhub reads schema {DELTA_SCHEMA}.",
            hint="Upgrade skillhub: pip install --upgrade skillhub-packs.",
        )
    try:
        parts = json.loads(metadata["parts"])
    except (KeyError, ValueError, RecursionError) as error:
        raise IntegrityError(f"{path} does not describe its tensors.", hint=DAMAGED, path=str(path)) from error
    if not isinstance(parts, dict):
        raise IntegrityError(f"{path} does not describe its tensors.", hint=DAMAGED, path=str(path))
    return parts
