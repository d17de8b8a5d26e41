"""Vendoring as users do it: one machine writes the folder, another one without a network installs the same bytes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from skillhub import hub
from skillhub.environments import Environment
from skillhub.errors import DiskError
from skillhub.files import sha256_of_bytes
from skillhub.hub.folders import list_files
from skillhub.lockfile import Lock, LockedBase, LockedPack, files_digest, inputs_digest, parse_lock, write_lock
from skillhub.manifest import FileEntry, variant_folder
from skillhub.projects import Project
from skillhub.sessions import Session
from skillhub.vendoring import vendor
from tests.support.commands import Shell
from tests.support.packs import BASE, OTHER_BASE, make_pack, payload
from tests.support.registry_process import RegistryProcess, running_registry
from tests.support.steps import FULL_DISK, KILLED, UNINTERRUPTED, run_until


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryProcess]:
    """A registry of its own, whose packs a mirror can have as well."""
    with running_registry(tmp_path_factory.mktemp("source")) as process:
        yield process


def publish(shell: Shell, registry: RegistryProcess, name: str, version: str = "1.0.0", **options: object) -> str:
    """Build a tiny pack for two bases and publish it; returns its full name."""
    full = f"{registry.user}/{name}"
    built = shell.home / f"built-{name}-{version}"
    if not built.exists():
        make_pack(built, name, version, (BASE, OTHER_BASE), **options)  # type: ignore[arg-type]
    shell.succeed("publish", built, full)
    return full


@pytest.fixture(scope="module")
def author(source: RegistryProcess, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """Somebody who has published two packs, of which one requires the other."""
    shell = Shell(tmp_path_factory.mktemp("author"), source.endpoint, source.token)
    shared = publish(shell, source, "shared")
    publish(shell, source, "math", requires=[f"{shared}>=1"])
    return shell


@pytest.fixture(scope="module")
def installed_once(source: RegistryProcess, author: Shell, tmp_path_factory: pytest.TempPathFactory) -> Path:
    shell = new_machine(tmp_path_factory.mktemp("machines") / "machine", source.endpoint)
    make_pack(shell.home / "packs" / "own", "own")
    shell.succeed("install", f"{source.user}/math", "./packs/own", "--base", BASE)
    return shell.home


@pytest.fixture
def machine(source: RegistryProcess, installed_once: Path, tmp_path: Path) -> Shell:
    """A machine with a project that has both packs, and one from a folder."""
    shutil.copytree(installed_once, tmp_path / "machine")
    return Shell(tmp_path / "machine", source.endpoint)


def new_machine(home: Path, endpoint: str = "http://127.0.0.1:9") -> Shell:
    """Return a machine with an empty project, whose home folder is the project."""
    home.mkdir()
    (home / "skillhub.toml").touch()
    return Shell(home, endpoint)


def machine_with(lock_of: Path, home: Path, endpoint: str = "http://127.0.0.1:9") -> Shell:
    """Return a machine that has nothing but the project of another one, with its lock."""
    shell = new_machine(home, endpoint)
    for name in ("skillhub.toml", "skillhub.lock"):
        shutil.copy(lock_of / name, home / name)
    if (lock_of / "packs").is_dir():
        shutil.copytree(lock_of / "packs", home / "packs")
    return shell


def installed(shell: Shell) -> dict[str, bytes]:
    """Return the bytes of every installed file but the receipts."""
    root = shell.home / ".skillhub" / "packs"
    return {path: data for path, data in files_below(root).items() if not path.endswith("/receipt.json")}


def test_another_machine_installs_the_same_bytes_without_a_network(machine: Shell, tmp_path: Path) -> None:
    told = machine.json("vendor", "vendored")
    assert told["registries"] == ["hub"] and told["left_out"] == []
    assert {one["name"].rpartition("/")[2] for one in told["packs"]} == {"math", "shared", "own"}
    other = machine_with(machine.home, tmp_path / "other")
    other.succeed("sync", "--registry", machine.home / "vendored")
    assert installed(other) == installed(machine) != {}
    assert other.json("verify")["ok"]
    for name in ("skillhub.lock", "skillhub.toml"):
        assert (other.home / name).read_bytes() == (machine.home / name).read_bytes()
        assert (machine.home / "vendored" / name).read_bytes() == (machine.home / name).read_bytes()
    offline = machine_with(machine.home, tmp_path / "offline")
    offline.succeed("sync", "--offline", "--registry", machine.home / "vendored")
    assert installed(offline) == installed(machine)


def test_the_folder_is_a_project_of_its_own(machine: Shell, tmp_path: Path) -> None:
    machine.succeed("vendor", "vendored")
    shutil.copytree(machine.home / "vendored", tmp_path / "copy")
    copy = Shell(tmp_path / "copy")
    copy.succeed("sync", "--registry", ".")
    assert installed(copy) == installed(machine)


def test_it_has_the_repositories_layout_and_only_what_is_needed(machine: Shell, source: RegistryProcess) -> None:
    machine.succeed("vendor", "vendored")
    root = machine.home / "vendored"
    files = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    math = f"hub/{source.user.lower()}/math"
    ours, theirs = variant_folder(BASE), variant_folder(OTHER_BASE)
    assert {f"{math}/releases.jsonl", f"{math}/releases/1.0.0/skillpack.json", f"{math}/vendored.json"} <= files
    assert f"{math}/releases/1.0.0/{ours}/delta-00001.safetensors" in files
    assert not [path for path in files if theirs in path]
    assert json.loads((root / "vendor.json").read_bytes()) == {"schema": 0, "registries": ["hub"]}
    lock = parse_lock((root / "skillhub.lock").read_bytes())
    note = json.loads((root / math / "vendored.json").read_bytes())
    entry = next(one for one in lock.packs if one.name.endswith("/math"))
    assert (note["commit"], note["id"]) == (entry.commit, entry.id)
    store = {path.stat().st_ino for path in (machine.home / "cache").rglob("*")}
    assert not store & {path.stat().st_ino for path in root.rglob("*")}  # copies, which nobody's store shares
    machine.succeed("vendor", "vendored", "--all-variants")
    assert (root / math / "releases" / "1.0.0" / theirs / "delta-00001.safetensors").is_file()


@pytest.mark.parametrize("file", ["delta-00001.safetensors", "skillpack.json"])
def test_a_tampered_file_is_refused(machine: Shell, tmp_path: Path, file: str) -> None:
    machine.succeed("vendor", "vendored")
    path = next(one for one in sorted((machine.home / "vendored" / "hub").rglob(file)))
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    other = machine_with(machine.home, tmp_path / "other")
    assert "not what" in other.fail(6, "sync", "--registry", machine.home / "vendored")
    assert installed(other) == {}


def test_a_missing_file_and_a_missing_pack_are_said(machine: Shell, source: RegistryProcess, tmp_path: Path) -> None:
    machine.succeed("vendor", "vendored")
    shutil.rmtree(machine.home / "vendored" / "hub" / source.user.lower() / "shared" / "releases")
    other = machine_with(machine.home, tmp_path / "other")
    other.fail(4, "sync", "--registry", machine.home / "vendored")
    shutil.rmtree(machine.home / "vendored" / "hub" / source.user.lower() / "shared")
    assert "no repository" in other.fail(4, "sync", "--registry", machine.home / "vendored")


def test_only_releases_that_are_in_the_folder_are_chosen(
    machine: Shell, author: Shell, source: RegistryProcess, tmp_path: Path
) -> None:
    name = publish(author, source, "several")
    publish(author, source, "several", "1.1.0")
    machine.succeed("install", f"{name}==1.0.0")
    machine.succeed("vendor", "vendored")
    other = new_machine(tmp_path / "other")
    other.succeed("install", name, "--base", BASE, "--registry", machine.home / "vendored")
    assert [one["version"] for one in other.json("list")["packs"]] == ["1.0.0"]
    said = other.fail(3, "install", f"{name}==1.1.0", "--registry", machine.home / "vendored")
    assert f"No release of {name}==1.1.0 will do: 1.0.0 does not match." in said


def test_vendoring_again_brings_the_folder_up_to_date(machine: Shell, author: Shell, source: RegistryProcess) -> None:
    name = publish(author, source, "moving")
    machine.succeed("install", name)
    machine.succeed("vendor", "vendored")
    publish(author, source, "moving", "1.1.0")
    machine.succeed("upgrade", name)
    machine.succeed("vendor", "vendored")
    releases = machine.home / "vendored" / "hub" / source.user.lower() / "moving" / "releases"
    assert [one.name for one in releases.iterdir()] == ["1.1.0"]
    (machine.home / "vendored" / "notes.txt").touch()
    assert "notes.txt" in machine.fail(2, "vendor", "vendored")
    assert "not an empty folder" in machine.fail(2, "vendor", "packs")


@pytest.fixture
def rewrite(machine: Shell, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Vendor the machine's lock once, and return what does it again in this process."""
    for name, value in machine.variables.items():
        monkeypatch.setenv(name, value)

    def write() -> None:
        supply = Session(offline=True).planner(Project()).supply
        vendor(supply, Environment(machine.home), machine.home / "vendored")

    write()  # what is imported and read for the first time is no step of the others
    return write


def test_a_killed_process_leaves_the_old_folder_or_the_new_one(machine: Shell, rewrite: Callable[[], None]) -> None:
    target = machine.home / "vendored"
    whole = files_below(target)
    status, steps = run_until(rewrite, UNINTERRUPTED)
    assert status == 0 and steps > 20
    statuses = []
    for number in range(0, steps, steps // 15):
        statuses.append(run_until(rewrite, number)[0])
        # between the two renames there may be neither, and the next run puts that right
        assert not target.exists() or files_below(target) == whole
        rewrite()
        assert files_below(target) == whole and not list(machine.home.glob(".vendored.*"))
    # two threads that step at once may step over the number
    assert statuses.count(KILLED) > 10 and set(statuses) <= {KILLED, 0}


def test_a_full_disk_leaves_the_old_folder(machine: Shell, rewrite: Callable[[], None]) -> None:
    target = machine.home / "vendored"
    whole = files_below(target)
    steps = run_until(rewrite, UNINTERRUPTED, FULL_DISK)[1]
    for number in range(0, steps, steps // 5):
        assert run_until(rewrite, number, FULL_DISK)[0] == DiskError.exit_code
        assert files_below(target) == whole


def files_below(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_an_adapter_goes_along(source: RegistryProcess, tmp_path: Path) -> None:
    from huggingface_hub import CommitOperationAdd, HfApi

    name = f"{source.user}/lora"
    files = {"adapter_config.json": b'{"peft_type": "LORA"}', "adapter_model.safetensors": payload("lora", 3000)}
    api = HfApi(endpoint=source.endpoint, token=source.token)
    api.create_repo(name)
    operations = [CommitOperationAdd(path, data) for path, data in files.items()]
    commit = api.create_commit(name, operations=operations, commit_message="Add it").oid
    entries = [FileEntry(path=path, size=len(data), sha256=sha256_of_bytes(data)) for path, data in files.items()]
    adapter = LockedPack(
        name=name,
        version=commit[:12],
        manifest=files_digest(entries),
        kind="peft",
        registry="hub",
        repository=name,
        commit=commit,
        files=entries,
    )
    shell = new_machine(tmp_path / "machine", source.endpoint)
    text = f'requirements = ["peft:{name}"]\n[[base]]\nfingerprint = "{BASE}"\n'
    (shell.home / "skillhub.toml").write_text(text, encoding="utf-8")
    lock = Lock(inputs_digest([f"peft:{name}"]), (LockedBase(fingerprint=BASE),), (adapter,))
    write_lock(shell.home / "skillhub.lock", lock)
    assert shell.json("vendor", "vendored")["registries"] == ["hub"]
    registry = hub.vendored_registries(shell.home / "vendored")["hub"]
    assert list_files(registry, name, revision=commit) == entries
    other = machine_with(shell.home, tmp_path / "other")
    other.succeed("sync", "--registry", shell.home / "vendored")
    assert {path.rpartition("/")[2]: data for path, data in installed(other).items()} == files


def test_what_cannot_be_vendored_is_said(machine: Shell, tmp_path: Path) -> None:
    empty = new_machine(tmp_path / "empty")
    assert "nothing to vendor" in empty.fail(4, "vendor", "vendored")
    make_pack(tmp_path / "elsewhere", "away")
    machine.succeed("install", "../elsewhere")
    told = machine.json("vendor", "vendored")
    assert told["left_out"] == ["away"]
    text = (machine.home / "skillhub.toml").read_text(encoding="utf-8")
    (machine.home / "skillhub.toml").write_text(text.replace("./packs/own", "./packs/own2"), encoding="utf-8")
    shutil.copytree(machine.home / "packs" / "own", machine.home / "packs" / "own2")
    assert "not up to date" in machine.fail(10, "vendor", "vendored")


def test_a_lock_installs_the_same_bytes_from_a_mirror_and_after_a_squash(
    machine: Shell, author: Shell, source: RegistryProcess, tmp_path: Path
) -> None:
    from huggingface_hub import HfApi

    with running_registry(tmp_path / "mirror") as mirror:
        assert mirror.user == source.user
        uploader = Shell(author.home, mirror.endpoint, mirror.token)
        publish(uploader, mirror, "shared")
        publish(uploader, mirror, "math", requires=[f"{mirror.user}/shared>=1"])
        mirrored = machine_with(machine.home, tmp_path / "mirrored", mirror.endpoint)
        mirrored.succeed("sync")
        assert installed(mirrored) == installed(machine)
    api = HfApi(endpoint=source.endpoint, token=source.token)
    for name in ("shared", "math"):
        api.super_squash_history(f"{source.user}/{name}")
    squashed = machine_with(machine.home, tmp_path / "squashed", source.endpoint)
    squashed.succeed("sync")
    assert installed(squashed) == installed(machine)
    lock = (machine.home / "skillhub.lock").read_bytes()
    assert (squashed.home / "skillhub.lock").read_bytes() == lock == (mirrored.home / "skillhub.lock").read_bytes()
