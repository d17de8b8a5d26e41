"""The JSON documents that several routes answer with, in the Hub's shapes."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

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


def model_document(repository: Repository, tags: list[str], sha: str | None) -> dict[str, Any]:
    """Return everything that is known of a repository without its files."""
    document: dict[str, Any] = {
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
        "tags": tags,
        "cardData": repository.card,
        "spaces": [],
    }
    if repository.library_name:
        document["library_name"] = repository.library_name
    if repository.pipeline_tag:
        document["pipeline_tag"] = repository.pipeline_tag
    return document


ALWAYS = ("_id", "id", "modelId")
"""Members of a model document that ``expand`` never leaves out."""


def select_members(document: dict[str, Any], expand: list[str]) -> dict[str, Any]:
    """Return the members that ``expand`` asks for, and those that name the model."""
    return {name: value for name, value in document.items() if name in ALWAYS or name in expand}
