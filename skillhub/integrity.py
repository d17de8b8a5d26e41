"""Whether an environment is what its lock says, byte for byte."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from skillhub.environments import (
    Environment,
    InstalledPack,
    as_environment,
    installed_folders,
    name_of_folder,
    read_installed,
)
from skillhub.errors import DiskError, IntegrityError, SkillhubError
from skillhub.lockfile import LOCK_FILE, Lock, LockedPack, read_lock
from skillhub.manifest import FileEntry
from skillhub.packs import RECEIPT_FILE, short_fingerprint
from skillhub.progress import Progress, counting

REINSTALL = "Repair it: skillhub sync --reinstall."
SYNC = "Bring it in line with the lock: skillhub sync."


def verify(environment: Path | str | Environment, *, progress: Progress | None = None) -> list[IntegrityError]:
    """Read every installed file again and compare it with its manifest, its receipt and the lock.

    Args:
        environment: where.
        progress: told what is read: the pack, bytes done, bytes in all.

    Returns:
        One error for each missing, altered or unlisted file, for each pack whose manifest or receipt cannot be read or is
        another one than was installed, and for each pack that is installed and not locked, or locked and not installed;
        empty when all is well. ``pack`` in an error's details is the pack, ``path`` the file or the folder.

    Raises:
        DiskError: a file may not be read.
        SkillhubError: the lock cannot be read.
    """
    chosen = as_environment(environment)
    lock = read_lock(chosen.lock_path)
    findings: list[IntegrityError] = []
    folders = installed_folders(chosen)
    for folder in folders:
        findings += _verify_folder(folder, lock, progress)
    if lock is None and folders:
        findings.append(IntegrityError(f"{chosen.folder} has no {LOCK_FILE}.", hint="Make one: skillhub lock."))
    for entry in lock.packs if lock else ():
        if chosen.pack_folder(entry.pack_name) not in folders:
            told = f"{entry.name} {entry.version} is locked and not installed."
            findings.append(IntegrityError(told, hint="Install it: skillhub sync.", pack=entry.name))
    return findings


def _verify_folder(folder: Path, lock: Lock | None, progress: Progress | None) -> list[IntegrityError]:
    name = name_of_folder(folder)
    try:
        installed = read_installed(folder)
        read = installed.verify(progress=counting(str(installed), installed.size, progress))
        found = [*read, *_unlisted(installed), *_receipt_findings(installed)]
    except DiskError:
        raise
    except SkillhubError as error:  # whatever is wrong with it, the others are read as well
        return [IntegrityError(error.message, hint=REINSTALL, **{"pack": str(name), "path": str(folder)})]
    findings = [IntegrityError(one.message, hint=REINSTALL, **{"pack": str(name), **one.details}) for one in found]
    return [*findings, *_lock_findings(installed, lock)]


def _unlisted(installed: InstalledPack) -> Iterator[IntegrityError]:
    """Yield an error for each file of an adapter's folder that its receipt does not list; packs are looked through with theirs."""
    if installed.pack is not None:
        return
    listed = {entry.path for entry in installed.receipt.files} | {RECEIPT_FILE}
    for parent, folders, names in os.walk(installed.folder):
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        for path in sorted(Path(parent) / name for name in [*names, *links]):
            if path.relative_to(installed.folder).as_posix() not in listed:
                yield IntegrityError(f"{path} is not one of the adapter's files.", path=str(path))


def _receipt_findings(installed: InstalledPack) -> Iterator[IntegrityError]:
    """Yield an error where a pack's receipt and its manifest do not say the same."""
    pack, receipt = installed.pack, installed.receipt
    if pack is None:  # an adapter's receipt was compared with its own digest
        return
    said = (receipt.version, _by_path(receipt.files))
    if said != (pack.manifest.version, _by_path(pack.variant_for(receipt.fingerprint).files)):
        path = str(installed.folder / RECEIPT_FILE)
        yield IntegrityError(f"The receipt and the manifest of {installed.name} do not say the same.", path=path)


def _by_path(files: list[FileEntry]) -> list[FileEntry]:
    return sorted(files, key=lambda entry: entry.path)


def _lock_findings(installed: InstalledPack, lock: Lock | None) -> Iterator[IntegrityError]:
    """Yield an error for what is installed otherwise than it is locked."""
    if lock is None:
        return
    entry = next((one for one in lock.packs if one.pack_name == installed.name), None)
    if entry is None:
        yield IntegrityError(f"{installed} is installed and not in the lock.", hint=SYNC, pack=str(installed.name))
    elif problem := _difference(installed, entry, lock):
        yield IntegrityError(problem, hint=SYNC, pack=str(installed.name), path=str(installed.folder))


def _difference(installed: InstalledPack, entry: LockedPack, lock: Lock) -> str | None:
    """Return a sentence on how an installed pack differs from what is locked, or None."""
    receipt = installed.receipt
    if (receipt.kind, receipt.manifest) != (entry.kind, entry.manifest):
        which = "another release of that version" if installed.version == entry.version else installed.version
        return f"{entry.name} {entry.version} is locked, and {which} is installed."
    fingerprints = [base.fingerprint for base in lock.bases]
    if fingerprints and receipt.fingerprint not in fingerprints:
        wanted = " and ".join(map(short_fingerprint, fingerprints))
        return f"{installed} is installed for {short_fingerprint(receipt.fingerprint)}, and the lock is for {wanted}."
    if _by_path(receipt.files) != _by_path(entry.files_for(receipt.fingerprint)):
        return f"The files of {installed} are not those that are locked."
    return None
