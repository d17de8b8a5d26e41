"""Checks of what lies on this machine: folders, room, the store, settings and environments."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from skillhub import settings
from skillhub.clones import shares_bytes
from skillhub.configuration import configuration_path, read_configuration
from skillhub.consistency import check
from skillhub.diagnosis.checks import OK, PROBLEM, WARNING, Check, from_error, readable
from skillhub.environments import Environment, damaged_packs, read_project, unfinished_paths, user_environments
from skillhub.errors import SkillhubError
from skillhub.files import link_or_copy
from skillhub.lockfile import read_lock
from skillhub.policy import policy_path, read_policy
from skillhub.pruning import own_bytes
from skillhub.store import default_store, read_blobs

_SCARCE_BYTES = 2 * 10**9
_NO_ROOM_BYTES = 10**8
_SHOWN = 3  # findings of one environment


def check_places(project: Environment | None) -> Iterator[Check]:
    """Yield the checks of what lies on this machine.

    Args:
        project: the one around the current folder, if there is one.
    """
    for name, folder in (
        ("cache", settings.cache_folder()),
        ("home", settings.home_folder()),
        ("state", settings.state_folder()),
        ("config", settings.configuration_folder()),
    ):
        yield _check_folder(name, folder)
    yield _check_sharing(project)
    yield _check_room()
    yield from _check_settings()
    yield from _check_store()
    yield from _check_environments(project)


def _existing(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    return next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())


def _check_folder(name: str, folder: Path) -> Check:
    hint = f"Check its owner and permissions, or choose another with SKILLHUB_{name.upper()}."
    if folder.exists() and not folder.is_dir():
        return Check(name, PROBLEM, f"{folder} is not a folder.", hint)
    nearest = _existing(folder)
    try:
        if folder == nearest:
            with tempfile.TemporaryFile(dir=folder):
                pass
        elif not os.access(nearest, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        return Check(name, PROBLEM, f"{folder} cannot be written: {error.strerror}.", hint)
    return Check(name, OK, f"{folder}{'' if folder.exists() else ' (not made yet)'}.")


def _check_sharing(project: Environment | None) -> Check:
    """Say whether what is installed shares its bytes with the store."""
    store, places = default_store().folder, [settings.home_folder(), *([project.folder] if project else [])]
    apart = [place for place in places if _existing(place).stat().st_dev != _existing(store).stat().st_dev]
    hint = f"Put the cache on the same file system: SKILLHUB_CACHE=… (now {settings.cache_folder()})."
    if apart:
        told = f"{apart[0]} is on another file system than the store, so packs are copied and take twice the room."
        return Check("sharing", WARNING, told, hint)
    try:
        can_share = not store.is_dir() or _can_share(store)
    except OSError as error:  # the store itself, where the folder around it may be written
        told = f"{store} cannot be written: {error.strerror}."
        return Check("sharing", PROBLEM, told, "Check its owner and permissions.")
    if not can_share:
        told = "The file system of the store can neither clone nor link, so packs are copied and take twice the room."
        return Check("sharing", WARNING, told, hint)
    return Check("sharing", OK, "Installed packs share their bytes with the store.")


def _can_share(folder: Path) -> bool:
    with tempfile.TemporaryDirectory(dir=folder, prefix=".doctor-") as made:
        source, target = Path(made) / "one", Path(made) / "other"
        source.write_bytes(os.urandom(8192))
        with suppress(OSError, SkillhubError):
            link_or_copy(source, target)
            with target.open("rb") as stream:
                os.fsync(stream.fileno())  # before that, a file system may not tell where the bytes are
            return shares_bytes(target)
    return True  # what keeps us from trying is told by the other checks


def _check_room() -> Check:
    free = shutil.disk_usage(_existing(settings.cache_folder())).free
    told = f"{free / 10**9:.1f} GB are free for {settings.cache_folder()}."
    hint = "Free some: skillhub cache prune."
    if free < _NO_ROOM_BYTES:
        return Check("room", PROBLEM, told, hint)
    return Check("room", WARNING, told, hint) if free < _SCARCE_BYTES else Check("room", OK, told)


def _check_settings() -> Iterator[Check]:
    for name, path, read in (
        ("config.toml", configuration_path(), read_configuration),
        ("policy", policy_path(), read_policy),
    ):
        yield readable(name, read, f"{path} is read." if path.exists() else f"There is no {path}; none is needed.")


def _check_store() -> Iterator[Check]:
    store, limit = default_store(), None
    with suppress(SkillhubError):  # told by another check
        limit = read_configuration().cache_limit_bytes
    try:
        blobs = read_blobs(store)
    except SkillhubError as error:
        yield from_error("store", error)
        return
    size = own_bytes(blobs)
    told = f"{len(blobs)} files, of which {size / 10**9:.2f} GB are in no environment."
    if limit is not None and size > limit:
        yield Check(
            "store", WARNING, f"{told} The limit is {limit / 10**9:.2f} GB.", "Make room: skillhub cache prune."
        )
    else:
        yield Check("store", OK, told)
    staging = store.folder / "staging"
    left = sum(1 for _ in staging.iterdir()) if staging.is_dir() else 0
    if left:
        told = f"{left} downloads are under way, or were left by processes that were killed."
        yield Check("leftovers", WARNING, told, "When nothing is being installed: skillhub cache prune.")


def _check_environments(project: Environment | None) -> Iterator[Check]:
    own = [place for place in user_environments() if project is None or place.folder != project.folder]
    for place in [*([project] if project else []), *own]:
        yield _check_environment(place)
    if not own and not project:
        yield Check("environments", OK, "There are none yet.")


def _check_environment(place: Environment) -> Check:
    name, folder = "environment", place.folder
    try:
        read_project(place)
        lock = read_lock(place.lock_path)
        damaged, findings = damaged_packs(place), check(place)
        unfinished = list(unfinished_paths(place))
    except SkillhubError as error:
        return from_error(name, error)
    if damaged:
        told = f"{folder}: {len(damaged)} installed packs are damaged."
        return Check(name, PROBLEM, told, f"Repair them: skillhub sync --reinstall -e {folder}.")
    if findings:
        more = f" And {len(findings) - _SHOWN} more." if len(findings) > _SHOWN else ""
        told = f"{folder}: {' '.join(one.message for one in findings[:_SHOWN])}{more}"
        return Check(name, WARNING, told, findings[0].hint)
    if unfinished:
        told = f"{folder}: {len(unfinished)} files are left by processes that were killed."
        return Check(name, WARNING, told, f"They go with the next change: skillhub sync -e {folder}.")
    count = len(lock.packs) if lock else 0
    return Check(name, OK, f"{folder}: {count} pack{'s' * (count != 1)}, as locked.")
