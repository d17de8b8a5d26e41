"""Reading files of a repository through ``resolve/``, which public registries limit far less than their API routes."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from skillhub import settings
from skillhub.errors import IntegrityError, NetworkError
from skillhub.files import check_relative_path, disk_errors
from skillhub.hub import folders
from skillhub.hub.failures import hub_failures, offline_error
from skillhub.hub.registries import Registry
from skillhub.hub.transfers import receive_file
from skillhub.hub.waits import retried
from skillhub.releases import RELEASES_FILE

MAX_RELEASES_BYTES = 64 << 20

_log = logging.getLogger(__name__)

_TIMEOUT_SECONDS = 20
_COMMIT = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")  # it goes into addresses, into locks and onto the screen


@dataclass(frozen=True)
class RemoteFile:
    """A small file that was read whole.

    Attributes:
        data: its bytes.
        commit: the commit it was read at; None where a vendored folder does not say.
        moved_to: full name of the repository that answered, where the registry sent us on to another one.
    """

    data: bytes
    commit: str | None
    moved_to: str | None = None


def read_releases(
    registry: Registry, repository: str, *, revision: str = "main", known: bytes | None = None
) -> RemoteFile | None:
    """Read a pack's index: one HEAD, and one GET unless the bytes are those already known.

    Args:
        registry: where to read.
        repository: ``owner/name``.
        revision: branch, tag or commit.
        known: the bytes seen before; when the server still has them, they are returned.

    Returns:
        The index, or None when the repository exists and has none.

    Raises:
        NotFoundError: there is no such repository.
        SkillhubError: as :func:`skillhub.hub.failures.hub_failures`.
    """
    return read_file(registry, repository, RELEASES_FILE, revision=revision, known=known, limit=MAX_RELEASES_BYTES)


def read_file(
    registry: Registry,
    repository: str,
    path: str,
    *,
    revision: str = "main",
    known: bytes | None = None,
    limit: int,
) -> RemoteFile | None:
    """Read one small file of a repository into memory.

    Args:
        registry: where to read.
        repository: ``owner/name``.
        path: of the file in the repository.
        revision: branch, tag or commit.
        known: bytes seen before, returned when the server says that it still has them.
        limit: most bytes to read.

    Returns:
        The file, or None when the repository exists and has no such file.

    Raises:
        NetworkError: also when the file is longer than ``limit``.
        SkillhubError: as :func:`skillhub.hub.failures.hub_failures`.
    """
    if registry.folder is not None:
        data = folders.read_file(registry, repository, path, revision=revision, limit=limit)
        return None if data is None else RemoteFile(data, folders.read_repository(registry, repository).commit)
    from huggingface_hub import hf_hub_url
    from huggingface_hub.errors import RemoteEntryNotFoundError

    _refuse_offline(f"{path} of {repository}")
    with hub_failures(registry, repository):
        url = hf_hub_url(repository, path, revision=revision, endpoint=registry.endpoint)
        try:
            etag, commit, moved_to = retried(registry, lambda: _head(registry, url))
            if known is not None and etag in (_git_blob_id(known), hashlib.sha256(known).hexdigest()):
                _log.debug("%s of %s at %s is what it was", path, repository, registry.address)
                return RemoteFile(known, commit, moved_to)
            _log.debug("reading %s of %s at %s, commit %s", path, repository, registry.address, commit)
            url = hf_hub_url(repository, path, revision=commit, endpoint=registry.endpoint)
            return RemoteFile(retried(registry, lambda: _get(registry, url, limit)), commit, moved_to)
        except RemoteEntryNotFoundError:
            return None


def _head(registry: Registry, url: str) -> tuple[str, str, str | None]:
    """Return ETag, commit, and the repository that answered where it is not the one that was asked for."""
    from huggingface_hub import get_hf_file_metadata

    metadata = get_hf_file_metadata(
        url, token=registry.token or False, endpoint=registry.endpoint, timeout=_TIMEOUT_SECONDS
    )
    if metadata.commit_hash is None or not _COMMIT.fullmatch(metadata.commit_hash):
        raise NetworkError(
            f"{registry.address} does not answer like a Hugging Face Hub.", hint="Check HF_ENDPOINT and the proxy."
        )
    asked, answered = _repository_of(url, registry), _repository_of(metadata.location, registry)
    moved_to = answered if answered and asked and answered.lower() != asked.lower() else None
    return metadata.etag or "", metadata.commit_hash, moved_to


def _repository_of(url: str, registry: Registry) -> str | None:
    """Return ``owner/name`` of a ``resolve/`` address of the registry; None for any other, such as a content network's."""
    found = re.match(r"/([^/]+/[^/]+)/resolve/", url.removeprefix(registry.endpoint))
    return found[1] if found else None


def _get(registry: Registry, url: str, limit: int) -> bytes:
    from huggingface_hub import get_session, hf_raise_for_status

    headers = {"Accept-Encoding": "identity"} | registry.authorization
    data = bytearray()
    with get_session().stream("GET", url, headers=headers, timeout=_TIMEOUT_SECONDS) as response:
        hf_raise_for_status(response)
        for piece in response.iter_bytes():
            data += piece
            if len(data) > limit:
                raise NetworkError(f"{registry.address} sends more than {limit} bytes.", hint="Tell its operator.")
    return bytes(data)


def _git_blob_id(data: bytes) -> str:
    """Return the ETag that the Hub gives to a file that is not in LFS: git's id of its bytes."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _refuse_offline(what: str) -> None:
    if settings.offline():
        raise offline_error(what)


class _Meter:
    """Stands where huggingface_hub wants a tqdm class: reports the bytes of one transfer, and ends one that is too long."""

    def __init__(self, size: int | None, report: Callable[[int], None] | None) -> None:
        self.n = 0
        self.total: int | None = None
        self._size = size
        self._report = report

    def __enter__(self) -> _Meter:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, count: float | None = 1) -> None:
        self.n += int(count or 0)
        if self._size is not None and self.n > self._size:
            raise IntegrityError(
                f"More bytes arrive than the {self._size} that were announced.",
                hint="Do not use this pack; tell its publisher.",
            )
        if self._report:
            self._report(int(count or 0))

    def set_postfix_str(self, *_: object, **__: object) -> None:
        pass

    def refresh(self, *_: object, **__: object) -> None:
        pass

    def close(self) -> None:
        pass


def _meter_class(size: int | None, report: Callable[[int], None] | None) -> Callable[..., _Meter]:
    def meter(*, desc: str = "", **_: object) -> _Meter:
        # Xet has a second bar for what goes over the wire, which is not the file's bytes
        on_the_wire = desc.endswith("downloading bytes")
        return _Meter(None, None) if on_the_wire else _Meter(size, report)

    return meter


def download_file(
    registry: Registry,
    repository: str,
    path: str,
    *,
    revision: str = "main",
    into: Path,
    size: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Download one file into a folder: over plain HTTP, or through Xet where the registry offers that.

    A part of the file that an earlier download left there is taken for its beginning. What arrived is not verified here: the caller must.

    Args:
        registry: where to download from.
        repository: ``owner/name``.
        path: of the file in the repository.
        revision: branch, tag or commit.
        into: folder that takes the file, under ``path``, and the client's own notes beside it.
        size: bytes to expect; a transfer that brings more is ended.
        progress: called with the number of bytes of each piece (less than none when a piece has to be sent again), and
            with 0 about once a second while waiting; what it raises ends the download.

    Returns:
        Where the file is.

    Raises:
        NotFoundError: there is no such repository, revision or file.
        IntegrityError: more than ``size`` bytes arrived.
        DiskError: the disk is full or the folder may not be written.
        SkillhubError: as :func:`skillhub.hub.failures.hub_failures`.
    """
    if registry.folder is not None:
        return folders.copy_file(registry, repository, path, revision=revision, into=into, size=size, progress=progress)
    from huggingface_hub import hf_hub_url

    target = into.joinpath(*check_relative_path(path).parts)
    _refuse_offline(f"{path} of {repository}")
    with disk_errors(into), hub_failures(registry, repository):
        target.parent.mkdir(parents=True, exist_ok=True)
        url = hf_hub_url(repository, path, revision=revision, endpoint=registry.endpoint)
        if target.exists():
            target.chmod(0o644)
        with target.open("ab+") as stream:
            received = receive_file(registry, url, stream, size=size, report=progress or (lambda count: None))
        if not received:
            target.unlink()
            _download_by_xet(
                registry, repository, path, revision=revision, into=into, meter=_meter_class(size, progress)
            )
    return target


def _download_by_xet(
    registry: Registry, repository: str, path: str, *, revision: str, into: Path, meter: Callable[..., _Meter]
) -> None:
    from huggingface_hub import hf_hub_download

    hf_hub_download(
        repository,
        path,
        revision=revision,
        local_dir=into,
        cache_dir=into / ".cache",
        endpoint=registry.endpoint,
        token=registry.token or False,
        library_name="skillhub",
        tqdm_class=meter,  # type: ignore[call-overload, unused-ignore]
    )
