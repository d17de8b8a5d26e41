"""Packs: their releases, the bases that these fit, and which pack requires which."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import islice

from skillhub.names import parse_requirement
from skillhub.releases import Release, ReleaseIndex
from skillhub_registry import limits
from skillhub_registry.database import Connection
from skillhub_registry.names import fold_name
from skillhub_registry.repositories import Repository, now_milliseconds, readable_condition

BASE_TAG = "skillhub:base:"
"""Beginning of the tags by which packs are found that fit a base: its fingerprint follows."""


@dataclass(frozen=True)
class Dependent:
    """A release that requires a pack: of which repository, which version, and in which words."""

    repository: str
    version: str
    requirement: str


def base_tags(index: ReleaseIndex) -> list[str]:
    """Return a tag for each base that a release fits; what was withdrawn does not count."""
    prints = [one.fingerprint for release in _standing(index) for one in release.event.variants]
    return [BASE_TAG + fingerprint for fingerprint in dict.fromkeys(prints)]


def record_releases(connection: Connection, repository_id: int, index: ReleaseIndex) -> None:
    """Note what a pack has published: when each release was first seen, and what the ones that stand require."""
    now = now_milliseconds()
    connection.executemany(
        "INSERT INTO releases (repository_id, version, published_at) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
        [(repository_id, str(release.version), now) for release in index.releases],
    )
    connection.execute("DELETE FROM requirements WHERE repository_id = ?", (repository_id,))
    connection.executemany(
        "INSERT INTO requirements (repository_id, place, version, pack, requirement) VALUES (?, ?, ?, ?, ?)",
        [
            (repository_id, place, version, pack, text)
            for place, (version, pack, text) in enumerate(islice(_requirements(index), limits.REQUIREMENTS))
        ],
    )


def read_publication_times(connection: Connection, repository_id: int) -> dict[str, int]:
    """Return when each version was published, in milliseconds since 1970, UTC, where that is known."""
    rows = connection.execute("SELECT version, published_at FROM releases WHERE repository_id = ?", (repository_id,))
    return {row["version"]: row["published_at"] for row in rows}


def list_dependents(
    connection: Connection, repository: Repository, readable: Collection[int], *, start: int, limit: int
) -> list[Dependent]:
    """Return the releases that require a pack, under its name or one that it had, by repository and newest first.

    Only repositories that may be shown to whoever may read those of ``readable`` accounts are among them.
    """
    condition, values = readable_condition(readable)
    rows = connection.execute(
        "SELECT a.name AS namespace, r.name, q.version, q.requirement FROM requirements q "
        "JOIN repositories r ON r.id = q.repository_id JOIN accounts a ON a.id = r.namespace_id "
        "WHERE (q.pack = ? OR q.pack IN (SELECT full_name FROM former_names WHERE repository_id = ?)) "
        f"AND {condition} ORDER BY lower(a.name), lower(r.name), q.place LIMIT ? OFFSET ?",
        (fold_name(repository.full_name), repository.id, *values, limit, start),
    )
    return [Dependent(f"{row['namespace']}/{row['name']}", row["version"], row["requirement"]) for row in rows]


def find_bases(connection: Connection, beginning: str, readable: Collection[int], *, limit: int) -> list[str]:
    """Return fingerprints with a beginning, of bases that a pack fits: one that may be shown as in :func:`list_dependents`."""
    start = BASE_TAG + beginning
    condition, values = readable_condition(readable)
    rows = connection.execute(
        "SELECT DISTINCT t.tag FROM repository_tags t JOIN repositories r ON r.id = t.repository_id "
        f"WHERE t.tag >= ? AND t.tag < ? AND {condition} ORDER BY t.tag LIMIT ?",
        (start, start + "g", *values, limit),
    )
    return [row["tag"].removeprefix(BASE_TAG) for row in rows]


def _standing(index: ReleaseIndex) -> list[Release]:
    """Return the releases that were not withdrawn, the latest first."""
    return [release for release in reversed(index.releases) if release.yanked is None]


def _requirements(index: ReleaseIndex) -> Iterator[tuple[str, str, str]]:
    for release in _standing(index):
        for text in release.event.requires:
            yield str(release.version), fold_name(str(parse_requirement(text).pack)), text
