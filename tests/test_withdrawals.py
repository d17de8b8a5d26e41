"""Yanking, unyanking and deprecating: as processes, with answers that lie, and several at once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from skillhub import hub
from skillhub.announcements import Access
from skillhub.errors import AuthError, NetworkError, NotFoundError, UsageError
from skillhub.manifest import parse_manifest
from skillhub.publisher import publish
from skillhub.releases import ReleaseIndex, parse_releases
from skillhub.withdrawals import deprecate, unyank, yank
from tests.support.commands import Shell
from tests.support.faults import AFTER, BEFORE, DROP, DROP_AFTER, FaultyProxy, at, faulty_proxy, on
from tests.support.packs import make_pack
from tests.support.registry_process import RegistryProcess


@pytest.fixture(scope="module")
def owner(registry: RegistryProcess) -> hub.Registry:
    return hub.Registry("hub", registry.endpoint, registry.add_user("withdrawer"))


@pytest.fixture
def proxy(registry: RegistryProcess) -> Iterator[FaultyProxy]:
    with faulty_proxy(registry.endpoint) as running:
        yield running


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)


def make_released(owner: hub.Registry, folder: Path, name: str, *versions: str) -> str:
    """Publish these versions of a pack and return its full name."""
    for version in versions:
        publish(make_pack(folder / version, name, version, files=1, size=200), f"withdrawer/{name}", registry=owner)
    return f"withdrawer/{name}"


def data_of(owner: hub.Registry, name: str) -> bytes:
    read = hub.read_releases(owner, name)
    assert read is not None
    return read.data


def index_of(owner: hub.Registry, name: str) -> ReleaseIndex:
    return parse_releases(data_of(owner, name))


def yanked(owner: hub.Registry, name: str) -> dict[str, str]:
    return {str(one.version): one.yanked for one in index_of(owner, name).releases if one.yanked is not None}


def shown(owner: hub.Registry, name: str) -> tuple[str, str]:
    """Return the version of the root manifest, and the page."""
    root = hub.read_file(owner, name, "skillpack.json", limit=1 << 20)
    page = hub.read_file(owner, name, "README.md", limit=1 << 20)
    assert root is not None and page is not None
    return parse_manifest(root.data).version, page.data.decode()


@pytest.mark.usefixtures("homes")
def test_a_yanked_release_is_chosen_by_locks_only(
    owner: hub.Registry, registry: RegistryProcess, tmp_path: Path
) -> None:
    name = make_released(owner, tmp_path / "packs", "life-cycle", "1.0", "1.1")
    shell = Shell(tmp_path, registry.endpoint, owner.token)
    shell.succeed("install", name, "-e", "before")
    assert shell.succeed("yank", f"{name}==1.1", "--reason", "wrong weights") == f"Yanked {name} 1.1.\n"
    assert yanked(owner, name) == {"1.1": "wrong weights"}
    version, page = shown(owner, name)
    assert version == "1.0" and "describes version 1.0:" in page
    shell.succeed("install", name, "-e", "after")
    assert [one["version"] for one in shell.json("list", "-e", "after")["packs"]] == ["1.0"]
    shell.succeed("sync", "-e", "before")
    assert [one["version"] for one in shell.json("list", "-e", "before")["packs"]] == ["1.1"]

    data = data_of(owner, name)
    assert "already" in shell.succeed("yank", f"{name}==1.1")
    told = shell.json("yank", f"{name}==1.1", "--reason", "wrong weights")
    assert told["already_so"] and told["commit"] is None and data_of(owner, name) == data
    shell.succeed("yank", f"{name}==1.1", "--reason", "worse than that")
    assert yanked(owner, name) == {"1.1": "worse than that"}

    told = shell.json("unyank", f"{name}==1.1")
    assert (told["event"], told["version"], told["already_so"]) == ("unyank", "1.1", False)
    assert told["commit"] == hub.repository_head(owner, name)
    assert yanked(owner, name) == {} and shown(owner, name)[0] == "1.1"
    assert f"{name} 1.1 is not yanked" in shell.succeed("unyank", f"{name}==1.1")


@pytest.mark.usefixtures("homes")
def test_a_pack_without_a_standing_release_says_so_on_its_page(owner: hub.Registry, tmp_path: Path) -> None:
    name = make_released(owner, tmp_path, "all-gone", "1.0", "1.1rc1")
    yank(f"{name}==1.0", Access(owner), reason="bad")
    assert "describes version 1.1rc1:" in shown(owner, name)[1]
    yank(f"{name}==1.1rc1", Access(owner), reason="worse")
    version, page = shown(owner, name)
    assert version == "1.0" and "Version 1.1rc1 was withdrawn: worse" in page
    unyank("all-gone==1.0", Access(owner))
    assert "withdrawn" not in shown(owner, name)[1]


@pytest.mark.usefixtures("homes")
def test_deprecating_is_told_to_whoever_installs(
    owner: hub.Registry, registry: RegistryProcess, tmp_path: Path
) -> None:
    name = make_released(owner, tmp_path / "packs", "old-pack", "1.0")
    shell = Shell(tmp_path, registry.endpoint, owner.token)
    assert shell.succeed("deprecate", name, "--reason", "use acme/new") == f"Deprecated {name}.\n"
    assert "already" in shell.succeed("deprecate", name)
    assert index_of(owner, name).deprecated == "use acme/new"
    assert "This pack is deprecated: use acme/new" in shown(owner, name)[1]
    done = shell.run("install", name, "-e", "env")
    assert done.returncode == 0 and "is deprecated: use acme/new" in done.stderr
    assert not shell.json("deprecate", name, "--reason", "use acme/newer")["already_so"]
    assert index_of(owner, name).deprecated == "use acme/newer"
    make_pack(tmp_path / "next", "old-pack", "1.1")
    done = shell.run("publish", "next", name)
    assert done.returncode == 0 and "note: The pack is deprecated: use acme/newer." in done.stderr
    assert "This pack is deprecated" in shown(owner, name)[1]


@pytest.mark.usefixtures("homes")
def test_what_cannot_be_withdrawn(owner: hub.Registry, registry: RegistryProcess, tmp_path: Path) -> None:
    name = make_released(owner, tmp_path / "packs", "kept-pack", "1.0")
    shell = Shell(tmp_path, registry.endpoint, owner.token)
    assert "The newest there: 1.0." in shell.fail(4, "yank", f"{name}==2.0", "--reason", "x")
    shell.fail(4, "unyank", f"{name}==2.0")
    shell.fail(4, "yank", "withdrawer/nothing-here==1.0")
    shell.fail(4, "deprecate", "withdrawer/nothing-here")
    for text in (name, f"{name}>=1.0", f"{name}==1.*", f"{name}==1.0,==1.1", f"{name}===1.0"):
        assert f"skillhub yank {name}==VERSION" in shell.fail(2, "yank", text)
    shell.fail(2, "yank", f"{name}==1.0", "--reason", "\x1b[31mred")
    stranger = hub.Registry("hub", registry.endpoint, registry.add_user("no-owner"))
    with pytest.raises(AuthError):
        yank(f"{name}==1.0", Access(stranger))
    assert "token" in Shell(tmp_path, registry.endpoint).fail(9, "yank", f"{name}==1.0")
    shell.succeed("yank", f"{name}==1.0.0")  # the same version
    assert yanked(owner, name) == {"1.0": "no reason given"}


@pytest.mark.parametrize("fault", [AFTER, DROP_AFTER])
@pytest.mark.usefixtures("homes", "quick")
def test_an_event_that_landed_is_recognised(
    proxy: FaultyProxy, owner: hub.Registry, tmp_path: Path, fault: str
) -> None:
    name = make_released(owner, tmp_path, f"landed-{'after' if fault == AFTER else 'drop'}", "1.0")
    through = Access(hub.Registry("hub", proxy.endpoint, owner.token))
    for act, title in (
        (lambda: yank(f"{name}==1.0", through, reason="bad"), "Yank 1.0"),
        (lambda: unyank(f"{name}==1.0", through), "Unyank 1.0"),
        (lambda: deprecate(name, through, reason="old"), f"Deprecate {name}"),
    ):
        proxy.reset(on("POST", "/commit/", fault))
        done = act()
        assert sum("/commit/" in request for request in proxy.seen) == 1
        assert not done.already_so and done.commit == hub.repository_head(owner, name)
        titles = [one.title for one in HfApi(endpoint=owner.endpoint, token=owner.token).list_repo_commits(name)]
        assert titles.count(title) == 1 and titles[0] == title
    assert [line.count(b"event") for line in data_of(owner, name).splitlines()] == [1, 1, 1, 1]


@pytest.mark.parametrize("fault", [BEFORE, DROP, AFTER])
@pytest.mark.usefixtures("homes", "quick")
def test_yanking_survives_a_fault_at_every_request(
    proxy: FaultyProxy, owner: hub.Registry, tmp_path: Path, fault: str
) -> None:
    name = make_released(owner, tmp_path, f"shaky-{[BEFORE, DROP, AFTER].index(fault)}", "1.0", "1.1")
    through = Access(hub.Registry("hub", proxy.endpoint, owner.token))
    for number in count():
        before, reason = data_of(owner, name), f"reason {number}"
        proxy.reset(at(number, fault))
        fired = True
        try:
            yank(f"{name}==1.1", through, reason=reason)
        except NetworkError:
            assert data_of(owner, name).count(b"\n") - before.count(b"\n") in (0, 1)
            proxy.reset()
            yank(f"{name}==1.1", through, reason=reason)
        else:
            fired = number < len(proxy.seen)
        assert data_of(owner, name).startswith(before)
        assert data_of(owner, name).count(b"\n") - before.count(b"\n") == 1
        assert yanked(owner, name) == {"1.1": reason}
        if not fired:
            break
    assert number > 5


@pytest.mark.usefixtures("homes", "quick")
def test_events_that_never_land_end_in_a_network_error(proxy: FaultyProxy, owner: hub.Registry, tmp_path: Path) -> None:
    name = make_released(owner, tmp_path, "never-yanked", "1.0")
    proxy.reset(on("POST", "/commit/", BEFORE))
    with pytest.raises(NetworkError, match="answered 500"):
        yank(f"{name}==1.0", Access(hub.Registry("hub", proxy.endpoint, owner.token)))
    assert yanked(owner, name) == {}


@pytest.mark.usefixtures("homes")
def test_a_page_that_cannot_be_renewed_keeps_nothing_from_being_yanked(
    proxy: FaultyProxy, owner: hub.Registry, tmp_path: Path
) -> None:
    name = make_released(owner, tmp_path, "pageless", "1.0", "1.1")
    notes: list[str] = []
    proxy.reset(on("GET", "releases/1.0/skillpack.json", "a byte of the body is another"))
    yank(f"{name}==1.1", Access(hub.Registry("hub", proxy.endpoint, owner.token), notice=notes.append))
    assert "page stays as it is" in notes[0]
    assert list(yanked(owner, name)) == ["1.1"] and shown(owner, name)[0] == "1.1"


def test_several_withdraw_and_publish_at_once(
    owner: hub.Registry, registry: RegistryProcess, tmp_path: Path, homes: Path
) -> None:
    versions = ["1.0", "1.1", "1.2", "1.3"]
    name = make_released(owner, tmp_path / "packs", "busy-life", *versions)
    make_pack(tmp_path / "new", "busy-life", "2.0")
    commands = [["yank", f"{name}=={version}", "--reason", "all at once"] for version in versions]
    commands += [["yank", f"{name}==1.0", "--reason", "all at once"], ["deprecate", name], ["publish", "new", name]]
    shells = [Shell(tmp_path / str(number), registry.endpoint, owner.token) for number in range(len(commands))]
    processes = []
    for shell, command in zip(shells, commands, strict=True):
        shell.home.mkdir()
        arguments = [str(tmp_path / "new") if one == "new" else one for one in command]
        run = [sys.executable, "-m", "skillhub", *arguments]
        processes.append(subprocess.Popen(run, env=shell.variables, cwd=shell.home))
    assert [process.wait() for process in processes] == [0] * len(commands)
    index = index_of(owner, name)
    assert yanked(owner, name) == dict.fromkeys(versions, "all at once")
    assert index.deprecated is not None and str(index.releases[-1].version) == "2.0"
    assert data_of(owner, name).count(b'"yank"') <= 5
    version, page = shown(owner, name)
    assert version == "2.0" and "describes version 2.0:" in page and "This pack is deprecated" in page


@pytest.mark.usefixtures("homes", "quick")
def test_what_somebody_undoes_meanwhile_is_not_done_again(
    owner: hub.Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between our commit and our look at it, another person unyanks: theirs is the last word."""
    name = make_released(owner, tmp_path, "to-and-fro", "1.0")
    send, busy = hub.commit, [False]

    def commit_and_be_undone(*arguments: object, **options: object) -> hub.CommitResult:
        done = send(*arguments, **options)  # type: ignore[arg-type]
        if not busy[0]:
            busy[0] = True
            unyank(f"{name}==1.0", Access(owner))
        return done

    monkeypatch.setattr(hub, "commit", commit_and_be_undone)
    assert not yank(f"{name}==1.0", Access(owner), reason="bad").already_so
    assert yanked(owner, name) == {}
    assert data_of(owner, name).count(b"\n") == 3


@pytest.mark.usefixtures("homes")
def test_names_are_looked_at_before_anything_is_asked_for(tmp_path: Path) -> None:
    nowhere = Access(hub.Registry("hub", "http://127.0.0.1:9", "hf_x"))
    with pytest.raises(UsageError):
        yank("a/b", nowhere)
    with pytest.raises(UsageError):
        yank("a/b==1.0", nowhere, reason="x" * 20_000)
    with pytest.raises(NotFoundError, match="No registry is called"):
        deprecate("a/b", Access("nowhere"))


@pytest.mark.usefixtures("homes", "quick")
def test_a_proposal_whose_answer_is_lost_is_not_made_twice(
    proxy: FaultyProxy, owner: hub.Registry, tmp_path: Path
) -> None:
    name = make_released(owner, tmp_path, "proposed-once", "1.0")
    proxy.reset(on("POST", "/commit/", AFTER))
    pack = make_pack(tmp_path / "next", "proposed-once", "1.1")
    with pytest.raises(NetworkError) as caught:
        publish(pack, name, registry=hub.Registry("hub", proxy.endpoint, owner.token), create_pr=True)
    assert "it may be open" in caught.value.hint
    api = HfApi(endpoint=owner.endpoint, token=owner.token)
    assert [one.num for one in api.get_repo_discussions(name)] == [1]


@pytest.mark.usefixtures("homes")
def test_publishing_a_yanked_release_again_says_that_it_is_yanked(owner: hub.Registry, tmp_path: Path) -> None:
    name = make_released(owner, tmp_path, "yanked-again", "1.0")
    yank(f"{name}==1.0", Access(owner), reason="bad")
    notes: list[str] = []
    pack = make_pack(tmp_path / "again", "yanked-again", "1.0", files=1, size=200)
    assert publish(pack, name, registry=owner, notice=notes.append).already_there
    assert f"skillhub unyank {name}==1.0" in notes[-1]


@pytest.mark.usefixtures("homes")
def test_metadata_that_the_registry_refuses_keeps_nothing_from_being_yanked(
    owner: hub.Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = make_released(owner, tmp_path, "refused-page", "1.0", "1.1")

    def refuse(*_: object, **__: object) -> None:
        raise ValueError('Invalid metadata in README.md.\n- "license" must be one of [mit]')  # the client's own words

    monkeypatch.setattr(HfApi, "_validate_yaml", refuse)
    notes: list[str] = []
    yank(f"{name}==1.1", Access(owner, notice=notes.append))
    assert list(yanked(owner, name)) == ["1.1"]
    assert "README.md stays as it is: " in notes[0] and '"license" must be one of [mit]' in notes[0]
    version, page = shown(owner, name)
    assert version == "1.0" and "describes version 1.1:" in page
