"""What packs are named by: installed names, folders, repositories; and the pack, adapter or checkpoint that is meant."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from skillhub.adapters import Adapter, is_adapter, open_adapter
from skillhub.compose.tunedcheckpoints import CHECKPOINT_PREFIX, TunedCheckpoint, is_checkpoint, open_tuned
from skillhub.errors import IntegrityError, NotFoundError
from skillhub.files import expanded
from skillhub.manifest import MANIFEST_FILE
from skillhub.names import is_folder
from skillhub.packs import Pack, open_pack

if TYPE_CHECKING:
    from skillhub.environments import Environment, InstalledPack

ADAPTER_PREFIX = "peft:"
"""What may stand before an adapter's name."""

PackSource = str | Path | Pack | Adapter | TunedCheckpoint
"""A pack, adapter or fine-tuned checkpoint that was opened, its folder, the name of an installed one, ``checkpoint:`` and a repository."""

AnyPack: TypeAlias = Pack | Adapter | TunedCheckpoint
"""What deltas come from."""

EnvironmentSource: TypeAlias = "Path | str | Environment"
"""An environment or its folder."""


def find_pack(
    source: PackSource,
    *,
    environment: EnvironmentSource | None = None,
    fingerprint: Callable[[], str] | None = None,
) -> AnyPack:
    """Return a pack, an adapter or a fine-tuned checkpoint from what a user may name it by.

    A text that begins with ``.``, ``/`` or ``~`` is a folder (:func:`skillhub.names.is_folder`); any other is the name of an
    installed pack (of an adapter also with ``peft:`` before it), looked up in ``environment``. Without one the per-user environments are
    searched, and where several of them (for several bases) have the pack, the base's fingerprint decides. With ``checkpoint:`` before it
    it is the repository of a fine-tuned checkpoint.

    Raises:
        NotFoundError: there is no such folder or installed pack.
        IntegrityError: its manifest or config is not valid, or an adapter's file was altered.
        SkillhubError: as :func:`skillhub.adapters.open_adapter`.
    """
    if isinstance(source, AnyPack):
        return source
    if isinstance(source, str) and source.startswith(CHECKPOINT_PREFIX):
        return open_tuned(source)
    if isinstance(source, Path) or is_folder(source):
        return open_folder(expanded(source))
    source = source.removeprefix(ADAPTER_PREFIX)
    from skillhub.environments import as_environment, find_installed

    if environment is not None:
        return _pack_of(find_installed(as_environment(environment), source))
    return _pack_of(_find_anywhere(source, fingerprint))


def open_folder(folder: Path) -> AnyPack:
    """Open the folder of a pack, an adapter or a fine-tuned checkpoint, whichever it is by its files' names.

    Raises:
        SkillhubError: as :func:`skillhub.packs.open_pack`, :func:`skillhub.adapters.open_adapter` and
            :func:`skillhub.compose.tunedcheckpoints.open_tuned`.
    """
    if is_adapter(folder):
        return open_adapter(folder)
    return open_tuned(folder) if not (folder / MANIFEST_FILE).is_file() and is_checkpoint(folder) else open_pack(folder)


def _pack_of(installed: InstalledPack) -> AnyPack:
    if installed.pack is not None:
        return installed.pack
    adapter = open_adapter(installed.folder, name=installed.name, version=installed.version)
    if adapter.digest != installed.receipt.manifest:  # a pack's tensors have digests of their own, these have none
        raise IntegrityError(
            f"The files of {installed} were altered since it was installed.",
            hint=f"Install it again: skillhub install --reinstall {ADAPTER_PREFIX}{installed.name}.",
            path=str(installed.folder),
        )
    return adapter


def _find_anywhere(name: str, fingerprint: Callable[[], str] | None) -> InstalledPack:
    """Look a name up in the per-user environments."""
    from skillhub.environments import find_installed, user_environment, user_environments

    found: list[InstalledPack] = []
    for candidate in user_environments():
        with suppress(NotFoundError):
            found.append(find_installed(candidate, name))
    if len(found) > 1 and fingerprint is not None:
        return find_installed(user_environment(fingerprint()), name)
    if len(found) != 1:
        if not found and (Path(name) / MANIFEST_FILE).is_file():
            raise NotFoundError(
                f"{name} is not installed in any of your environments.",
                hint=f"For the pack in the folder of that name, write ./{name}.",
            )
        places = "in several of your environments" if found else "in any of your environments"
        raise NotFoundError(
            f"{name} is {'installed' if found else 'not installed'} {places}.",
            hint="Give environment=… (a project's folder), or the pack's folder."
            if found
            else f"Install it: skillhub install {name}. For a pack of a project give environment=….",
        )
    return found[0]
