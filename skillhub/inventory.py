"""What the blobs of the store belong to. A blob has no name but its digest; the names are found elsewhere.

- the receipts of environments that can be found: this user's own, and those that are named;
- the manifests in the store, which list the files of all variants, but not the pack's owner;
- the indexes that are remembered from registries, which know whose manifest has a digest.

PEFT adapters have no manifest and are known by receipts only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from skillhub import settings
from skillhub.environments import Environment, InstalledPack, installed_packs
from skillhub.errors import SkillhubError
from skillhub.files import sha256_of_bytes
from skillhub.manifest import MAX_MANIFEST_BYTES, Manifest, parse_manifest
from skillhub.store import Blob


@dataclass(frozen=True)
class StoredPack:
    """A release that has blobs in the store.

    Attributes:
        name: the pack, with its owner where that is known.
        version: the release.
        digest: of its manifest; of an adapter, of its list of files.
        blobs: those of its files that are in the store, of all variants, and its manifest.
        environments: the known environments that it is installed in.
    """

    name: str
    version: str
    digest: str
    blobs: tuple[Blob, ...]
    environments: tuple[Environment, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def find_packs(blobs: Iterable[Blob], environments: Sequence[Environment]) -> list[StoredPack]:
    """Return the releases that the blobs of the store are files of, sorted by name and version.

    Several releases may share a blob, and some blobs may belong to none that is known.

    Args:
        blobs: the store's.
        environments: whose receipts to read; what is damaged in them is passed over.
    """
    stored = {blob.digest: blob for blob in blobs}
    installed = [(place, one) for place in environments for one in installed_packs(place)]
    manifests = {one.receipt.manifest: one.pack.manifest for _, one in installed if one.pack}
    manifests |= dict(_manifests_among(stored.values()))
    digests = list(dict.fromkeys([*manifests, *(one.receipt.manifest for _, one in installed)]))
    packs = [_stored_pack(digest, manifests.get(digest), installed, stored) for digest in digests]
    return sorted((one for one in packs if one.blobs), key=lambda one: (one.name.lower(), one.version))


def installed_digests(environments: Sequence[Environment]) -> set[str]:
    """Return the digests of all files that are installed in environments, and of their manifests."""
    installed = [one for place in environments for one in installed_packs(place)]
    return {digest for one in installed for digest in _digests(one)}


def _digests(installed: InstalledPack) -> Iterator[str]:
    yield installed.receipt.manifest
    yield from (entry.sha256 for entry in installed.receipt.files)


def _manifests_among(blobs: Iterable[Blob]) -> Iterator[tuple[str, Manifest]]:
    for blob in blobs:
        if blob.size > MAX_MANIFEST_BYTES:
            continue
        with suppress(OSError, SkillhubError):  # gone meanwhile, or no manifest
            with blob.path.open("rb") as stream:
                data = stream.read(1)
                if data != b"{":
                    continue
                data += stream.read()
            if sha256_of_bytes(data) == blob.digest:
                yield blob.digest, parse_manifest(data)


def _stored_pack(
    digest: str,
    manifest: Manifest | None,
    installed: Sequence[tuple[Environment, InstalledPack]],
    stored: Mapping[str, Blob],
) -> StoredPack:
    here = [(place, one) for place, one in installed if one.receipt.manifest == digest]
    wanted = {each for _, one in here for each in _digests(one)} | {digest}
    if manifest:
        wanted |= {entry.sha256 for variant in manifest.variants for entry in variant.files}
    if here:
        name, version = str(here[0][1].name), here[0][1].version
    else:
        assert manifest is not None
        name, version = _full_name(manifest.name, digest), manifest.version
    blobs = sorted((stored[each] for each in wanted if each in stored), key=lambda blob: blob.digest)
    places = {place.folder: place for place, _ in here}
    return StoredPack(name, version, digest, tuple(blobs), tuple(places.values()))


def _full_name(name: str, digest: str) -> str:
    """Return the name with its owner, where an index that is remembered has this manifest."""
    for index in sorted((settings.state_folder() / "registries").glob(f"*/*/{name.lower()}.jsonl")):
        with suppress(OSError):
            if digest.encode() in index.read_bytes():
                return f"{index.parent.name}/{name}"
    return name


def nameless(blobs: Iterable[Blob], packs: Iterable[StoredPack]) -> list[Blob]:
    """Return the blobs that belong to none of these packs."""
    named = {blob.digest for one in packs for blob in one.blobs}
    return [blob for blob in blobs if blob.digest not in named]
