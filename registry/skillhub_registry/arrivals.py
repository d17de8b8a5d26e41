"""Large files that are arriving from elsewhere: each is fetched once, and read by as many as like while it grows.

Nobody gets the whole of a file that is not what it should be: its last byte is held back until its digest is verified, and parts
of it that end before are given when it is. What fails leaves nothing behind.
"""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import AsyncIterator, Callable, Hashable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, Final

from anyio import CapacityLimiter
from anyio.to_thread import run_sync

from skillhub_registry import limits
from skillhub_registry.blobs import PIECE, BlobStore, keep_blob, write_blob
from skillhub_registry.errors import HubError, busy, disk_full, upstream_failed

logger = logging.getLogger("skillhub_registry")

_BEGIN_SECONDS: Final = 5
"""How long somebody waits for the first byte of an answer; less than clients do."""

_TURN_SECONDS: Final = 1
"""How long a thread waits for the next ones, before it looks after others and whether the client is still there."""

Source = Callable[[], AbstractContextManager[Iterator[bytes]]]
"""Opens a file that lies elsewhere, to be read once; fails with a :class:`HubError`."""


class Arrival:
    """A file while it is fetched, by a thread that calls :meth:`run`, and read by others.

    Args:
        sha256: of the file.
        size: its bytes, at least one.
        source: where it comes from.
        record: called once it is kept, before anybody learns of it.
    """

    def __init__(self, sha256: str, size: int, source: Source, record: Callable[[], None]) -> None:
        self.sha256 = sha256
        self.size = size
        self._source = source
        self._record = record
        self._changed = threading.Condition()
        self._path: Path | None = None
        self._readable = 0
        self._ended = False
        self._stopping = False
        self._error: HubError | None = None

    def run(self, store: BlobStore) -> None:
        """Fetch the file into the store."""
        error: HubError | None = upstream_failed("The file could not be fetched")
        try:
            self._fetch(store)
            error = None
        except HubError as cause:
            error = cause
        except OSError as cause:
            error = disk_full() if cause.errno in (errno.ENOSPC, errno.EDQUOT) else error
            logger.error("a mirrored file cannot be kept: %s", cause)
        finally:
            with self._changed:
                self._error, self._ended, self._path = error, True, None
                self._readable = self._readable if error else self.size
                self._changed.notify_all()

    def _fetch(self, store: BlobStore) -> None:
        with self._source() as pieces, write_blob(store, self.size) as writer:
            try:
                for piece in pieces:
                    writer.write(piece)
                    writer.flush()
                    self._publish(writer.path, min(writer.size, self.size - 1))
                    if self._stopping:
                        raise busy()
            finally:
                self._publish(None, self._readable)  # whoever comes now reads from the store, if it gets there
            try:
                keep_blob(store, writer, self.sha256, self.size)
            except HubError as error:
                logger.warning("a mirrored file was not kept: %s", error)
                raise error if error.status >= 500 else upstream_failed(error.message) from error
        self._record()

    def _publish(self, path: Path | None, readable: int) -> None:
        with self._changed:
            self._path, self._readable = path, readable
            self._changed.notify_all()

    def stop(self) -> None:
        """Give up at the next piece."""
        self._stopping = True

    def open(self, *, to_its_end: bool) -> BinaryIO | None:
        """Wait until there is something to read and return a file for :meth:`follow`; None for what is in the store by now.

        ``to_its_end``: the file is read with its last byte, before which nobody relies on it.

        Raises:
            HubError: it could not be fetched; 503, it takes longer than this waits.
        """
        with self._changed:
            if not self._changed.wait_for(
                lambda: self._ended or (to_its_end and self._path is not None and self._readable > 0), _BEGIN_SECONDS
            ):
                raise busy("The file is being fetched from the mirrored Hub; try again")
            if self._error is not None:
                raise self._error.with_traceback(None)
            return None if self._path is None else self._path.open("rb")

    async def follow(self, file: BinaryIO, start: int, length: int, threads: CapacityLimiter) -> AsyncIterator[bytes]:
        """Yield bytes as they arrive; ends with an error where they do not."""
        with file:
            file.seek(start)
            while length > 0:
                piece = await run_sync(self._read, file, start, min(PIECE, length), limiter=threads)
                start, length = start + len(piece), length - len(piece)
                if piece:
                    yield piece

    def _read(self, file: BinaryIO, start: int, length: int) -> bytes:
        """Return the next bytes, none where there are none yet."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._ended or self._readable > start, _TURN_SECONDS):
                return b""
            if self._readable <= start:
                raise OSError("the mirrored file stopped arriving, or is not what it should be")
            length = min(length, self._readable - start)
        return file.read(length)


class Arrivals:
    """The files that are being fetched just now.

    Args:
        store: where they go.
    """

    def __init__(self, store: BlobStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._running: dict[tuple[Hashable, str], tuple[Arrival, threading.Thread]] = {}

    def join(self, owner: Hashable, sha256: str, make: Callable[[int], Arrival | None]) -> Arrival | None:
        """Return the arrival of an owner's file; where there is none it is made and begun, unless ``make`` sees that it is over.

        ``make`` is told how many bytes are arriving for the owner already, each file counted whole.

        Raises:
            HubError: 503, as many as may be are running.
        """
        key = (owner, sha256)
        with self._lock:
            if key in self._running:
                return self._running[key][0]
            arrival = make(sum(one.size for (other, _), (one, _) in self._running.items() if other == owner))
            if arrival is None:
                return None
            if len(self._running) >= limits.MIRRORED_FILES:
                raise busy()
            thread = threading.Thread(target=self._run, args=(key, arrival), name="arrival", daemon=True)
            self._running[key] = (arrival, thread)
            thread.start()
            return arrival

    def _run(self, key: tuple[Hashable, str], arrival: Arrival) -> None:
        try:
            arrival.run(self._store)
        finally:
            with self._lock:
                del self._running[key]

    def close(self) -> None:
        """Give up what is running."""
        with self._lock:
            running = list(self._running.values())
        for arrival, _ in running:
            arrival.stop()
        for _, thread in running:
            thread.join(timeout=5)
