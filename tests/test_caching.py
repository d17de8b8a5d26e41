"""``skillhub cache`` as processes, on a store that installing has filled."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from skillhub.store import Store
from tests.support.commands import Shell
from tests.support.packs import BASE, OTHER_BASE, make_pack
from tests.support.registry_process import RegistryProcess

MATHS, CHAT = "cached-maths", "cached-chat"


@pytest.fixture(scope="module")
def owner(registry: RegistryProcess, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The owner of two packs that share no files."""
    home = tmp_path_factory.mktemp("author")
    shell = Shell(home, registry.endpoint, registry.token)
    make_pack(home / "maths", MATHS, "1.0", (BASE, OTHER_BASE))
    make_pack(home / "chat", CHAT, "2.0")
    for folder, name in (("maths", MATHS), ("chat", CHAT)):
        shell.succeed("publish", folder, f"{registry.user}/{name}")
    return registry.user


@pytest.fixture
def filled(shell: Shell, owner: str) -> Shell:
    """A user who has both packs: one installed, one installed and removed again."""
    shell.succeed("install", f"{owner}/{MATHS}", "--base", BASE, "-e", "env")
    shell.succeed("install", f"{owner}/{CHAT}", "--base", BASE, "-e", "other")
    shell.succeed("uninstall", CHAT, "-e", "other")
    return shell


def store_of(shell: Shell) -> Store:
    return Store(Path(shell.json("cache", "dir")["store"]))


def blobs_of(shell: Shell) -> list[Path]:
    return [path for path in (store_of(shell).folder / "sha256").rglob("*") if path.is_file()]


def type_into(shell: Shell, text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command whose stdin is a terminal on which somebody has typed ``text``."""
    ours, theirs = pty.openpty()
    os.write(ours, text.encode())
    command = [sys.executable, "-m", "skillhub", *arguments]
    done = subprocess.run(
        command, env=shell.variables, cwd=shell.home, stdin=theirs, capture_output=True, text=True, check=False
    )
    os.close(theirs)
    os.close(ours)
    return done


def damage(path: Path) -> None:
    path.chmod(0o644)
    path.write_bytes(b"x" * path.stat().st_size)
    path.chmod(0o444)


def test_the_folder_and_its_size_are_told(filled: Shell) -> None:
    folder = Path(filled.succeed("cache", "dir").strip())
    assert folder == filled.home / "cache"
    told = filled.json("cache", "size")
    assert told["size"] == sum(path.stat().st_size for path in blobs_of(filled))
    assert told["own"] + told["shared"] == told["size"] and told["own"] > 0 and told["shared"] > 0
    assert told["limit"] is None and told["files"] == 8
    assert "8 files, " in filled.succeed("cache", "size")


def test_releases_are_listed_by_name_with_what_they_free(filled: Shell, owner: str) -> None:
    told = filled.json("cache", "list", "-e", "env")
    chat, maths = told["packs"]
    assert (chat["name"], chat["version"], chat["files"]) == (f"{owner}/{CHAT}", "2.0", 4)
    assert (maths["name"], maths["version"], maths["files"]) == (f"{owner}/{MATHS}", "1.0", 4)
    assert chat["frees"] == chat["size"] > 6000 and maths["frees"] == 0
    assert maths["environments"] == [str(filled.home / "env")] and chat["environments"] == []
    assert len(told["files"]) == 8
    assert {name for one in told["files"] for name in one["packs"]} == {f"{owner}/{CHAT} 2.0", f"{owner}/{MATHS} 1.0"}
    text = filled.succeed("cache", "list")
    assert f"{owner}/{CHAT} 2.0" in text and max(map(len, text.splitlines())) <= 80
    each = filled.succeed("cache", "list", "--files")
    assert all(path.name[:12] in each for path in blobs_of(filled))
    assert max(map(len, each.splitlines())) <= 80


def test_a_file_that_no_manifest_lists_is_told_as_such(filled: Shell) -> None:
    for path in blobs_of(filled):
        if path.read_bytes().startswith(b"{"):
            path.unlink()
    assert "of no known pack" in filled.succeed("cache", "list")


def test_pruning_takes_what_no_environment_shares(filled: Shell) -> None:
    would = filled.json("cache", "prune", "--max-size", "0", "--dry-run")
    assert would["dry_run"] and len(blobs_of(filled)) == 8
    assert "Would remove 4 files (" in filled.succeed("cache", "prune", "--max-size", "0", "--dry-run")
    assert "Removed 4 files (" in filled.succeed("cache", "prune", "--max-size", "0")
    assert would["size"] == would["freed"] == sum(one["size"] for one in would["removed"])
    assert {one["digest"] for one in would["removed"]}.isdisjoint(path.name for path in blobs_of(filled))
    assert len(blobs_of(filled)) == 4
    assert filled.succeed("cache", "prune", "--max-size", "0") == "There is nothing to remove.\n"
    assert filled.json("verify", "-e", "env")["ok"]


def test_pruning_by_age(filled: Shell) -> None:
    assert filled.json("cache", "prune", "--older-than", "1h")["removed"] == []
    store = store_of(filled)
    for path in blobs_of(filled):
        os.utime(store.lock_path(path.name), (0, 0))
    assert len(filled.json("cache", "prune", "--older-than", "1h")["removed"]) == 4
    for age in ("30", "1.5d", "-1d", "soon"):
        assert "is not an age" in filled.fail(2, "cache", "prune", "--older-than", age)


def test_what_an_environment_holds_as_a_copy_is_used(filled: Shell, owner: str) -> None:
    for path in (filled.home / "env").rglob("*"):
        if path.is_file() and path.stat().st_nlink > 1:  # as on another file system
            data = path.read_bytes()
            path.unlink()
            path.write_bytes(data)
    assert len(filled.json("cache", "prune", "--unused", "--dry-run")["removed"]) == 8
    assert len(filled.json("cache", "prune", "--unused", "-e", "env", "--dry-run")["removed"]) == 4
    assert filled.json("cache", "prune", "--unused", "-e", "env")["removed"][0]["packs"] == []
    assert [one["name"] for one in filled.json("cache", "list")["packs"]] == [f"{owner}/{MATHS}"]
    filled.fail(4, "cache", "prune", "--unused", "-e", "nowhere")


def test_without_a_condition_only_leftovers_go(filled: Shell) -> None:
    store = store_of(filled)
    store.staging_of("0" * 64).mkdir(parents=True)
    done = filled.run("cache", "prune")
    assert done.returncode == 0 and "0 files (0 B) from the store and 1 leftover;" in done.stdout
    assert "--max-size" in done.stderr
    assert "is not an age" in filled.fail(2, "cache", "prune", "--older-than", "9" * 400 + "d")
    assert len(blobs_of(filled)) == 8


def test_the_configured_limit_is_kept_after_an_installation(shell: Shell, owner: str) -> None:
    folder = Path(shell.variables["SKILLHUB_CONFIG"])
    folder.mkdir()
    (folder / "config.toml").write_text('cache_limit = "1kB"\n')
    shell.succeed("install", f"{owner}/{CHAT}", "--base", BASE, "-e", "env")
    assert len(blobs_of(shell)) == 4  # the environment shares them
    shell.succeed("uninstall", CHAT, "-e", "env")
    assert len(blobs_of(shell)) == 4  # nothing was installed, so nobody looked
    shell.succeed("install", f"{owner}/{MATHS}", "--base", BASE, "-e", "env")
    assert {one["name"] for one in shell.json("cache", "list")["packs"]} == {f"{owner}/{MATHS}"}
    assert shell.json("cache", "size")["limit"] == 1000
    shell.succeed("uninstall", MATHS, "-e", "env")
    assert len(shell.json("cache", "prune")["removed"]) >= 3


def test_cleaning_asks_or_needs_a_word(filled: Shell) -> None:
    assert "--yes" in filled.fail(2, "cache", "clean")
    assert len(filled.json("cache", "clean", "--dry-run")["removed"]) == 8
    assert len(blobs_of(filled)) == 8
    done = type_into(filled, "n\n", "cache", "clean")
    assert done.returncode == 130 and "Remove everything (" in done.stderr and len(blobs_of(filled)) == 8
    done = type_into(filled, "y\n", "cache", "clean")
    assert done.returncode == 0 and "Removed 8 files (" in done.stdout and "environments have as well" in done.stdout
    assert blobs_of(filled) == []
    assert filled.json("verify", "-e", "env")["ok"]
    filled.succeed("sync", "--offline", "-e", "env")
    assert filled.succeed("cache", "clean", "--yes") == "There is nothing to remove.\n"


def test_damage_is_told_and_repaired(filled: Shell, owner: str) -> None:
    assert "8 files verified" in filled.succeed("cache", "verify")
    shared = next(path for path in blobs_of(filled) if path.stat().st_nlink > 1 and path.read_bytes()[:1] != b"{")
    damage(shared)
    done = filled.run("cache", "verify", "-e", "env")
    assert done.returncode == 1
    assert f"{shared} is damaged" in done.stdout and f"It is of {owner}/{MATHS} 1.0." in done.stdout
    assert shared.exists()
    done = filled.run("cache", "verify", "--repair", "--json")
    told = json.loads(done.stdout)
    assert done.returncode == 1 and told["removed"] == [shared.name] and not told["ok"]
    assert told["findings"][0]["error"] == "integrity" and told["findings"][0]["packs"] == [f"{owner}/{MATHS} 1.0"]
    assert filled.json("cache", "verify") == {"schema": 0, "files": 7, "ok": True, "findings": [], "removed": []}
    assert filled.run("verify", "-e", "env").returncode == 1  # the link has the damaged bytes, too
    filled.succeed("sync", "--reinstall", "-e", "env")
    assert filled.json("verify", "-e", "env")["ok"] and filled.json("cache", "verify")["files"] == 8


def test_an_empty_cache_is_no_error(shell: Shell) -> None:
    assert shell.succeed("cache", "list") == "The store is empty.\n"
    assert shell.json("cache", "verify")["ok"]
    assert shell.json("cache", "size")["size"] == 0
    assert not (shell.home / "cache").exists() or not blobs_of(shell)


@pytest.mark.parametrize("verb", ["dir", "size", "list", "prune", "clean", "verify"])
def test_every_verb_has_help_with_an_example(shell: Shell, verb: str) -> None:
    assert f"skillhub cache {verb}" in shell.succeed("cache", verb, "--help").split("Example:")[1]
