"""An environment: a folder with the packs for one base model, what was asked for, and a lock.

    skillhub.toml                          the base, the requirements, owners for short names
    skillhub.lock                          exactly what is installed (see ``lockfile``)
    .skillhub/lock                         held by the process that changes the environment
    .skillhub/packs/<owner>/<name>/        an installed pack: skillpack.json, the files of one variant, receipt.json

A pack's folder appears and goes by renames, so what is listed is whole. Names that begin with a dot are folders in the
making, or left by a process that was killed; nothing reads them, and the next change removes them. Packs from a folder
lie under the owner ``_``, which no registry knows.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from skillhub import settings
from skillhub.documents import canonical_json, check_schema, decode_json, field_error, parse_toml
from skillhub.errors import IntegrityError, NotFoundError, SkillhubError, UsageError
from skillhub.fields import FingerprintText, Label, Sha256
from skillhub.files import disk_errors, locked, write_atomically
from skillhub.lockfile import LOCK_FILE, PACK
from skillhub.manifest import MANIFEST_FILE, FileEntry
from skillhub.names import PackName, parse_pack_name
from skillhub.packs import RECEIPT_FILE, Pack, open_pack

PROJECT_FILE = "skillhub.toml"
RECEIPT_SCHEMA = 0
NO_OWNER = "_"


class Base(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The base model that an environment is for.

    Attributes:
        fingerprint: ``skb1:…``.
        repo: repository on a registry, where known.
        revision: of that repository, where one was named.
    """

    fingerprint: FingerprintText
    repo: str | None = None
    revision: str | None = None


class RegistryEntry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A registry that a project or the user names.

    Attributes:
        name: what locks call it.
        url: its address; None where the user's own configuration has it.
        packs: patterns of full names, such as ``corp/*``. Packs that match come from this registry only, and it is asked for no others.
    """

    name: Label
    url: Label | None = None
    packs: list[Label] = []


class Project(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A parsed ``skillhub.toml``: what the environment should hold.

    Attributes:
        base: the environment's base model, in a list of one; empty until the first install chose it.
        requirements: as their author wrote them, with owners.
        owners: looked through, in order, for names without an owner.
        constraints: requirements that narrow the versions of packs that come in anyway.
        overrides: requirements that take the place of all others for their packs.
        exclude_newer: releases that were published later than this (RFC 3339) are left alone.
        pre_releases: whether pre-releases will do where nobody asked for one.
        registry: asked in order, before the configured one.
    """

    base: list[Base] = []
    requirements: list[str] = []
    owners: list[str] = []
    constraints: list[str] = []
    overrides: list[str] = []
    exclude_newer: str | None = None
    pre_releases: bool = False
    registry: list[RegistryEntry] = []


class Receipt(Struct, frozen=True, kw_only=True):
    """Where an installed pack came from.

    Attributes:
        kind: ``pack`` or ``peft``.
        registry: the registry's name, or ``local``.
        repository: ``owner/name``, or the folder.
        version: of the pack.
        manifest: SHA-256 of its manifest.
        fingerprint: of the base whose variant is installed.
        commit: the commit that the files were seen at.
        requested: whether it was asked for by name, not as a dependency.
        files: the installed files.
    """

    schema: int
    kind: str = PACK
    registry: str
    repository: str
    version: str
    manifest: Sha256
    fingerprint: FingerprintText
    commit: str | None = None
    requested: bool = True
    files: list[FileEntry]

    def to_bytes(self) -> bytes:
        """Return the receipt's JSON."""
        return canonical_json(msgspec.to_builtins(self))


@dataclass(frozen=True)
class InstalledPack:
    """A pack in an environment."""

    pack: Pack
    receipt: Receipt

    @property
    def name(self) -> PackName:
        """The pack's name, with its owner unless it came from a folder."""
        return self.pack.name

    @property
    def version(self) -> str:
        """The installed version."""
        return self.receipt.version

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the base whose variant is installed."""
        return self.receipt.fingerprint


@dataclass(frozen=True)
class Environment:
    """An environment's folder; it need not exist yet."""

    folder: Path

    @property
    def project_path(self) -> Path:
        """Where ``skillhub.toml`` is."""
        return self.folder / PROJECT_FILE

    @property
    def lock_path(self) -> Path:
        """Where ``skillhub.lock`` is."""
        return self.folder / LOCK_FILE

    @property
    def packs_folder(self) -> Path:
        """Where the installed packs are."""
        return self.folder / ".skillhub" / "packs"

    def pack_folder(self, name: PackName) -> Path:
        """Where a pack is or would be installed."""
        return self.packs_folder / (name.owner or NO_OWNER).lower() / name.name.lower()

    def hold(self) -> AbstractContextManager[None]:
        """Keep other processes from changing the environment.

        Raises:
            EnvironmentLockedError: another process held it for ten minutes.
        """
        return locked(self.folder / ".skillhub" / "lock")


def find_project(start: Path | None = None) -> Environment | None:
    """Return the project that ``start`` (by default the working folder) is in, or None.

    A project is a folder with ``skillhub.toml``. The search goes up and ends at the root of a git repository and at
    the home folder, so a file that someone left in a shared parent is never taken for one's own project.
    """
    folder = (start or Path.cwd()).resolve()
    home = Path.home().resolve()
    for candidate in [folder, *folder.parents]:
        if (candidate / PROJECT_FILE).is_file():
            return Environment(candidate)
        if candidate == home or (candidate / ".git").exists():
            return None
    return None


def user_environment(fingerprint: str) -> Environment:
    """Return the per-user environment of a base."""
    return Environment(_user_environments_folder() / fingerprint.removeprefix("skb1:")[:12])


def user_environments() -> list[Environment]:
    """Return the per-user environments that exist, sorted by folder."""
    folders = _folders_below(_user_environments_folder())
    return [Environment(folder) for folder in folders if (folder / PROJECT_FILE).is_file()]


def _user_environments_folder() -> Path:
    return settings.home_folder() / "environments"


def read_project(environment: Environment) -> Project:
    """Read ``skillhub.toml``; an environment without one wants nothing yet.

    Raises:
        UsageError: the TOML or a field is wrong; the message names the line or the field.
        DiskError: it may not be read, or is a folder.
    """
    path = environment.project_path
    try:
        with disk_errors(path):
            data = path.read_bytes()
        project = msgspec.convert(parse_toml(data), Project)
    except FileNotFoundError:
        return Project()
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: {error}.", hint="Correct that line, then try again.") from error
    except msgspec.MsgspecError as error:
        raise UsageError(f"{path}: {field_error(error)}.", hint="Correct that field, then try again.") from error
    if len(project.base) > 1:
        raise UsageError(f"{path} names several bases.", hint="Keep one [[base]]; use one environment a base.")
    return project


def write_project(environment: Environment, project: Project) -> None:
    """Write ``skillhub.toml``, unless it says the same already.

    Raises:
        DiskError: the disk is full or the folder may not be written.
    """
    import tomli_w

    if environment.project_path.is_file() and read_project(environment) == project:
        return
    document: dict[str, Any] = {"requirements": list(project.requirements)}
    if project.owners:
        document["owners"] = list(project.owners)
    if project.base:
        document["base"] = [
            {name: value for name, value in msgspec.to_builtins(base).items() if value is not None}
            for base in project.base
        ]
    write_atomically(environment.project_path, tomli_w.dumps(document, multiline_strings=False).encode())


def installed_packs(environment: Environment) -> list[InstalledPack]:
    """Return the packs of an environment that can be read, sorted by name; only manifests and receipts are read.

    The others are told by :func:`damaged_packs`.
    """
    return _read_all(environment)[0]


def damaged_packs(environment: Environment) -> list[SkillhubError]:
    """Return one error for each pack of an environment that cannot be read; ``path`` in its details is the folder."""
    return _read_all(environment)[1]


def _read_all(environment: Environment) -> tuple[list[InstalledPack], list[SkillhubError]]:
    packs, errors = [], []
    for folder in installed_folders(environment):
        try:
            packs.append(read_installed(folder))
        except SkillhubError as error:
            error.details["path"] = str(folder)
            errors.append(error)
    return sorted(packs, key=lambda installed: str(installed.name).lower()), errors


def installed_folders(environment: Environment) -> list[Path]:
    """Return the folders of the installed packs, sorted; nothing in them is read."""
    return [folder for owner in _folders_below(environment.packs_folder) for folder in _folders_below(owner)]


def _folders_below(parent: Path) -> list[Path]:
    if not parent.is_dir():
        return []
    with disk_errors(parent):
        return sorted(entry for entry in parent.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def unfinished_paths(environment: Environment) -> Iterator[Path]:
    """Yield what killed processes left; remove it only while holding the environment."""
    for owner in _folders_below(environment.packs_folder):
        yield from (entry for entry in owner.iterdir() if entry.name.startswith("."))
    if environment.folder.is_dir():
        for name in (PROJECT_FILE, LOCK_FILE):
            yield from environment.folder.glob(f".{name}.*.part")


def name_of_folder(folder: Path) -> PackName:
    """Return the name of the pack in an installed pack's folder, in lower case; nothing in the folder is read."""
    return PackName(None if folder.parent.name == NO_OWNER else folder.parent.name, folder.name)


def read_installed(folder: Path) -> InstalledPack:
    """Read one installed pack's manifest and receipt.

    Raises:
        NotFoundError: there is no pack.
        IntegrityError: the manifest or the receipt is not valid, or they are not of the release of that folder.
        NewerSchemaError: one is of a schema that this version does not read.
        DiskError: one may not be read.
    """
    receipt = _read_receipt(folder / RECEIPT_FILE)
    expected = name_of_folder(folder)
    pack = open_pack(folder, owner=receipt.repository.partition("/")[0] if expected.owner else None)
    if pack.digest != receipt.manifest or pack.name != expected:
        raise IntegrityError(
            f"The manifest in {folder} is not the one that was installed.",
            hint=f"Install it again: skillhub install {expected}.",
            path=str(folder),
        )
    return InstalledPack(pack, receipt)


def _read_receipt(path: Path) -> Receipt:
    try:
        with disk_errors(path):
            data = path.read_bytes()
        check_schema(data, RECEIPT_SCHEMA, str(path))
        return decode_json(data, Receipt)
    except FileNotFoundError as error:
        raise IntegrityError(f"{path} is missing.", hint="Install the pack again.", path=str(path)) from error
    except msgspec.MsgspecError as error:
        raise IntegrityError(f"{path}: {field_error(error)}.", hint="Install the pack again.") from error


def find_folder(environment: Environment, name: str) -> Path:
    """Return the folder of an installed pack by its full or short name; nothing in it is read.

    Raises:
        NotFoundError: it is not installed here.
        UsageError: several packs have this short name.
    """
    wanted = parse_pack_name(name)
    found = [folder for folder in installed_folders(environment) if wanted.matches(name_of_folder(folder))]
    exact = [folder for folder in found if wanted == name_of_folder(folder)]
    if len(found) > 1 and not exact:
        names = ", ".join(str(name_of_folder(folder)) for folder in found)
        raise UsageError(f"Several installed packs are called {name}: {names}.", hint="Give the full name.")
    if not found:
        hint = f"Install it: skillhub install {name}."
        if (Path(name) / MANIFEST_FILE).is_file():
            hint = f"For the pack in the folder of that name, write ./{name}."
        raise NotFoundError(f"{name} is not installed in {environment.folder}.", hint=hint)
    return (exact or found)[0]


def find_installed(environment: Environment, name: str) -> InstalledPack:
    """Return an installed pack by its full or short name; no other pack is read.

    Raises:
        SkillhubError: as :func:`find_folder` and :func:`read_installed`.
    """
    return read_installed(find_folder(environment, name))


def as_environment(environment: Path | str | Environment) -> Environment:
    """Return the environment of a folder, with an absolute path."""
    given = environment if isinstance(environment, Environment) else Environment(Path(environment))
    return replace(given, folder=given.folder.expanduser().absolute())
