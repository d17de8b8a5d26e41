"""A mirror of another Hub: what it takes from there, what it keeps when that is gone, and what it gives to nobody."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from skillhub.errors import UsageError
from skillhub_registry import git
from skillhub_registry.errors import HubError, busy
from skillhub_registry.garbage import collect_garbage
from skillhub_registry.inspection import inspect_registry
from skillhub_registry.outgoing import MissingUpstreamError, UpstreamError, open_way
from skillhub_registry.recency import Recent
from skillhub_registry.registry import open_storage
from skillhub_registry.upstream import Upstream
from tests.registry.sites import publish_releases
from tests.registry.test_upkeep import DAY, place_of
from tests.support.commands import Shell
from tests.support.faults import ALTER, BEFORE, CUT, DROP, ELSEWHERE, FaultyProxy, faulty_proxy, on
from tests.support.hub_client import make_content, run_client
from tests.support.registry_process import RegistryProcess, running_registry
from tests.support.replicas import running_replicas
from tests.support.tampering import put_unchecked

SIZE = 3_000_000
ANEW = ("--mirror-refresh", "0s")


@pytest.fixture(scope="module")
def upstream(folder_registry: RegistryProcess) -> RegistryProcess:
    """The other Hub."""
    return folder_registry


@pytest.fixture(scope="module")
def way(upstream: RegistryProcess) -> Iterator[FaultyProxy]:
    """The way there: everything that is asked of the other Hub passes here."""
    with faulty_proxy(upstream.endpoint) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def mirror(way: FaultyProxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryProcess]:
    """A mirror in a folder, that asks anew each time."""
    with running_registry(tmp_path_factory.mktemp("mirror"), ("--mirror", way.endpoint, *ANEW)) as process:
        yield process


@pytest.fixture(scope="module", params=["folder", "replicas"])
def either(
    request: pytest.FixtureRequest, way: FaultyProxy, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RegistryProcess]:
    """A mirror of each kind, that asks anew each time."""
    if request.param == "folder":
        yield request.getfixturevalue("mirror")
        return
    postgresql, s3 = request.getfixturevalue("postgresql"), request.getfixturevalue("s3")
    folder, options = tmp_path_factory.mktemp("mirrors"), ("--mirror", way.endpoint, *ANEW)
    with running_replicas(folder, postgresql, s3, "mirror", options) as replicas:
        yield replicas


@pytest.fixture(scope="module")
def trusted(way: FaultyProxy, upstream: RegistryProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A mirror whose operator's token sees much on the other Hub, and that does not ask again for an hour."""
    options = ("--mirror", way.endpoint, "--mirror-refresh", "1h", "--max-file-size", "5")
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:  # for this process alone
            patch.setenv("SKILLHUB_REGISTRY_MIRROR_TOKEN", upstream.token)
            process = stack.enter_context(running_registry(tmp_path_factory.mktemp("trusted"), options))
        yield process


@pytest.fixture(autouse=True)
def _forgiving(way: FaultyProxy) -> Iterator[None]:
    """Let the way to the other Hub be good again after each test."""
    way.reset()
    yield
    way.reset()


@pytest.fixture
def author(upstream: RegistryProcess, request: pytest.FixtureRequest) -> HfApi:
    """Who publishes on the other Hub."""
    return HfApi(endpoint=upstream.endpoint, token=upstream.token)


def reader(registry: RegistryProcess) -> HfApi:
    """Return the client of somebody without an account."""
    return HfApi(endpoint=registry.endpoint, token=False)


def organize(upstream: RegistryProcess, name: str) -> str:
    """Make an organisation on the other Hub, a name that is nobody's on the mirrors, and return its name."""
    upstream.add_organization(name, upstream.user)
    return name


def publish(author: HfApi, repository: str, files: dict[str, bytes], **options: Any) -> str:
    """Commit files to a repository, which is made if need be, and return the commit's id."""
    if not author.repo_exists(repository):
        author.create_repo(repository)
    operations = [CommitOperationAdd(path, data) for path, data in files.items()]
    return author.create_commit(repository, operations, commit_message="Files", **options).oid


def get(registry: RegistryProcess, path: str, token: str | None = None, **headers: str) -> httpx2.Response:
    """Ask a registry as a client would, once, and without following redirections but to its storage."""
    bearer = {"Authorization": f"Bearer {token}"} if token else {}
    return httpx2.get(registry.endpoint + path, headers=bearer | headers, timeout=60, follow_redirects=True)


def asked(way: FaultyProxy, words: str) -> list[str]:
    """Return what was asked of the other Hub."""
    return [line for line in way.seen if words in line]


def test_the_stock_client_reads_through_it_and_goes_on_when_the_other_hub_is_gone(
    either: RegistryProcess, upstream: RegistryProcess, way: FaultyProxy, author: HfApi, tmp_path: Path
) -> None:
    name = f"{organize(upstream, f'team{len(either.place)}')}/model"
    publish(author, name, {"README.md": b"---\nlicense: mit\n---\n# Hi\n", "config.json": b'{"model_type": "tiny"}'})
    head = publish(author, name, {"deep/weights.safetensors": make_content(1, SIZE), "b/x.bin": make_content(2, 99)})
    there = {path: get(upstream, f"/{name}/resolve/main/{path}").content for path in author.list_repo_files(name)}
    expected = {path: hashlib.sha256(content).hexdigest() for path, content in there.items()}
    assert run_client(either, tmp_path / "a", "download_all", xet=True, repository=name) == expected
    info = reader(either).model_info(name, files_metadata=True)
    assert info.sha == head and info.card_data is not None and info.card_data.license == "mit"
    assert info.siblings == author.model_info(name, files_metadata=True).siblings
    way.reset(lambda number, method, path: DROP)
    assert run_client(either, tmp_path / "b", "download_all", xet=False, repository=name) == expected
    assert {path: get(either, f"/{name}/resolve/{head}/{path}").content for path in there} == there
    assert [one.id for one in reader(either).list_models(search=name)] == [name]
    page = get(either, f"/{name}", Accept="text/html").text
    assert f'<span class="badge" title="of {way.endpoint}">mirror</span>' in page and "<h1>Hi" in page.replace(
        "h2", "h1"
    )


def test_branches_move_on_and_commits_stay_when_their_history_is_squashed_there(
    either: RegistryProcess, upstream: RegistryProcess, way: FaultyProxy, author: HfApi
) -> None:
    name = f"{organize(upstream, f'moving{len(either.place)}')}/model"
    first = publish(author, name, {"a.txt": b"one", "w.bin": make_content(3, 5000)})
    api = reader(either)
    assert api.model_info(name).sha == first
    second = publish(author, name, {"a.txt": b"two"})
    author.create_tag(name, tag="v1", revision=first)
    author.create_branch(name, branch="side/way", revision=first)
    assert api.model_info(name).sha == second
    assert [commit.commit_id for commit in api.list_repo_commits(name)][:2] == [second, first]
    author.create_branch(name, branch=first[0], revision=first)  # no beginning of an id
    for revision in ("v1", "side/way", first, first[:7], first[0]):
        assert get(either, f"/{name}/resolve/{revision.replace('/', '%2F')}/a.txt").content == b"one"
    refs = api.list_repo_refs(name)
    assert {ref.name for ref in refs.branches} == {"main", "side/way", first[0]} and [
        ref.name for ref in refs.tags
    ] == ["v1"]
    author.super_squash_history(name)
    squashed = author.model_info(name).sha
    assert api.model_info(name).sha == squashed not in (first, second)
    assert get(either, f"/{name}/resolve/{first}/a.txt").content == b"one"
    assert get(either, f"/{name}/resolve/{first}/w.bin").content == make_content(3, 5000)
    author.delete_repo(name)
    assert api.model_info(name).sha == squashed
    assert get(either, f"/{name}/resolve/v1/a.txt").content == b"one"
    with pytest.raises(RevisionNotFoundError):
        api.model_info(name, revision="never")


@pytest.mark.parametrize("fault", [ALTER, CUT])
def test_what_is_not_what_it_should_be_is_given_to_nobody_and_not_kept(
    mirror: RegistryProcess, upstream: RegistryProcess, way: FaultyProxy, author: HfApi, fault: str
) -> None:
    name = f"{organize(upstream, f'damaged{len(fault)}')}/model"
    content = make_content(len(fault), SIZE)
    publish(author, name, {"a.txt": b"text", "w.bin": content})
    way.reset(on("GET", "/a.txt", fault))
    with pytest.raises(HfHubHTTPError) as caught:
        reader(mirror).model_info(name)
    assert caught.value.response.status_code == 502
    way.reset(on("GET", "/w.bin", fault))
    assert reader(mirror).get_paths_info(name, ["w.bin"])[0].size == SIZE  # type: ignore[union-attr]
    try:
        answer = get(mirror, f"/{name}/resolve/main/w.bin")
    except httpx2.RemoteProtocolError:
        pass  # it ended before the whole was there
    else:
        assert answer.status_code == 502
    (file,) = author.get_paths_info(name, ["w.bin"])
    assert mirror.read_blob(file.lfs.sha256) is None  # type: ignore[union-attr]
    way.reset()
    assert get(mirror, f"/{name}/resolve/main/w.bin").content == content
    assert mirror.arriving() == []


@contextmanager
def hostile_hub(way: FaultyProxy, entries: list[dict[str, Any]], contents: dict[str, bytes]) -> Iterator[None]:
    """Lead the mirrors to a Hub that has one repository, ``evil/model``, and lists in it what it likes."""
    commit, model = "c" * 40, "/api/models/evil/model"
    told = {"id": "evil/model", "sha": commit, "private": False, "gated": False}
    answers = {
        f"{model}/revision/main": json.dumps(told).encode(),
        f"{model}/tree/{commit}": json.dumps(entries).encode(),
        f"{model}/commits/{commit}": json.dumps([{"id": commit, "title": "", "date": "2026-01-01T00:00:00Z"}]).encode(),
        **{f"/evil/model/resolve/{commit}/{path}": content for path, content in contents.items()},
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = answers.get(self.path.partition("?")[0])
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, format: str, *args: Any) -> None:
            pass

    there = way.upstream
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        way.upstream = f"http://127.0.0.1:{server.server_port}"
        try:
            yield
        finally:
            way.upstream = there
            server.shutdown()
            thread.join()


def list_regular(path: str, content: bytes) -> dict[str, Any]:
    """Return a file that is kept in git as a Hub lists it."""
    return {"type": "file", "path": path, "oid": git.object_id("blob", content), "size": len(content)}


def list_large(path: str, content: bytes) -> dict[str, Any]:
    """Return a large file as a Hub lists it."""
    sha256, size = hashlib.sha256(content).hexdigest(), len(content)
    entry = list_regular(path, git.lfs_pointer(sha256, size))
    return {**entry, "size": size, "lfs": {"oid": sha256, "size": size}}


def test_a_hub_that_lists_what_is_anothers_gets_nobody_access_to_it(mirror: RegistryProcess, way: FaultyProxy) -> None:
    ours = HfApi(endpoint=mirror.endpoint, token=mirror.token)
    text, weights = b"a secret text", make_content(31, 5000)
    publish(ours, f"{mirror.user}/secret", {"a.txt": text, "w.bin": weights})
    ours.update_repo_settings(f"{mirror.user}/secret", private=True)
    large, regular = list_large("w.bin", weights), list_regular("a.txt", text)
    pointer = git.lfs_pointer(large["lfs"]["oid"], len(weights))
    for entry, content in (
        (regular, b""),  # known by its id only
        (list_regular("pointer", pointer), pointer),
        ({**large, "oid": regular["oid"]}, b""),
        ({**regular, "path": "../a.txt"}, text),
        ({**regular, "path": ".git/config"}, text),
        ({**regular, "size": -1}, text),
        ({**regular, "size": 10**15}, text),
        ({**regular, "oid": "main"}, text),
    ):
        with hostile_hub(way, [entry], {entry["path"]: content}):
            answer = get(mirror, "/api/models/evil/model")
            assert (answer.status_code, answer.headers["X-Error-Code"]) == (502, "UpstreamFailed"), entry
    with hostile_hub(way, [large], {"w.bin": b"\0" * len(weights)}):
        assert get(mirror, "/api/models/evil/model").json()["siblings"] == [{"rfilename": "w.bin"}]
        for headers in ({}, {"Range": "bytes=0-10"}):
            try:
                answer = get(mirror, "/evil/model/resolve/main/w.bin", None, **headers)
            except httpx2.RemoteProtocolError:
                continue
            assert answer.status_code == 502, answer.content[:20]
    with hostile_hub(way, [large], {"w.bin": weights}):
        assert get(mirror, "/evil/model/resolve/main/w.bin").content == weights  # whoever has it may show it


def test_many_who_want_a_file_fetch_it_once(
    either: RegistryProcess, upstream: RegistryProcess, way: FaultyProxy, author: HfApi
) -> None:
    name = f"{organize(upstream, f'crowd{len(either.place)}')}/model"
    content = make_content(7, 2 * SIZE)
    publish(author, name, {"w.bin": content})
    members = getattr(either, "members", (either,))
    start = threading.Barrier(8)

    def fetch(number: int) -> bool:
        start.wait()
        span = {"Range": f"bytes={number}-"} if number % 2 else {}
        answer = get(either, f"/{name}/resolve/main/w.bin", **span)
        return answer.content == content[number if number % 2 else 0 :]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(fetch, range(8))) == [True] * 8
    assert len(asked(way, "/w.bin")) <= len(members)
    assert 1 <= len(asked(way, "/commits/")) <= len(members)


def test_a_mirror_is_changed_by_nobody(mirror: RegistryProcess, upstream: RegistryProcess, author: HfApi) -> None:
    owner = organize(upstream, "fixed")
    name = f"{owner}/model"
    head = publish(author, name, {"a.txt": b"text"})
    api = HfApi(endpoint=mirror.endpoint, token=mirror.token)
    assert api.model_info(name).sha == head
    for change in (
        lambda: publish(api, name, {"a.txt": b"other"}, create_pr=True),
        lambda: api.create_branch(name, branch="mine"),
        lambda: api.super_squash_history(name),
        lambda: api.create_discussion(name, title="Hello"),
        lambda: api.delete_repo(name),
        lambda: api.move_repo(name, f"{mirror.user}/taken"),
        lambda: api.update_repo_settings(name, private=True),
    ):
        with pytest.raises(HfHubHTTPError, match="is a mirror and changes with") as caught:
            change()
        assert caught.value.response.status_code == 403
    with pytest.raises(HfHubHTTPError, match="is a mirror"):
        api.duplicate_repo(name, f"{mirror.user}/copy")
    with pytest.raises(HfHubHTTPError, match="no write access to the namespace"):
        api.create_repo(f"{owner}/other")
    for command in (("org", "add", owner), ("user", "add", owner)):
        with pytest.raises(RuntimeError, match="is taken"):
            mirror.run(*command)
    with pytest.raises(RuntimeError, match="came with a mirrored repository"):
        mirror.run("org", "join", owner, mirror.user)
    assert owner not in mirror.run("org", "list")
    assert name in mirror.run("mirror", "list")


def test_names_that_are_somebodys_here_are_never_asked_for_there(
    mirror: RegistryProcess, upstream: RegistryProcess, way: FaultyProxy, author: HfApi
) -> None:
    owner = organize(upstream, "both")
    publish(author, f"{owner}/theirs", {"a.txt": b"theirs"})
    publish(author, f"{owner}/ours", {"a.txt": b"theirs"})
    mirror.add_organization(owner.upper(), mirror.user)
    ours = HfApi(endpoint=mirror.endpoint, token=mirror.token)
    publish(ours, f"{owner.upper()}/ours", {"a.txt": b"ours"})
    assert get(mirror, f"/{owner}/ours/resolve/main/a.txt").content == b"ours"
    for path in (f"/api/models/{owner}/theirs", f"/{owner}/theirs/resolve/main/a.txt"):
        assert get(mirror, path).headers["X-Error-Code"] == "RepoNotFound"
    assert way.seen == []


def test_what_is_nowhere_is_not_found_and_not_asked_for_again(trusted: RegistryProcess, way: FaultyProxy) -> None:
    for _ in range(3):
        with pytest.raises(RepositoryNotFoundError):
            reader(trusted).model_info("nobody/nothing")
    assert len(way.seen) == 1
    for path in ("/api/models/..%2F..%2Fetc/passwd", "/api/models/a--b/c", "/a/b/resolve/main%3Fx/..%2Fy", "/a/b.git"):
        assert get(trusted, path).status_code in (400, 404)
    assert len(way.seen) == 1
    way.reset(lambda number, method, path: BEFORE)
    answer = get(trusted, "/api/models/somebody/something")
    assert (answer.status_code, answer.headers["X-Error-Code"]) == (502, "UpstreamFailed")


def test_what_is_too_large_here_is_not_fetched(
    trusted: RegistryProcess, upstream: RegistryProcess, way: FaultyProxy, author: HfApi
) -> None:
    name = f"{organize(upstream, 'heavy')}/model"
    publish(author, name, {"a.txt": b"text", "w.bin": make_content(41, 5_000_001)})
    assert get(trusted, f"/{name}/resolve/main/a.txt").content == b"text"
    assert get(trusted, f"/{name}/resolve/main/w.bin").status_code == 413
    assert asked(way, "/w.bin") == []


def test_a_token_that_is_worthless_there_is_not_taken_for_repositories_that_are_missing(way: FaultyProxy) -> None:
    hub = Upstream(open_way(way.endpoint, "hf_expired"))
    with pytest.raises(UpstreamError, match="does not take the token") as caught:
        hub.find_head("nobody/nothing", "main")
    assert not isinstance(caught.value, MissingUpstreamError)
    assert "hf_expired" not in repr(hub) + str(caught.value)
    hub.close()


def test_a_mirror_of_itself_finds_nothing_and_does_not_wait_for_it(mirror: RegistryProcess, way: FaultyProxy) -> None:
    there, way.upstream = way.upstream, mirror.endpoint
    try:
        with pytest.raises(RepositoryNotFoundError):
            reader(mirror).model_info("round/about")
    finally:
        way.upstream = there
    assert len(way.seen) == 1


def test_what_is_private_there_is_nobodys_here_and_what_is_gated_is_for_accounts(
    trusted: RegistryProcess, mirror: RegistryProcess, upstream: RegistryProcess, author: HfApi
) -> None:
    owner = organize(upstream, "closed")
    publish(author, f"{owner}/secret", {"a.txt": b"secret"})
    author.update_repo_settings(f"{owner}/secret", private=True)
    for token in (None, trusted.token):
        for path in (f"/api/models/{owner}/secret", f"/{owner}/secret/resolve/main/a.txt"):
            assert get(trusted, path, token).headers["X-Error-Code"] == "RepoNotFound"
    publish(author, f"{owner}/gated", {"a.txt": b"gated", "w.bin": make_content(5, 5000)})
    author.update_repo_settings(f"{owner}/gated", gated="manual")
    assert reader(trusted).model_info(f"{owner}/gated").gated == "manual"
    for path, content in (("a.txt", b"gated"), ("w.bin", make_content(5, 5000))):
        refused = get(trusted, f"/{owner}/gated/resolve/main/{path}")
        assert (refused.status_code, refused.headers["X-Error-Code"]) == (401, "GatedRepo")
        assert get(trusted, f"/{owner}/gated/resolve/main/{path}", trusted.token).content == content
    with pytest.raises(GatedRepoError, match="operator has to give it a token"):
        reader(mirror).model_info(f"{owner}/gated")


def test_the_token_goes_to_the_other_hub_and_nowhere_else(
    trusted: RegistryProcess, upstream: RegistryProcess, way: FaultyProxy, author: HfApi
) -> None:
    name = f"{organize(upstream, 'sent-on')}/model"
    content = make_content(11, 5000)
    publish(author, name, {"a.txt": b"text", "w.bin": content})
    with faulty_proxy(upstream.endpoint) as elsewhere:
        way.reset(on("GET", "/resolve/", ELSEWHERE + elsewhere.endpoint))
        assert get(trusted, f"/{name}/resolve/main/a.txt").content == b"text"
        assert get(trusted, f"/{name}/resolve/main/w.bin").content == content
        assert way.heard and all(f"Bearer {upstream.token}" in said for said in way.heard)
        assert len(elsewhere.heard) == 3 and not any("authorization" in said.lower() for said in elsewhere.heard)
        way.reset(on("GET", "/api/", ELSEWHERE + elsewhere.endpoint))
        assert get(trusted, f"/api/models/{name}/revision/other").status_code == 502
        assert len(elsewhere.heard) == 3


def test_redirections_lead_out_of_no_encryption_and_into_no_private_network() -> None:
    public, inside = open_way("https://hub.example/", "hf_x"), open_way("http://10.0.0.1:80", None)
    assert public.may_go("https://cdn.example/x", False) and public.may_go("https://hub.example:443/x", True)
    for url in (
        *("http://cdn.example/x", "https://127.0.0.1/x", "https://169.254.169.254/x", "https://[::1]/x"),
        *("https://localhost/x", "https://user:word@cdn.example/x", "file:///etc/passwd", "https://10.1.2.3/x"),
    ):
        assert not public.may_go(url, False), url
    assert not public.may_go("https://cdn.example/x", True)
    assert inside.may_go("http://10.0.0.2/x", False)
    assert "Authorization" not in public.make_headers("https://hub.example.evil/x")
    assert "Authorization" not in public.make_headers("http://hub.example/x")
    for address, token in (("hub.example", None), ("https://u:p@hub.example", None), ("http://hub.example", "hf_x")):
        with pytest.raises(UsageError):
            open_way(address, token)
    public.close()
    inside.close()


def test_published_releases_stay_when_the_other_hub_rewrites_them(
    mirror: RegistryProcess, upstream: RegistryProcess, author: HfApi, tmp_path: Path
) -> None:
    name = f"{organize(upstream, 'packs')}/math-pack"
    publish_releases(author, name, tmp_path / "pack", 2)
    api = reader(mirror)
    head = api.model_info(name).sha
    there, here = (
        httpx2.get(f"{registry.endpoint}/api/models/{name}/tree/main/releases?expand=true").json()
        for registry in (upstream, mirror)
    )
    assert [entry["lastCommit"]["date"] for entry in here] == [entry["lastCommit"]["date"] for entry in there]
    index = get(mirror, f"/{name}/resolve/main/releases.jsonl").content
    put_unchecked(upstream, upstream.token, name, {"releases.jsonl": index.replace(b"1.1", b"1.2")})
    assert api.model_info(name).sha == head
    put_unchecked(upstream, upstream.token, name, {"releases.jsonl": index, "README.md": b"# New\n"})
    assert api.model_info(name).sha == author.model_info(name).sha != head


def test_a_pack_is_installed_locked_and_verified_from_it_when_the_other_hub_is_gone(
    trusted: RegistryProcess, upstream: RegistryProcess, way: FaultyProxy, author: HfApi, tmp_path: Path
) -> None:
    from tests.support.packs import BASE

    name = f"{organize(upstream, 'gone')}/math-pack"
    publish_releases(author, name, tmp_path / "pack", 2)
    shells = []
    for place in ("first", "second"):
        (tmp_path / place).mkdir()
        shells.append(Shell(tmp_path / place, trusted.endpoint, trusted.token))
    shells[0].succeed("init", "--base", BASE)
    shells[0].succeed("install", name)
    way.reset(lambda number, method, path: DROP)
    for file in ("skillhub.toml", "skillhub.lock"):
        (tmp_path / "second" / file).write_bytes((tmp_path / "first" / file).read_bytes())
    shells[1].succeed("install")
    assert shells[1].json("verify")
    assert (tmp_path / "second" / "skillhub.lock").read_bytes() == (tmp_path / "first" / "skillhub.lock").read_bytes()


def test_what_is_mirrored_is_whole_and_is_no_garbage(
    either: RegistryProcess, upstream: RegistryProcess, author: HfApi
) -> None:
    name = f"{organize(upstream, f'kept{len(either.place)}')}/model"
    first = publish(author, name, {"a.txt": b"first", "w.bin": make_content(21, 5000), "not-asked.bin": b"\0" * 99})
    api = reader(either)
    assert api.model_info(name).sha == first
    assert get(either, f"/{name}/resolve/main/w.bin").content == make_content(21, 5000)
    publish(author, name, {"a.txt": b"second", "w.bin": make_content(22, 5000)})
    author.super_squash_history(name)
    assert api.model_info(name).sha != first
    with either.open_database() as database:
        store = open_storage(place_of(either))
        assert list(inspect_registry(database, store)) == []
        collect_garbage(database, store)
        collect_garbage(database, store, grace=0, now=int(time.time()) + 2 * DAY)
    assert get(either, f"/{name}/resolve/{first}/a.txt").content == b"first"
    assert get(either, f"/{name}/resolve/{first}/w.bin").content == make_content(21, 5000)
    with either.open_database() as database:
        assert list(inspect_registry(database, store)) == []


def test_a_dropped_mirror_is_fetched_again_unless_its_name_is_somebodys_by_then(
    mirror: RegistryProcess, upstream: RegistryProcess, author: HfApi
) -> None:
    owner = organize(upstream, "dropped")
    head = publish(author, f"{owner}/model", {"a.txt": b"text"})
    api = reader(mirror)
    assert api.model_info(f"{owner}/model").sha == head
    mirror.run("mirror", "drop", f"{owner}/model")
    assert api.model_info(f"{owner}/model").sha == head
    mirror.run("mirror", "drop", owner)
    mirror.add_organization(owner)
    with pytest.raises(RepositoryNotFoundError):
        api.model_info(f"{owner}/model")
    assert owner not in [one["name"].partition("/")[0] for one in json.loads(mirror.run("mirror", "list", "--json"))]


def test_repositories_that_moved_there_move_here_and_another_one_of_the_name_is_not_taken(
    mirror: RegistryProcess, upstream: RegistryProcess, author: HfApi
) -> None:
    owner = organize(upstream, "renamed")
    head = publish(author, f"{owner}/old", {"a.txt": b"text"})
    api = reader(mirror)
    assert api.model_info(f"{owner}/old").sha == head
    author.move_repo(f"{owner}/old", f"{owner}/new")
    assert api.model_info(f"{owner}/new").sha == head
    assert get(mirror, f"/{owner}/old/resolve/main/a.txt").content == b"text"
    author.delete_repo(f"{owner}/new")
    publish(author, f"{owner}/new", {"a.txt": b"a stranger's"})
    assert get(mirror, f"/{owner}/new/resolve/main/a.txt").content == b"text"


def test_a_hub_that_does_not_answer_is_left_alone_for_a_while(
    trusted: RegistryProcess, upstream: RegistryProcess, way: FaultyProxy, author: HfApi
) -> None:
    name = f"{organize(upstream, 'waiting')}/model"
    head = publish(author, name, {"a.txt": b"text"})
    api = reader(trusted)
    assert api.model_info(name).sha == api.model_info(name, revision=head[:8]).sha == head
    assert len(asked(way, f"/revision/{head[:8]}?")) == 1
    way.reset(lambda number, method, path: DROP)
    for _ in range(2):
        assert get(trusted, f"/api/models/{name}/revision/other").status_code == 502  # it is not here
    assert len(way.seen) == 1
    way.reset()
    assert api.model_info(name, revision=head[:9]).sha == head
    assert way.seen == []


def test_what_was_done_lately_is_done_again_after_a_while_and_by_one_at_a_time() -> None:
    now, done = [0.0], []
    recent = Recent(60, lambda: now[0])

    def fail() -> None:
        done.append(now[0])
        raise busy()

    for moment in (0.0, 59.0, 60.0):
        now[0] = moment
        with pytest.raises(HubError, match="busy"):
            recent.run("key", fail)
    assert done == [0.0, 60.0]
    recent.run("another", lambda: done.append(1.0))
    assert done == [0.0, 60.0, 1.0]
