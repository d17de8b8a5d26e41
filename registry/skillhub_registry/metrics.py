"""What this process did, in the text format that Prometheus reads (https://prometheus.io/docs/instrumenting/exposition_formats/)."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Final

from skillhub_registry.blobs import BlobStore
from skillhub_registry.observation import Observation

MEDIA_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)
_STORAGE_SECONDS: Final = 600
"""How long the size of the storage is believed: to find it takes a look at every blob."""

_COMMIT: Final = "/api/models/{namespace}/{name}/commit/{revision}"
_UPLOADS: Final = ("/lfs/", "/xet/v1/xorbs/", "/xet/v1/shards", _COMMIT)


class Metrics:
    """Counts what was answered. All of it is of this process, since its start."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, str, int]] = Counter()
        self._durations: defaultdict[tuple[str, str], list[int]] = defaultdict(lambda: [0] * (len(_BUCKETS) + 1))
        self._seconds: defaultdict[tuple[str, str], float] = defaultdict(float)
        self._totals: Counter[str] = Counter()
        self._database_seconds = 0.0
        self._observations: dict[int, Observation] = {}
        self._storage: tuple[float, int, int] | None = None

    def begin(self, seen: Observation) -> None:
        """Note that a request is being answered."""
        with self._lock:
            self._observations[id(seen)] = seen

    def end(self, seen: Observation) -> None:
        """Note that a request was answered."""
        place = next((number for number, bound in enumerate(_BUCKETS) if seen.seconds <= bound), len(_BUCKETS))
        with self._lock:
            self._observations.pop(id(seen), None)
            self._requests[seen.route, seen.method, seen.status] += 1
            self._durations[seen.route, seen.method][place] += 1
            self._seconds[seen.route, seen.method] += seen.seconds
            self._totals["received"] += seen.bytes_in
            self._totals["sent"] += seen.bytes_out
            self._totals["commits"] += seen.route == _COMMIT and seen.status == 200

    def note_transaction(self, seconds: float) -> None:
        """Note that a transaction of the database ended."""
        with self._lock:
            self._totals["transactions"] += 1
            self._database_seconds += seconds

    def render(self, store: BlobStore) -> str:
        """Return everything, as text."""
        storage = self._measure_storage(store)
        with self._lock:
            return "\n".join([*self._render_requests(), *self._render_rest(*storage)]) + "\n"

    def _measure_storage(self, store: BlobStore) -> tuple[int, int]:
        known = self._storage
        if known is None or known[0] < time.monotonic() - _STORAGE_SECONDS:
            sizes = [size for _, size in store.list_blobs()]
            known = self._storage = (time.monotonic(), len(sizes), sum(sizes))
        return known[1:]

    def _render_requests(self) -> Iterator[str]:
        yield from _head("requests_total", "counter", "Requests that were answered.")
        for (route, method, status), count in sorted(self._requests.items()):
            yield _line("requests_total", count, route=route, method=method, status=str(status))
        name = "request_duration_seconds"
        yield from _head(name, "histogram", "Time from a request's arrival to the end of its answer.")
        for (route, method), counts in sorted(self._durations.items()):
            total = 0
            for bound, count in zip((*map(str, _BUCKETS), "+Inf"), counts, strict=True):
                total += count
                yield _line(f"{name}_bucket", total, route=route, method=method, le=bound)
            yield _line(f"{name}_sum", self._seconds[route, method], route=route, method=method)
            yield _line(f"{name}_count", total, route=route, method=method)

    def _render_rest(self, blobs: int, size: int) -> Iterator[str]:
        active = [seen for seen in self._observations.values() if seen.route.startswith(_UPLOADS)]
        for name, kind, text, value in (
            ("received_bytes_total", "counter", "Bytes of requests' bodies.", self._totals["received"]),
            ("sent_bytes_total", "counter", "Bytes of answers' bodies.", self._totals["sent"]),
            ("commits_total", "counter", "Commits that were made.", self._totals["commits"]),
            ("uploads_in_progress", "gauge", "Uploads and commits that are arriving.", len(active)),
            ("requests_in_progress", "gauge", "Requests that are being answered.", len(self._observations)),
            ("database_transactions_total", "counter", "Transactions.", self._totals["transactions"]),
            ("database_seconds_total", "counter", "Time in transactions.", self._database_seconds),
            ("storage_blobs", "gauge", "Blobs in the storage, at most ten minutes ago.", blobs),
            ("storage_bytes", "gauge", "Bytes in the storage, at most ten minutes ago.", size),
        ):
            yield from _head(name, kind, text)
            yield _line(name, value)


def _head(name: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP skillhub_registry_{name} {text}"
    yield f"# TYPE skillhub_registry_{name} {kind}"


def _line(name: str, value: float, **labels: str) -> str:
    """Return one sample. No label needs escaping: routes and methods are ours, and unknown methods count as one."""
    written = ",".join(f'{label}="{text}"' for label, text in labels.items())
    return f"skillhub_registry_{name}{f'{{{written}}}' if written else ''} {value}"
