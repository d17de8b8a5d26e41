"""What a pack's repository shows at its top: ``README.md`` and ``skillpack.json``, of the newest final release.

Both are for people, and for what a registry lists; installing reads neither. So nothing that is wrong with them keeps a
release from being published or withdrawn.
"""

from __future__ import annotations

from skillhub import hub
from skillhub.announcements import Place, State
from skillhub.errors import SkillhubError
from skillhub.manifest import MANIFEST_FILE, MAX_MANIFEST_BYTES, Manifest
from skillhub.modelcards import README_FILE, model_card
from skillhub.progress import Notice
from skillhub.releases import Release, ReleaseIndex, check_agreement

_MAX_README_BYTES = 8 << 20


def described_release(index: ReleaseIndex) -> Release | None:
    """Return the release that a repository's front page is about.

    It is the newest final one that stands, else the newest pre-release that stands, else the newest; None without any.
    """
    standing = [release for release in index.releases if release.yanked is None]
    return index.newest_final() or max(standing or index.releases, key=lambda release: release.version, default=None)


def front_page(place: Place, state: State, index: ReleaseIndex, manifest: Manifest, notice: Notice) -> dict[str, bytes]:
    """Return the files of the front page, renewed.

    Args:
        place: the repository.
        state: what the commit builds on; people's words are read there.
        index: the releases as they will be.
        manifest: of the described release.
        notice: told why a file is left as it is.
    """
    files = {}
    newest = index.newest_final()
    if newest is not None and newest.manifest_digest == manifest.digest:
        files[MANIFEST_FILE] = manifest.to_bytes()
    try:
        readme = _read_readme(place, state)
        files[README_FILE] = model_card(manifest, place.name, index=index, readme=readme).encode()
    except (SkillhubError, UnicodeDecodeError) as error:
        why = error.message if isinstance(error, SkillhubError) else "It is not UTF-8 text."
        notice(f"{README_FILE} stays as it is: {why}")
    return files


def _read_readme(place: Place, state: State) -> str:
    if state.head is None:
        return ""
    name = str(place.name)
    read = hub.read_file(place.registry, name, README_FILE, revision=state.head, limit=_MAX_README_BYTES)
    return read.data.decode() if read else ""


def read_manifest(place: Place, state: State, release: Release) -> Manifest:
    """Read a published release's manifest, which must agree with its line in the index.

    Raises:
        IntegrityError: it does not agree, or is not valid.
        SkillhubError: as :func:`skillhub.hub.failures.hub_failures`.
    """
    name, path = str(place.name), f"{release.folder}/{MANIFEST_FILE}"
    read = hub.read_file(place.registry, name, path, revision=state.head or "main", limit=MAX_MANIFEST_BYTES)
    return check_agreement(release, read.data if read else b"", where=f"{name} {release.version}")
