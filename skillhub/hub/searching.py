"""Finding packs on a registry: one API request a page of answers, and none for each pack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from skillhub import settings
from skillhub.errors import UsageError
from skillhub.hub.failures import hub_failures, offline_error
from skillhub.hub.registries import Registry, client
from skillhub.names import parse_pack_name

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

PACK_TAG = "skillpack"
"""The tag by which pack repositories are found among all models of a registry."""

FINGERPRINT_TAG = "skillhub:base:"
"""Beginning of the tag by which a registry of one's own lists packs that fit a base; its fingerprint follows."""

MAX_FOUND = 1000
"""Packs that one search returns at most."""

_SUMMARY_KEY = "summary"  # of the model card's front matter
_MAX_TEXT = 500


@dataclass(frozen=True)
class FoundPack:
    """A pack's repository, as a registry lists it. Texts are the publisher's own, without control characters.

    Attributes:
        name: ``owner/name``.
        downloads: of the last thirty days, as the registry counts.
        last_modified: time of the newest commit, where the registry tells.
        base_models: repositories of the bases that the model card names.
        summary: what the pack is for; empty where the card does not say.
        gated: access has to be asked for.
        private: only its owners see it.
    """

    name: str
    downloads: int
    last_modified: datetime | None
    base_models: tuple[str, ...]
    summary: str
    gated: bool
    private: bool


def find_packs(
    registry: Registry,
    query: str = "",
    *,
    base: str | None = None,
    owner: str | None = None,
    tags: Sequence[str] = (),
    limit: int = 20,
) -> list[FoundPack]:
    """Return the packs of a registry whose names have the words of a query, the most downloaded first.

    Args:
        registry: where to look.
        query: words; empty means any.
        base: repository of a base model that they name in their cards, ``owner/name``; or the fingerprint of one that a release fits,
            ``skb1:…``, which registries of one's own know.
        owner: whose packs; None means anyone's.
        tags: of the model card; a pack must have all of them.
        limit: how many to return, at most ``MAX_FOUND``.

    Raises:
        UsageError: the registry is a vendored folder.
        OfflineError: the network may not be used.
        SkillhubError: as :func:`skillhub.hub.failures.hub_failures`.
    """
    if registry.folder is not None:
        raise UsageError(
            f"{registry.folder} is a vendored folder, which cannot be searched.",
            hint="Its skillhub.lock lists what it has.",
        )
    if settings.offline():
        raise offline_error(registry.address)
    kind = FINGERPRINT_TAG if base and base.startswith("skb1:") else "base_model:"
    filters = [PACK_TAG, *tags, *([kind + base] if base else [])]
    with hub_failures(registry):
        models = client(registry).list_models(
            search=query or None,
            author=owner,
            filter=filters,
            sort="downloads",
            limit=min(limit, MAX_FOUND),
            expand=["cardData", "downloads", "gated", "lastModified", "private"],
        )
        return [_found(model) for model in models if _is_pack_name(model.id)]


def find_namesakes(registry: Registry, name: str) -> list[str]:
    """Return the full names of the packs whose bare name is ``name``, sorted.

    Raises:
        SkillhubError: as :func:`find_packs`.
    """
    found = {pack.name for pack in find_packs(registry, name, limit=100)}
    return sorted((one for one in found if parse_pack_name(one).name.lower() == name.lower()), key=str.lower)


def _is_pack_name(text: str) -> bool:
    try:
        return parse_pack_name(text).owner is not None
    except UsageError:
        return False


def _found(model: ModelInfo) -> FoundPack:
    card: Any = model.card_data  # holds whatever the publisher wrote
    bases = getattr(card, "base_model", None) or []
    bases = bases if isinstance(bases, list) else [bases]
    return FoundPack(
        name=model.id,
        downloads=model.downloads or 0,
        last_modified=model.last_modified,
        base_models=tuple(_line(base) for base in bases if isinstance(base, str)),
        summary=_line(getattr(card, _SUMMARY_KEY, None)),
        gated=bool(model.gated),
        private=bool(model.private),
    )


def _line(text: object) -> str:
    """Return a server's text as one line that commands no terminal."""
    if not isinstance(text, str):
        return ""
    return " ".join("".join(one if one.isprintable() else " " for one in text[:_MAX_TEXT]).split())
