"""A SkillPack as a folder: ``skillpack.json`` and one folder of files per variant.

    skillpack.json
    variants/<fp12>/delta-00001.safetensors     encoded tensors (see ``deltas``)
    variants/<fp12>/base.json.zst               the base's tensors (see ``fingerprint``)
    variants/<fp12>/router.safetensors          the routing card, where there is one

A built pack has the files of every variant, an installed one those of its environment's base.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from skillhub.errors import IntegrityError, NotFoundError, UnsafeContentError, WrongBaseError
from skillhub.files import disk_errors, expanded, safe_join, sha256_of_file, write_atomically
from skillhub.manifest import MANIFEST_FILE, MAX_MANIFEST_BYTES, FileEntry, Manifest, Variant, parse_manifest
from skillhub.names import PackName

ROUTER_FILE = "router.safetensors"
RECEIPT_FILE = "receipt.json"
"""Of an installed pack: where it came from. Not part of the pack itself."""

MAX_HEADER_BYTES = 16 << 20
"""Longest header of a safetensors file in a pack: room for some 40,000 tensors."""

_CORRECT_IT = (
    "Nothing was written. Correct what this field was made from (a name in the checkpoint, a text), then try again."
)


@dataclass(frozen=True)
class Pack:
    """A pack folder that was opened; its manifest is valid, its other files have not been read.

    Attributes:
        folder: the folder with ``skillpack.json``.
        manifest: what the pack says about itself.
        owner: owner of the repository it came from, or None for a folder that was never published.
    """

    folder: Path
    manifest: Manifest
    owner: str | None = None

    @property
    def name(self) -> PackName:
        """The pack's name, with its owner where known."""
        return self.manifest.full_name(self.owner)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the manifest: the release's identity. Kept, since composing asks for it for every tensor."""
        return self.manifest.digest

    def __str__(self) -> str:
        return f"{self.name} {self.manifest.version}"

    def variant_for(self, fingerprint: str) -> Variant:
        """Return the variant for a base.

        Raises:
            WrongBaseError: the pack has none for it.
        """
        variant = self.manifest.variant_for(fingerprint)
        if variant is None:
            fits = ", ".join(describe_base(one) for one in self.manifest.variants) or "no base at all"
            raise WrongBaseError(
                f"{self} does not fit the base {short_fingerprint(fingerprint)}; it is for {fits}.",
                hint="Use that base model, or a version of the pack that has a variant for yours.",
                fingerprint=fingerprint,
                fits=[one.base.fingerprint for one in self.manifest.variants],
            )
        return variant

    def only_variant(self) -> Variant:
        """Return the pack's variant when it has exactly one.

        Raises:
            WrongBaseError: there are several; say which base is meant.
        """
        if len(self.manifest.variants) != 1:
            fits = ", ".join(describe_base(one) for one in self.manifest.variants) or "none"
            raise WrongBaseError(f"{self} has variants for several bases: {fits}.", hint="Name the base with --base.")
        return self.manifest.variants[0]

    def path_of(self, entry: FileEntry) -> Path:
        """Return where a file of the manifest lies in this folder."""
        return safe_join(self.folder, entry.path)


def short_fingerprint(fingerprint: str) -> str:
    """Return a fingerprint for people: ``skb1:`` and twelve digits."""
    return f"skb1:{fingerprint.removeprefix('skb1:')[:12]}"


def base_text(fingerprint: str, repo: str | None) -> str:
    """Return a base for people: its repository where known, and the short fingerprint."""
    short = short_fingerprint(fingerprint)
    return f"{repo} ({short})" if repo else short


def describe_base(variant: Variant) -> str:
    """Return a variant's base for people (see :func:`base_text`)."""
    return base_text(variant.base.fingerprint, variant.base.repo)


def open_pack(folder: str | Path, *, owner: str | None = None) -> Pack:
    """Open a pack folder; only its manifest is read.

    Raises:
        NotFoundError: the folder or its manifest does not exist.
        IntegrityError: the manifest is not valid.
        UnsafeContentError: a path in the manifest leaves the folder.
        NewerSchemaError: the manifest is of a schema that this version does not read.
        DiskError: the manifest may not be read.
    """
    folder = expanded(folder)
    path = folder / MANIFEST_FILE
    if not folder.exists():
        raise NotFoundError(f"There is no folder {folder}.", hint="Correct the path.", path=str(folder))
    if not path.is_file():
        raise NotFoundError(
            f"{folder} is not a pack: it has no {MANIFEST_FILE}.",
            hint="Name the folder of a built pack, such as `skillhub pack` writes.",
            path=str(folder),
        )
    with disk_errors(path), path.open("rb") as stream:
        data = stream.read(MAX_MANIFEST_BYTES + 1)
    return Pack(folder, parse_manifest(data, where=str(path)), owner)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write a pack's ``skillpack.json``; the last step of building one.

    Raises:
        IntegrityError: a field has a value that no reader would take (its path is in the message), or a number that JSON cannot hold.
        DiskError: the disk is full or the folder may not be written.
    """
    try:
        data = manifest.to_bytes()
    except ValueError as error:
        raise IntegrityError(
            f"The new {MANIFEST_FILE} would hold a number that is infinite or none.",
            hint="Look for weights or scores that are infinite or no numbers.",
        ) from error
    try:
        parse_manifest(data, where=f"the new {MANIFEST_FILE}")
    except IntegrityError as error:
        raise IntegrityError(error.message, hint=_CORRECT_IT, **error.details) from error
    write_atomically(folder / MANIFEST_FILE, data)


def file_entry(folder: Path, path: str) -> FileEntry:
    """Return the manifest's entry for a file that lies in a pack folder."""
    file = safe_join(folder, path)
    return FileEntry(path=path, size=file.stat().st_size, sha256=sha256_of_file(file))


def check_file(path: Path, entry: FileEntry, *, progress: Callable[[int], None] | None = None) -> None:
    """Check one file against its entry.

    Raises:
        IntegrityError: it is missing, a link to elsewhere, or has another size or digest.
        DiskError: it may not be read.
    """
    if path.is_symlink() or not path.is_file():
        what = "is a symbolic link, not a file of the pack" if path.is_symlink() else "is missing"
        raise IntegrityError(f"{path} {what}.", hint="Install the pack again.", path=str(path))
    size = path.stat().st_size
    if size != entry.size:
        raise IntegrityError(
            f"{path} has {size} bytes where the manifest says {entry.size}.",
            hint="Install the pack again.",
            path=str(path),
        )
    with disk_errors(path):
        found = sha256_of_file(path, progress=progress)
    if found != entry.sha256:
        raise IntegrityError(
            f"{path} was altered: its digest is {found[:12]}…, the manifest says {entry.sha256[:12]}….",
            hint="Install the pack again.",
            path=str(path),
            expected=entry.sha256,
            found=found,
        )


def check_content(path: Path, *, name: str) -> None:
    """Check what can be checked of a file of a pack, or of an adapter, without knowing what it should hold.

    This is the one check of content before a file enters an environment: the header of a safetensors file is valid, and
    no longer than :data:`MAX_HEADER_BYTES`. Files of other kinds are read with limits of their own.

    Args:
        path: the file.
        name: what it is called in the pack.

    Raises:
        UnsafeContentError: the header is longer than any pack's.
        IntegrityError: the file is no valid safetensors file.
        DiskError: it may not be read.
    """
    if not name.endswith(".safetensors"):
        return
    from skillhub.tensorfiles import read_header  # numpy, which commands that only list need not load

    with disk_errors(path):
        try:
            read_header(path, limit=MAX_HEADER_BYTES)
        except (UnsafeContentError, IntegrityError) as error:
            told = error.message.replace(path.name, name, 1)
            raise type(error)(told, hint="Do not use this pack; tell its publisher.", file=name) from error


def verify_pack(
    pack: Pack, *, fingerprint: str | None = None, progress: Callable[[int], None] | None = None
) -> list[IntegrityError]:
    """Check every file of a pack folder against its manifest.

    Args:
        pack: the pack.
        fingerprint: only the variant for this base is there (an installed pack); None means all are.
        progress: called with the number of bytes of each piece that was read.

    Returns:
        One error per missing, altered or unlisted file; empty when the pack is whole.

    Raises:
        WrongBaseError: the pack has no variant for ``fingerprint``.
        UnsafeContentError: a folder of the pack is a symbolic link to elsewhere.
        DiskError: a file may not be read.
    """
    variants = pack.manifest.variants if fingerprint is None else [pack.variant_for(fingerprint)]
    entries = {entry.path: entry for variant in variants for entry in variant.files}
    findings = []
    for path, entry in sorted(entries.items()):
        try:
            check_file(safe_join(pack.folder, path), entry, progress=progress)
        except IntegrityError as error:
            findings.append(error)
    for path in sorted(set(_files_below(pack.folder)) - set(entries) - {MANIFEST_FILE, RECEIPT_FILE}):
        findings.append(
            IntegrityError(
                f"{pack.folder / path} is not listed in the manifest.",
                hint="Remove the file, or install the pack again.",
                path=str(pack.folder / path),
            )
        )
    return findings


def _files_below(folder: Path) -> Iterator[str]:
    """Yield the path of everything below a folder that is not a real folder itself."""
    for parent, folders, names in os.walk(folder):
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        for name in [*names, *links]:
            yield (Path(parent) / name).relative_to(folder).as_posix()
