"""How far an upload has come: huggingface_hub draws bars of its own, and has no callback for the bytes that it sends.

Files that go by LFS are read through a file that counts. Files that go by Xet are read by hf_xet, which counts itself,
and tells the callback that a session's upload is begun with; huggingface_hub passes its own bars there or nothing.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from threading import Lock
from typing import Any

Report = Callable[[int], None]

_listener: ContextVar[Report | None] = ContextVar("listener to uploads", default=None)
_patching = Lock()


class UploadCount:
    """Adds up what is sent of one commit, and brings the sum to the total when the commit is done.

    What the server has already is never sent, so the rest comes at once at the end.
    """

    def __init__(self, total: int, report: Report | None) -> None:
        self._left, self._report = total, report
        self._lock = Lock()

    def add(self, count: int) -> None:
        """Report bytes that were sent; never more than there are in all."""
        with self._lock:
            count = min(count, self._left)
            self._left -= count
            if self._report and count:
                self._report(count)

    def finish(self) -> None:
        """Report what is left."""
        self.add(self._left)


def addition(path: str, source: bytes | Path, count: UploadCount) -> Any:
    """Return the operation that adds a file to a commit, and counts what is sent of it by LFS."""
    from huggingface_hub import CommitOperationAdd

    class CountedAdd(CommitOperationAdd):
        @contextmanager
        def as_file(self, with_tqdm: bool = False) -> Iterator[Any]:
            if with_tqdm and isinstance(source, Path):  # which is how it asks for a file to send
                with _CountedFile(source, count.add) as stream:
                    yield stream
            else:
                with super().as_file() as stream:
                    yield stream

    return CountedAdd(path_in_repo=path, path_or_fileobj=source)


class _CountedFile(io.BufferedReader):
    """A file that tells how much of it was read; what is read again, for a request that is sent again, is not told."""

    def __init__(self, path: Path, report: Report) -> None:
        super().__init__(io.FileIO(path))
        self._report, self._furthest = report, 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        position = self.tell()
        if position > self._furthest:
            self._report(position - self._furthest)
            self._furthest = position
        return data


@contextmanager
def xet_uploads_told(count: UploadCount) -> Iterator[None]:
    """Tell what hf_xet sends for commits that this thread makes while the block runs."""
    _listen_to_sessions()
    token = _listener.set(count.add)
    try:
        yield
    finally:
        _listener.reset(token)


def _listen_to_sessions() -> None:
    """Make huggingface_hub begin its uploads with our callback, where this thread has one."""
    from huggingface_hub.utils import _xet

    with _patching:
        original: Any = _xet.get_xet_session
        if getattr(original, "tells_skillhub", False):
            return

        def get_xet_session() -> Any:
            report = _listener.get()
            return _Session(original(), report) if report else original()

        vars(get_xet_session)["tells_skillhub"] = True
        _xet.get_xet_session = get_xet_session  # type: ignore[assignment, unused-ignore]


class _Session:
    """A session of hf_xet whose uploads are told to a callback."""

    def __init__(self, session: Any, report: Report) -> None:
        self._session, self._report = session, report
        self._told = 0

    def new_upload_commit(self, **options: Any) -> Any:
        return self._session.new_upload_commit(**options | {"progress_callback": self._tell})

    def _tell(self, group: Any, _files: Any = None) -> None:
        count, self._told = group.total_bytes_completed - self._told, group.total_bytes_completed
        self._report(max(count, 0))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)
