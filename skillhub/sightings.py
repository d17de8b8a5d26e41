"""What this user saw of packs before: when each release appeared, which repository it was, and who signed it.

    <state>/registries/<registry>/<owner>/<name>.json

Trust on first use: what is met first is believed and written down, and anything else under the same name afterwards is
an error (exit 7) until the user says otherwise, with ``skillhub trust forget``. What a lock says of a pack counts as
seen, unless the user has told us to forget the pack: what was seen since then counts for more than any lock.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from skillhub import settings
from skillhub.documents import canonical_json, check_schema, decode_json, field_error
from skillhub.errors import IntegrityError, NewerSchemaError, TrustError
from skillhub.fields import Count, Label
from skillhub.files import disk_errors, sha256_of_bytes, write_atomically
from skillhub.hub import Registry
from skillhub.locks import locked
from skillhub.manifest import Manifest
from skillhub.names import PackName
from skillhub.releases import Release

SIGHTINGS_SCHEMA = 0

_ALGORITHM = "ed25519"


class SeenRelease(Struct, frozen=True, kw_only=True):
    """A release as it was first seen.

    Attributes:
        version: its version.
        seen: when, UTC.
        signed: whether its line in the index carried a signature.
    """

    version: Label
    seen: Annotated[datetime, Meta(tz=True)]
    signed: bool = False


class Sightings(Struct, frozen=True, kw_only=True):
    """What was seen of one pack at one registry.

    Attributes:
        registry: the registry's address, for people.
        releases: in the order of their publication.
        repository: the repository's own id.
        identified: how many releases there were when that was last asked for.
        signer: the key that its signed releases are signed with, ``ed25519:`` and base64.
        overrides_locks: the user had the pack forgotten, so locks that know another repository or signer do not count.
    """

    schema: int = SIGHTINGS_SCHEMA
    registry: Label = ""
    releases: list[SeenRelease] = []
    repository: Label | None = None
    identified: Count = 0
    signer: Label | None = None
    overrides_locks: bool = False

    @property
    def signed_since(self) -> str | None:
        """The version of the first release that was signed, or None."""
        return next((one.version for one in self.releases if one.signed), None)


def registry_folder(registry: Registry) -> Path:
    """Return where all that was seen at a registry is remembered."""
    readable = re.sub(r"[^A-Za-z0-9.]+", "_", registry.address.partition("://")[2])
    folder = f"{readable}-{sha256_of_bytes(registry.address.encode())[:8]}"  # without a password, which may change
    return settings.state_folder() / "registries" / folder


def state_path(registry: Registry, name: PackName, suffix: str) -> Path:
    """Return the file that remembers something of a pack."""
    return _path_in(registry_folder(registry), name, suffix)


def _path_in(folder: Path, name: PackName, suffix: str) -> Path:
    return folder / str(name.owner).lower() / f"{name.name.lower()}{suffix}"


def hold(registry: Registry, name: PackName) -> AbstractContextManager[None]:
    """Keep other processes and threads from changing what is remembered of a pack."""
    return locked(state_path(registry, name, ".lock"))


def read_sightings(registry: Registry, name: PackName) -> Sightings:
    """Return what was seen of a pack at a registry; nothing where it was never met.

    Raises:
        IntegrityError: the file that remembers it is damaged.
        NewerSchemaError: it is of a schema that this version does not read.
        DiskError: it may not be read.
    """
    return _read(state_path(registry, name, ".json"), name)


def _read(path: Path, name: PackName) -> Sightings:
    try:
        with disk_errors(path):
            data = path.read_bytes()
        check_schema(data, SIGHTINGS_SCHEMA, str(path))
        return decode_json(data, Sightings)
    except FileNotFoundError:
        return Sightings()
    except msgspec.MsgspecError as error:
        raise IntegrityError(
            f"{path} is damaged: {field_error(error)}.",
            hint=f"Remove it: when the releases of {name} first appeared here, which repository they came from and who "
            "signed them is then forgotten.",
            path=str(path),
        ) from error


def _update(registry: Registry, name: PackName, change: Callable[[Sightings], Sightings]) -> None:
    with hold(registry, name):
        seen = read_sightings(registry, name)
        _write(registry, name, seen, change(seen))


def _write(registry: Registry, name: PackName, old: Sightings, new: Sightings) -> None:
    new = msgspec.structs.replace(new, registry=registry.address)
    if new != old:
        write_atomically(state_path(registry, name, ".json"), _to_bytes(new))


def _to_bytes(sightings: Sightings) -> bytes:
    return canonical_json(msgspec.to_builtins(sightings))


def first_seen(registry: Registry, name: PackName) -> Mapping[str, datetime]:
    """Return when this user first saw the releases of a pack: version → time, UTC.

    Raises:
        SkillhubError: as :func:`read_sightings`.
    """
    return {one.version: one.seen for one in read_sightings(registry, name).releases}


def remember_releases(registry: Registry, name: PackName, releases: Sequence[Release]) -> None:
    """Note that releases were seen now, those that are not noted yet; the caller must hold the pack (:func:`hold`).

    Raises:
        SkillhubError: as :func:`read_sightings`.
        DiskError: the state folder may not be written.
    """
    seen = read_sightings(registry, name)
    known = {one.version: one for one in seen.releases}
    now = datetime.now(UTC).replace(microsecond=0)
    noted = [
        known.get(str(one.version))
        or SeenRelease(version=str(one.version), seen=now, signed=one.event.signature is not None)
        for one in releases
    ]
    _write(registry, name, seen, msgspec.structs.replace(seen, releases=noted))


def check_repository_id(
    registry: Registry, name: PackName, found: str, *, locked: str | None, releases: int = 0
) -> None:
    """Check that a pack's repository is the one that it was, and remember it.

    Args:
        registry: where it is.
        name: the pack.
        found: the repository's id now.
        locked: its id in the lock, where there is one.
        releases: how many releases there were when it was asked for.

    Raises:
        TrustError: it is another repository of the same name.
        SkillhubError: as :func:`read_sightings`.
    """

    def check(seen: Sightings) -> Sightings:
        for known in _known(seen, seen.repository, locked):
            if known != found:
                raise TrustError(
                    f"{name} at {registry.address} is another repository than before: it was removed and made anew, or "
                    f"somebody else took its name (id {known}, now {found}).",
                    hint=_accept(name, "its owner says that it was made anew, or this is a mirror of yours"),
                    expected=known,
                    found=found,
                )
        return msgspec.structs.replace(seen, repository=found, identified=max(seen.identified, releases))

    _update(registry, name, check)


def _known(seen: Sightings, remembered: str | None, locked: str | None) -> Iterator[str]:
    if remembered is not None:
        yield remembered
    if locked is not None and not seen.overrides_locks:
        yield locked


def _accept(name: PackName, when: str) -> str:
    return f"If {when}, accept it: skillhub trust forget {name}."


def check_signature(
    registry: Registry, name: PackName, release: Release, manifest: Manifest, *, locked: str | None
) -> str | None:
    """Check who signed a release, and remember the signer of a pack's first signed one.

    A signature that is there must be right, whether or not anyone asks for signatures. Once a release was signed, those
    that were published after it must be, by the same key.

    Args:
        registry: where the release is.
        name: the pack.
        release: the release.
        manifest: its manifest, which agrees with its line in the index.
        locked: the signer in the lock, where there is one.

    Returns:
        The signer, ``ed25519:`` and the public key in base64; None for an unsigned release.

    Raises:
        TrustError: the signature is wrong, of another key than before, or missing.
        SkillhubError: as :func:`read_sightings`.
    """
    signer = _verified_signer(name, release, manifest)

    def check(seen: Sightings) -> Sightings:
        known = list(_known(seen, seen.signer, locked))
        if signer is None:
            _check_no_downgrade(name, release, seen, known)
            return seen
        _check_same_signer(name, release, signer, known)
        return msgspec.structs.replace(seen, signer=signer)

    _update(registry, name, check)
    return signer


def _verified_signer(name: PackName, release: Release, manifest: Manifest) -> str | None:
    """Return who signed a release after verifying the signature, or None for an unsigned one."""
    what, signature = f"{name} {release.version}", release.event.signature
    if manifest.signer is None and signature is None:
        return None
    if manifest.signer is None or signature is None:
        missing = "its manifest names no signer" if manifest.signer is None else "its signature is missing"
        raise TrustError(f"{what} is signed by halves: {missing}.", hint="Do not install it; tell its publisher.")
    if manifest.signer.algorithm != _ALGORITHM:
        raise TrustError(
            f"{what} is signed by {manifest.signer.algorithm!r}, which this version of skillhub cannot verify.",
            hint="Upgrade skillhub: pip install --upgrade skillhub-packs.",
        )
    from skillhub.signing import verify_digest  # a library of cryptography, which most packs do not need

    if not verify_digest(manifest.signer.public_key, release.manifest_digest, signature):
        raise TrustError(
            f"The signature of {what} is wrong: it was not made by the key that the manifest names.",
            hint="Do not install it; tell its publisher.",
        )
    return f"{_ALGORITHM}:{manifest.signer.public_key}"


def _check_no_downgrade(name: PackName, release: Release, seen: Sightings, known: Sequence[str]) -> None:
    """Refuse an unsigned release unless it was published before the first that was signed.

    The order is that of the index, which only grows: a late release with a small number is late.
    """
    version, since = str(release.version), seen.signed_since
    versions = [one.version for one in seen.releases]
    place = versions.index(version) if version in versions else len(versions)
    is_early = not known if since is None else place < versions.index(since)
    if is_early:
        return
    earlier = f"releases since {since} were" if since else f"earlier ones were, by {known[0]}"
    raise TrustError(
        f"{name} {version} is not signed, and {earlier}.",
        hint=_accept(name, "its owner says that it is no longer signed"),
    )


def _check_same_signer(name: PackName, release: Release, signer: str, known: Sequence[str]) -> None:
    for other in known:
        if other != signer:
            raise TrustError(
                f"{name} {release.version} is signed by another key than before: by {signer}, and it was {other}.",
                hint=_accept(name, "its owner confirms the new key"),
                expected=other,
                found=signer,
            )


def all_sightings(name: PackName) -> list[Sightings]:
    """Return what was seen of a pack at each registry that it was met at.

    Raises:
        SkillhubError: as :func:`read_sightings`.
    """
    found = []
    for folder in _folders_with(name):
        seen = _read(_path_in(folder, name, ".json"), name)
        found.append(msgspec.structs.replace(seen, registry=seen.registry or folder.name))
    return found


def forget(name: PackName) -> list[str]:
    """Forget what was seen of a pack at every registry: what is met next is believed, whatever locks say.

    What is damaged is forgotten as well.

    Returns:
        The addresses of the registries that it had been met at.

    Raises:
        DiskError: the state folder may not be written.
    """
    places = []
    for folder in _folders_with(name):
        index, sightings = _path_in(folder, name, ".jsonl"), _path_in(folder, name, ".json")
        with locked(_path_in(folder, name, ".lock")):
            try:
                place = _read(sightings, name).registry
            except (IntegrityError, NewerSchemaError):
                place = ""
            write_atomically(sightings, _to_bytes(Sightings(registry=place, overrides_locks=True)))
            with disk_errors(index):
                index.unlink(missing_ok=True)
        places.append(place or folder.name)
    return places


def _folders_with(name: PackName) -> list[Path]:
    """Return the folders of the registries that a pack was met at."""
    parent = settings.state_folder() / "registries"
    with disk_errors(parent):
        folders = sorted(parent.iterdir()) if parent.is_dir() else []
        return [one for one in folders if any(_path_in(one, name, suffix).exists() for suffix in (".json", ".jsonl"))]
