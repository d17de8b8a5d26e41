"""Packs: what was published, what it requires, and what requires it."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse, Response

from skillhub.errors import UsageError
from skillhub.names import parse_requirement, parse_version
from skillhub.releases import RELEASES_FILE, Release, ReleaseIndex
from skillhub_registry import limits
from skillhub_registry.calls import Call
from skillhub_registry.database import Connection
from skillhub_registry.errors import bad_request, entry_not_found
from skillhub_registry.packs import list_dependents, read_publication_times
from skillhub_registry.published import read_releases
from skillhub_registry.repositories import find_repository
from skillhub_registry.revisions import DEFAULT_REF, resolve_revision
from skillhub_registry.rights import may_read
from skillhub_registry.routes.documents import format_milliseconds
from skillhub_registry.routes.paging import next_link, read_start
from skillhub_registry.trees import find_entry


def list_releases(call: Call) -> Response:
    """Answer ``GET R/releases``: what the pack has published, the latest first, in pages, with what was withdrawn and why."""
    start = read_start(call)
    with call.registry.database.read() as connection:
        index = _read_index(call, connection)
        times = read_publication_times(connection, call.target.id)
    releases = index.releases[::-1]
    end = min(start + limits.RELEASES_PAGE, len(releases))
    newest = index.newest_final()
    document = {
        "name": call.target.full_name,
        "deprecated": index.deprecated,
        "movedTo": index.moved_to,
        "newest": str(newest.version) if newest else None,
        "releases": [_release_document(release, times.get(str(release.version))) for release in releases[start:end]],
    }
    return JSONResponse(document, headers=next_link(call, end) if end < len(releases) else {})


def list_dependencies(call: Call) -> Response:
    """Answer ``GET R/dependencies``: what a release requires and conflicts with, by default the newest final one."""
    asked = call.request.query_params.get("version")
    with call.registry.database.read() as connection:
        index = _read_index(call, connection)
        release = _choose_release(call, connection, index, asked)
        event = release.event
        requires = [_requirement_document(call, connection, text) for text in event.requires[: limits.REQUIREMENTS]]
        conflicts = [_requirement_document(call, connection, text) for text in event.conflicts[: limits.REQUIREMENTS]]
    return JSONResponse({"version": str(release.version), "requires": requires, "conflicts": conflicts})


def list_all_dependents(call: Call) -> Response:
    """Answer ``GET R/dependents``: the releases that require this pack and that the caller may see, in pages."""
    start = read_start(call)
    readable = call.caller.namespace_ids if call.caller else frozenset[int]()
    with call.registry.database.read() as connection:
        limit = limits.DEPENDENTS_PAGE + 1
        found = list_dependents(connection, call.target, readable, start=start, limit=limit)
    page = found[: limits.DEPENDENTS_PAGE]
    documents = [{"name": one.repository, "version": one.version, "requirement": one.requirement} for one in page]
    headers = next_link(call, start + len(page)) if len(found) > len(page) else {}
    return JSONResponse({"dependents": documents}, headers=headers)


def _read_index(call: Call, connection: Connection) -> ReleaseIndex:
    commit = resolve_revision(connection, call.target.id, DEFAULT_REF)
    entry = find_entry(connection, commit.tree, RELEASES_FILE)
    files = {RELEASES_FILE: entry.id} if entry is not None and not entry.is_folder else {}
    return read_releases(connection, call.registry.blobs, files)


def _choose_release(call: Call, connection: Connection, index: ReleaseIndex, version: str | None) -> Release:
    try:
        found = index.newest_final() if version is None else index.find(parse_version(version))
    except UsageError as error:
        raise bad_request(error.message) from error
    if found is None:
        what = f"version {version}" if version is not None else "final version that stands"
        commit = resolve_revision(connection, call.target.id, DEFAULT_REF)
        raise entry_not_found(f"{call.target.full_name} has published no {what}", commit.id)
    return found


def _release_document(release: Release, published_at: int | None) -> dict[str, Any]:
    event = release.event
    return {
        "version": str(release.version),
        "publishedAt": None if published_at is None else format_milliseconds(published_at),
        "yanked": release.yanked,
        "manifest": release.manifest_digest,
        "requires": event.requires,
        "conflicts": event.conflicts,
        "variants": [{"fingerprint": one.fingerprint, "bytes": one.bytes} for one in event.variants],
        "signature": event.signature,
    }


def _requirement_document(call: Call, connection: Connection, text: str) -> dict[str, Any]:
    """Return a requirement, and whether this registry has the pack, as far as the caller may know."""
    pack = parse_requirement(text).pack
    found = find_repository(connection, pack.owner or "", pack.name)
    known = found is not None and may_read(call.caller, found)
    return {"name": str(pack), "requirement": text, "isHere": known}
