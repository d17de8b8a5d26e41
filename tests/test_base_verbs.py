"""``base show``, ``fingerprint`` and ``use``, as processes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from skillhub.fingerprint import fingerprint_checkpoint
from tests.support.commands import Shell
from tests.support.faults import faulty_proxy
from tests.support.packs import BASE, OTHER_BASE, fingerprint, make_pack
from tests.support.registry_process import RegistryProcess


def make_checkpoint(folder: Path, seed: int = 0) -> tuple[Path, str]:
    """Write a checkpoint of two tensors; returns its folder and its fingerprint."""
    folder.mkdir()
    numbers = np.random.default_rng(seed)
    tensors = {f"model.{name}.weight": numbers.standard_normal((8, 4), np.float32) for name in ("a", "b")}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return folder, fingerprint_checkpoint(folder).fingerprint


@pytest.fixture
def project(shell: Shell) -> Shell:
    """A user in a project."""
    (shell.home / "skillhub.toml").write_text("# ours\nrequirements = []\n")
    return shell


def state(shell: Shell) -> dict[str, bytes]:
    """Return every file of the project but locks, by its path."""
    paths = [shell.home / "skillhub.toml", shell.home / "skillhub.lock", *(shell.home / ".skillhub").rglob("*")]
    return {str(path): path.read_bytes() for path in paths if path.is_file() and path.name != "lock"}


def publish(shell: Shell, full: str, version: str, fingerprints: list[str], repo: str | None = None) -> None:
    name = full.partition("/")[2]
    folder = shell.home / f"{name}-{version}"
    make_pack(folder, name=name, version=version, fingerprints=fingerprints, repo=repo, size=500)
    shell.succeed("publish", folder, full)


def test_a_fingerprint_is_printed_with_where_it_is_from(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    folder, print_ = make_checkpoint(tmp_path / "model")
    assert shell.succeed("base", "fingerprint", folder) == f"{print_}\n"
    told = shell.json("base", "fingerprint", "./model")
    assert told["fingerprint"] == print_ and told["tensors"] == 2 and told["folder"] == "model" and told["repo"] is None
    assert "no base model" in shell.fail(4, "base", "fingerprint", "nothing")


def test_the_base_of_the_environment_is_shown(project: Shell) -> None:
    assert "no base yet" in project.fail(4, "base", "show")
    pack = make_pack(project.home / "pack", name="shown", fingerprints=[BASE, OTHER_BASE])
    project.succeed("install", pack.folder, "--base", BASE)
    said = project.succeed("base", "show")
    assert BASE in said and str(project.home) in said and "shown 1.0.0" in said and "1,000 weights" in said
    told = project.json("base", "show")["bases"]
    assert [one["fingerprint"] for one in told] == [BASE]
    assert told[0]["environments"] == [str(project.home)] and told[0]["parameters"] == 1000
    assert [one["name"] for one in told[0]["packs"]] == ["shown"]


def test_what_is_known_of_a_base_is_found_by_any_of_its_names(project: Shell) -> None:
    folder, print_ = make_checkpoint(project.home / "model")
    pack = make_pack(project.home / "pack", name="known", fingerprints=[print_, OTHER_BASE], repo="acme/Known-Base")
    project.succeed("install", pack.folder, "--base", BASE if print_ == BASE else print_)
    for name in (print_, print_[:17], "./model", "model", folder):
        told = project.json("base", "show", name)["bases"]
        assert [one["fingerprint"] for one in told] == [print_], name
        assert told[0]["repo"] == "acme/Known-Base"
    both = project.json("base", "show", "ACME/known-base")["bases"]
    assert [one["fingerprint"] for one in both] == [print_, OTHER_BASE]
    assert both[1]["packs"] == [] and both[1]["elsewhere"] == ["known"]
    assert "installed for another base" in project.succeed("base", "show", OTHER_BASE)
    assert "No environment" in project.fail(4, "base", "show", fingerprint("unheard of"))
    project.fail(4, "base", "show", "skb1:")
    project.fail(4, "base", "show", "./nowhere")


def test_your_own_environments_are_looked_into(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    for base in (BASE, OTHER_BASE):
        shell.succeed("install", make_pack(tmp_path / base[-5:], fingerprints=[base]).folder, "--base", base)
    assert len(shell.json("base", "show", OTHER_BASE)["bases"][0]["environments"]) == 1
    assert "--environment" in shell.fail(2, "base", "show")


def test_a_base_is_chosen_before_there_are_packs(project: Shell, registry: RegistryProcess) -> None:
    folder, print_ = make_checkpoint(project.home / "model")
    assert project.json("base", "use", folder)["base"] == print_
    text = (project.home / "skillhub.toml").read_text()
    assert print_ in text and text.startswith("# ours\n")
    assert "The base is" in project.succeed("base", "use", OTHER_BASE)
    assert OTHER_BASE in (project.home / "skillhub.toml").read_text()
    assert "repository" in project.fail(5, "base", "use", "acme/some-model")
    project.fail(2, "base", "use", "skb1:12")
    project.fail(2, "base", "use", "nothing")


def test_packs_are_installed_for_the_new_base(project: Shell, registry: RegistryProcess) -> None:
    full = f"{registry.user}/two-bases"
    publish(project, full, "1.0.0", [BASE, OTHER_BASE])
    project.succeed("install", full, "--base", BASE)
    before = state(project)
    assert "would be" in project.succeed("base", "use", OTHER_BASE, "--dry-run")
    assert state(project) == before
    told = project.json("base", "use", OTHER_BASE)
    assert told["base"] == OTHER_BASE and [one["action"] for one in told["changes"]] == ["install"]
    installed = project.json("list")["packs"]
    assert [(one["version"], one["fingerprint"]) for one in installed] == [("1.0.0", OTHER_BASE)]
    project.succeed("verify")
    project.succeed("check")
    project.succeed("sync", "--locked")
    assert project.succeed("base", "use", OTHER_BASE) == f"The base is {OTHER_BASE[:17]}.\n"


def test_another_release_is_taken_where_the_locked_one_has_no_variant(
    project: Shell, registry: RegistryProcess
) -> None:
    full = f"{registry.user}/older-fits"
    publish(project, full, "1.0.0", [BASE, OTHER_BASE])
    publish(project, full, "1.1.0", [BASE])
    project.succeed("install", full, "--base", BASE)
    assert project.json("list")["packs"][0]["version"] == "1.1.0"
    project.succeed("base", "use", OTHER_BASE)
    assert project.json("list")["packs"][0]["version"] == "1.0.0"


def test_without_a_variant_nothing_is_changed_and_it_is_said_why(project: Shell, registry: RegistryProcess) -> None:
    full, other = f"{registry.user}/one-base", f"{registry.user}/fits-both"
    publish(project, full, "1.0.0", [BASE])
    publish(project, other, "1.0.0", [BASE, OTHER_BASE])
    project.succeed("install", full, other, "--base", BASE)
    before = state(project)
    said = project.fail(5, "base", "use", OTHER_BASE)
    assert full in said
    assert state(project) == before
    folder = make_pack(project.home / "folder", name="of-a-folder", fingerprints=[BASE]).folder
    project.succeed("uninstall", full)
    project.succeed("install", folder)
    before = state(project)
    assert "of-a-folder" in project.fail(5, "base", "use", OTHER_BASE)
    assert state(project) == before


def test_a_repository_is_known_by_what_the_packs_say(project: Shell, registry: RegistryProcess) -> None:
    full = f"{registry.user}/declares"
    publish(project, full, "1.0.0", [BASE], repo="acme/other-name")
    publish(project, full, "1.1.0", [OTHER_BASE], repo="acme/declared-base")
    project.succeed("install", f"{full}<1.1", "--base", BASE)
    project.fail(5, "base", "use", "acme/declared-base")
    project.succeed("install", f"{full}>=1", "--base", BASE)
    told = project.json("base", "use", "acme/declared-base")
    assert told["base"] == OTHER_BASE
    assert 'repo = "acme/declared-base"' in (project.home / "skillhub.toml").read_text()


def test_offline_what_is_in_the_store_will_do(project: Shell, registry: RegistryProcess) -> None:
    full = f"{registry.user}/offline-base"
    with faulty_proxy(registry.endpoint) as proxy:
        user = replace(project, endpoint=proxy.endpoint)
        publish(user, full, "1.0.0", [BASE, OTHER_BASE])
        user.succeed("install", full, "--base", BASE)
        user.succeed("base", "use", OTHER_BASE)
        proxy.reset()
        user.succeed("base", "use", BASE, "--offline")
        assert not proxy.seen
    assert project.json("base", "show")["bases"][0]["fingerprint"] == BASE


def test_your_own_environment_stays_for_its_base(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    shell.succeed("install", make_pack(tmp_path / "pack", fingerprints=[BASE, OTHER_BASE]).folder, "--base", BASE)
    assert "--base" in shell.fail(2, "base", "use", OTHER_BASE)


def test_results_of_refusals_are_json(project: Shell) -> None:
    done = project.run("base", "use", "acme/some-model", "--json")
    assert done.returncode == 5 and json.loads(done.stdout)["error"] == "wrong-base"
