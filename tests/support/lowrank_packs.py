"""Packs built by hand of random low-rank factors, with dense parts where wanted."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from skillhub.checkpoints import open_checkpoint
from skillhub.codecs import EncodedTensor, exact, lowrank
from skillhub.codecs.decoding import decode, decoded_digest
from skillhub.deltafiles import DeltaWriter
from skillhub.fingerprint import fingerprint_checkpoint
from skillhub.manifest import BASE_RECORD_FILE, MANIFEST_SCHEMA, BaseInfo, CodecInfo, Manifest, TensorEntry, Variant
from skillhub.manifest import variant_folder as folder_of
from skillhub.packs import Pack, file_entry, open_pack, write_manifest

LINEAR = r"(proj|c_attn|c_fc|query|key|value|dense|\.[qkvo]|wi_?\d?|wo|gate|up|down)\.weight$"


def build_lowrank_pack(
    base: Path,
    folder: Path,
    *,
    name: str = "",
    seed: int = 1,
    rank: int = 2,
    size: float = 0.05,
    linear: str = LINEAR,
    dense: str = "^$",
) -> Pack:
    """Build a pack for a base.

    Args:
        base: the base's checkpoint.
        folder: of the pack.
        name: of the pack; its folder's by default.
        seed: of all values.
        rank: of the factors.
        size: about the size of the differences.
        linear: pattern of the names of matrices that get factors.
        dense: pattern of the names of tensors that get any difference, stored exactly.
    """
    draw = np.random.default_rng(seed)
    checkpoint, record = open_checkpoint(base), fingerprint_checkpoint(base)
    inner = folder_of(record.fingerprint)
    (folder / inner).mkdir(parents=True)
    writer, entries = DeltaWriter(folder / inner), {}
    for tensor, info in sorted(checkpoint.tensors.items()):
        if re.search(dense, tensor):
            encoded = exact.encode(torch.from_numpy(draw.normal(size=info.shape, scale=size).astype(np.float32)))
        elif re.search(linear, tensor) and len(info.shape) == 2:
            encoded = EncodedTensor(
                tuple(info.shape), (_factors(draw, tuple(info.shape), min(rank, *info.shape), size),)
            )
        else:
            continue
        writer.add(tensor, encoded)
        entries[tensor] = TensorEntry(
            shape=list(encoded.shape),
            change="delta",
            codecs=[part.codec for part in encoded.parts],
            bytes=encoded.nbytes,
            relative_error=0.0,
            max_error=0.001,
            digest=decoded_digest(decode(encoded)),
        )
    paths = [path.relative_to(folder).as_posix() for path in writer.close()]
    (folder / inner / BASE_RECORD_FILE).write_bytes(record.to_bytes())
    files = [file_entry(folder, path) for path in (*paths, f"{inner}/{BASE_RECORD_FILE}")]
    variant = Variant(
        base=BaseInfo(fingerprint=record.fingerprint, repo="acme/tiny"),
        codec=CodecInfo(preset="near", bits_per_weight=1.0, tensors=entries),
        files=files,
    )
    write_manifest(
        folder, Manifest(schema=MANIFEST_SCHEMA, name=name or folder.name, version="1.0.0", variants=[variant])
    )
    return open_pack(folder)


def _factors(draw: Any, shape: tuple[int, int], rank: int, size: float) -> Any:
    left = draw.integers(-7, 8, size=(rank, shape[0])).astype(np.int16)
    right = draw.integers(-7, 8, size=(rank, shape[1])).astype(np.int16)
    left[:, 0] = right[:, 0] = 7  # no component of zeros
    scales = np.full(rank, size / (20 * rank**0.5))
    components = lowrank.choose_groups(left, right, scales)
    assert components is not None
    return lowrank.encode(components)
