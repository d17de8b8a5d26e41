"""What adapters declare of their base: told, since it cannot be verified."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from skillhub.adapters import Adapter
from skillhub.compose.recipes import Recipe
from skillhub.progress import Notice

_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)

_log = logging.getLogger(__name__)


def tell_declared_bases(recipe: Recipe, repository: str | None, notice: Notice | None) -> None:
    """Say of each adapter that its base was not verified, and where it declares another one than it is used with.

    Args:
        recipe: what is composed.
        repository: where the base model is from, as far as that is known.
        notice: told the sentences; None logs them.
    """
    tell = notice or _log.warning
    known = [(f"{pack}", variant.base.repo) for pack in recipe.skill_packs for variant in pack.manifest.variants]
    for adapter in recipe.adapters:
        tell(_sentence(adapter, [("the model", repository), *known]))


def _sentence(adapter: Adapter, known: Iterable[tuple[str, str | None]]) -> str:
    declared = adapter.config.base
    others = [f"{who} is of {repo}" for who, repo in known if declared and repo and repo.lower() != declared.lower()]
    declares = f"declares {adapter.declared_base} as its base" if declared else "does not say what its base is"
    differs = f", but {others[0].replace('the model is of', 'the model is', 1)}" if others else ""
    return (
        f"{adapter} is an adapter and {declares}{differs}. Names and shapes fit; "
        "whether the weights are those that it was trained on cannot be verified."
    )


def repository_of(model: Any) -> str | None:
    """Return the repository that a model was loaded from, as transformers noted it; None for a folder."""
    name = str(getattr(model, "name_or_path", "") or "")
    return name if _REPOSITORY.fullmatch(name) and not Path(name).exists() else None
