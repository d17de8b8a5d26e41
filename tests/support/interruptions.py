"""Interrupt an installation, an upgrade, a removal or a publication at every step, and check what is left each time.

    python -m tests.support.interruptions SCENARIO HOW ENDPOINT TOKEN FOLDER

A process of its own: it forks for every step, and must have no other threads. It prints the number of steps.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import huggingface_hub.hf_api

from skillhub import hub, settings
from skillhub.environments import as_environment, damaged_packs, installed_packs, read_project, unfinished_paths
from skillhub.files import sha256_of_file
from skillhub.installer import install, uninstall
from skillhub.integrity import verify
from skillhub.lockfile import read_lock
from skillhub.packs import open_pack, verify_pack
from skillhub.publisher import publish
from skillhub.releases import parse_releases
from skillhub.store import default_store
from tests.support.packs import BASE, make_pack
from tests.support.steps import FULL_DISK, KILL, KILLED, UNINTERRUPTED, run_until

DISK_EXIT = 14
PACK = "interrupted-pack"


@dataclass(frozen=True)
class Scenario:
    """Something to interrupt.

    Attributes:
        prepare: makes what was there before; called in an empty folder.
        is_local: whether what it makes is in that folder only, so that it need be made once.
        action: what is interrupted, and then run again.
        check: fails unless what is left is allowed, given whether the action has been completed.
    """

    prepare: Callable[[Path], object]
    action: Callable[[Path], object]
    check: Callable[[Path, bool], None]
    is_local: bool = True


def sweep(scenario: Scenario, how: str, folder: Path) -> int:
    """Interrupt the action before its first step, its second, … until it comes to its end; return how many there were."""
    _homes(folder / "prepared")  # in this process, so that the forked ones have everything imported
    scenario.prepare(folder / "prepared")
    shutil.copytree(folder / "prepared", folder / "first")
    _homes(folder / "first")
    scenario.action(folder / "first")
    for number in range(10_000):
        here = folder / str(number)
        with _prepared(scenario, here):
            status, _ = run_until(lambda here=here: scenario.action(here), number, how)  # type: ignore[misc]
            allowed = (0, KILLED) if how == KILL else (0, DISK_EXIT)
            assert status in allowed, f"step {number} ended with {status}"
            scenario.check(here, status == 0)
            again, _ = run_until(lambda here=here: scenario.action(here), UNINTERRUPTED)  # type: ignore[misc]
            assert again == 0, f"after step {number}, running it again ended with {again}"
            scenario.check(here, True)
            assert not list(unfinished_paths(as_environment(here / "env")))
        if status == 0 and _is_over(scenario, folder / "end", number, how):
            return number
    raise AssertionError("the action never ends")


def _is_over(scenario: Scenario, here: Path, number: int, how: str) -> bool:
    """Say whether the uninterrupted action has no more steps than ``number``; some interruptions are survived."""
    with _prepared(scenario, here):
        steps = run_until(lambda: scenario.action(here), UNINTERRUPTED, how)[1]
    return number >= steps


@contextmanager
def _prepared(scenario: Scenario, here: Path) -> Iterator[None]:
    """Make a folder with what was there before the action, and the user's folders in it."""
    _homes(here)
    if scenario.is_local:
        shutil.copytree(here.parent / "prepared", here)
    else:
        assert run_until(lambda: scenario.prepare(here), UNINTERRUPTED)[0] == 0
    yield
    shutil.rmtree(here)


def _homes(here: Path) -> None:
    here.parent.mkdir(parents=True, exist_ok=True)
    for variable in ("SKILLHUB_CACHE", "SKILLHUB_HOME", "SKILLHUB_STATE", "HF_HOME"):
        os.environ[variable] = str(here / variable.lower())


def check_installed(here: Path, completed: bool, versions: tuple[str, ...]) -> None:
    """Fail unless the environment lists whole packs of allowed versions, and the store holds only what its names say."""
    environment = as_environment(here / "env")
    listed = installed_packs(environment)
    assert damaged_packs(environment) == []
    for one in listed:
        assert verify_pack(one.pack, fingerprint=BASE) == []
    found = [one.version for one in listed]
    read_project(environment)
    read_lock(environment.lock_path)
    for path in (default_store().folder / "sha256").rglob("*"):
        assert path.is_dir() or sha256_of_file(path) == path.name
    for path in (settings.state_folder() / "registries").rglob("*.jsonl"):
        assert path.name.startswith(".") or parse_releases(path.read_bytes()).releases
    if completed:
        assert found == list(versions[-1:]) or (not found and versions[-1] == ""), found
        assert verify(environment) == []
        assert not list((default_store().folder / "staging").glob("*/*"))
    else:
        assert found == [] or found[0] in versions, found


def scenarios(registry: hub.Registry, owner: str) -> dict[str, Scenario]:
    """Return everything that is interrupted."""
    anyone = hub.Registry("hub", registry.endpoint)
    name = f"{owner}/{PACK}"

    def put(here: Path, wanted: str) -> None:
        install([wanted], base=BASE, environment=here / "env", registry=anyone)

    def check(*versions: str) -> Callable[[Path, bool], None]:
        return lambda here, completed: check_installed(here, completed, versions)

    def repository(here: Path) -> str:
        return open_pack(here / "1.1").manifest.name

    def build(here: Path) -> None:
        for version in ("1.0", "1.1"):
            make_pack(here / version, f"publication-{here.parent.name}-{here.name}", version, files=0, size=200)
        publish(here / "1.0", f"{owner}/{repository(here)}", registry=registry)

    def check_published(here: Path, completed: bool) -> None:
        read = hub.read_releases(registry, f"{owner}/{repository(here)}")
        assert read is not None
        found = [str(release.version) for release in parse_releases(read.data).releases]
        assert found in ([["1.0", "1.1"]] if completed else [["1.0"], ["1.0", "1.1"]]), found
        if "1.1" in found:
            put_version = here / f"check-{time.monotonic_ns()}"
            install([f"{owner}/{repository(here)}==1.1"], environment=put_version, registry=anyone)

    return {
        "install": Scenario(Path.mkdir, lambda here: put(here, f"{name}==1.0"), check("", "1.0")),
        "upgrade": Scenario(
            lambda here: put(here, f"{name}==1.0"), lambda here: put(here, f"{name}==1.1"), check("1.0", "1.1")
        ),
        "uninstall": Scenario(
            lambda here: put(here, f"{name}==1.0"), lambda here: _remove(here / "env"), check("1.0", "")
        ),
        "publish": Scenario(
            build,
            lambda here: publish(here / "1.1", f"{owner}/{repository(here)}", registry=registry),
            check_published,
            is_local=False,
        ),
    }


def _remove(folder: Path) -> None:
    if installed_packs(as_environment(folder)):
        uninstall([PACK], environment=folder)
    else:  # what a user would do who sees it gone already: bring the environment in line with its files
        install([], environment=folder, registry=hub.Registry("hub", "http://127.0.0.1:1"))


def main() -> None:
    """Run one sweep."""
    scenario, how, endpoint, token, folder = sys.argv[1:]
    assert how in (KILL, FULL_DISK)
    huggingface_hub.constants.HF_HUB_DISABLE_XET = True  # its uploads run in threads of their own
    registry = hub.Registry("hub", endpoint, token)
    time.sleep = lambda seconds: None  # type: ignore[assignment]
    print(sweep(scenarios(registry, "interruptions")[scenario], how, Path(folder)))


if __name__ == "__main__":
    main()
