"""Packs built by hand: encoded tensors, with the manifest that belongs to them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from msgspec import structs

from skillhub.codecs import EncodedTensor, content_digest, decode
from skillhub.deltafiles import FILE_LIMIT, DeltaWriter
from skillhub.fingerprint import fingerprint_checkpoint
from skillhub.manifest import (
    BASE_RECORD_FILE,
    MANIFEST_SCHEMA,
    BaseInfo,
    CodecInfo,
    Manifest,
    TensorEntry,
    Variant,
    variant_folder,
)
from skillhub.packs import ROUTER_FILE, Pack, file_entry, open_pack, write_manifest
from skillhub.routing.cards import RoutingCard, write_card
from skillhub.routingcards import RouterInfo


@dataclass(frozen=True, eq=False)
class Handmade:
    """A tensor of a pack; without an encoded one it is removed from the base.

    Attributes:
        name: canonical name.
        shape: its own, or what the base's was.
        encoded: the tensor as it is stored.
        base: the base's, where decoding takes it.
        change: what the manifest calls the change.
        error: what the manifest says of relative and of absolute errors.
    """

    name: str
    shape: tuple[int, ...]
    encoded: EncodedTensor | None
    base: torch.Tensor | None = None
    change: str = "delta"
    error: tuple[float, float] = (0.0, 0.0)

    def entry(self) -> TensorEntry:
        """Return what the manifest says of it."""
        found = TensorEntry(
            shape=list(self.shape),
            change=self.change,
            codecs=[],
            bytes=0,
            relative_error=self.error[0],
            max_error=self.error[1],
        )
        if self.encoded is None:
            return found
        codecs, size = [part.codec for part in self.encoded.parts], self.encoded.nbytes
        digest = content_digest(self.encoded, decode(self.encoded, self.base))
        return structs.replace(found, codecs=codecs, bytes=size, digest=digest)


def write_pack(
    folder: Path,
    base: Path,
    tensors: Iterable[Handmade],
    *,
    name: str = "",
    version: str = "1.0.0",
    preset: str = "exact",
    card: tuple[RoutingCard, RouterInfo] | None = None,
    file_limit: int = FILE_LIMIT,
) -> Pack:
    """Write a pack for a base.

    Args:
        folder: of the pack.
        base: the base's checkpoint.
        tensors: what it changes.
        name: of the pack; its folder's by default.
        version: of the pack.
        preset: what the manifest calls the way of packing.
        card: a routing card and what the manifest says of it, but for its path.
        file_limit: payload bytes of a delta file.
    """
    record = fingerprint_checkpoint(base)
    inner = variant_folder(record.fingerprint)
    (folder / inner).mkdir(parents=True)
    writer, entries = DeltaWriter(folder / inner, file_limit), {}
    for one in tensors:
        entries[one.name] = one.entry()
        if one.encoded is not None:
            writer.add(one.name, one.encoded)
    paths = [path.relative_to(folder).as_posix() for path in writer.close()]
    (folder / inner / BASE_RECORD_FILE).write_bytes(record.to_bytes())
    paths.append(f"{inner}/{BASE_RECORD_FILE}")
    router = None
    if card:
        write_card(card[0], folder / inner / ROUTER_FILE)
        paths.append(f"{inner}/{ROUTER_FILE}")
        router = structs.replace(card[1], path=paths[-1])
    variant = Variant(
        base=BaseInfo(fingerprint=record.fingerprint, repo="acme/tiny"),
        codec=CodecInfo(preset=preset, bits_per_weight=8.0, tensors=entries),
        files=[file_entry(folder, path) for path in paths],
        router=router,
    )
    write_manifest(
        folder, Manifest(schema=MANIFEST_SCHEMA, name=name or folder.name, version=version, variants=[variant])
    )
    return open_pack(folder)
