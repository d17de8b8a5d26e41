"""Completion, as shells ask for it; and a real bash."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from skillhub.cli import COMMANDS
from tests.support.commands import Shell
from tests.support.faults import faulty_proxy
from tests.support.packs import BASE, OTHER_BASE, make_pack
from tests.support.registry_process import RegistryProcess


def complete(shell: Shell, line: str, **variables: str) -> list[str]:
    """Return what bash would be told for a line that ends where the cursor is."""
    words = line.split(" ")
    asked = {
        "_SKILLHUB_COMPLETE": "bash_complete",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }
    done = subprocess.run(
        [sys.executable, "-m", "skillhub"],
        env=shell.variables | asked | variables,
        cwd=shell.home,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr  # it would be written into the user's line
    return [told.removeprefix("plain,") for told in done.stdout.split("\n") if told]


@pytest.fixture
def installed(tmp_path: Path) -> Shell:
    """A user with a project in which two packs from folders are installed."""
    shell = Shell(tmp_path)
    (tmp_path / "skillhub.toml").write_text("requirements = []\n")
    for name in ("Math-Pack", "code-pack"):
        shell.succeed("install", make_pack(tmp_path / name, name=name, repo=None).folder, "--base", BASE)
    return shell


def test_commands_and_options_are_completed(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    assert complete(shell, "skillhub ") == list(COMMANDS)
    assert sorted(complete(shell, "skillhub un")) == ["uninstall", "unyank"]
    assert "--frozen" in complete(shell, "skillhub sync --f")
    assert complete(shell, "skillhub completion ") == ["bash", "zsh", "fish"]
    assert "--version" in complete(shell, "skillhub --")
    assert complete(shell, "skillhub config registry ") == ["add", "list", "remove"]


@pytest.mark.parametrize("command", ["uninstall", "show", "upgrade", "why", "tree"])
def test_installed_packs_are_completed(installed: Shell, command: str) -> None:
    assert complete(installed, f"skillhub {command} ") == ["code-pack", "Math-Pack"]
    assert complete(installed, f"skillhub {command} mat") == ["Math-Pack"]
    assert complete(installed, f"skillhub {command} x") == []


def test_a_pack_is_completed_once_and_by_its_bare_name_as_well(shell: Shell, registry: RegistryProcess) -> None:
    full = f"{registry.user}/bare-pack"
    shell.succeed("publish", make_pack(shell.home / "pack", name="bare-pack", repo=None).folder, full)
    shell.succeed("install", full, "--base", BASE)
    with faulty_proxy(registry.endpoint) as proxy:
        away = Shell(shell.home, proxy.endpoint, shell.token)
        assert complete(away, "skillhub uninstall ") == [full]
        assert complete(away, "skillhub uninstall ba") == ["bare-pack"]
        assert complete(away, f"skillhub uninstall {registry.user}/") == [full]
        assert complete(away, f"skillhub uninstall {full} ") == []
        assert not proxy.seen


def test_the_environment_that_is_named_is_the_one(installed: Shell) -> None:
    place = installed.home / "elsewhere"
    installed.succeed(
        "install", make_pack(installed.home / "x", name="other-pack", repo=None).folder, "--base", BASE, "-e", place
    )
    assert complete(installed, f"skillhub uninstall -e {place} ") == ["other-pack"]


def test_registries_are_completed(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    shell.succeed("config", "registry", "add", "corp", "https://hub.example")
    for command in ("install", "search", "login", "whoami"):
        assert complete(shell, f"skillhub {command} --registry ") == ["corp", "hub"]
    assert complete(shell, "skillhub config registry remove c") == ["corp"]


def test_where_nothing_can_be_completed_nothing_is_said(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    assert complete(shell, "skillhub uninstall ") == []  # nothing is installed
    complete(shell, "skillhub nonsense x ")  # says nothing, at least
    complete(shell, "skillhub config nonsense x ")
    assert complete(shell, "skillhub show ./fol") == ["dir,./fol"]  # left to the shell
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.toml").write_text("[")
    assert complete(shell, "skillhub install --registry ") == []
    (tmp_path / "skillhub.toml").write_text("requirements = []\n")
    (tmp_path / "skillhub.lock").write_text("[")
    assert complete(shell, "skillhub why ") == []


def test_of_several_environments_none_is_guessed(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    for base in (BASE, OTHER_BASE):
        pack = make_pack(tmp_path / base[-4:], name=f"pack-{base[-4:]}", fingerprints=[base], repo=None)
        shell.succeed("install", pack.folder, "--base", base)
    assert complete(shell, "skillhub uninstall ") == []


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_is_printed(tmp_path: Path, name: str) -> None:
    shell = Shell(tmp_path)
    script = shell.succeed("completion", name)
    assert f"_SKILLHUB_COMPLETE={name}_complete" in script and "skillhub" in script
    assert shell.json("completion", name)["script"] == script
    program = shutil.which(name)
    if program:
        subprocess.run([program, "-n", "-c", script], check=True)


def test_an_unknown_shell_is_a_mistake_in_usage(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    shell.fail(2, "completion", "tcsh")
    assert 'eval "$(skillhub completion bash)"' in shell.succeed("completion", "--help")


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes(installed: Shell) -> None:
    """The printed script is sourced, and its function is called as bash calls it when Tab is pressed."""
    program = installed.home / "bin" / "skillhub"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m skillhub "$@"\n')
    program.chmod(0o755)
    script = """
eval "$(skillhub completion bash)"
complete -p skillhub
press() {
    COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
    _skillhub_completion skillhub "${COMP_WORDS[COMP_CWORD]}"
    echo "${COMPREPLY[@]}"
}
press skillhub uninst
press skillhub uninstall m
press skillhub why ""
press skillhub list --envi
"""
    variables = installed.variables | {"PATH": os.pathsep.join([str(program.parent), os.environ["PATH"]])}
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        env=variables,
        cwd=installed.home,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "complete -o nosort -F _skillhub_completion skillhub",
        "uninstall",
        "Math-Pack",
        "code-pack Math-Pack",
        "--environment",
    ]
