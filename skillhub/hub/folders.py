"""A vendored folder as a registry: repositories as plain files, for machines without a network.

    vendor.json                                  {schema, registries: their names, as locks have them}
    <registry>/<owner>/<name>/vendored.json      {schema, commit, id}: what the registry said of the repository
    <registry>/<owner>/<name>/…                  the repository's files, or those of them that are needed

Owners and names are in lower case; a registry's name is percent-encoded. A :class:`Registry` whose endpoint is the
``file://`` address of such a registry's folder is read here, and huggingface_hub is not even imported for it. What is read is trusted no more
than what a server sends: digests decide, and no path leaves its folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import msgspec
from msgspec import Struct

from skillhub.documents import canonical_json, check_schema, decode_json, field_error
from skillhub.errors import IntegrityError, NetworkError, NotFoundError, UnsafeContentError
from skillhub.fields import Label
from skillhub.files import CHUNK, disk_errors, safe_join, sha256_of_file
from skillhub.hub.registries import Registry
from skillhub.manifest import FileEntry

VENDOR_SCHEMA = 0
VENDOR_FILE = "vendor.json"
REPOSITORY_FILE = "vendored.json"

_MAX_NOTE_BYTES = 1 << 20
_SHORT_COMMIT = 7
_AGAIN = "Make the folder again with `skillhub vendor`, and copy all of it."


Note = TypeVar("Note", bound=Struct)


class VendoredFolder(Struct, frozen=True, kw_only=True):
    """The parsed ``vendor.json``.

    Attributes:
        registries: names of the registries that the folder has packs of.
    """

    schema: int
    registries: list[Label]

    def to_bytes(self) -> bytes:
        """Return the file's JSON."""
        return canonical_json(msgspec.to_builtins(self))


class VendoredRepository(Struct, frozen=True, kw_only=True):
    """The parsed ``vendored.json`` of one repository.

    Attributes:
        commit: the commit that the files are of, where known; an adapter is pinned by it.
        id: the repository's own id, where known.
    """

    schema: int
    commit: Label | None = None
    id: Label | None = None

    def to_bytes(self) -> bytes:
        """Return the file's JSON."""
        return canonical_json(msgspec.to_builtins(self))


def is_vendored(folder: Path) -> bool:
    """Say whether a folder was written by ``skillhub vendor``."""
    return (folder / VENDOR_FILE).is_file()


def vendored_registries(folder: Path) -> dict[str, Registry]:
    """Return the registries that a vendored folder stands in for: name → registry, without any token.

    Raises:
        NotFoundError: the folder was not written by ``skillhub vendor``.
        IntegrityError: its ``vendor.json`` is not valid.
        NewerSchemaError: it is of a schema that this version does not read.
        UnsafeContentError: a registry's name leads out of the folder.
    """
    folder = folder.expanduser().resolve()
    note = _read_note(folder / VENDOR_FILE, VendoredFolder)
    if note is None:
        raise NotFoundError(
            f"{folder} is no vendored folder: it has no {VENDOR_FILE}.", hint="Make one: skillhub vendor FOLDER."
        )
    return {name: Registry(name, registry_folder(folder, name).as_uri()) for name in note.registries}


def registry_folder(folder: Path, name: str) -> Path:
    """Return where a vendored folder has the repositories of a registry.

    Raises:
        UnsafeContentError: the name is none for a folder.
    """
    return safe_join(folder, quote(name, safe=""))


def read_repository(registry: Registry, repository: str, *, revision: str = "main") -> VendoredRepository:
    """Return what a vendored repository says of itself.

    Args:
        registry: a vendored one.
        repository: ``owner/name``.
        revision: ``main``, or the vendored commit or its first digits.

    Raises:
        NotFoundError: it was not vendored, or not at that revision.
        IntegrityError: its note is not valid.
        NewerSchemaError: it is of a schema that this version does not read.
    """
    found = _read_note(_path_of(registry, repository, REPOSITORY_FILE), VendoredRepository)
    if found is None:
        raise NotFoundError(
            f"There is no repository {repository} in {registry.folder}.",
            hint="Check the name; `skillhub vendor` adds what an environment has locked.",
        )
    short = len(revision) >= _SHORT_COMMIT and (found.commit or "").startswith(revision)
    if revision != "main" and not short:
        raise NotFoundError(
            f"{registry.folder} has {repository} not at {revision}.", hint="Vendor an environment that is locked to it."
        )
    return found


def read_file(registry: Registry, repository: str, path: str, *, revision: str = "main", limit: int) -> bytes | None:
    """Return the bytes of one small file, or None when the repository has no such file; arguments as for a server.

    Raises:
        NotFoundError: the repository was not vendored, or not at that revision.
        NetworkError: the file is longer than ``limit``.
        UnsafeContentError: the path leaves the repository.
        DiskError: it may not be read.
    """
    read_repository(registry, repository, revision=revision)
    file = _file_of(registry, repository, path)
    if file is None:
        return None
    with disk_errors(file), file.open("rb") as stream:
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise NetworkError(f"{file} has more than {limit} bytes.", hint=_AGAIN)
    return data


def has_file(registry: Registry, repository: str, path: str) -> bool:
    """Say whether a vendored repository has a file.

    Raises:
        UnsafeContentError: the path leaves the repository, or is a symbolic link.
    """
    return _file_of(registry, repository, path) is not None


def copy_file(
    registry: Registry,
    repository: str,
    path: str,
    *,
    revision: str = "main",
    into: Path,
    size: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Copy one file into a folder, under ``path``; arguments as for a download.

    Raises:
        NotFoundError: the repository was not vendored, not at that revision, or without that file.
        IntegrityError: the file has more than ``size`` bytes.
        UnsafeContentError: the path leaves the repository.
        DiskError: the disk is full, or a file may not be read or written.
    """
    read_repository(registry, repository, revision=revision)
    file = _file_of(registry, repository, path)
    if file is None:
        raise NotFoundError(f"{repository} in {registry.folder} has no {path}.", hint=_AGAIN)
    target = safe_join(into, path)
    done = 0
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with file.open("rb") as reader, target.open("wb") as writer:
            while piece := reader.read(CHUNK):
                done += len(piece)
                if size is not None and done > size:
                    raise IntegrityError(f"{file} has more than the {size} bytes that were announced.", hint=_AGAIN)
                writer.write(piece)
                if progress:
                    progress(len(piece))
    return target


def list_files(registry: Registry, repository: str, *, revision: str = "main") -> list[FileEntry]:
    """Return every file of a vendored repository, sorted by path; each is read through for its digest.

    Raises:
        NotFoundError: the repository was not vendored, or not at that revision.
        UnsafeContentError: a name is none for every system, or something is a symbolic link.
        DiskError: a file may not be read.
    """
    read_repository(registry, repository, revision=revision)
    folder = _path_of(registry, repository, REPOSITORY_FILE).parent
    entries = []
    for path in sorted(_paths_below(folder)):
        file = _file_of(registry, repository, path)
        if path != REPOSITORY_FILE and file is not None:
            with disk_errors(file):
                entries.append(FileEntry(path=path, size=file.stat().st_size, sha256=sha256_of_file(file)))
    return entries


def _paths_below(folder: Path) -> Iterator[str]:
    for parent, folders, names in os.walk(folder):
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        yield from ((Path(parent) / name).relative_to(folder).as_posix() for name in [*names, *links])


def _path_of(registry: Registry, repository: str, path: str) -> Path:
    assert registry.folder is not None
    return safe_join(registry.folder, f"{repository.lower()}/{path}")


def _file_of(registry: Registry, repository: str, path: str) -> Path | None:
    """Return where a file is, or None; links are not followed, wherever they lead."""
    file = _path_of(registry, repository, path)
    if file.is_symlink():
        raise UnsafeContentError(f"{file} is a symbolic link, not a file of the repository.", hint=_AGAIN)
    return file if file.is_file() else None


def _read_note(path: Path, kind: type[Note]) -> Note | None:
    try:
        with disk_errors(path), path.open("rb") as stream:
            data = stream.read(_MAX_NOTE_BYTES)
    except FileNotFoundError:
        return None
    try:
        check_schema(data, VENDOR_SCHEMA, str(path))
        return decode_json(data, kind)
    except msgspec.MsgspecError as error:
        raise IntegrityError(f"{path}: {field_error(error)}.", hint=_AGAIN) from error
