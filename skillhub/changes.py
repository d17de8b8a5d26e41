"""What an environment lacks or has too much, compared with its lock: the difference that installing makes."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from skillhub.environments import Environment, InstalledPack, installed_folders, name_of_folder, read_installed
from skillhub.errors import SkillhubError
from skillhub.files import disk_errors
from skillhub.lockfile import Lock, LockedPack
from skillhub.names import PackName
from skillhub.projects import Base

Action = Literal["install", "update", "repair", "remove"]


@dataclass(frozen=True)
class Change:
    """One pack that is not as the lock says.

    Attributes:
        action: what has to be done.
        name: the pack.
        before: the installed version; None when there is none, or when it cannot be read.
        after: the locked version; None when the pack goes.
        size: bytes of the files that will be installed.
        folder: where the pack is or will be.
    """

    action: Action
    name: PackName
    before: str | None
    after: str | None
    size: int
    folder: Path


@dataclass(frozen=True)
class Outcome:
    """What a command did to an environment, or would do.

    Attributes:
        environment: the environment.
        base: its base.
        lock: its lock.
        lock_changed: whether that is another one than before.
        changes: what was installed and removed.
        asked: the packs that the user named; all that are locked where none was.
    """

    environment: Environment
    base: Base
    lock: Lock
    lock_changed: bool
    changes: tuple[Change, ...]
    asked: tuple[PackName, ...]


def find_changes(
    environment: Environment,
    lock: Lock,
    base: Base,
    *,
    read_through: Collection[PackName] = (),
    reinstall: bool = False,
    inexact: bool = False,
) -> tuple[Change, ...]:
    """Compare what is installed with a lock.

    Args:
        environment: the environment.
        lock: what it should hold.
        base: whose variants it should hold.
        read_through: packs whose every byte is read; of the others only the receipt, and each file's size.
        reinstall: take nothing for installed.
        inexact: leave packs that are not in the lock.

    Returns:
        The changes to make, sorted by name, removals last.
    """
    placed = [
        found
        for entry in lock.packs
        if (found := _placement(environment, entry, base, entry.pack_name in read_through, reinstall))
    ]
    kept = {environment.pack_folder(entry.pack_name) for entry in lock.packs}
    unwanted = [] if inexact else [folder for folder in installed_folders(environment) if folder not in kept]
    return (*placed, *(removal(folder) for folder in unwanted))


def _placement(
    environment: Environment, entry: LockedPack, base: Base, read_through: bool, reinstall: bool
) -> Change | None:
    folder = environment.pack_folder(entry.pack_name)
    installed = _installed(folder)
    if not reinstall and installed and _is_as_locked(installed, entry, base, read_through):
        return None
    before = installed.version if installed else None
    action: Action = "repair" if folder.is_dir() else "install"
    if installed and installed.receipt.manifest != entry.manifest:
        action = "update"
    elif installed and installed.fingerprint != base.fingerprint:  # another variant of the same release takes its place
        action = "install"
    size = sum(file.size for file in entry.files_for(base.fingerprint))
    return Change(action, entry.pack_name, before, entry.version, size, folder)


def _installed(folder: Path) -> InstalledPack | None:
    if not folder.is_dir():
        return None
    try:
        return read_installed(folder)
    except SkillhubError:  # whatever is wrong with it: it is put there anew
        return None


def _is_as_locked(installed: InstalledPack, entry: LockedPack, base: Base, read_through: bool) -> bool:
    receipt = installed.receipt
    if (receipt.kind, receipt.manifest, receipt.fingerprint) != (entry.kind, entry.manifest, base.fingerprint):
        return False
    try:
        if read_through:
            return not installed.verify()
        return all((installed.folder / file.path).stat().st_size == file.size for file in receipt.files)
    except (OSError, SkillhubError):
        return False


def locked_changes(before: Lock | None, after: Lock, environment: Environment) -> list[Change]:
    """Return how one lock differs from another, sorted by name; sizes are left out."""
    old = {entry.name.lower(): entry for entry in (before.packs if before else ())}
    new = {entry.name.lower(): entry for entry in after.packs}
    changes = []
    for key in sorted(old.keys() | new.keys()):
        was, now = old.get(key), new.get(key)
        if was and now and was.manifest == now.manifest:
            continue
        name = (now or was).pack_name  # type: ignore[union-attr]
        action: Action = "remove" if now is None else "update" if was else "install"
        versions = (was.version if was else None, now.version if now else None)
        changes.append(Change(action, name, *versions, 0, environment.pack_folder(name)))
    return changes


def removal(folder: Path) -> Change:
    """Return the change that removes what is installed in a folder, damaged or not."""
    installed = _installed(folder)
    if installed is None:
        return Change("remove", name_of_folder(folder), None, None, 0, folder)
    return Change("remove", installed.name, installed.version, None, installed.size, folder)


def remove_folder(folder: Path) -> None:
    """Remove an installed pack: first out of sight by one rename, then from the disk.

    Raises:
        DiskError: it may not be removed.
    """
    with disk_errors(folder):
        hidden = folder.with_name(f".{folder.name[:40]}.removed")
        delete(hidden)
        folder.rename(hidden)
        delete(hidden)


def delete(path: Path) -> None:
    """Remove a file, or a folder with all that is in it; a link is removed and not followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
