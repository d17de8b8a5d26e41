"""``skillhub.lock``: exactly what an environment holds, so that another machine installs the same bytes.

The file is TOML, sorted, without times, addresses or absolute paths, and the same lock is always the same bytes. It
lists the files of *all* variants of each pack, so one lock serves several bases and any mirror of a registry.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from skillhub.documents import canonical_json, field_error, parse_toml
from skillhub.errors import IntegrityError, NewerSchemaError
from skillhub.fields import FingerprintText, Label, Sha256
from skillhub.files import disk_errors, read_limited, sha256_of_bytes, write_atomically
from skillhub.manifest import FileEntry, variant_folder
from skillhub.names import PackName, parse_pack_name, parse_version

LOCK_VERSION = 0
LOCK_FILE = "skillhub.lock"
MAX_LOCK_BYTES = 256 << 20
LOCAL = "local"
"""Registry name of a pack that was installed from a folder; its ``repository`` is that folder, relative."""

PACK, PEFT = "pack", "peft"
"""Kinds of what is locked and installed."""

_HEADER = "# Written by skillhub; edit skillhub.toml instead.\n"
_REMEDY = "Restore the file from version control, or remove it and run `skillhub install` again."


class LockedBase(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A base model that the environment is for."""

    fingerprint: FingerprintText
    repo: Label | None = None
    revision: Label | None = None


class LockedPack(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One pack, or one PEFT adapter.

    Attributes:
        name: ``owner/name``; the bare name for a pack from a folder.
        version: its version; of an adapter, which has none, the first twelve digits of its commit.
        manifest: SHA-256 of its manifest: what decides. Of an adapter, of its list of files (see :func:`files_digest`).
        kind: ``pack``, or ``peft`` for an adapter.
        registry: the registry's name, or ``local``.
        repository: where it was found: ``owner/name``, or a folder relative to the environment.
        id: the repository's own id, where the registry told it: a repository that was made anew under the same name
            has another.
        commit: the commit seen: a hint where to look first. An adapter is pinned by it.
        signer: public key that signed the release, where one did.
        base: what an adapter declares as its base; nobody verified it.
        dependencies: full names of the packs that this one requires.
        files: of all variants.
    """

    name: Label
    version: Label
    manifest: Sha256
    kind: Annotated[str, Meta(pattern=r"^(pack|peft)\Z")] = PACK
    registry: Label
    repository: Label
    id: Label | None = None
    commit: Label | None = None
    signer: Label | None = None
    base: Label | None = None
    dependencies: list[Label] = []
    files: list[FileEntry]

    def __post_init__(self) -> None:
        try:
            parse_pack_name(self.name)
            if self.kind == PACK:
                parse_version(self.version)
        except Exception as error:
            raise ValueError(str(error)) from error

    @property
    def pack_name(self) -> PackName:
        """The name, taken apart."""
        return parse_pack_name(self.name)

    def files_for(self, fingerprint: str) -> list[FileEntry]:
        """Return the files for one base: those of its variant, which may be none; all of an adapter's."""
        folder = f"{variant_folder(fingerprint)}/"
        return [file for file in self.files if self.kind == PEFT or file.path.startswith(folder)]


class _LockFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    lock_version: int
    inputs: Sha256
    base: list[LockedBase] = []
    pack: list[LockedPack] = []


@dataclass(frozen=True)
class Lock:
    """A parsed lockfile.

    Attributes:
        inputs: digest of what it was made from (see :func:`inputs_digest`).
        bases: the environment's base models.
        packs: sorted by name.
    """

    inputs: str
    bases: tuple[LockedBase, ...] = ()
    packs: tuple[LockedPack, ...] = ()

    def find(self, name: PackName) -> LockedPack | None:
        """Return the pack of that name, or None."""
        return next((pack for pack in self.packs if pack.pack_name.matches(name)), None)

    def to_bytes(self) -> bytes:
        """Return the file's bytes; the same for the same lock."""
        import tomli_w

        packs = sorted(self.packs, key=lambda pack: pack.name.lower())
        bases = sorted(self.bases, key=lambda base: base.fingerprint)
        document: dict[str, Any] = {"lock_version": LOCK_VERSION, "inputs": self.inputs}
        if bases:
            document["base"] = [_without_defaults(base) for base in bases]
        if packs:
            document["pack"] = [_pack_table(pack) for pack in packs]
        return (_HEADER + tomli_w.dumps(document)).encode()


def inputs_digest(
    requirements: Sequence[str],
    *,
    constraints: Sequence[str] = (),
    overrides: Sequence[str] = (),
    exclude_newer: str | None = None,
    pre_releases: bool = False,
) -> str:
    """Return the digest of what a lock is made from; a lock with another digest is stale.

    Args:
        requirements: what is wanted.
        constraints: what narrows the versions of packs.
        overrides: what takes the place of requirements.
        exclude_newer: the cut-off.
        pre_releases: whether pre-releases will do.
    """
    inputs = {
        "requirements": sorted(requirements),
        "constraints": sorted(constraints),
        "overrides": sorted(overrides),
        "newest": exclude_newer,
        "pre_releases": pre_releases,
    }
    return sha256_of_bytes(canonical_json(inputs))


def files_digest(files: Sequence[FileEntry]) -> str:
    """Return what identifies an adapter, which has no manifest: the digest of its files' names, sizes and digests."""
    entries = sorted(files, key=lambda entry: entry.path)
    return sha256_of_bytes(canonical_json([msgspec.to_builtins(entry) for entry in entries]))


def parse_lock(data: bytes, *, where: str = LOCK_FILE) -> Lock:
    """Read a lockfile.

    Raises:
        NewerSchemaError: it is of a version that this skillhub does not read.
        IntegrityError: it is no TOML, or a field is missing, unknown or bad (the message has its path).
    """
    try:
        document = parse_toml(data)
        _check_version(document, where)
        parsed = msgspec.convert(document, _LockFile)
    except tomllib.TOMLDecodeError as error:
        raise IntegrityError(f"{where} cannot be read: {error}.", hint=_REMEDY) from error
    except msgspec.MsgspecError as error:
        raise IntegrityError(f"{where} is not a valid lockfile: {field_error(error)}.", hint=_REMEDY) from error
    names = [pack.name.lower() for pack in parsed.pack]
    if len(set(names)) != len(names):
        raise IntegrityError(f"{where} locks a pack twice.", hint=_REMEDY)
    return Lock(parsed.inputs, tuple(parsed.base), tuple(parsed.pack))


def _check_version(document: dict[str, Any], where: str) -> None:
    found = document.get("lock_version")
    if isinstance(found, int) and found != LOCK_VERSION:
        raise NewerSchemaError(
            f"{where} has lock_version {found}; this version of skillhub reads {LOCK_VERSION}.",
            hint="Upgrade skillhub: pip install --upgrade skillhub-packs.",
            lock_version=found,
        )


def read_lock(path: Path) -> Lock | None:
    """Read a lockfile, or return None when there is none.

    Raises:
        SkillhubError: as :func:`parse_lock`.
        DiskError: it may not be read, or is a folder.
    """
    try:
        with disk_errors(path):
            data = read_limited(path, MAX_LOCK_BYTES)
    except FileNotFoundError:
        return None
    return parse_lock(data, where=str(path))


def write_lock(path: Path, lock: Lock) -> None:
    """Write a lockfile, unless it has these bytes already.

    Raises:
        DiskError: the disk is full or the folder may not be written.
    """
    data = lock.to_bytes()
    with disk_errors(path):
        unchanged = path.is_file() and path.read_bytes() == data
    if not unchanged:
        write_atomically(path, data)


def _without_defaults(value: Struct) -> dict[str, Any]:
    """Return a struct's fields without those that are empty: TOML has no null."""
    fields = msgspec.to_builtins(value)
    return {name: field for name, field in fields.items() if field is not None and field != []}


def _pack_table(pack: LockedPack) -> dict[str, Any]:
    table = _without_defaults(pack)
    if pack.dependencies:
        table["dependencies"] = sorted(pack.dependencies)
    table["files"] = [msgspec.to_builtins(entry) for entry in sorted(pack.files, key=lambda entry: entry.path)]
    return table


def relative_folder(folder: Path, start: Path) -> str:
    """Return the text by which a lock names a folder: relative to the environment, with forward slashes."""
    import os

    return re.sub(r"\\", "/", os.path.relpath(folder.resolve(), start.resolve()))
