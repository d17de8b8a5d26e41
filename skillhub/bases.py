"""Base models as users name them: a folder, or ``repo[@revision]`` on the Hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from skillhub.errors import NetworkError, NotFoundError, SkillhubError
from skillhub.files import expanded

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_REVISION = re.compile(r"[\w./-]+")


@dataclass(frozen=True)
class LocatedBase:
    """A base model that lies on this machine.

    Attributes:
        folder: its checkpoint folder, or one safetensors file.
        repo: the repository it was fetched from, or None for a folder that the user named.
        revision: the commit of that repository.
    """

    folder: Path
    repo: str | None = None
    revision: str | None = None


def split_repository(text: str) -> tuple[str, str | None]:
    """Return repository and revision of ``repo[@revision]``; whether they are well-formed is not looked at."""
    repository, _, revision = text.partition("@")
    return repository, revision or None


def find_base(source: str | Path) -> LocatedBase:
    """Return where a base model lies, fetching it from the Hub when it is no folder here.

    Args:
        source: a folder, one safetensors file, or ``repo[@revision]``. A path that exists wins.

    Raises:
        NotFoundError: there is no such folder, or no such repository or revision.
        NetworkError: the Hub cannot be reached.
    """
    folder = expanded(source)
    if source != "" and folder.exists():
        return LocatedBase(folder)
    repository, revision = split_repository(str(source))
    well_formed = _REPOSITORY.fullmatch(repository) and _REVISION.fullmatch(revision or "main")
    if not well_formed or folder.suffix == ".safetensors":
        raise NotFoundError(
            f"There is no base model in {source or repr(source)}.",
            hint="Give the folder that holds config.json and the weights, or a repository such as org/model.",
            source=str(source),
        )
    from skillhub.hub import default_registry, fetch_base

    try:
        snapshot = fetch_base(default_registry(), repository, revision=revision)
    except (NotFoundError, NetworkError) as error:
        raise type(error)(
            f"There is no folder {source} here, and as a model on the Hub it could not be looked up: {error.message}",
            hint=f"If a folder was meant, correct its path. {error.hint}".strip(),
            **error.details,
        ) from error
    return LocatedBase(snapshot, repository, snapshot.name)


def locate_base(source: str | Path) -> Path:
    """Return the folder of a base model (see :func:`find_base`)."""
    return find_base(source).folder


def cached_base(repository: str, revision: str | None = None) -> Path | None:
    """Return the folder of a base model in the Hub's cache; None where it is not there whole. Nothing is fetched.

    Args:
        repository: ``owner/name``.
        revision: branch, tag or commit; None means main.
    """
    from skillhub.hub import default_registry, fetch_base

    try:
        return fetch_base(default_registry(), repository, revision=revision, offline=True)
    except SkillhubError:
        return None
