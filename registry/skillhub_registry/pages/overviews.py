"""What the page of a repository tells: of a pack its releases, what they fit and require and how good they are.

Everything about files is remembered by their digests, which never stand for anything else: a page that is asked for
again costs a few queries.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache

from markupsafe import Markup

from skillhub.errors import SkillhubError
from skillhub.manifest import MANIFEST_FILE, Evaluation, Manifest, parse_manifest
from skillhub.names import parse_requirement
from skillhub.releases import RELEASES_FILE, Release, ReleaseIndex, parse_releases
from skillhub_registry import limits
from skillhub_registry.accounts import Caller
from skillhub_registry.blobs import BlobStore
from skillhub_registry.database import Connection
from skillhub_registry.packs import Dependent, list_dependents, read_publication_times
from skillhub_registry.pages.markup import render_card
from skillhub_registry.pages.moduleclasses import ModuleClass, sum_classes
from skillhub_registry.repositories import Repository, find_repository
from skillhub_registry.revisions import Commit
from skillhub_registry.rights import may_read
from skillhub_registry.trees import File, find_entry, find_files

README_FILE = "README.md"


@dataclass(frozen=True)
class VariantSummary:
    """What a page tells of a variant."""

    fingerprint: str
    base: str | None
    architecture: str | None
    parameters: int
    dtype: str | None
    size: int
    bits_per_weight: float
    way: str
    classes: tuple[ModuleClass, ...]
    evaluation: tuple[Evaluation, ...]


@dataclass(frozen=True)
class ManifestSummary:
    """What a page tells of a manifest."""

    summary: str
    license: str | None
    tags: tuple[str, ...]
    prompts: tuple[str, ...]
    variants: tuple[VariantSummary, ...]


@dataclass(frozen=True)
class Required:
    """A requirement of a release; ``is_here`` where the viewer may see the pack in this registry."""

    name: str
    text: str
    is_here: bool


@dataclass(frozen=True)
class PackOverview:
    """What a pack's page tells.

    Attributes:
        index: of its releases.
        described: the release that the page is about.
        manifest: of that release, where it may be shown and can be read.
        published: version → when, in milliseconds since 1970, where that is known.
        requires: of the described release.
        conflicts: of the described release.
        dependents: releases of others that require the pack, some of them.
    """

    index: ReleaseIndex
    described: Release
    manifest: ManifestSummary | None
    published: dict[str, int]
    requires: list[Required]
    conflicts: list[Required]
    dependents: list[Dependent]

    @property
    def releases(self) -> tuple[Release, ...]:
        """All of them, the latest first."""
        return self.index.releases[::-1]


def describe_pack(
    connection: Connection,
    store: BlobStore,
    repository: Repository,
    commit: Commit,
    caller: Caller | None,
    *,
    shows_files: bool,
) -> PackOverview | None:
    """Return what a pack's page tells, or None for a repository without releases.

    Args:
        connection: an open transaction.
        store: where the files are.
        repository: the pack's.
        commit: the main branch's.
        caller: who looks.
        shows_files: the caller may have the files; the manifest is one.
    """
    index = read_release_index(connection, store, commit)
    described = choose_described(index)
    if described is None:
        return None
    readable = caller.namespace_ids if caller else frozenset[int]()
    event = described.event
    return PackOverview(
        index=index,
        described=described,
        manifest=read_manifest_summary(connection, store, commit, described) if shows_files else None,
        published=read_publication_times(connection, repository.id),
        requires=[_look_up(connection, caller, text) for text in event.requires[: limits.SHOWN_REQUIREMENTS]],
        conflicts=[_look_up(connection, caller, text) for text in event.conflicts[: limits.SHOWN_REQUIREMENTS]],
        dependents=_list_dependents(connection, repository, readable),
    )


def choose_described(index: ReleaseIndex) -> Release | None:
    """Return the newest final release that stands, else the newest that stands, else the newest; None without any."""
    standing = [release for release in index.releases if release.yanked is None]
    return index.newest_final() or max(standing or index.releases, key=lambda release: release.version, default=None)


def read_release_index(connection: Connection, store: BlobStore, commit: Commit) -> ReleaseIndex:
    """Return the index of releases at a commit; one that is missing, too long or cannot be read has none."""
    file = _find_file(connection, commit, RELEASES_FILE)
    if file is None or file.size > limits.RELEASES:
        return ReleaseIndex()
    if file.size > limits.REMEMBERED_INDEX:
        return _parse_index(store.read(file.sha256))
    return _remembered_index(store, file.sha256)


def read_manifest_summary(
    connection: Connection, store: BlobStore, commit: Commit, release: Release
) -> ManifestSummary | None:
    """Return what a page tells of a release's manifest; None for one that is missing, too long or cannot be read."""
    file = _find_file(connection, commit, f"{release.folder}/{MANIFEST_FILE}")
    if file is None or file.size > limits.SHOWN_MANIFEST:
        return None
    return _summarize(store, file.sha256)


def read_card(
    connection: Connection, store: BlobStore, repository: Repository, commit: Commit, *, without_generated: bool
) -> Markup:
    """Return a repository's README.md as HTML, empty where there is none."""
    file = _find_file(connection, commit, README_FILE)
    if file is None:
        return Markup("")
    if file.size > limits.SHOWN_TEXT:
        return Markup("<p>The card is too long to be shown here.</p>")
    text = store.read(file.sha256).decode(errors="replace")
    return render_card(text, repository.full_name, without_generated=without_generated)


def _find_file(connection: Connection, commit: Commit, path: str) -> File | None:
    entry = find_entry(connection, commit.tree, path)
    return find_files(connection, [entry.id])[entry.id] if entry is not None and not entry.is_folder else None


def _parse_index(data: bytes) -> ReleaseIndex:
    try:
        return parse_releases(data)
    except SkillhubError:
        return ReleaseIndex()


@lru_cache(maxsize=64)
def _remembered_index(store: BlobStore, sha256: str) -> ReleaseIndex:
    return _parse_index(store.read(sha256))


@lru_cache(maxsize=512)
def _summarize(store: BlobStore, sha256: str) -> ManifestSummary | None:
    try:
        manifest: Manifest = parse_manifest(store.read(sha256))
    except SkillhubError:
        return None
    variants = tuple(
        VariantSummary(
            fingerprint=variant.base.fingerprint,
            base=variant.base.repo,
            architecture=variant.base.architecture,
            parameters=variant.base.parameters,
            dtype=variant.base.dtype,
            size=variant.size,
            bits_per_weight=variant.codec.bits_per_weight,
            way=variant.codec.way,
            classes=tuple(sum_classes(variant.codec.tensors)),
            evaluation=tuple(variant.evaluation[: limits.SHOWN_SCORES]),
        )
        for variant in manifest.variants
    )
    skills = manifest.skills
    return ManifestSummary(
        manifest.summary, manifest.license, tuple(skills.tags), tuple(skills.prompts[: limits.SHOWN_SCORES]), variants
    )


def _look_up(connection: Connection, caller: Caller | None, text: str) -> Required:
    pack = parse_requirement(text).pack
    found = find_repository(connection, pack.owner or "", pack.name)
    return Required(str(pack), text, found is not None and may_read(caller, found))


def _list_dependents(connection: Connection, repository: Repository, readable: Collection[int]) -> list[Dependent]:
    """Return one release, the newest, of each repository that requires the pack."""
    found = list_dependents(connection, repository, readable, start=0, limit=limits.DEPENDENTS_PAGE)
    newest: dict[str, Dependent] = {}
    for one in found:
        newest.setdefault(one.repository, one)
    return list(newest.values())
