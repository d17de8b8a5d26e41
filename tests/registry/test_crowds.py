"""Clients that come in crowds, and clients that disappear: nobody else notices."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from urllib.parse import urlsplit

import pytest
import requests
from huggingface_hub import CommitOperationAdd, HfApi

from tests.support.hub_client import client_environment, make_content
from tests.support.registry_process import ROOT, RegistryProcess, running_registry

CROWD = 32


@pytest.fixture
def api(registry: RegistryProcess) -> HfApi:
    return HfApi(endpoint=registry.endpoint, token=registry.token)


def begin_commit(registry: RegistryProcess, repository: str, query: str = "") -> socket.socket:
    """Send the head of a commit, a whole file and a part of another, and leave the rest owing."""
    header = {"key": "header", "value": {"summary": "never ends"}}
    file = {"key": "file", "value": {"path": "lost.txt", "content": "bG9zdA==", "encoding": "base64"}}
    body = b"".join(json.dumps(line).encode() + b"\n" for line in (header, file)) + b'{"key": "file", "val'
    address = urlsplit(registry.endpoint)
    assert address.hostname is not None
    assert address.port is not None
    connection = socket.create_connection((address.hostname, address.port))
    connection.sendall(
        f"POST /api/models/{repository}/commit/main{query} HTTP/1.1\r\nHost: {address.netloc}\r\n"
        f"Authorization: Bearer {registry.token}\r\nContent-Length: 100000\r\n\r\n".encode()
        + body
    )
    return connection


def reset(connection: socket.socket) -> None:
    """End a connection as a killed machine's would end: by a reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@pytest.mark.parametrize("query", ["", "?create_pr=1"], ids=["commit", "proposal"])
def test_a_client_that_disappears_in_the_middle_of_a_commit_holds_nothing(
    registry: RegistryProcess, api: HfApi, query: str
) -> None:
    repository = api.create_repo(f"{registry.user}/gone-{'proposing' if query else 'committing'}").repo_id
    head = api.model_info(repository).sha
    connections = [begin_commit(registry, repository, query) for _ in range(CROWD)]
    # While they hang there, others commit.
    one = api.create_commit(repository, [CommitOperationAdd("a.txt", b"1")], commit_message="One", parent_commit=head)
    for number, connection in enumerate(connections):
        connection.close() if number % 2 else reset(connection)
    two = api.create_commit(
        repository, [CommitOperationAdd("a.txt", b"2")], commit_message="Two", parent_commit=one.oid
    )
    assert api.model_info(repository).sha == two.oid
    assert "lost.txt" not in api.list_repo_files(repository)
    assert list(api.get_repo_discussions(repository)) == []
    assert registry.arriving() == []


def read_all(connection: socket.socket, count: int) -> bytes:
    """Return so many bytes of an answer's body, the last ones that came."""
    got = bytearray()
    while len(got) < count or b"\r\n\r\n" not in got[:5000] or len(got) - got.index(b"\r\n\r\n") - 4 < count:
        piece = connection.recv(1_000_000)
        assert piece, "the connection ended early"
        got += piece
    return bytes(got[-count:])


def test_readers_who_stop_reading_hold_nobody_up(registry: RegistryProcess, api: HfApi) -> None:
    repository = api.create_repo(f"{registry.user}/slow-readers").repo_id
    content = make_content(7, 16_000_000)
    api.create_commit(repository, [CommitOperationAdd("w.safetensors", content)], commit_message="More than fits")
    address = urlsplit(registry.endpoint)
    connections = []
    for _ in range(CROWD):
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        connection.settimeout(60)
        connection.connect((str(address.hostname), address.port or 80))
        connection.sendall(f"GET /{repository}/resolve/main/w.safetensors HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        connections.append(connection)
    for connection in connections:
        assert connection.recv(12) == b"HTTP/1.1 200"  # and no more for now
    url = f"{registry.endpoint}/{repository}/resolve/main/w.safetensors"
    assert requests.get(url, timeout=60).content == content
    for connection in connections[4:]:
        reset(connection)
    for connection in connections[:4]:  # those go on where they were
        with connection:
            assert read_all(connection, len(content)) == content
    assert requests.get(url, timeout=60).content == content


SENDER = """
    import sys
    from huggingface_hub import HfApi
    repository, path = sys.argv[1:]
    print("ready", flush=True)
    while True:
        HfApi().upload_file(path_or_fileobj=path, path_in_repo="w.safetensors", repo_id=repository)
        HfApi().delete_file("w.safetensors", repository)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills processes as POSIX does")
@pytest.mark.parametrize("xet", [True, False], ids=["xet", "lfs"])
def test_clients_killed_while_they_upload_leave_a_repository_that_works(tmp_path: Path, xet: bool) -> None:
    """Each process is killed as soon as the registry has seen something of it; then all of it is there, or none."""
    with running_registry(tmp_path / "data") as registry:
        api = HfApi(endpoint=registry.endpoint, token=registry.token)
        repository = api.create_repo(f"{registry.user}/killed").repo_id
        for number in range(4):
            content = make_content(number, 3_000_000)
            (tmp_path / "w.safetensors").write_bytes(content)
            before = {path for path in (registry.data / "blobs").rglob("*") if path.is_file()}
            environment = client_environment(registry, tmp_path / "home", xet=xet)
            command = [sys.executable, "-c", textwrap.dedent(SENDER), repository, str(tmp_path / "w.safetensors")]
            with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as sender:
                assert sender.stdout is not None
                assert sender.stdout.readline() == "ready\n"
                while not {path for path in (registry.data / "blobs").rglob("*") if path.is_file()} - before:
                    assert sender.poll() is None
                os.kill(sender.pid, signal.SIGKILL)
            head = api.model_info(repository).sha  # the registry may still be at what the client sent last
            files = set(api.list_repo_files(repository, revision=head))
            assert files <= {".gitattributes", "w.safetensors"}
            if "w.safetensors" in files:
                folder = tmp_path / f"fetched-{number}"
                fetched = api.hf_hub_download(repository, "w.safetensors", revision=head, local_dir=folder)
                assert hashlib.sha256(Path(fetched).read_bytes()).digest() == hashlib.sha256(content).digest()
            api.create_commit(repository, [CommitOperationAdd("a.txt", b"1")], commit_message="It works")
            api.delete_file("a.txt", repository)


def test_a_crowd_reads_small_files_while_somebody_commits(registry: RegistryProcess, api: HfApi) -> None:
    repository = api.create_repo(f"{registry.user}/crowd").repo_id
    files = {f"f{number}.txt": make_content(number, 2000).hex().encode() for number in range(5)}
    api.create_commit(
        repository, [CommitOperationAdd(path, data) for path, data in files.items()], commit_message="Files"
    )
    over = Event()

    def read(number: int) -> int:
        with requests.Session() as session:
            for _ in range(4):
                for path, data in files.items():
                    url = f"{registry.endpoint}/{repository}/resolve/main/{path}"
                    assert session.head(url).headers["Content-Length"] == str(len(data))
                    answer = session.get(url, timeout=60)
                    assert (answer.status_code, answer.content) == (200, data)
        return number

    def write() -> int:
        count = 0
        while not over.is_set():
            count += 1
            addition = CommitOperationAdd("changing.txt", str(count).encode())
            api.create_commit(repository, [addition], commit_message=f"number {count}")
        return count

    with ThreadPoolExecutor(CROWD + 1) as threads:
        writing = threads.submit(write)
        try:
            assert list(threads.map(read, range(CROWD))) == list(range(CROWD))
        finally:
            over.set()
        assert writing.result() >= 1
