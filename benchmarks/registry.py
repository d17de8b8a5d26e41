"""Measure the registry: reading blobs beside nginx, and 50 clients who ask for metadata.

    python benchmarks/registry.py [--seconds 8] [--times 3]

Blobs: nginx (sendfile, keep-alive, a worker for each core) serves the registry's own ``blobs`` folder; the same clients,
processes with a plain socket each, fetch the same files over and over from one and then from the other, in turns.
Metadata: one process plays 50 clients who ask 5 times a second each, evenly spread, for what the Hub's client asks for.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

os.environ["HF_HUB_DISABLE_XET"] = "1"  # files come as one blob each, and not as xorbs besides
sys.path.insert(0, str(Path(__file__).parent.parent))

from huggingface_hub import CommitOperationAdd, HfApi
from measuring import write_report
from wire import Wire

from tests.support.registry_process import RegistryProcess, running_registry

READERS = 4
SIZES = {
    "64 kB": 64 * 1024,
    "1 MB": 2**20,
    "4 MB": 4 * 2**20,
    "16 MB": 16 * 2**20,
    "64 MB": 64 * 2**20,
    "256 MB": 2**28,
}
CLIENTS, CALLS_A_SECOND = 50, 5
REPOSITORIES, FILES = 60, 40


@dataclass(frozen=True)
class Reading:
    """What readers got: MB a second together, and seconds of the server's CPU for a GB."""

    rate: float
    cpu: float


def main() -> None:
    """Measure and write ``reports/registry.md``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8, help="of each turn of reading; of metadata four times that")
    parser.add_argument("--times", type=int, default=3, help="turns of reading")
    arguments = parser.parse_args()
    if shutil.which("nginx") is None:
        sys.exit("nginx is not installed (Debian: apt-get install nginx-light)")
    with tempfile.TemporaryDirectory() as scratch, running_registry(Path(scratch) / "data") as registry:
        rows = asyncio.run(measure_metadata(registry, arguments.seconds * 4))
        with running_nginx(Path(scratch), registry.data) as nginx:
            blobs = [measure_blobs(registry, nginx, name, arguments) for name in SIZES]
    lines = [
        f"Load of the machine at the end: {os.getloadavg()[0]:.1f}. Where that is above the number of cores, other programs "
        "ran as well: then only the ratios mean something.",
        "",
        "## Reading blobs",
        "",
        f"{READERS} readers, each with one connection that is kept alive and no pause; medians of {arguments.times} turns of "
        f"{arguments.seconds:g} s, the registry's and nginx's in alternation. The registry looks up the token, the rights, the "
        "revision and the path for every request; nginx opens a file. Everything comes from the page cache, and the "
        "readers share the cores with the server: this does not measure disks or networks.",
        "",
        "| Size of the files | Registry, MB/s | nginx, MB/s | Ratio | Registry's CPU, s/GB | nginx's CPU, s/GB |",
        "|---|---|---|---|---|---|",
        *blobs,
        "",
        "Held to: a ratio of 0.8 for files of 64 MB and more, in which the weights of models and packs lie; a smaller one takes a millisecond of Python.",
        "",
        "## Metadata",
        "",
        f"{CLIENTS} clients, {CALLS_A_SECOND} calls a second each, for {arguments.seconds * 4:g} s, in a registry of "
        f"{REPOSITORIES} repositories of {FILES} files. From when a call was due, or sent, until its answer was read, the client's own "
        "time included.",
        "",
        "| Call | Calls | Median, ms | p99, ms | Worst, ms |",
        "|---|---|---|---|---|",
        *rows,
        "",
        "Held to: a median of 10 ms and a p99 of 50 ms over all.",
        "",
        f"Command: `python benchmarks/registry.py --seconds {arguments.seconds:g} --times {arguments.times}`",
    ]
    write_report("registry", "The registry's speed", lines)


async def measure_metadata(registry: RegistryProcess, seconds: float) -> list[str]:
    """Return the rows of the metadata's table."""
    repositories = await asyncio.to_thread(_fill, registry)
    chance = random.Random(0)
    latencies: dict[str, list[float]] = {}
    before = _cpu_seconds(registry.process.pid)
    start = time.perf_counter() + 0.5
    asking = (
        _ask(registry, repositories, random.Random(chance.random()), start, seconds, latencies) for _ in range(CLIENTS)
    )
    await asyncio.gather(*asking)
    burnt = _cpu_seconds(registry.process.pid) - before
    rows = [_latency_row(name, values) for name, values in sorted(latencies.items())]
    everything = [value for values in latencies.values() for value in values]
    rows.append(_latency_row("all", everything))
    rows += ["", f"The registry's CPU: {1000 * burnt / len(everything):.2f} ms a call."]
    return rows


async def _ask(
    registry: RegistryProcess,
    repositories: Sequence[str],
    chance: random.Random,
    start: float,
    seconds: float,
    latencies: dict[str, list[float]],
) -> None:
    due = start + chance.random() / CALLS_A_SECOND
    async with Wire(registry.endpoint, registry.token) as wire:
        while due < start + seconds:
            repository = chance.choice(repositories)
            name, method, path = chance.choice(_calls(repository, chance.randrange(FILES)))
            late = time.perf_counter() > due  # the answer before this one came late: that is this call's time as well
            await asyncio.sleep(max(due - time.perf_counter(), 0))
            began = due if late else time.perf_counter()
            answer = await wire.ask(method, path)
            latencies.setdefault(name, []).append(time.perf_counter() - began)
            assert answer.status == 200, (path, answer)
            due += 1 / CALLS_A_SECOND


def _calls(repository: str, number: int) -> list[tuple[str, str, str]]:
    model = f"/api/models/{repository}"
    return [
        ("resolve, HEAD", "HEAD", f"/{repository}/resolve/main/folder/f{number}.txt"),
        ("resolve, GET of 100 bytes", "GET", f"/{repository}/resolve/main/folder/f{number}.txt"),
        ("model_info", "GET", model),
        ("tree", "GET", f"{model}/tree/main?recursive=true"),
        ("refs", "GET", f"{model}/refs"),
        ("whoami", "GET", "/api/whoami-v2"),
        ("list_models, 20", "GET", "/api/models?limit=20"),
        ("page", "GET", f"/{repository}"),
    ]


def _fill(registry: RegistryProcess) -> list[str]:
    api = HfApi(endpoint=registry.endpoint, token=registry.token)
    names = []
    for number in range(REPOSITORIES):
        name = api.create_repo(f"{registry.user}/model-{number}").repo_id
        files = [
            CommitOperationAdd(f"folder/f{place}.txt", f"{number} {place} ".encode() * 12) for place in range(FILES)
        ]
        api.create_commit(name, files, commit_message="Files")
        names.append(name)
    return names


def _latency_row(name: str, seconds: Sequence[float]) -> str:
    ordered = sorted(1000 * value for value in seconds)
    p99 = ordered[min(int(len(ordered) * 0.99), len(ordered) - 1)]
    return f"| {name} | {len(ordered)} | {statistics.median(ordered):.1f} | {p99:.1f} | {ordered[-1]:.1f} |"


def measure_blobs(registry: RegistryProcess, nginx: Nginx, name: str, arguments: argparse.Namespace) -> str:
    """Return a row of the blobs' table."""
    size = SIZES[name]
    api = HfApi(endpoint=registry.endpoint, token=registry.token)
    repository = api.create_repo(f"{registry.user}/files-{size}").repo_id
    contents = [os.urandom(size) for _ in range(READERS)]
    additions = [CommitOperationAdd(f"{number}.safetensors", content) for number, content in enumerate(contents)]
    api.create_commit(repository, additions, commit_message="Files")
    digests = [hashlib.sha256(content).hexdigest() for content in contents]
    ours = [f"/{repository}/resolve/main/{number}.safetensors" for number in range(READERS)]
    theirs = [f"/{digest[:2]}/{digest[2:]}" for digest in digests]
    own, other = [], []
    for _ in range(arguments.times):
        for endpoint, token, paths, pids, found in (
            (registry.endpoint, registry.token, ours, [registry.process.pid], own),
            (nginx.endpoint, "", theirs, nginx.workers(), other),
        ):
            found.append(
                _read_in_turn(endpoint, token, list(zip(paths, digests, strict=True)), pids, arguments.seconds)
            )
    ratio = statistics.median(one.rate for one in own) / statistics.median(one.rate for one in other)
    rates, costs = (
        [statistics.median(getattr(one, what) for one in found) for found in (own, other)] for what in ("rate", "cpu")
    )
    row = f"| {name} | {rates[0]:,.0f} | {rates[1]:,.0f} | {ratio:.2f} | {costs[0]:.2f} | {costs[1]:.2f} |"
    print(row, file=sys.stderr)
    return row


def _read_in_turn(
    endpoint: str, token: str, files: Sequence[tuple[str, str]], pids: Sequence[int], seconds: float
) -> Reading:
    with ProcessPoolExecutor(READERS) as readers:
        list(readers.map(_read_repeatedly, *zip(*((endpoint, token, *file, 0.1) for file in files), strict=True)))
        before = sum(map(_cpu_seconds, pids))
        got = sum(
            readers.map(_read_repeatedly, *zip(*((endpoint, token, *file, seconds) for file in files), strict=True))
        )
        burnt = sum(map(_cpu_seconds, pids)) - before
    return Reading(got / seconds / 1e6, burnt / (got / 1e9))


def _read_repeatedly(endpoint: str, token: str, path: str, sha256: str, seconds: float) -> int:
    """Fetch a file again and again; return the bytes that came in time. The first one is compared."""
    parts = urlsplit(endpoint)
    head = f"GET {path} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
    request = f"{head}Authorization: Bearer {token}\r\n\r\n".encode() if token else f"{head}\r\n".encode()
    buffer, total, first, digest = bytearray(2**20), 0, True, hashlib.sha256()
    with socket.create_connection((parts.hostname or "", parts.port or 80)) as connection:
        end = time.perf_counter() + seconds
        while first or time.perf_counter() < end:
            connection.sendall(request)
            for piece in _read_answer(connection, memoryview(buffer)):
                if first:
                    digest.update(piece)
                total += len(piece) if time.perf_counter() < end else 0
            if first:
                assert digest.hexdigest() == sha256, f"{path} came with other bytes"
            first = False
    return total


def _read_answer(connection: socket.socket, buffer: memoryview) -> Iterator[memoryview]:
    got = connection.recv_into(buffer)
    head, _, body = bytes(buffer[:got]).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
    left = next(int(value) for name, value in fields.items() if name.lower() == b"content-length") - len(body)
    yield memoryview(body)
    while left:
        got = connection.recv_into(buffer, min(left, len(buffer)))
        assert got, "the connection ended in the middle of a file"
        left -= got
        yield buffer[:got]


@dataclass(frozen=True)
class Nginx:
    """A running nginx."""

    endpoint: str
    process: subprocess.Popen[bytes]

    def workers(self) -> list[int]:
        """Return its workers' process ids."""
        return [
            int(pid) for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        ]


@contextmanager
def running_nginx(scratch: Path, data: Path) -> Iterator[Nginx]:
    """Serve a registry's blobs by nginx."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    configuration = scratch / "nginx.conf"
    configuration.write_text(
        f"""daemon off; pid {scratch}/nginx.pid; worker_processes auto; error_log stderr;
        {"user root;" if os.geteuid() == 0 else ""}
        events {{ worker_connections 512; }}
        http {{ sendfile on; tcp_nopush on; keepalive_requests 1000000; access_log off;
        {"".join(f"{kind}_temp_path {scratch}/nginx-{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))}
        server {{ listen 127.0.0.1:{port} backlog=1024; root {data}/blobs; }} }}"""
    )
    process = subprocess.Popen(["nginx", "-c", str(configuration), "-p", str(scratch)], stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield Nginx(f"http://127.0.0.1:{port}", process)
    finally:
        process.terminate()
        process.wait(timeout=10)


def _cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has used, its threads' included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
