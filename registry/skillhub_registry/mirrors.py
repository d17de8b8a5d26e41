"""A pull-through mirror: repositories of another Hub that somebody asked for here, kept when that Hub is gone.

Branches and tags are asked for anew from time to time; where the other Hub does not answer, or not well, what is here is the
answer. Commits stay. Names that are somebody's here are never asked for there: nobody shadows them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from anyio import CapacityLimiter

from skillhub_registry import limits
from skillhub_registry.accounts import add_mirrored_namespace, find_account, is_mirrored
from skillhub_registry.arrivals import Arrival, Arrivals
from skillhub_registry.audit import Change
from skillhub_registry.blobs import BlobStore
from skillhub_registry.database import Connection, Database
from skillhub_registry.errors import (
    HubError,
    busy,
    repository_not_found,
    revision_not_found,
    too_large,
    upstream_failed,
)
from skillhub_registry.largefiles import find_large_files, record_large_files, sum_sizes
from skillhub_registry.mirroredcommits import (
    MirroredCommit,
    fetch_commit,
    find_mirrored_files,
    keep_commit,
    move_mirrored_ref,
)
from skillhub_registry.mirrorrecords import create_mirror, find_mirror
from skillhub_registry.names import fold_name, is_commit_id, is_possible
from skillhub_registry.observation import making_change
from skillhub_registry.outgoing import MissingUpstreamError, UnreachableUpstreamError, UpstreamError
from skillhub_registry.recency import Recent
from skillhub_registry.repositories import (
    Repository,
    find_repository,
    get_repository,
    keep_former_name,
    move_repository,
    set_gated,
)
from skillhub_registry.revisions import (
    BRANCH,
    DEFAULT_BRANCH,
    DEFAULT_REF,
    TAG,
    Commit,
    find_ref,
    has_commit,
    is_short_id,
    resolve_revision,
)
from skillhub_registry.trees import File
from skillhub_registry.upstream import Head, Listed, Upstream

logger = logging.getLogger("skillhub_registry")

_ASKING = 32
"""Threads that wait for the API of the other Hub: however slow it is, what is here is served by others."""

_SENDING = 16
"""Threads that send on what arrives, in turns."""


class Mirror:
    """The mirror of a Hub.

    Args:
        upstream: the other Hub.
        database: where its repositories are recorded.
        store: where their files go.
        quotas: how large they may be.
        refresh: after how many seconds a branch is asked for again.
    """

    def __init__(
        self, upstream: Upstream, database: Database, store: BlobStore, quotas: limits.Quotas, refresh: float
    ) -> None:
        self.upstream = upstream
        self.asking = CapacityLimiter(_ASKING)
        self.sending = CapacityLimiter(_SENDING)
        self._database = database
        self._store = store
        self._quotas = quotas
        self._refresh = refresh
        self._recent = Recent(refresh)
        self._away_until = 0.0
        self._arrivals = Arrivals(store)
        self._waiting = threading.BoundedSemaphore(limits.MIRRORED_FILES)

    def is_followed(self, namespace: str, name: str, revision: str) -> bool:
        """Say, without waiting for the other Hub, whether it need not be asked what a revision stands for.

        Raises:
            HubError: as :meth:`follow` did lately.
        """
        revision = _simplify(revision)
        full_name, _ = self._choose(namespace, name, revision)
        return full_name is None or self._recent.recall((fold_name(full_name), revision))

    def follow(self, namespace: str, name: str, revision: str) -> None:
        """Have here what a revision of a repository stands for on the other Hub, as far as it tells.

        Raises:
            HubError: 404, it is neither there nor here; 403, it is there for others; 502, it is not here, and the other
                Hub does not answer.
        """
        revision = _simplify(revision)
        full_name, is_here = self._choose(namespace, name, revision)
        if full_name is None:
            return
        if not is_here and revision != DEFAULT_BRANCH:
            self.follow(namespace, name, DEFAULT_BRANCH)  # every repository has one
        self._recent.run((fold_name(full_name), revision), partial(self._follow, full_name, revision))

    def fetch(self, repository: Repository, commit: Commit, path: str, file: File) -> Arrival | None:
        """Return a large file of a mirrored repository while it arrives, or None for one that is in the store by now.

        Raises:
            HubError: 503, too many arrive already; 413, it may not be so large.
        """
        return self._arrivals.join(repository.id, file.sha256, partial(self._begin, repository, commit, path, file))

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Let a few wait for the beginning of what arrives.

        Raises:
            HubError: 503, too many do.
        """
        if not self._waiting.acquire(blocking=False):
            raise busy()
        try:
            yield
        finally:
            self._waiting.release()

    def close(self) -> None:
        """Give up what is arriving, and leave the other Hub."""
        self._arrivals.close()
        self.upstream.close()

    def _is_away(self) -> bool:
        """Say whether the other Hub did not answer lately: then nobody waits for it who can be answered from what is here."""
        return time.monotonic() < self._away_until

    def _choose(self, namespace: str, name: str, revision: str) -> tuple[str | None, bool]:
        """Return the name by which the other Hub is to be asked, None for not at all, and whether the repository is here."""
        if not is_possible(namespace, name, revision):
            return None, False
        with self._database.read() as connection:
            repository, asking = self._find(connection, namespace, name)
            if repository is None:
                return (f"{namespace}/{name}" if asking else None), False
            here = has_commit(connection, repository.id, revision)
            if not asking or here or (self._is_away() and _resolves(connection, repository, revision)):
                return None, True
        return repository.full_name, True

    def _find(self, connection: Connection, namespace: str, name: str) -> tuple[Repository | None, bool]:
        """Return the repository, if it is here, and whether the other Hub is to be asked for it."""
        account = find_account(connection, namespace)
        if account is not None and not is_mirrored(connection, account):
            return None, False
        repository = find_repository(connection, namespace, name)
        return repository, repository is None or repository.upstream == self.upstream.address

    def _follow(self, full_name: str, revision: str) -> None:
        try:
            head = self._ask(full_name, revision)
            self._take(full_name, head, revision)
        except (UpstreamError, HubError) as error:
            if isinstance(error, UnreachableUpstreamError):
                self._away_until = time.monotonic() + self._refresh
            namespace, _, name = full_name.partition("/")
            with self._database.read() as connection:
                repository, _ = self._find(connection, namespace, name)
                if repository is None or not _resolves(connection, repository, revision):
                    raise _to_answer(error, revision, here=repository is not None) from error
            logger.warning("%s at %s is answered from what is here: %s", full_name, revision, error)

    def _ask(self, full_name: str, revision: str) -> Head:
        head = self.upstream.find_head(full_name, revision)
        if head.private:
            raise MissingUpstreamError(f"{full_name} is private there", "RepoNotFound")
        if not is_possible(*head.full_name.partition("/")[::2], DEFAULT_BRANCH):
            raise MissingUpstreamError(f"{full_name} has a name there that none has here", "RepoNotFound")
        if is_commit_id(revision) and head.commit != revision:
            raise UpstreamError(f"{self.upstream.address} answers with another commit than {revision}")
        return head

    def _take(self, full_name: str, head: Head, revision: str) -> None:
        """Record what a revision stands for; ``full_name`` is what was asked for, and has become another name if it moved."""
        with self._database.read() as connection:
            repository, asking = self._find(connection, *head.full_name.split("/"))
            if not asking or (repository is not None and self._is_recorded(connection, repository, head, revision)):
                return
            known = find_mirrored_files(connection, repository.id) if repository else {}
            has = repository is not None and has_commit(connection, repository.id, head.commit)
        ref = self._find_ref(repository, head, revision)
        store, name, quotas = self._store, head.full_name, self._quotas
        mirrored = None if has else fetch_commit(self.upstream, store, name, head.commit, known, quotas)
        told = {"revision": revision, "commit": head.commit}
        change = Change("(mirror)", self.upstream.address, "mirror", head.full_name, told)
        with making_change(change), self._database.write(repository.id if repository else None) as connection:
            repository, asking = self._find(connection, *head.full_name.split("/"))
            if not asking:  # somebody took the name meanwhile
                return
            repository = repository or self._create(connection, head)
            if fold_name(full_name) != fold_name(head.full_name) and self._find(connection, *full_name.split("/"))[1]:
                keep_former_name(connection, repository, full_name)
            self._record(connection, repository, head, mirrored, ref)

    def _record(
        self,
        connection: Connection,
        repository: Repository,
        head: Head,
        mirrored: MirroredCommit | None,
        ref: str | None,
    ) -> None:
        if repository.gated != head.gated:
            set_gated(connection, repository, head.gated)
        if mirrored is not None:
            keep_commit(connection, repository.id, mirrored, ref)
        if ref is not None:
            move_mirrored_ref(connection, self._store, repository.id, ref, head.commit)

    def _create(self, connection: Connection, head: Head) -> Repository:
        namespace, _, name = head.full_name.partition("/")
        account = find_account(connection, namespace) or add_mirrored_namespace(connection, namespace)
        moved = find_mirror(connection, self.upstream.address, head.public_id)
        if moved is not None:
            move_repository(connection, moved, account, name)
            return moved
        return create_mirror(connection, account, name, self.upstream.address, head.public_id)

    def _is_recorded(self, connection: Connection, repository: Repository, head: Head, revision: str) -> bool:
        """Say whether nothing is new; raises where the name is another repository's there by now."""
        _check_same(repository, head)
        if repository.gated != head.gated:
            return False
        if is_short_id(revision) and head.commit.startswith(revision):
            return has_commit(connection, repository.id, head.commit)
        found = [find_ref(connection, repository.id, name) for name in (BRANCH + revision, TAG + revision, revision)]
        return next((ref.target == head.commit for ref in found if ref is not None), False)

    def _find_ref(self, repository: Repository | None, head: Head, revision: str) -> str | None:
        """Return the full name of a revision, as branch or tag; None for a commit."""
        if revision == DEFAULT_BRANCH:
            return DEFAULT_REF
        if is_short_id(revision) and head.commit.startswith(revision):
            return None
        if revision.startswith("refs/"):
            return revision
        if repository is not None:
            with self._database.read() as connection:
                for name in (BRANCH + revision, TAG + revision):
                    if find_ref(connection, repository.id, name) is not None:
                        return name
        return (TAG if self.upstream.is_tag(head.full_name, revision) else BRANCH) + revision

    def _begin(self, repository: Repository, commit: Commit, path: str, file: File, arriving: int) -> Arrival | None:
        with self._database.read() as connection:
            if find_large_files(connection, repository.id, [file.sha256]):
                return None
            total, limit = sum_sizes(connection, repository.id) + arriving + file.size, self._quotas.repository
            if file.size > self._quotas.file or 0 < limit < total:
                raise too_large(f"{path} of the mirrored {repository.full_name} is larger than is allowed here")
        return Arrival(
            file.sha256,
            file.size,
            partial(self._open, repository, commit.id, Listed(path, file.id, file.size, file.sha256)),
            partial(self._note_arrival, repository, path, file),
        )

    @contextmanager
    def _open(self, repository: Repository, commit: str, listed: Listed) -> Iterator[Iterator[bytes]]:
        full_name = repository.full_name
        try:
            self._look_at_gate(repository)
        except UpstreamError as error:
            logger.warning("%s of %s is not fetched: %s", listed.path, full_name, error)
            raise _to_answer(error, DEFAULT_BRANCH, here=False) from error
        try:
            with ExitStack() as stack:
                try:
                    pieces = stack.enter_context(self.upstream.open_file(full_name, commit, listed))
                except MissingUpstreamError:  # its history may have been squashed; the digest decides
                    pieces = stack.enter_context(self.upstream.open_file(full_name, DEFAULT_BRANCH, listed))
                yield pieces
        except UpstreamError as error:
            logger.warning("%s of %s does not arrive: %s", listed.path, full_name, error)
            raise upstream_failed(str(error)) from error

    def _look_at_gate(self, repository: Repository) -> None:
        """Record how a repository is gated there now; raises where it is not public any more, though the token may see it."""
        head = self._ask(repository.full_name, DEFAULT_BRANCH)
        _check_same(repository, head)
        if head.gated == repository.gated:
            return
        change = Change("(mirror)", self.upstream.address, "mirror", repository.full_name, {"gated": head.gated})
        with making_change(change), self._database.write(repository.id) as connection:
            set_gated(connection, repository, head.gated)

    def _note_arrival(self, repository: Repository, path: str, file: File) -> None:
        with self._database.write(repository.id) as connection:
            if get_repository(connection, repository.id) is None:
                raise repository_not_found()
            record_large_files(connection, repository.id, DEFAULT_REF, {path: file})


def _simplify(revision: str) -> str:
    return revision.lower() if is_commit_id(revision.lower()) else revision.removeprefix(BRANCH)


def _check_same(repository: Repository, head: Head) -> None:
    if head.public_id not in (None, repository.public_id):
        raise UpstreamError(f"{repository.full_name} is another repository there than the one that was mirrored")


def _resolves(connection: Connection, repository: Repository, revision: str) -> bool:
    try:
        resolve_revision(connection, repository.id, revision)
    except HubError:
        return False
    return True


def _to_answer(error: UpstreamError | HubError, revision: str, *, here: bool) -> HubError:
    """Return what somebody is told who asked for what is not here."""
    if isinstance(error, HubError):
        return error
    if not isinstance(error, MissingUpstreamError):
        return upstream_failed(str(error))
    if error.code == "GatedRepo":
        hint = "the mirror's operator has to give it a token that has access"
        return HubError(403, "GatedRepo", f"It is gated on the mirrored Hub: {hint}")
    return revision_not_found(revision) if here or error.code == "RevisionNotFound" else repository_not_found()
