"""What installing and publishing do when the network goes wrong: at every request, in every way."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from skillhub import hub
from skillhub.environments import as_environment, installed_packs
from skillhub.errors import IntegrityError, NetworkError, SkillhubError
from skillhub.files import sha256_of_file
from skillhub.installer import install, lock, sync, upgrade
from skillhub.integrity import verify
from skillhub.packs import Pack
from skillhub.publisher import publish
from skillhub.releases import parse_releases
from skillhub.sessions import Session
from skillhub.store import default_store
from skillhub.transactions import Terms
from tests.support.faults import (
    AFTER,
    ALTER,
    BEFORE,
    CUT,
    DROP,
    DROP_AFTER,
    LENGTHEN,
    FaultyProxy,
    at,
    faulty_proxy,
    on,
)
from tests.support.packs import BASE, make_pack
from tests.support.registry_process import RegistryProcess

NAME = "faults/steady-pack"

# huggingface_hub's own way of sending LFS files
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(scope="module")
def running_proxy(registry: RegistryProcess) -> Iterator[FaultyProxy]:
    with faulty_proxy(registry.endpoint) as running:
        yield running


@pytest.fixture
def proxy(running_proxy: FaultyProxy) -> FaultyProxy:
    """The proxy, with nothing going wrong yet."""
    running_proxy.reset()
    return running_proxy


@pytest.fixture(scope="module")
def direct(registry: RegistryProcess) -> hub.Registry:
    """The registry itself, for its owner."""
    return hub.Registry("hub", registry.endpoint, registry.add_user("faults"))


@pytest.fixture(scope="module")
def published(direct: hub.Registry, tmp_path_factory: pytest.TempPathFactory) -> Pack:
    folder = tmp_path_factory.mktemp("published")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKILLHUB_STATE", str(folder / "state"))
        pack = make_pack(folder / "pack", "steady-pack", files=1)
        publish(pack, NAME, registry=direct)
    return pack


@pytest.fixture
def quick(homes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries without waiting, and uploads that the proxy can see into."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)


def blobs() -> list[str]:
    """Return the blobs of the store, each of which must be what its name says."""
    found = [path for path in (default_store().folder / "sha256").rglob("*") if path.is_file()]
    assert all(sha256_of_file(path) == path.name for path in found)
    return [path.name for path in found]


def versions(direct: hub.Registry, name: str) -> list[str]:
    """Return the published versions; the index must be whole."""
    if hub.repository_head(direct, name) is None:
        return []
    read = hub.read_releases(direct, name)
    return [str(release.version) for release in parse_releases(read.data).releases] if read else []


@pytest.mark.parametrize("fault", [BEFORE, AFTER, DROP, DROP_AFTER])
@pytest.mark.usefixtures("quick")
def test_publishing_survives_a_fault_at_every_request(
    proxy: FaultyProxy, direct: hub.Registry, tmp_path: Path, fault: str
) -> None:
    through = hub.Registry("hub", proxy.endpoint, direct.token)
    kind = [BEFORE, AFTER, DROP, DROP_AFTER].index(fault)
    for number in count():
        name = f"shaky-{kind}-{number}"
        pack = make_pack(tmp_path / name, name, files=1, size=100)
        proxy.reset(at(number, fault))
        try:
            publish(pack, f"faults/{name}", registry=through)
        except NetworkError:
            assert versions(direct, f"faults/{name}") in ([], ["1.0.0"])
            fired = True
            proxy.reset()
            publish(pack, f"faults/{name}", registry=through)
        else:
            fired = number < len(proxy.seen)
        assert versions(direct, f"faults/{name}") == ["1.0.0"]
        if not fired:
            break
    assert number > 8


@pytest.mark.parametrize("fault", [AFTER, DROP_AFTER])
@pytest.mark.usefixtures("quick")
def test_a_commit_that_landed_is_recognised(
    proxy: FaultyProxy, direct: hub.Registry, tmp_path: Path, fault: str
) -> None:
    name = f"landed-{'after' if fault == AFTER else 'drop'}"
    proxy.reset(on("POST", "/commit/", fault))
    publish(
        make_pack(tmp_path / name, name), f"faults/{name}", registry=hub.Registry("hub", proxy.endpoint, direct.token)
    )
    assert sum("/commit/" in request for request in proxy.seen) == 1
    assert versions(direct, f"faults/{name}") == ["1.0.0"]
    api = HfApi(endpoint=direct.endpoint, token=direct.token)
    assert [commit.title for commit in api.list_repo_commits(f"faults/{name}")].count("Release 1.0.0") == 1
    assert [tag.name for tag in api.list_repo_refs(f"faults/{name}").tags] == ["v1.0.0"]


@pytest.mark.usefixtures("quick")
def test_commits_that_never_land_end_in_a_network_error(
    proxy: FaultyProxy, direct: hub.Registry, tmp_path: Path
) -> None:
    proxy.reset(on("POST", "/commit/", BEFORE))
    pack = make_pack(tmp_path / "never", "never-pack")
    with pytest.raises(NetworkError, match="answered 500") as caught:
        publish(pack, "faults/never-pack", registry=hub.Registry("hub", proxy.endpoint, direct.token))
    assert caught.value.exit_code == 8
    assert versions(direct, "faults/never-pack") == []


@pytest.mark.usefixtures("quick")
def test_a_tag_that_cannot_be_made_is_told(proxy: FaultyProxy, direct: hub.Registry, tmp_path: Path) -> None:
    proxy.reset(on("POST", "/tag/", BEFORE))
    pack = make_pack(tmp_path / "untagged", "untagged-pack")
    notes: list[str] = []
    through = hub.Registry("hub", proxy.endpoint, direct.token)
    publish(pack, "faults/untagged-pack", registry=through, notice=notes.append)
    assert "its tag v1.0.0 could not be made" in notes[-1]
    assert versions(direct, "faults/untagged-pack") == ["1.0.0"]


@pytest.mark.parametrize("fault", [BEFORE, AFTER, DROP, CUT, ALTER])
@pytest.mark.usefixtures("quick", "published")
def test_installing_survives_a_fault_at_every_request(
    proxy: FaultyProxy, tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    through = hub.Registry("hub", proxy.endpoint)
    for number in count():
        monkeypatch.setenv("SKILLHUB_CACHE", str(tmp_path / f"cache{number}"))
        monkeypatch.setenv("SKILLHUB_STATE", str(tmp_path / f"state{number}"))
        env = tmp_path / f"env{number}"
        proxy.reset(at(number, fault))
        try:
            install([NAME], environment=env, registry=through)
        except SkillhubError as error:
            assert isinstance(error, IntegrityError if fault == ALTER else NetworkError), error
            assert installed_packs(as_environment(env)) == []
            assert not (env / "skillhub.toml").exists()
            blobs()
            fired = True
            proxy.reset()
            install([NAME], environment=env, registry=through)
        else:
            fired = number < len(proxy.seen)
        assert verify(env) == []
        assert len(installed_packs(as_environment(env))) == 1
        blobs()
        if not fired:
            break
    assert number > 6


@pytest.mark.parametrize(
    ("fault", "expected"), [(ALTER, IntegrityError), (LENGTHEN, IntegrityError), (CUT, NetworkError)]
)
@pytest.mark.usefixtures("quick")
def test_bytes_that_stay_wrong_never_enter_the_store(
    proxy: FaultyProxy, published: Pack, tmp_path: Path, fault: str, expected: type[SkillhubError]
) -> None:
    proxy.reset(on("GET", ".safetensors", fault))
    with pytest.raises(expected) as caught:
        install([NAME], environment=tmp_path / "env", registry=hub.Registry("hub", proxy.endpoint))
    assert caught.value.exit_code == (6 if expected is IntegrityError else 8)
    payload = next(one for one in published.manifest.variants[0].files if one.path.endswith(".safetensors"))
    assert payload.sha256 not in blobs()
    assert installed_packs(as_environment(tmp_path / "env")) == []


@pytest.mark.usefixtures("quick", "published")
def test_what_had_arrived_is_not_downloaded_again(proxy: FaultyProxy, tmp_path: Path) -> None:
    through = hub.Registry("hub", proxy.endpoint)
    proxy.reset(on("GET", ".safetensors", CUT))
    with pytest.raises(NetworkError):
        install([NAME], environment=tmp_path / "env", registry=through)
    begun = list((default_store().folder / "staging").rglob("*.safetensors"))
    assert begun and all(path.stat().st_size for path in begun)
    proxy.reset()
    install([NAME], environment=tmp_path / "env", registry=through)
    asked = [request for request in proxy.heard if "GET" in request and ".safetensors" in request.splitlines()[0]]
    assert asked and all("range: bytes=" in request.lower() for request in asked)
    assert verify(tmp_path / "env") == []
    assert not list((default_store().folder / "staging").iterdir())


@pytest.mark.usefixtures("quick", "published")
def test_an_altered_index_or_manifest(proxy: FaultyProxy, tmp_path: Path) -> None:
    for words in ("releases.jsonl", "skillpack.json"):
        proxy.reset(on("GET", words, ALTER))
        with pytest.raises(IntegrityError):
            install([NAME], environment=tmp_path / "env", registry=hub.Registry("hub", proxy.endpoint))
        assert blobs() == []


@pytest.mark.usefixtures("quick", "published")
def test_a_second_install_asks_once_and_downloads_nothing(proxy: FaultyProxy, tmp_path: Path) -> None:
    through = hub.Registry("hub", proxy.endpoint)
    install([NAME], environment=tmp_path / "one", registry=through)
    proxy.reset()
    install([NAME], environment=tmp_path / "two", registry=through)
    assert proxy.seen == [f"HEAD /{NAME}/resolve/main/releases.jsonl"]
    proxy.reset()
    install([NAME], environment=tmp_path / "two", registry=through)
    install([], environment=tmp_path / "two", registry=through)
    assert proxy.seen == []


@pytest.mark.usefixtures("quick", "published")
def test_only_the_identity_of_a_repository_takes_an_api_route_and_only_once(proxy: FaultyProxy, tmp_path: Path) -> None:
    """Registries allow few requests of that kind; what is resolved and downloaded comes as files."""
    through = hub.Registry("hub", proxy.endpoint)
    proxy.reset()
    install([NAME], environment=tmp_path / "env", registry=through)
    assert [request for request in proxy.seen if "/api/" in request] == [f"GET /api/models/{NAME}?expand=sha"]
    proxy.reset()
    install([NAME], environment=tmp_path / "other", registry=through)
    lock(Session(through), as_environment(tmp_path / "other"), Terms())
    assert proxy.seen and not [request for request in proxy.seen if "/api/" in request]


@pytest.mark.usefixtures("quick")
def test_resolving_asks_once_a_pack_when_nothing_has_changed_and_not_at_all_offline(
    proxy: FaultyProxy, direct: hub.Registry, tmp_path: Path
) -> None:
    names = [f"faults/counted-{number}" for number in range(5)]
    for name, below in zip(names, [*names[1:], None], strict=True):
        pack = make_pack(tmp_path / name, name.partition("/")[2], size=100, requires=[below] if below else [])
        publish(pack, name, registry=direct)
    through = hub.Registry("hub", proxy.endpoint)
    install([names[0]], base=BASE, environment=tmp_path / "one", registry=through)
    proxy.reset()
    install([names[0]], base=BASE, environment=tmp_path / "two", registry=through)
    lock(Session(through), as_environment(tmp_path / "two"), Terms())
    once = [f"HEAD /{name}/resolve/main/releases.jsonl" for name in names]
    assert sorted(proxy.seen) == sorted(once * 2)
    proxy.reset()
    offline = Session(through, offline=True)
    upgrade(offline, as_environment(tmp_path / "two"), [], Terms())
    install([names[0]], base=BASE, environment=tmp_path / "three", registry=through, offline=True)
    sync(Session(through), as_environment(tmp_path / "two"), Terms())
    assert proxy.seen == []
    assert len(installed_packs(as_environment(tmp_path / "three"))) == len(names)


@pytest.mark.usefixtures("quick", "published")
def test_no_token_reaches_another_registry(
    proxy: FaultyProxy, direct: hub.Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_ambient_token")
    monkeypatch.setenv("HF_ENDPOINT", direct.endpoint)
    seen: list[str | None] = []
    from tests.support import faults

    original = faults._Handler._serve

    def spy(self: faults._Handler) -> None:
        seen.append(self.headers.get("Authorization"))
        original(self)

    for method in ("GET", "HEAD", "POST"):
        monkeypatch.setattr(faults._Handler, f"do_{method}", spy)
    proxy.reset()
    install([NAME], environment=tmp_path / "env", registry=proxy.endpoint)
    with pytest.raises(SkillhubError):
        install(["unknown-short-name"], environment=tmp_path / "env", registry=proxy.endpoint)
    assert len(seen) > 5
    assert set(seen) == {None}
