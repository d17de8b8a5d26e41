"""Projects and their locks: init, install with rules, upgrade, lock and sync, as processes against a live registry."""

from __future__ import annotations

import contextlib
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from skillhub import hub
from skillhub.environments import Environment, installed_packs
from skillhub.lockfile import Lock, read_lock
from skillhub.projects import parse_project
from skillhub.publisher import publish
from tests.support.commands import Shell
from tests.support.packs import BASE, OTHER_BASE, make_pack
from tests.support.registry_process import RegistryProcess

OWNER = "locker"

PACKS: list[dict[str, Any]] = [
    {"name": "shared", "version": "1.0"},
    {"name": "shared", "version": "1.1"},
    {"name": "shared", "version": "2.0"},
    {"name": "shared", "version": "2.1rc1"},
    {"name": "math", "version": "1.0", "requires": [f"{OWNER}/shared>=1"]},
    {"name": "math", "version": "1.1", "requires": [f"{OWNER}/shared>=1,<2"]},
    {"name": "chat", "version": "1.0", "requires": [f"{OWNER}/shared>=2"]},
    {"name": "chat", "version": "0.9"},
    {"name": "rival", "version": "1.0", "conflicts": [f"{OWNER}/math>=1.1"]},
    {"name": "other-base", "version": "1.0", "fingerprints": [OTHER_BASE]},
    {"name": "both", "version": "1.0", "fingerprints": [BASE, OTHER_BASE]},
]


@pytest.fixture(scope="module")
def endpoint(registry: RegistryProcess, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A registry with packs that require and exclude each other."""
    folder = tmp_path_factory.mktemp("packs")
    owner = hub.Registry("hub", registry.endpoint, registry.add_user(OWNER))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKILLHUB_STATE", str(folder / "state"))
        for number, fields in enumerate(PACKS):
            pack = make_pack(folder / str(number), size=300, files=1, **fields)
            publish(pack, f"{OWNER}/{pack.manifest.name}", registry=owner)
    return registry.endpoint


@pytest.fixture
def user(tmp_path: Path, endpoint: str) -> Shell:
    """A user without a token, in an empty folder that is a project for the base."""
    shell = Shell(tmp_path, endpoint)
    shell.succeed("init", "--base", BASE)
    return shell


def versions(folder: Path) -> dict[str, str]:
    """Return what is installed, and check that it is what is locked."""
    installed = {one.name.name: one.version for one in installed_packs(Environment(folder))}
    assert installed == {one.pack_name.name: one.version for one in lock_of(folder).packs}
    return installed


def lock_of(folder: Path) -> Lock:
    lock = read_lock(folder / "skillhub.lock")
    assert lock is not None
    return lock


def project(folder: Path) -> str:
    return (folder / "skillhub.toml").read_text()


def test_init_makes_a_project_that_says_what_can_be_written_into_it(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    assert "skillhub install" in shell.succeed("init", "assistant", "--base", BASE)
    folder = tmp_path / "assistant"
    assert f'fingerprint = "{BASE}"' in project(folder)
    assert "# constraints" in project(folder)
    assert "exists already" in shell.fail(2, "init", "assistant")
    assert "is no base" in shell.fail(2, "init", "other", "--base", "a b")
    assert not (tmp_path / "other").exists()


def test_what_init_suggests_can_be_taken_up_after_commands_have_written(user: Shell) -> None:
    user.succeed("install", f"{OWNER}/shared", "--pre")
    text = project(user.home)
    assert "pre_releases = true" in text
    taken_up = text.replace("# pre_releases = true\n", "").splitlines()
    taken_up = [line.removeprefix("# ") if " = " in line else line for line in taken_up]
    found = parse_project("\n".join(taken_up).encode())
    assert found.pre_releases and found.registry[0].packs == ["corp/*"] and found.owners == ["acme"]


def test_what_packs_require_comes_in_and_goes_with_them(user: Shell) -> None:
    told = user.json("install", f"{OWNER}/math")
    assert [one["name"] for one in told["installed"]] == [f"{OWNER}/math"]
    assert [(one["action"], one["name"]) for one in told["changes"]] == [
        ("install", f"{OWNER}/math"),
        ("install", f"{OWNER}/shared"),
    ]
    assert versions(user.home) == {"math": "1.1", "shared": "1.1"}
    entry = lock_of(user.home).packs[0]
    assert entry.dependencies == [f"{OWNER}/shared"]
    assert f"{OWNER}/shared" not in project(user.home)
    assert "is required by" in user.fail(2, "uninstall", "shared")
    user.succeed("uninstall", "math")
    assert versions(user.home) == {}


def test_a_conflict_is_explained_with_the_words_of_the_user(user: Shell) -> None:
    said = user.fail(3, "install", f"{OWNER}/math>=1.1", f"{OWNER}/chat>=1")
    for words in (f"{OWNER}/math>=1.1", f"{OWNER}/chat>=1", f"{OWNER}/shared"):
        assert words in said, said
    assert len(said.splitlines()) < 40
    said = user.fail(3, "install", f"{OWNER}/math>=1.1", f"{OWNER}/rival")
    assert f"{OWNER}/rival" in said and f"{OWNER}/math>=1.1" in said, said
    assert versions_or_none(user.home) is None
    user.succeed("install", f"{OWNER}/math", f"{OWNER}/chat>=1")
    assert versions(user.home) == {"math": "1.0", "chat": "1.0", "shared": "2.0"}


def versions_or_none(folder: Path) -> dict[str, str] | None:
    return versions(folder) if (folder / "skillhub.lock").exists() else None


def test_a_pack_for_another_base_is_refused_with_the_bases_that_it_fits(user: Shell) -> None:
    said = user.fail(5, "install", f"{OWNER}/other-base")
    assert OTHER_BASE[:17] in said
    assert not (user.home / ".skillhub" / "packs").exists()


def test_what_is_locked_stays_until_it_is_upgraded(user: Shell) -> None:
    user.succeed("install", f"{OWNER}/shared<2", f"{OWNER}/math==1.0")
    assert versions(user.home) == {"math": "1.0", "shared": "1.1"}
    text = project(user.home).replace(f"{OWNER}/shared<2", f"{OWNER}/shared").replace("math==1.0", "math")
    (user.home / "skillhub.toml").write_text(text)
    user.succeed("sync")
    assert versions(user.home) == {"math": "1.0", "shared": "1.1"}
    told = user.json("upgrade", "--dry-run")
    assert [(one["name"], one["before"], one["after"]) for one in told["changes"]] == [(f"{OWNER}/math", "1.0", "1.1")]
    assert versions(user.home) == {"math": "1.0", "shared": "1.1"}
    user.succeed("upgrade", "shared")
    assert versions(user.home) == {"math": "1.0", "shared": "2.0"}
    user.succeed("upgrade")
    assert versions(user.home) in ({"math": "1.1", "shared": "1.1"}, {"math": "1.0", "shared": "2.0"})
    user.succeed("upgrade", "shared", "--precise", "1.0")
    assert versions(user.home)["shared"] == "1.0"
    assert "--precise needs exactly one pack" in user.fail(2, "upgrade", "--precise", "1.0")
    assert "cannot be 9.9" in user.fail(3, "upgrade", "shared", "--precise", "9.9")
    assert "not in the lock" in user.fail(4, "upgrade", "nothing")
    assert versions(user.home)["shared"] == "1.0"


def test_constraints_narrow_and_overrides_replace(user: Shell) -> None:
    user.succeed("install", f"{OWNER}/math", "--constraint", f"{OWNER}/shared<1.1")
    assert versions(user.home) == {"math": "1.1", "shared": "1.0"}
    assert f'"{OWNER}/shared<1.1"' in project(user.home)
    assert "shared" not in user.succeed("lock")
    said = user.fail(3, "install", f"{OWNER}/chat>=1")
    assert f"{OWNER}/shared<1.1" in said
    user.succeed("install", f"{OWNER}/chat>=1", "--override", f"{OWNER}/shared==1.0")
    assert versions(user.home) == {"math": "1.1", "shared": "1.0", "chat": "1.0"}
    assert "lacks an owner" in user.fail(2, "install", f"{OWNER}/both", "--constraint", "shared<1")


def test_pre_releases_are_taken_when_they_are_asked_for(user: Shell) -> None:
    assert "2.1rc1" in user.fail(3, "install", f"{OWNER}/shared>2.0")
    user.succeed("install", f"{OWNER}/shared>2.0", "--pre")
    assert versions(user.home) == {"shared": "2.1rc1"}
    assert "pre_releases = true" in project(user.home)


def test_no_deps_leaves_out_what_is_required(user: Shell) -> None:
    user.succeed("install", f"{OWNER}/math", "--no-deps")
    assert versions(user.home) == {"math": "1.1"}


def test_releases_after_a_cut_off_are_left_alone(user: Shell) -> None:
    said = user.fail(3, "install", f"{OWNER}/shared", "--exclude-newer", "2020-01-01")
    assert "published on" in said
    user.succeed("install", f"{OWNER}/shared", "--exclude-newer", "2200-01-01")
    assert 'exclude_newer = "2200-01-01"' in project(user.home)
    assert "is not a time" in user.fail(2, "install", f"{OWNER}/shared", "--exclude-newer", "yesterday")


def test_requirements_files_with_hashes_are_all_or_nothing(user: Shell) -> None:
    user.succeed("install", f"{OWNER}/math")
    frozen = user.succeed("freeze", "--hashes")
    lines = [f"{one.name}=={one.version} --hash=sha256:{one.manifest}" for one in lock_of(user.home).packs]
    assert all(text in frozen.replace("\\\n", " ") for line in lines for text in line.split())
    (user.home / "all.txt").write_text(frozen)
    (user.home / "some.txt").write_text(lines[0])
    (user.home / "wrong.txt").write_text(f"{lines[0]}\n{lines[1][:-64]}{'0' * 64}\n")
    place = user.home / "elsewhere"
    common = ["--base", BASE, "--environment", place]
    said = user.fail(2, "install", "-r", "some.txt", *common)
    assert f"{OWNER}/shared 1.1 is needed, and no hash of it is given" in said
    user.fail(6, "install", "-r", "wrong.txt", *common)
    user.fail(2, "install", f"{OWNER}/both", "--require-hashes", *common)
    assert not (place / "skillhub.lock").exists()
    user.succeed("install", "-r", "all.txt", "--require-hashes", *common)
    assert versions(place) == {"math": "1.1", "shared": "1.1"}
    (user.home / "narrow.txt").write_text(f"-c constraints.txt\n{OWNER}/math\n")
    (user.home / "constraints.txt").write_text(f"{OWNER}/shared<1.1\n")
    other = user.home / "narrow"
    user.succeed("install", "-r", "narrow.txt", "--base", BASE, "--environment", other)
    assert versions(other) == {"math": "1.1", "shared": "1.0"}


def test_locking_installs_nothing_and_tells_what_it_chose(user: Shell) -> None:
    text = project(user.home).replace("requirements = []", f'requirements = ["{OWNER}/math"]')
    (user.home / "skillhub.toml").write_text(text)
    assert "not up to date" in user.fail(10, "lock", "--check")
    assert f"+ {OWNER}/math 1.1" in user.succeed("lock", "--dry-run")
    assert not (user.home / "skillhub.lock").exists()
    assert "Locked 2 packs." in user.succeed("lock")
    assert not (user.home / ".skillhub" / "packs").exists()
    assert user.json("lock", "--check")["lock_changed"] is False
    user.succeed("sync", "--locked")
    assert versions(user.home) == {"math": "1.1", "shared": "1.1"}


def test_sync_makes_the_environment_exactly_the_lock(user: Shell) -> None:
    user.succeed("install", f"{OWNER}/math", f"{OWNER}/both")
    told = user.json("sync")
    assert told["changes"] == [] and told["lock_changed"] is False
    shutil.rmtree(user.home / ".skillhub" / "packs" / OWNER / "shared")
    assert "Would install" in user.succeed("sync", "--dry-run")
    text = project(user.home).replace(f'    "{OWNER}/both",\n', "")
    assert text != project(user.home)
    (user.home / "skillhub.toml").write_text(text)
    assert "have changed" in user.fail(10, "sync", "--locked")
    assert "Nothing to do" not in user.succeed("sync", "--frozen")
    assert sorted(one.name.name for one in installed_packs(Environment(user.home))) == ["both", "math", "shared"]
    user.succeed("sync", "--inexact")
    assert sorted(one.name.name for one in installed_packs(Environment(user.home))) == ["both", "math", "shared"]
    assert f"Removed {OWNER}/both 1.0" in user.succeed("sync")
    assert versions(user.home) == {"math": "1.1", "shared": "1.1"}
    assert len(user.json("sync", "--reinstall")["changes"]) == 2


def test_frozen_and_locked_install_nothing_else_than_the_lock(user: Shell) -> None:
    assert "has no lock" in user.fail(10, "sync", "--frozen")
    user.succeed("install", f"{OWNER}/math")
    assert "adds nothing" in user.fail(2, "install", "--frozen", f"{OWNER}/both")
    assert "not up to date" in user.fail(10, "install", "--locked", f"{OWNER}/both")
    user.succeed("install", "--locked", f"{OWNER}/math")
    assert versions(user.home) == {"math": "1.1", "shared": "1.1"}


def test_another_machine_installs_the_same_bytes_offline_too(user: Shell, endpoint: str) -> None:
    user.succeed("install", f"{OWNER}/math")
    other = Shell(user.home / "other", endpoint)
    other.home.mkdir()
    for name in ("skillhub.toml", "skillhub.lock"):
        shutil.copy(user.home / name, other.home / name)
    said = other.fail(8, "sync", "--locked", "--offline")
    assert "not in the store" in said
    other.succeed("sync", "--locked")
    assert lock_of(other.home) == lock_of(user.home)
    assert versions(other.home) == {"math": "1.1", "shared": "1.1"}
    shutil.rmtree(other.home / ".skillhub")
    other.succeed("sync", "--locked", "--offline")
    assert versions(other.home) == {"math": "1.1", "shared": "1.1"}


def test_one_lock_serves_another_base(user: Shell) -> None:
    user.succeed("install", f"{OWNER}/both")
    other = user.home / "other"
    other.mkdir()
    for name in ("skillhub.toml", "skillhub.lock"):
        (other / name).write_text((user.home / name).read_text().replace(BASE, OTHER_BASE))
    user.succeed("sync", "--locked", "--environment", other)
    assert [one.fingerprint for one in installed_packs(Environment(other))] == [OTHER_BASE]


def test_a_pack_at_a_commit_stays_there(user: Shell, endpoint: str) -> None:
    from huggingface_hub import HfApi

    first = HfApi(endpoint=endpoint, token=False).list_repo_commits(f"{OWNER}/chat")
    at = next(one.commit_id for one in first if "1.0" in one.title)
    user.succeed("install", f"{OWNER}/chat@{at}")
    assert versions(user.home) == {"chat": "1.0", "shared": "2.0"}
    assert f'"{OWNER}/chat@{at}"' in project(user.home)
    assert next(one.commit for one in lock_of(user.home).packs if one.pack_name.name == "chat") == at
    user.succeed("upgrade")
    assert versions(user.home)["chat"] == "1.0"
    assert "is a version" in user.fail(2, "install", f"{OWNER}/chat@1.0")


def test_owners_are_added_for_short_names(user: Shell) -> None:
    assert "no owners are configured" in user.fail(4, "install", "both")
    user.succeed("install", "both", "--owner", "nobody", "--owner", OWNER)
    assert f'"{OWNER}/both"' in project(user.home)
    assert f'"{OWNER}"' in project(user.home).split("owners")[-1]


def test_owners_that_are_named_go_before_what_is_installed(user: Shell) -> None:
    user.succeed("install", f"{OWNER}/shared")
    user.succeed("install", "shared")
    assert "none of nobody has such a pack" in user.fail(4, "install", "shared", "--owner", "nobody")
    user.succeed("install", "shared", "--owner", OWNER)


def test_the_full_name_of_what_is_asked_for_by_a_short_one_can_be_given(user: Shell) -> None:
    (user.home / "skillhub.toml").write_text('requirements = ["both"]\n')
    assert f"skillhub install {OWNER}/both." in user.fail(4, "sync")
    user.succeed("install", f"{OWNER}/both", "--base", BASE)
    assert f'"{OWNER}/both"' in project(user.home)
    assert '"both"' not in project(user.home)


def test_on_a_terminal_the_owner_is_asked_for_and_is_never_guessed(user: Shell) -> None:
    def answer(text: str) -> tuple[int, str]:
        ours, theirs = pty.openpty()
        os.write(ours, text.encode())
        child = subprocess.Popen(
            [sys.executable, "-m", "skillhub", "install", "both"],
            env=user.variables,
            cwd=user.home,
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=theirs,
        )
        os.close(theirs)
        said = b""
        with contextlib.suppress(OSError):  # Linux ends a terminal that nobody writes to any more with EIO
            while piece := os.read(ours, 4096):
                said += piece
        child.communicate()
        os.close(ours)
        return child.returncode, said.decode()

    for nothing in ("\n", "7\n", "x\n"):
        code, said = answer(nothing)
        assert (code, f"1  {OWNER}/both" in said) == (4, True), said
    assert answer("1\n")[0] == 0
    assert versions(user.home) == {"both": "1.0"}


def test_a_requirement_that_cannot_be_read_is_told_with_its_file(user: Shell) -> None:
    (user.home / "skillhub.toml").write_text('requirements = ["acme/math-pack=>1"]\n')
    said = user.fail(2, "install", "acme/chat-pack")
    assert said.startswith(f"error: {user.home / 'skillhub.toml'}: The versions in 'acme/math-pack=>1' cannot be read.")
    (user.home / "skillhub.toml").write_text("")
    (user.home / "wanted.txt").write_text("acme/math-pack\nacme/chat-pack=2\n")
    assert "error: wanted.txt, line 2: The versions in" in user.fail(2, "install", "-r", "wanted.txt")
    said = user.fail(2, "install", f"{OWNER}/math", "--base", BASE, "--constraint", "acme/shared=1")
    assert "error: constraints: The versions in 'acme/shared=1' cannot be read." in said


def test_what_takes_the_place_of_a_requirement_is_told_only_when_it_does(user: Shell) -> None:
    user.succeed("install", f"{OWNER}/shared")
    assert user.fail(3, "install", f"{OWNER}/shared>=9").startswith("error: ")
    assert f"{OWNER}/shared<2 takes the place of {OWNER}/shared." in user.run("install", f"{OWNER}/shared<2").stderr


def test_who_waits_for_another_process_is_told(user: Shell) -> None:
    user.succeed("install", f"{OWNER}/both")
    with Environment(user.home).hold():
        waiting = subprocess.Popen(
            [sys.executable, "-m", "skillhub", "uninstall", "both"],
            env=user.variables,
            cwd=user.home,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert waiting.stderr is not None
        assert waiting.stderr.readline() == f"Waiting for another process that changes {user.home}.\n"
    waiting.communicate()
    assert waiting.returncode == 0 and versions(user.home) == {}
