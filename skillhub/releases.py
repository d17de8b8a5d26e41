"""The index of a pack's releases, ``releases.jsonl``: append-only events, one JSON object a line.

Resolving reads only this file. Old bytes are a prefix of new ones: a client that has seen the file before, and the
registry that takes a new one, both check it. A line of a higher schema is skipped with a note, unknown keys are
ignored, so that old clients go on reading new files.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct
from packaging.version import Version

from skillhub.documents import canonical_json, convert_value, decode_json, field_error
from skillhub.errors import IntegrityError, NewerSchemaError, UsageError
from skillhub.fields import Count, FingerprintText, Label, Sha256, Text
from skillhub.files import sha256_of_bytes
from skillhub.manifest import (
    Manifest,
    Variant,
    check_requirements,
    parse_manifest,
)
from skillhub.names import parse_pack_name, parse_version

RELEASES_SCHEMA = 0
RELEASES_FILE = "releases.jsonl"
MAX_LINE_BYTES = 4 << 20
MAX_LINES = 50_000
"""Of an index: a release a day for a century would fit; more would take a reader minutes."""


class ReleaseVariant(Struct, frozen=True, kw_only=True):
    """What resolving needs to know of one variant.

    Attributes:
        fingerprint: of the base that the variant belongs to.
        base_files: one digest per known packaging of that base (see ``fingerprint.base_files_digest``).
        bytes: size of the variant's files.
    """

    fingerprint: FingerprintText
    base_files: list[Sha256] = []
    bytes: Count = 0


class Event(Struct, frozen=True, kw_only=True):
    """One line of the index.

    Attributes:
        event: ``release``, ``yank``, ``unyank``, ``deprecate`` or ``moved``.
        version: the release that the event is about; None for ``deprecate`` and ``moved``.
        manifest: of a release: SHA-256 of its manifest.
        reason: of a yank or a deprecation.
        target: of ``moved``: the new full name.
        signature: of a release: signature over the manifest's digest, where the publisher signs.
    """

    schema: Annotated[int, Meta(ge=0, le=RELEASES_SCHEMA)]
    event: Annotated[str, Meta(pattern=r"^(release|yank|unyank|deprecate|moved)\Z")]
    version: str | None = None
    manifest: Sha256 | None = None
    requires: list[str] = []
    conflicts: list[str] = []
    variants: list[ReleaseVariant] = []
    reason: Text | None = None
    target: Label | None = None
    signature: Label | None = None

    def __post_init__(self) -> None:
        try:
            if self.event in ("release", "yank", "unyank"):
                parse_version(self.version or "")
            if self.event == "moved" and parse_pack_name(self.target or "").owner is None:
                raise ValueError(f".target: {self.target!r} lacks an owner")
        except UsageError as error:
            raise ValueError(f".{'target' if self.event == 'moved' else 'version'}: {error.message}") from error
        if self.event == "release" and self.manifest is None:
            raise ValueError(".manifest: a release needs its manifest's digest")
        check_requirements("requires", self.requires)
        check_requirements("conflicts", self.conflicts)
        if len({one.fingerprint for one in self.variants}) != len(self.variants):
            raise ValueError(".variants: two are for the same base")


@dataclass(frozen=True)
class Release:
    """One published version of a pack.

    Attributes:
        version: the version.
        event: the line that announced it.
        yanked: the reason, or None when the release stands.
    """

    version: Version
    event: Event
    yanked: str | None = None

    @property
    def manifest_digest(self) -> str:
        """SHA-256 of the release's manifest."""
        assert self.event.manifest is not None  # Event checks it
        return self.event.manifest

    @property
    def folder(self) -> str:
        """The release's folder in the pack's repository."""
        return release_folder(str(self.version))

    def variant_for(self, fingerprint: str) -> ReleaseVariant | None:
        """Return what the index says of the variant for a base, or None."""
        return next((one for one in self.event.variants if one.fingerprint == fingerprint), None)


@dataclass(frozen=True)
class ReleaseIndex:
    """A parsed ``releases.jsonl``.

    Attributes:
        releases: in the order of their publication.
        deprecated: the reason, or None.
        moved_to: the pack's new full name, or None.
        notes: sentences about lines that were skipped.
    """

    releases: tuple[Release, ...] = ()
    deprecated: str | None = None
    moved_to: str | None = None
    notes: tuple[str, ...] = ()

    def find(self, version: Version) -> Release | None:
        """Return the release of that version, or None."""
        return next((release for release in self.releases if release.version == version), None)

    def newest_final(self) -> Release | None:
        """Return the newest release that is neither yanked nor a pre-release, or None."""
        standing = [one for one in self.releases if one.yanked is None and not one.version.is_prerelease]
        return max(standing, key=lambda release: release.version, default=None)


def release_folder(version: str) -> str:
    """Return ``releases/<version>``."""
    return f"releases/{version}"


def parse_releases(data: bytes, *, where: str = RELEASES_FILE) -> ReleaseIndex:
    """Read the index.

    Raises:
        IntegrityError: a line cannot be read (the message has its number and the field's path), a version is released
            twice, an event names a version that was never released, or there are too many lines.
    """
    releases: dict[Version, Release] = {}
    deprecated = moved_to = None
    notes = []
    if data and not data.endswith(b"\n"):
        raise IntegrityError(f"{where} ends in the middle of a line.", hint="Fetch it again.")
    if data.count(b"\n") > MAX_LINES:
        raise IntegrityError(f"{where} has more than {MAX_LINES} lines.", hint="Tell the pack's publisher.")
    for number, line in enumerate(data.split(b"\n")[:-1], 1):
        place = f"{where}, line {number}"
        event = _parse_line(line, place)
        if event is None:
            notes.append(f"{place} is of a newer schema and was skipped; a newer skillhub reads it.")
        elif event.event == "deprecate":
            deprecated = event.reason or "its publisher gave no reason"
        elif event.event == "moved":
            moved_to = event.target
        else:
            _apply(event, releases, place)
    return ReleaseIndex(tuple(releases.values()), deprecated, moved_to, tuple(notes))


def _parse_line(line: bytes, place: str) -> Event | None:
    """Return the line's event, or None when its schema is newer than ours."""
    if len(line) > MAX_LINE_BYTES:
        raise IntegrityError(f"{place} is longer than any event.", hint="Tell the pack's publisher.")
    try:
        raw: Any = decode_json(line, object)
        if isinstance(raw, dict) and type(raw.get("schema")) is int and raw["schema"] > RELEASES_SCHEMA:
            return None
        return convert_value(raw, Event)
    except msgspec.MsgspecError as error:
        raise IntegrityError(f"{place}: {field_error(error)}.", hint="Tell the pack's publisher.") from error


def _apply(event: Event, releases: dict[Version, Release], place: str) -> None:
    version = parse_version(event.version or "")
    if event.event == "release":
        if version in releases:
            raise IntegrityError(f"{place} releases {version} a second time.", hint="Tell the pack's publisher.")
        releases[version] = Release(version, event)
        return
    if version not in releases:
        raise IntegrityError(f"{place} is about {version}, which was never released.", hint="Tell the publisher.")
    reason = (event.reason or "no reason given") if event.event == "yank" else None
    releases[version] = replace(releases[version], yanked=reason)


def append_event(data: bytes, event: Event) -> bytes:
    """Return the index with one more line.

    Raises:
        IntegrityError: the index, or the index with the event, is not valid.
        NewerSchemaError: the index has lines that this version cannot read, so it cannot know what may follow them.
    """
    if notes := parse_releases(data).notes:
        raise NewerSchemaError(notes[0], hint="Upgrade skillhub: pip install --upgrade skillhub-packs.")
    appended = data + event_line(event)
    parse_releases(appended)
    return appended


def event_line(event: Event) -> bytes:
    """Return an event as it stands in the index, with its newline."""
    return canonical_json(_without_defaults(event))


def _without_defaults(event: Event) -> dict[str, Any]:
    fields = msgspec.to_builtins(event)
    always = ("schema", "event")
    return {name: value for name, value in fields.items() if name in always or value not in (None, [])}


def check_is_extension(old: bytes, new: bytes, *, where: str = RELEASES_FILE) -> None:
    """Check that the index only grew.

    Raises:
        IntegrityError: the old bytes are not a prefix of the new ones: history was rewritten.
    """
    if not new.startswith(old):
        raise IntegrityError(
            f"{where} was rewritten: what was published before is not its beginning any more.",
            hint="Do not install from this repository until its owner has explained the change.",
        )


def release_event(manifest: Manifest, base_files: dict[str, list[str]], *, signature: str | None = None) -> Event:
    """Return the event that announces a manifest.

    Args:
        manifest: of the new release.
        base_files: fingerprint → digests of the known packagings of that base.
        signature: over the manifest's digest, where the publisher signs.
    """
    return Event(
        schema=RELEASES_SCHEMA,
        event="release",
        version=manifest.version,
        manifest=manifest.digest,
        requires=manifest.requires,
        conflicts=manifest.conflicts,
        variants=[_release_variant(variant, base_files) for variant in manifest.variants],
        signature=signature,
    )


def _release_variant(variant: Variant, base_files: dict[str, list[str]]) -> ReleaseVariant:
    fingerprint = variant.base.fingerprint
    return ReleaseVariant(fingerprint=fingerprint, base_files=base_files.get(fingerprint, []), bytes=variant.size)


def check_agreement(release: Release, manifest_data: bytes, *, where: str) -> Manifest:
    """Return the manifest after checking that it is the one that the index line announced.

    Raises:
        IntegrityError: digest, version, dependencies or variants differ, or the manifest is not valid.
        UnsafeContentError: a path in the manifest leaves the folder.
        NewerSchemaError: the manifest is of a schema that this version does not read.
    """
    found = sha256_of_bytes(manifest_data)
    if found != release.manifest_digest:
        raise IntegrityError(
            f"The manifest of {where} has digest {found[:12]}…, the index announced {release.manifest_digest[:12]}….",
            hint="Do not install this release; tell its publisher.",
            expected=release.manifest_digest,
            found=found,
        )
    manifest = parse_manifest(manifest_data, where=f"the manifest of {where}")
    event = release.event
    announced = (event.version, event.requires, event.conflicts, {one.fingerprint: one.bytes for one in event.variants})
    said = (
        manifest.version,
        manifest.requires,
        manifest.conflicts,
        {variant.base.fingerprint: variant.size for variant in manifest.variants},
    )
    if announced != said:
        raise IntegrityError(
            f"The index line and the manifest of {where} do not say the same.",
            hint="Do not install this release; tell its publisher.",
        )
    return manifest
