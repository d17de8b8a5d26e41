"""The smallest releases there can be: a manifest without variants, and the line that announces it."""

from __future__ import annotations

from skillhub.manifest import MANIFEST_SCHEMA, Manifest
from skillhub.releases import event_line, release_event


def manifest(version: str, requires: tuple[str, ...] = ()) -> bytes:
    """Return a manifest of that version."""
    return _make(version, requires).to_bytes()


def line(version: str, requires: tuple[str, ...] = ()) -> bytes:
    """Return the line of the index that announces it."""
    return event_line(release_event(_make(version, requires), {}))


def _make(version: str, requires: tuple[str, ...]) -> Manifest:
    return Manifest(schema=MANIFEST_SCHEMA, name="pack", version=version, requires=list(requires))
