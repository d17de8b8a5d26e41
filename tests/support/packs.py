"""Tiny packs with handmade payloads, for everything that moves packs about without decoding them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from skillhub.manifest import (
    MANIFEST_SCHEMA,
    BaseInfo,
    CodecInfo,
    FileEntry,
    Manifest,
    Skill,
    Variant,
    variant_folder,
)
from skillhub.packs import Pack, open_pack, write_manifest


def fingerprint(seed: str) -> str:
    """Return a fingerprint that no model has."""
    return "skb1:" + hashlib.sha256(seed.encode()).hexdigest()


BASE = fingerprint("a base")
OTHER_BASE = fingerprint("another base")


def payload(seed: str, size: int) -> bytes:
    """Return a safetensors file with ``size`` bytes of one tensor that the seed decides."""
    numbers = np.random.default_rng(list(seed.encode())).integers(0, 256, size, dtype=np.uint8)
    return save({"codes": numbers})


def make_pack(
    folder: Path,
    name: str = "math-pack",
    version: str = "1.0.0",
    fingerprints: Sequence[str] = (BASE,),
    *,
    requires: Sequence[str] = (),
    conflicts: Sequence[str] = (),
    size: int = 2000,
    files: int = 2,
    seed: str = "",
    repo: str | None = "acme/base-model",
    weights: dict[str, str] | None = None,
    license: str | None = "apache-2.0",
) -> Pack:
    """Write a built pack with random payloads and open it.

    Args:
        folder: what becomes the pack's folder.
        fingerprints: one variant for each.
        size: bytes of each file's tensor.
        files: payload files of each variant, besides ``base.json.zst``.
        seed: another one gives other payloads.
        repo: what the variants declare as their base's repository.
        weights: a known packaging of the base: file name → SHA-256.
    """
    variants = []
    for print_ in fingerprints:
        names = [f"delta-{number:05}.safetensors" for number in range(1, files + 1)]
        entries = []
        for file in [*names, "base.json.zst"]:
            path = f"{variant_folder(print_)}/{file}"
            data = payload(f"{name} {version} {print_} {file} {seed}", size)
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
            entries.append(FileEntry(path=path, size=len(data), sha256=hashlib.sha256(data).hexdigest()))
        base = BaseInfo(fingerprint=print_, repo=repo, parameters=1000, files=[weights] if weights else [])
        codec = CodecInfo(preset="near", bits_per_weight=1.0, tensors={})
        variants.append(Variant(base=base, codec=codec, files=entries))
    manifest = Manifest(
        schema=MANIFEST_SCHEMA,
        name=name,
        version=version,
        summary=f"{name} for tests",
        license=license,
        requires=list(requires),
        conflicts=list(conflicts),
        skills=Skill(tags=["math"], prompts=["What is 1 + 1?"]),
        variants=variants,
    )
    write_manifest(folder, manifest)
    return open_pack(folder)
