"""What a hostile publisher or registry can try, end to end; SECURITY.md lists the attacks and their tests."""

from __future__ import annotations

import gzip
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest
from httpx2 import Headers, Request, Response
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from skillhub import hub
from skillhub.documents import canonical_json
from skillhub.downloading import download
from skillhub.environments import as_environment, installed_packs
from skillhub.errors import IntegrityError, NetworkError, SkillhubError, TrustError, UnsafeContentError
from skillhub.hub.waits import asked_seconds, wait_after
from skillhub.indexes import read_index
from skillhub.installer import install
from skillhub.lockfile import read_lock
from skillhub.manifest import FileEntry, Manifest
from skillhub.names import parse_pack_name
from skillhub.packs import MAX_HEADER_BYTES, Pack
from skillhub.projects import Project
from skillhub.publisher import publish
from skillhub.releases import release_event
from skillhub.sessions import Session
from skillhub.sightings import forget
from skillhub.wanted import parse_wanted
from tests.support.packs import BASE, make_pack
from tests.support.registry_process import RegistryProcess

pytestmark = pytest.mark.usefixtures("homes")


@pytest.fixture(scope="module")
def owner(registry: RegistryProcess) -> hub.Registry:
    return hub.Registry("hub", registry.endpoint, registry.add_user("victim"))


@pytest.fixture
def anyone(registry: RegistryProcess) -> hub.Registry:
    return hub.Registry("hub", registry.endpoint)


def api_of(owner: hub.Registry) -> HfApi:
    return HfApi(endpoint=owner.endpoint, token=owner.token)


def digest_in(environment: Path) -> str:
    (installed,) = installed_packs(as_environment(environment))
    assert installed.pack is not None
    return installed.pack.digest


def put(owner: hub.Registry, name: str, files: dict[str, bytes | Path]) -> None:
    hub.create_repository(owner, name)
    head = hub.repository_head(owner, name)
    hub.commit(owner, name, files, message="Change", parent=head)


def test_a_tag_that_moves_moves_no_release(owner: hub.Registry, anyone: hub.Registry, tmp_path: Path) -> None:
    """Tags are for people: what is asked for as a version is found by the index, whatever the tag of that name is at."""
    name = "victim/tagged"
    pack = make_pack(tmp_path / "1", "tagged", "1.0")
    publish(pack, name, registry=owner)
    publish(make_pack(tmp_path / "2", "tagged", "2.0"), name, registry=owner)
    api = api_of(owner)
    first = api.list_repo_commits(name)[-1].commit_id  # where no release is yet
    api.delete_tag(name, tag="v1.0")
    api.create_tag(name, tag="v1.0", revision=first)
    install([f"{name}==1.0"], base=BASE, environment=tmp_path / "env", registry=anyone)
    assert digest_in(tmp_path / "env") == pack.digest
    with pytest.raises(SkillhubError, match=r"1\.0"):
        install([f"{name}@v1.0"], base=BASE, environment=tmp_path / "other", registry=anyone)


def test_a_squashed_history_does_no_harm(owner: hub.Registry, anyone: hub.Registry, tmp_path: Path) -> None:
    """The commit in a lock is a hint only; what it led to is found on main by its digest."""
    name = "victim/squashed"
    pack = make_pack(tmp_path / "1", "squashed", "1.0")
    publish(pack, name, registry=owner)
    install([name], base=BASE, environment=tmp_path / "env", registry=anyone)
    publish(make_pack(tmp_path / "2", "squashed", "1.1"), name, registry=owner)
    api_of(owner).super_squash_history(name)
    lock = read_lock(tmp_path / "env" / "skillhub.lock")
    assert lock is not None and lock.packs[0].commit != hub.repository_head(owner, name)
    again = tmp_path / "again"
    again.mkdir()
    for file in ("skillhub.toml", "skillhub.lock"):
        (again / file).write_bytes((tmp_path / "env" / file).read_bytes())
    install([], environment=again, registry=anyone)
    assert digest_in(again) == pack.digest


def fetch(anyone: hub.Registry, text: str, folder: Path) -> None:
    download(Session(anyone).planner(Project()), [parse_wanted(text)], folder)


def taken_over(owner: hub.Registry, name: str, folder: Path) -> None:
    """Make a repository anew under the same name, with all that it had and one release more."""
    api = api_of(owner)
    kept: dict[str, bytes | Path] = {}
    for path in api.list_repo_files(name):
        read = hub.read_file(owner, name, path, limit=1 << 20)
        assert read is not None
        kept[path] = read.data
    api.delete_repo(name)
    put(owner, name, kept)
    publish(make_pack(folder, name.rpartition("/")[2], "9.9"), name, registry=owner)


def test_a_name_that_was_taken_over_is_noticed(owner: hub.Registry, anyone: hub.Registry, tmp_path: Path) -> None:
    """The old releases are all there, byte for byte; only the repository is another one."""
    name = "victim/abandoned"
    publish(make_pack(tmp_path / "1", "abandoned", "1.0"), name, registry=owner)
    install([name], base=BASE, environment=tmp_path / "env", registry=anyone)
    lock = (tmp_path / "env" / "skillhub.lock").read_bytes()
    taken_over(owner, name, tmp_path / "2")
    with pytest.raises(TrustError, match="another repository than before"):
        install([f"{name}>=9"], environment=tmp_path / "env", registry=anyone)
    assert (tmp_path / "env" / "skillhub.lock").read_bytes() == lock
    with pytest.raises(TrustError, match="another repository than before"):
        fetch(anyone, f"{name}>=9", tmp_path / "downloaded")
    forget(parse_pack_name(name))
    assert install([f"{name}>=9"], environment=tmp_path / "env", registry=anyone)[0].version == "9.9"


def test_a_pack_that_vanished_is_not_merely_missing(owner: hub.Registry, anyone: hub.Registry, tmp_path: Path) -> None:
    """Were it, the pack of that name at the next registry would be taken: dependency confusion by waiting."""
    name = "victim/vanished"
    publish(make_pack(tmp_path / "1", "vanished", "1.0"), name, registry=owner)
    read_index(anyone, parse_pack_name(name), offline=False)
    api_of(owner).delete_repo(name)
    with pytest.raises(TrustError, match="is not there any more") as caught:
        read_index(anyone, parse_pack_name(name), offline=False)
    assert f"skillhub trust forget {name}" in caught.value.hint


def announce(owner: hub.Registry, pack: Pack, path: str, data: bytes) -> str:
    """Publish a pack after putting other bytes into one of its files, with everything about them as it must be."""
    name = f"victim/{pack.manifest.name}"
    entry = FileEntry(path=path, size=len(data), sha256=hashlib.sha256(data).hexdigest())
    variant = pack.manifest.variants[0]
    files = [entry if one.path == path else one for one in variant.files]
    manifest: Manifest = msgspec.structs.replace(
        pack.manifest, variants=[msgspec.structs.replace(variant, files=files)]
    )
    event = msgspec.to_builtins(release_event(manifest, {}))
    stored: dict[str, bytes | Path] = {
        f"releases/{manifest.version}/{one.path}": data if one.path == path else pack.path_of(one) for one in files
    }
    stored[f"releases/{manifest.version}/skillpack.json"] = manifest.to_bytes()
    stored["releases.jsonl"] = canonical_json({key: value for key, value in event.items() if value is not None})
    put(owner, name, stored)
    return name


@pytest.mark.parametrize(
    ("pack_name", "data", "kind"),
    [
        ("bomb", (MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b"{}", UnsafeContentError),
        ("pickle", b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94", UnsafeContentError),
        ("nested", (1 << 16).to_bytes(8, "little") + b"[" * (1 << 16), IntegrityError),
    ],
    ids=["bomb", "pickle", "nested"],
)
def test_a_file_that_is_no_safetensors_file_is_not_installed(
    pack_name: str, data: bytes, kind: type[SkillhubError], owner: hub.Registry, anyone: hub.Registry, tmp_path: Path
) -> None:
    pack = make_pack(tmp_path / "pack", pack_name)
    path = pack.manifest.variants[0].files[0].path
    name = announce(owner, pack, path, data)
    with pytest.raises(kind, match=r"delta-00001\.safetensors"):
        install([name], base=BASE, environment=tmp_path / "env", registry=anyone)
    assert installed_packs(as_environment(tmp_path / "env")) == []
    assert not [one for one in (tmp_path / "env").rglob("*") if one.name == "skillpack.json"]


@dataclass
class Flood:
    """A registry whose bodies never end.

    Attributes:
        endpoint: its address.
        sent: bytes of the bodies that it sent.
        headers: more headers of its answers to GET.
        piece: what it sends over and over.
        status: of its answers to GET.
        commit: that it says it is at.
    """

    endpoint: str = ""
    sent: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    piece: bytes = b"x" * 65_536
    status: int = 200
    commit: str = "a" * 40


@pytest.fixture
def flood() -> Iterator[Flood]:
    flood = Flood()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(200, {"Content-Length": "1000"})

        def do_GET(self) -> None:
            self._answer(flood.status, {"Transfer-Encoding": "chunked", **flood.headers})
            self.close_connection = True
            try:
                while flood.sent < 1 << 30:
                    self.wfile.write(b"%x\r\n" % len(flood.piece) + flood.piece + b"\r\n")
                    flood.sent += len(flood.piece)
            except OSError:
                pass  # the client has had enough

        def _answer(self, status: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {"ETag": '"abc"', "X-Repo-Commit": flood.commit, **headers}.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        flood.endpoint = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield flood
        server.shutdown()
        thread.join()


ENOUGH = 64 << 20
"""Bytes that may be on their way when a client hangs up."""


def test_an_index_that_never_ends_is_given_up(flood: Flood) -> None:
    with pytest.raises(NetworkError, match="sends more than"):
        hub.read_file(hub.Registry("hub", flood.endpoint), "acme/x", "releases.jsonl", limit=1_000_000)
    assert flood.sent < ENOUGH


def test_a_compressed_index_that_never_ends_is_given_up(flood: Flood) -> None:
    flood.headers, flood.piece = {"Content-Encoding": "gzip"}, gzip.compress(b"x" * 10_000_000)
    with pytest.raises(NetworkError, match="sends more than"):
        hub.read_file(hub.Registry("hub", flood.endpoint), "acme/x", "releases.jsonl", limit=1_000_000)
    assert flood.sent < ENOUGH


@pytest.mark.parametrize("headers", [{}, {"Content-Encoding": "gzip"}])
def test_a_file_that_never_ends_is_given_up(headers: dict[str, str], flood: Flood, tmp_path: Path) -> None:
    """Whatever its HEAD said: the size in the manifest is what counts."""
    flood.headers = headers
    flood.piece = gzip.compress(b"x" * 10_000_000) if headers else flood.piece
    with pytest.raises((IntegrityError, NetworkError)):
        hub.download_file(hub.Registry("hub", flood.endpoint), "acme/x", "f", revision="main", into=tmp_path, size=1000)
    assert flood.sent < ENOUGH
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < ENOUGH


@pytest.mark.parametrize("headers", [{}, {"Content-Encoding": "gzip"}], ids=["plain", "gzip"])
def test_an_answer_of_an_api_route_that_never_ends_is_given_up(
    headers: dict[str, str], flood: Flood, monkeypatch: pytest.MonkeyPatch
) -> None:
    """huggingface_hub reads such answers whole."""
    monkeypatch.setattr("skillhub.hub.answers.MAX_ANSWER_BYTES", 1_000_000)
    flood.headers = headers
    flood.piece = gzip.compress(b"x" * 10_000_000) if headers else flood.piece
    with pytest.raises(NetworkError, match="sends more than"):
        hub.repository_id(hub.Registry("hub", flood.endpoint), "acme/x")
    assert flood.sent < ENOUGH


@pytest.mark.parametrize("status", [302, 404, 500])
def test_an_error_or_a_redirection_that_never_ends_is_given_up(
    status: int, flood: Flood, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("skillhub.hub.answers.MAX_ANSWER_BYTES", 1_000_000)
    flood.status, flood.headers = status, {"Location": "/elsewhere"}
    registry = hub.Registry("hub", flood.endpoint)
    for ask in (
        lambda: hub.read_file(registry, "acme/x", "releases.jsonl", limit=1_000_000),
        lambda: hub.download_file(registry, "acme/x", "f", into=tmp_path, size=1000),
    ):
        with pytest.raises(NetworkError, match="sends more than"):
            ask()
    assert flood.sent < ENOUGH


@pytest.mark.parametrize("commit", ["../../evil/x", "main", "\x9b31m" + "a" * 37, "a" * 39, ""])
def test_a_commit_that_is_none_is_not_taken(commit: str, flood: Flood) -> None:
    """It would go into addresses, into locks and onto the screen."""
    flood.commit = commit
    with pytest.raises(NetworkError, match="does not answer like"):
        hub.read_file(hub.Registry("hub", flood.endpoint), "acme/x", "releases.jsonl", limit=1000)


@pytest.mark.parametrize(
    "headers",
    [
        {"Retry-After": "31536000"},
        {"Retry-After": "9" * 500},
        {"Retry-After": "Fri, 31 Dec 9999 23:59:59 GMT"},
        {"RateLimit": '"api";r=0;t=' + "9" * 400},
    ],
    ids=["a year", "digits", "a date", "digits of RateLimit"],
)
def test_nobody_waits_as_long_as_a_registry_likes(headers: dict[str, str]) -> None:
    error = HfHubHTTPError("429", response=Response(429, headers=headers, request=Request("GET", "http://x")))
    with pytest.raises(NetworkError, match=r"asks to wait \d+ s") as caught:
        wait_after(hub.Registry("hub", "http://x"), error, 0.0)
    assert json.loads(json.dumps(caught.value.to_json(), allow_nan=False))


@pytest.mark.parametrize("headers", [{"Retry-After": "\xb2"}, {"RateLimit": '"api";r=0;t=' + "9" * 5000}])
def test_a_wait_that_cannot_be_read_is_none(headers: dict[str, str]) -> None:
    assert asked_seconds(Headers({key.encode(): value.encode("latin-1") for key, value in headers.items()})) is None
