"""Download counts: collected in memory, written now and then, so that a download costs no disk write."""

from __future__ import annotations

import threading
from collections import Counter

from skillhub_registry.database import Database
from skillhub_registry.repositories import add_downloads

FLUSH_SECONDS = 5.0
"""At most this much is lost when the process is killed."""


class DownloadCounter:
    """Downloads by repository number that are not in the database yet."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[int] = Counter()

    def count(self, repository_id: int) -> None:
        """Note one download."""
        with self._lock:
            self._counts[repository_id] += 1

    def flush(self, database: Database) -> None:
        """Write what was noted, or keep what of it cannot be written now. Nobody who changes something waits for it.

        Raises:
            HubError: 503 or 507, as :meth:`Database.write`.
        """
        with self._lock:
            counts, self._counts = self._counts, Counter()
        if not counts:
            return
        try:
            for repository_id in add_downloads(database, dict(counts)):
                del counts[repository_id]
        finally:
            with self._lock:
                self._counts += counts
