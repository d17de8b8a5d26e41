"""An environment: a folder with the packs for one base model, what was asked for, and a lock.

    skillhub.toml                          the base, the requirements and all else that people decide (see ``projects``)
    skillhub.lock                          exactly what is installed (see ``lockfile``)
    .skillhub/lock                         held by the process that changes the environment
    .skillhub/packs/<owner>/<name>/        an installed pack: skillpack.json, the files of one variant, receipt.json

A pack's folder appears and goes by renames, so what is listed is whole. Names that begin with a dot are folders in the
making, or left by a process that was killed; nothing reads them, and the next change removes them. Packs from a folder
lie under the owner ``_``, which no registry knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
from msgspec import Struct

from skillhub import settings
from skillhub.documents import canonical_json, check_schema, decode_json, field_error
from skillhub.errors import IntegrityError, NotFoundError, SkillhubError, UnsafeContentError, UsageError
from skillhub.fields import FingerprintText, Label, Sha256
from skillhub.files import disk_errors, read_limited, safe_join, write_atomically
from skillhub.lockfile import LOCK_FILE, PACK, PEFT, files_digest
from skillhub.locks import locked
from skillhub.manifest import MANIFEST_FILE, MAX_MANIFEST_BYTES, FileEntry
from skillhub.names import PackName, parse_pack_name
from skillhub.packs import RECEIPT_FILE, Pack, check_file, open_pack, verify_pack
from skillhub.projects import MAX_PROJECT_BYTES, PROJECT_FILE, Project, parse_project, updated_text

RECEIPT_SCHEMA = 0
NO_OWNER = "_"


class Receipt(Struct, frozen=True, kw_only=True):
    """Where an installed pack came from.

    Attributes:
        kind: ``pack`` or ``peft``.
        name: the pack's, with its owner unless it came from a folder.
        registry: the registry's name, or ``local``.
        repository: ``owner/name``, or the folder.
        version: of the pack.
        manifest: SHA-256 of its manifest.
        fingerprint: of the base whose variant is installed.
        commit: the commit that the files were seen at.
        files: the installed files.
    """

    schema: int
    kind: str = PACK
    name: Label
    registry: Label
    repository: Label
    version: Label
    manifest: Sha256
    fingerprint: FingerprintText
    commit: Label | None = None
    files: list[FileEntry]

    def to_bytes(self) -> bytes:
        """Return the receipt's JSON."""
        return canonical_json(msgspec.to_builtins(self))


@dataclass(frozen=True)
class InstalledPack:
    """A pack, or a PEFT adapter, in an environment.

    Attributes:
        folder: where it is.
        name: its name, with its owner unless it came from a folder.
        receipt: where it came from.
        pack: the pack; None for an adapter, which has no manifest.
    """

    folder: Path
    name: PackName
    receipt: Receipt
    pack: Pack | None

    @property
    def version(self) -> str:
        """The installed version; of an adapter, the first digits of its commit."""
        return self.receipt.version

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the base whose variant is installed; for an adapter, the environment's base."""
        return self.receipt.fingerprint

    @property
    def size(self) -> int:
        """Bytes of the installed files."""
        return sum(entry.size for entry in self.receipt.files)

    def __str__(self) -> str:
        return f"{self.name} {self.version}"

    def verify(self, *, progress: Callable[[int], None] | None = None) -> list[IntegrityError]:
        """Read every file through; one error for each that is missing, altered or unlisted.

        Args:
            progress: called with the number of bytes of each piece that was read.

        Raises:
            SkillhubError: as :func:`skillhub.packs.verify_pack`.
        """
        if self.pack is not None:
            return verify_pack(self.pack, fingerprint=self.fingerprint, progress=progress)
        findings = []
        for entry in self.receipt.files:
            try:
                check_file(safe_join(self.folder, entry.path), entry, progress=progress)
            except IntegrityError as error:
                findings.append(error)
        return findings


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
            UnsafeContentError: a folder that packs are installed into and removed from leads elsewhere.
        """
        lock = self.folder / ".skillhub" / "lock"
        owners = self.packs_folder.iterdir() if self.packs_folder.is_dir() else ()
        for path in (lock.parent, lock, self.packs_folder, *owners):
            if path.is_symlink():  # in a project of somebody else's, what is not locked would be removed there
                raise UnsafeContentError(
                    f"{path} is a symbolic link: packs would be installed and removed where it leads.",
                    hint="Remove the link, then run the same command again.",
                    path=str(path),
                )
        return locked(lock, what=f"changes {self.folder}")


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
    data = _project_bytes(environment)
    return Project() if data is None else parse_project(data, where=str(environment.project_path))


def _project_bytes(environment: Environment) -> bytes | None:
    try:
        with disk_errors(environment.project_path):
            return read_limited(environment.project_path, MAX_PROJECT_BYTES)
    except FileNotFoundError:
        return None


def write_project(environment: Environment, project: Project) -> None:
    """Write ``skillhub.toml``, unless it says the same already; comments stay.

    Raises:
        UsageError: the file that is there is not valid.
        DiskError: the disk is full or the folder may not be written.
    """
    data = _project_bytes(environment)
    if data is None or parse_project(data, where=str(environment.project_path)) != project:
        write_atomically(environment.project_path, updated_text(data or b"", project))


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
            if isinstance(error, IntegrityError):
                error.hint = "Mend it: skillhub sync."
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
    name = parse_pack_name(receipt.name)
    pack = None if receipt.kind == PEFT else open_pack(folder, owner=name.owner)
    digest = pack.digest if pack else files_digest(receipt.files)
    if digest != receipt.manifest or name != expected or (pack and pack.name != expected):
        raise IntegrityError(
            f"The manifest in {folder} is not the one that was installed.",
            hint=f"Install it again: skillhub install {expected}.",
            path=str(folder),
        )
    return InstalledPack(folder, name, receipt, pack)


def _read_receipt(path: Path) -> Receipt:
    try:
        with disk_errors(path):
            data = read_limited(path, MAX_MANIFEST_BYTES)
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
        hint = f"`skillhub list` shows what is. To install it: skillhub install {name}."
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
