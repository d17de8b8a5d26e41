"""The indexes of packs as this user saw them: read from a registry, compared with what was seen before, remembered.

    <state>/registries/<registry>/<owner>/<name>.jsonl     the bytes of releases.jsonl when it was last read

An index only ever grows, so remembering it remembers the first-seen digest of every release. A release whose digest
changed is tampering (exit 7), and so is a pack that vanished; any other rewriting, one that makes the index shorter as
well, is an integrity error (exit 6). Offline, the remembered bytes are the index.

What was read is compared with what was remembered *before* it was asked for: another process may remember a longer
index in the meantime, and what was read is then merely older.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from packaging.version import Version

from skillhub import hub
from skillhub.errors import IntegrityError, NotFoundError, OfflineError, TrustError
from skillhub.files import disk_errors, write_atomically
from skillhub.hub.folders import has_file
from skillhub.manifest import MANIFEST_FILE
from skillhub.names import PackName
from skillhub.releases import RELEASES_FILE, Release, ReleaseIndex, check_is_extension, parse_releases
from skillhub.sightings import hold, remember_releases, state_path

_PARALLEL_READS = 8

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SeenIndex:
    """A pack's index.

    Attributes:
        index: its releases.
        commit: the commit it was read at; None when it was remembered only.
        moved_to: full name of the repository that answered, where the registry sent us on to another one.
    """

    index: ReleaseIndex
    commit: str | None = None
    moved_to: str | None = None


def read_index(
    registry: hub.Registry, name: PackName, *, offline: bool, revision: str | None = None, refresh: bool = False
) -> SeenIndex:
    """Read a pack's index and check it against what was seen before.

    Args:
        registry: where to read.
        name: the pack, with its owner.
        offline: use what is remembered only.
        revision: commit, branch or tag to read at. Only what is on main is remembered: a proposal need not come true.
        refresh: read it again although the registry says that it has not changed.

    Raises:
        NotFoundError: there is no such repository, or it holds no pack.
        TrustError: a release's manifest is another one than when it was first seen, or the repository is gone: if that
            were merely "not found", another registry's pack of this name would be taken in its place.
        IntegrityError: the index is not valid, or what was published before is not its beginning any more.
        OfflineError: it was never read, and the network may not be used.
        SkillhubError: as :func:`skillhub.hub.failures.hub_failures`.
    """
    known = remembered_index(registry, name)
    where = f"{RELEASES_FILE} of {name}"
    offline = offline and registry.folder is None  # a vendored folder is no network
    if revision is not None:
        return _read_at(registry, name, revision, known=known, offline=offline)
    if offline:
        if known is None:
            raise OfflineError(
                f"The releases of {name} were never read from {registry.address}, and the network may not be used.",
                hint="Run the command once with the network: without --offline and with HF_HUB_OFFLINE unset.",
            )
        return SeenIndex(parse_releases(known, where=where))
    try:
        read = hub.read_releases(registry, str(name), known=None if refresh else known)
    except NotFoundError as error:
        if known is None:
            raise
        raise _gone(registry, name) from error
    if read is None and known is None:
        raise NotFoundError(
            f"{name} at {registry.address} is no pack: it has no {RELEASES_FILE}.", hint="Check the name."
        )
    data = read.data if read else b""
    index = remember_index(registry, name, data, known=known)
    if registry.folder is not None:
        index = _vendored_part(registry, name, index)
    return SeenIndex(index, read.commit if read else None, read.moved_to if read else None)


def _vendored_part(registry: hub.Registry, name: PackName, index: ReleaseIndex) -> ReleaseIndex:
    """Return the releases that a vendored folder has; the index that it came with names all that were published."""
    here = [one for one in index.releases if has_file(registry, str(name), f"{one.folder}/{MANIFEST_FILE}")]
    return replace(index, releases=tuple(here))


def _gone(registry: hub.Registry, name: PackName) -> TrustError:
    return TrustError(
        f"{name} was at {registry.address} before, and is not there any more, or not for you.",
        hint="Check that you are logged in, if it is private. If it is gone for good, and another registry's pack of that "
        f"name is welcome: skillhub trust forget {name}.",
    )


def _read_at(registry: hub.Registry, name: PackName, revision: str, *, known: bytes | None, offline: bool) -> SeenIndex:
    """Read the index as it is at a revision; releases that were seen before must be the same there."""
    where = f"{RELEASES_FILE} of {name} at {revision}"
    if offline:
        raise OfflineError(
            f"{where} is not remembered, and the network may not be used.",
            hint="Run the command once with the network: without --offline and with HF_HUB_OFFLINE unset.",
        )
    read = hub.read_releases(registry, str(name), revision=revision)
    if read is None:
        raise NotFoundError(f"{name} is no pack at {revision}: it has no {RELEASES_FILE}.", hint="Check the commit.")
    index = parse_releases(read.data, where=where)
    if known is not None:
        _check_digests(parse_releases(known, where=f"{RELEASES_FILE} of {name}"), index, name)
    return SeenIndex(index, read.commit, read.moved_to)


def remember_index(registry: hub.Registry, name: PackName, data: bytes, *, known: bytes | None) -> ReleaseIndex:
    """Check an index's bytes against those seen before, remember them and when its releases appeared; return the index.

    Args:
        registry: where they were read.
        name: the pack.
        data: what was read.
        known: what :func:`remembered_index` returned before they were asked for.

    Raises:
        TrustError: a release's manifest is another one than when it was first seen.
        IntegrityError: the index is not valid, or what was seen before is not its beginning any more.
    """
    index = parse_releases(data, where=f"{RELEASES_FILE} of {name}")
    if known == data:
        return index
    _check_grown(known, data, name)
    with hold(registry, name):
        now = remembered_index(registry, name)
        if now is None or not now.startswith(data):
            _check_grown(now, data, name)
            remember_releases(
                registry, name, index.releases
            )  # first: an index that is remembered is not looked at again
            write_atomically(state_path(registry, name, ".jsonl"), data)
            _log.debug("remembering %d releases of %s at %s", len(index.releases), name, registry.address)
    return index


def _check_grown(old: bytes | None, new: bytes, name: PackName) -> None:
    if old is None:
        return
    where = f"{RELEASES_FILE} of {name}"
    seen, found = parse_releases(old, where=where), parse_releases(new, where=where)
    _check_digests(seen, found, name)
    if old != new and old.startswith(new):
        gone = len(seen.releases) - len(found.releases)
        what = (
            "1 release is missing"
            if gone == 1
            else f"{gone} releases are missing"
            if gone
            else "a yank or a note is missing"
        )
        raise IntegrityError(
            f"{where} was rewritten: it ends before what was published already, and {what}.",
            hint="A mirror that lags behind catches up with time. Otherwise do not install from this repository until its "
            f"owner has explained the change; to accept it: skillhub trust forget {name}.",
        )
    check_is_extension(old, new, where=where)


def read_indexes(registry: hub.Registry, names: Iterable[PackName], *, offline: bool) -> dict[PackName, SeenIndex]:
    """Read several packs' indexes at the same time; errors as for one."""
    wanted = list(dict.fromkeys(names))
    if len(wanted) <= 1:
        return {name: read_index(registry, name, offline=offline) for name in wanted}
    with ThreadPoolExecutor(_PARALLEL_READS) as pool:
        read = pool.map(lambda name: read_index(registry, name, offline=offline), wanted)
        return dict(zip(wanted, read, strict=True))


def check_seen_release(registry: hub.Registry, name: PackName, version: Version, digest: str) -> None:
    """Check that a release is the one that was first seen under its version, where it was seen; no request is made.

    Raises:
        TrustError: its manifest is another one.
        SkillhubError: as :func:`remembered_index`.
    """
    known = remembered_index(registry, name)
    release = parse_releases(known, where=f"{RELEASES_FILE} of {name}").find(version) if known else None
    if release is not None:
        _check_digest(name, release, digest)


def _check_digests(seen: ReleaseIndex, found: ReleaseIndex, name: PackName) -> None:
    for release in seen.releases:
        now = found.find(release.version)
        if now is not None:
            _check_digest(name, release, now.manifest_digest)


def _check_digest(name: PackName, seen: Release, found: str) -> None:
    if found != seen.manifest_digest:
        raise TrustError(
            f"{name} {seen.version} is not what it was when it was first seen: its manifest's digest was "
            f"{seen.manifest_digest[:12]}… and is {found[:12]}….",
            hint="A published version never changes. Do not install it until its owner has explained the change.",
            expected=seen.manifest_digest,
            found=found,
        )


def remembered_index(registry: hub.Registry, name: PackName) -> bytes | None:
    """Return the bytes of a pack's index as they were last read, or None.

    Raises:
        IntegrityError: the file that remembers them is damaged.
        DiskError: it may not be read.
    """
    path = state_path(registry, name, ".jsonl")
    with disk_errors(path):
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
    if not data.endswith(b"\n"):
        raise IntegrityError(
            f"{path} is damaged.", hint=f"Remove it: {name} is then read as if for the first time.", path=str(path)
        )
    return data
