"""The other Hub that is mirrored: what is asked of it, and what of its answers is taken.

Names, revisions and paths in requests to it have passed ``names.py``, and so must the paths that it lists. ``outgoing.py`` says
where requests may go.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from urllib.parse import quote

from skillhub_registry import git, limits
from skillhub_registry.errors import HubError
from skillhub_registry.names import check_path, is_commit_id, is_sha256
from skillhub_registry.outgoing import Outgoing, UpstreamError

_LISTING_SECONDS: Final = 600
"""How long all pages of a list may take together."""

_PUBLIC_ID: Final = re.compile(r"[0-9a-f]{24}")


@dataclass(frozen=True)
class Head:
    """What a repository is upstream, and the commit that a revision stands for there."""

    full_name: str
    public_id: str | None
    commit: str
    private: bool
    gated: str


@dataclass(frozen=True)
class Described:
    """A commit upstream; ``created_at`` in seconds since 1970, UTC. ``ancestors`` are the latest of those before it."""

    title: str
    message: str
    author: str
    created_at: int
    ancestors: tuple[str, ...]


@dataclass(frozen=True)
class Listed:
    """A file upstream: its path, git id and size in bytes, and of a large one, which goes through LFS, the sha256."""

    path: str
    id: str
    size: int
    sha256: str | None


@dataclass(frozen=True)
class Upstream:
    """The other Hub, asked by ``way``."""

    way: Outgoing

    @property
    def address(self) -> str:
        """Of the Hub."""
        return self.way.address

    def find_head(self, full_name: str, revision: str) -> Head:
        """Return what a revision of a repository stands for now.

        Raises:
            UpstreamError: it is not there, or the Hub does not answer well.
        """
        path = f"/api/models/{full_name}/revision/{quote(revision, safe='')}"
        query = tuple(("expand", name) for name in ("sha", "private", "gated"))
        document = self.way.ask(path, query)[0]
        if not isinstance(document, dict) or not is_commit_id(document.get("sha")):
            raise UpstreamError(f"{self.address} tells no commit for {full_name}")
        public_id, gated = document.get("_id"), document.get("gated")
        return Head(
            full_name=str(document.get("id")),
            public_id=public_id if isinstance(public_id, str) and _PUBLIC_ID.fullmatch(public_id) else None,
            commit=document["sha"],
            private=document.get("private") is not False,
            gated=gated if gated in ("auto", "manual") else "manual" if gated else "",
        )

    def describe_commit(self, full_name: str, commit: str) -> Described:
        """Return what a commit says of itself.

        Raises:
            UpstreamError: see :meth:`find_head`.
        """
        listed = self.way.ask(f"/api/models/{full_name}/commits/{commit}")[0]
        try:
            first = listed[0]
            if first["id"] != commit:
                raise ValueError
            ancestors = tuple(entry["id"] for entry in listed[1:] if is_commit_id(entry["id"]))
            author = next((str(one.get("user")) for one in first.get("authors") or ()), "")
            texts = [str(text or "").replace("\0", "") for text in (first["title"], first.get("message"), author)]
            created_at = int(datetime.fromisoformat(first["date"]).timestamp())
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise UpstreamError(f"{self.address} does not describe the commit {commit} of {full_name}") from error
        return Described(texts[0][:2000], texts[1][:100_000], texts[2][:200], created_at, ancestors)

    def list_files(self, full_name: str, commit: str) -> list[Listed]:
        """Return the files of a commit.

        Raises:
            UpstreamError: see :meth:`find_head`; or a file is named as none can be here.
        """
        found: dict[str, Listed] = {}
        for entry in self._list_entries(f"/api/models/{full_name}/tree/{commit}", (("recursive", "true"),)):
            if entry.get("type") == "directory":
                continue
            listed = _read_file(entry)
            if listed is None:
                raise UpstreamError(f"{self.address} lists a file of {full_name} as none can be: {ascii(entry)[:200]}")
            found[listed.path] = listed
        return list(found.values())

    def list_changes(self, full_name: str, commit: str, folder: str) -> dict[str, tuple[str, int]]:
        """Return when what is in a folder last changed, as path → git id, seconds since 1970; nothing without the folder.

        Raises:
            UpstreamError: see :meth:`find_head`.
        """
        changes = {}
        path = f"/api/models/{full_name}/tree/{commit}/{quote(folder, safe='')}"
        for entry in self._list_entries(path, (("expand", "true"),)):
            try:
                changed_at = int(datetime.fromisoformat(entry["lastCommit"]["date"]).timestamp())
                changes[check_path(entry["path"])] = (str(entry["oid"]), changed_at)
            except (LookupError, TypeError, ValueError, OverflowError, HubError) as error:
                raise UpstreamError(f"{self.address} does not tell when {folder} of {full_name} changed") from error
        return changes

    def is_tag(self, full_name: str, name: str) -> bool:
        """Say whether a revision is a tag, and no branch.

        Raises:
            UpstreamError: see :meth:`find_head`.
        """
        document = self.way.ask(f"/api/models/{full_name}/refs")[0]
        try:
            branches, tags = ({ref["name"] for ref in document[kind]} for kind in ("branches", "tags"))
        except (LookupError, TypeError) as error:
            raise UpstreamError(f"{self.address} does not tell the branches of {full_name}") from error
        return name in tags and name not in branches

    @contextmanager
    def open_file(self, full_name: str, commit: str, listed: Listed) -> Iterator[Iterator[bytes]]:
        """Yield the bytes of a file as they arrive: not more of them than it has, and verified by nobody yet.

        Raises:
            UpstreamError: see :meth:`find_head`.
        """
        path = f"/{full_name}/resolve/{commit}/{quote(listed.path, safe='/')}"
        with self.way.open(path, listed.size) as pieces:
            yield pieces

    def close(self) -> None:
        """Close the connections."""
        self.way.close()

    def _list_entries(self, path: str, query: tuple[tuple[str, str], ...]) -> Iterator[dict[str, Any]]:
        """Yield the entries of a list that comes in pages."""
        deadline = time.monotonic() + _LISTING_SECONDS
        asked, total = path, 0
        for _ in range(limits.UPSTREAM_PAGES):
            page, following = self.way.ask(asked, query, deadline)
            if not isinstance(page, list) or not all(isinstance(entry, dict) for entry in page):
                raise UpstreamError(f"{self.address} answers {path} with no list")
            total += len(page)
            if total > limits.COMMIT_OPERATIONS:
                raise UpstreamError(f"{self.address} lists more than {limits.COMMIT_OPERATIONS} files: too many")
            yield from page
            if following is None or not page:
                return
            asked, query = following, ()
        raise UpstreamError(f"{self.address} lists {path} on more than {limits.UPSTREAM_PAGES} pages: too many")


def _read_file(entry: Mapping[str, Any]) -> Listed | None:
    """Return a file as ``tree`` lists it, or None for what no repository here can hold.

    The id of a large file must be that of its pointer: files are known by it in all repositories.
    """
    lfs = entry.get("lfs")
    size = lfs.get("size") if isinstance(lfs, dict) else entry.get("size")
    sha256 = lfs.get("oid") if isinstance(lfs, dict) else None
    try:
        path = check_path(entry.get("path"))
    except HubError:
        return None
    if not is_commit_id(entry.get("oid")) or not isinstance(size, int) or not 0 <= size <= limits.FILE:
        return None
    if lfs and (not is_sha256(sha256) or git.object_id("blob", git.lfs_pointer(str(sha256), size)) != entry["oid"]):
        return None
    return Listed(path, entry["oid"], size, sha256 if lfs else None)
