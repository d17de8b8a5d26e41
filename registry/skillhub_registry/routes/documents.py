"""The JSON documents that several routes answer with, in the Hub's shapes."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any, Final

from skillhub_registry.errors import bad_request
from skillhub_registry.models import ABSENT, FROM_FILES, Model
from skillhub_registry.repositories import Repository
from skillhub_registry.revisions import Commit
from skillhub_registry.trees import Entry


def format_milliseconds(time: int) -> str:
    """Return a time in milliseconds since 1970 as the Hub writes it."""
    return datetime.fromtimestamp(time / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{time % 1000:03d}Z"


def format_seconds(time: int) -> str:
    """Return a time in seconds since 1970 as the Hub writes it."""
    return format_milliseconds(time * 1000)


def entry_document(entry: Entry, last_commit: Commit | None = None, *, for_copying: bool = False) -> dict[str, Any]:
    """Return a file or folder as ``tree`` and ``paths-info`` list it.

    With ``for_copying`` large files have a ``xetHash``, without which the client copies none between repositories. They
    have none elsewhere: the client would download them through Xet.
    """
    document: dict[str, Any] = {"type": "directory", "oid": entry.id, "size": 0, "path": entry.path}
    if entry.file is not None:
        document.update(type="file", size=entry.file.size)
        if entry.file.lfs:
            document["lfs"] = {
                "oid": entry.file.sha256,
                "size": entry.file.size,
                "pointerSize": entry.file.pointer_size,
            }
            if for_copying:
                document["xetHash"] = entry.file.sha256
    if last_commit is not None:
        document["lastCommit"] = {
            "id": last_commit.id,
            "title": last_commit.title,
            "date": format_seconds(last_commit.created_at),
        }
    return document


def sibling_document(entry: Entry, with_blobs: bool) -> dict[str, Any]:
    """Return a file as ``model_info`` lists it."""
    document: dict[str, Any] = {"rfilename": entry.path}
    if with_blobs and entry.file is not None:
        document.update(size=entry.file.size, blobId=entry.id)
        if entry.file.lfs:
            document["lfs"] = {
                "sha256": entry.file.sha256,
                "size": entry.file.size,
                "pointerSize": entry.file.pointer_size,
            }
    return document


def model_document(model: Model, members: Collection[str], *, with_blobs: bool = False) -> dict[str, Any]:
    """Return what is known of a model: those of the members that it has, and always those that name it.

    Raises:
        HubError: 400, there is no such member.
    """
    document = _row_document(model.repository, model.commit.id)
    unknown = [name for name in members if name not in document and name not in _FROM_ELSEWHERE]
    if unknown:
        raise bad_request(f"There is no property {ascii(unknown[0])[:80]} of models to expand")
    document = {name: value for name, value in document.items() if name in members or name in ALWAYS}
    if "siblings" in members:
        document["siblings"] = [sibling_document(entry, with_blobs) for entry in model.entries]
    document.update({name: FROM_FILES[name](model) for name in members if name in FROM_FILES})
    return {name: value for name, value in document.items() if value is not None}


def _row_document(repository: Repository, sha: str) -> dict[str, Any]:
    return {
        "_id": repository.public_id,
        "id": repository.full_name,
        "modelId": repository.full_name,
        "author": repository.namespace,
        "sha": sha,
        "createdAt": format_milliseconds(repository.created_at),
        "lastModified": format_milliseconds(repository.last_modified),
        "private": repository.private,
        "gated": repository.gated or False,
        "disabled": False,
        "downloads": repository.downloads,
        "downloadsAllTime": repository.downloads,
        "likes": 0,
        "trendingScore": 0,
        "cardData": repository.card,
        "spaces": [],
        "library_name": repository.library_name,
        "pipeline_tag": repository.pipeline_tag,
    }


ALWAYS: Final = ("_id", "id", "modelId")
"""Members of a model document that ``expand`` never leaves out."""

BRIEF: Final = (
    *("_id", "id", "modelId", "createdAt", "lastModified", "private", "gated", "downloads", "likes"),
    *("trendingScore", "tags", "library_name", "pipeline_tag"),
)
"""Members that a list of models has unless more is asked for."""

WHOLE: Final = (
    *BRIEF,
    *("author", "sha", "disabled", "downloadsAllTime", "cardData", "spaces", "siblings", "usedStorage"),
    *("config", "safetensors", "model-index", "widgetData"),
)
"""Members that one model has unless others are asked for."""

_FROM_ELSEWHERE: Final = {"siblings", *FROM_FILES, *ABSENT}
