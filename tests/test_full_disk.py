"""Disks that are really full: the store, the environment or the state on a small one, with every amount of room."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from skillhub import hub
from skillhub.environments import as_environment, damaged_packs, installed_packs
from skillhub.errors import DiskError
from skillhub.files import sha256_of_file
from skillhub.installer import install, upgrade
from skillhub.integrity import verify
from skillhub.publisher import publish
from skillhub.sessions import Session
from skillhub.store import default_store
from skillhub.transactions import Terms
from tests.support.commands import Shell
from tests.support.packs import BASE, make_pack
from tests.support.registry_process import RegistryProcess

NAME = "crammed/big-pack"
ROOM = [48, 120, 400, 700, 1000, 1400, 2000]
"""Kilobytes of room to try; the pack takes about 1200."""


@pytest.fixture(scope="module")
def anyone(registry: RegistryProcess, tmp_path_factory: pytest.TempPathFactory) -> hub.Registry:
    folder = tmp_path_factory.mktemp("packs")
    owner = hub.Registry("hub", registry.endpoint, registry.add_user("crammed"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKILLHUB_STATE", str(folder / "state"))
        for version in ("1.0", "1.1"):
            publish(make_pack(folder / version, "big-pack", version, size=300_000, files=3), NAME, registry=owner)
    return hub.Registry("hub", registry.endpoint)


@pytest.fixture
def disk(homes: Path, tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, small at first."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("no disk can be made here: that needs root, and a system that lets it mount")
    yield folder
    subprocess.run(["umount", folder], check=True)


def resize(disk: Path, kilobytes: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", disk], check=True)


def assert_whole(environment: Path, versions: set[str]) -> list[str]:
    """Check that what is listed is whole and the store holds only what its names say; return the versions."""
    assert damaged_packs(as_environment(environment)) == []
    listed = installed_packs(as_environment(environment))
    assert all(one.verify() == [] for one in listed)
    assert {one.version for one in listed} <= versions
    for path in (default_store().folder / "sha256").rglob("*"):
        assert path.is_dir() or sha256_of_file(path) == path.name
    return [one.version for one in listed]


@pytest.mark.parametrize("small", ["SKILLHUB_CACHE", "SKILLHUB_STATE", "environment"])
def test_an_installation_that_finds_no_room_leaves_nothing_and_completes_when_there_is_some(
    anyone: hub.Registry, disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: str
) -> None:
    environment = (disk if small == "environment" else tmp_path) / "env"
    if small != "environment":
        monkeypatch.setenv(small, str(disk / "small"))
    failed = 0
    for room in ROOM:
        resize(disk, room)
        try:
            install([NAME], base=BASE, environment=environment, registry=anyone)
        except DiskError as error:
            assert error.hint
            assert assert_whole(environment, set()) == []
            assert not (environment / "skillhub.toml").exists()
            failed += 1
        else:
            break
    assert failed or small == "SKILLHUB_STATE"
    assert assert_whole(environment, {"1.1"}) == ["1.1"]
    assert verify(environment) == []


def test_an_upgrade_that_finds_no_room_leaves_the_old_release(
    anyone: hub.Registry, disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = disk / "env"
    resize(disk, 1600)
    install([f"{NAME}<1.1"], base=BASE, environment=environment, registry=anyone)
    text = (environment / "skillhub.toml").read_text()
    (environment / "skillhub.toml").write_text(text.replace("<1.1", ""))
    lock = (environment / "skillhub.lock").read_bytes()
    for _ in range(2):
        with pytest.raises(DiskError):
            upgrade(Session(anyone), as_environment(environment), [], Terms())
        assert assert_whole(environment, {"1.0"}) == ["1.0"]
        assert (environment / "skillhub.lock").read_bytes() == lock
    resize(disk, 4000)
    upgrade(Session(anyone), as_environment(environment), [], Terms())
    assert assert_whole(environment, {"1.1"}) == ["1.1"]
    assert verify(environment) == []


def test_the_command_says_which_disk_is_full(anyone: hub.Registry, disk: Path, tmp_path: Path) -> None:
    shell = Shell(tmp_path, anyone.endpoint)
    said = shell.fail(14, "install", NAME, "--base", BASE, "--environment", disk / "env")
    assert str(disk) in said
    resize(disk, 4000)
    shell.succeed("install", NAME, "--base", BASE, "--environment", disk / "env")
