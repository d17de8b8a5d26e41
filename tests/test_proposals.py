"""Releases by review: proposed as a pull request, looked at, tried, merged."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import HfApi

from skillhub import hub
from skillhub.releases import parse_releases
from tests.support.commands import Shell
from tests.support.packs import make_pack
from tests.support.registry_process import RegistryProcess


def versions(registry: RegistryProcess, name: str, revision: str = "main") -> list[str]:
    there = hub.Registry("hub", registry.endpoint, registry.token)
    read = hub.read_releases(there, name, revision=revision)
    return [str(one.version) for one in parse_releases(read.data).releases] if read else []


@pytest.mark.usefixtures("homes")
def test_a_proposal_becomes_a_release_when_it_is_merged(
    shell: Shell, registry: RegistryProcess, tmp_path: Path
) -> None:
    name = f"{registry.user}/reviewed-pack"
    first, second = (make_pack(tmp_path / version, "reviewed-pack", version) for version in ("1.0", "1.1"))
    shell.succeed("publish", first.folder, name)
    contributor = Shell(tmp_path / "contributor", registry.endpoint, registry.add_user("contributor"))
    contributor.home.mkdir()
    planned = contributor.succeed("publish", second.folder, name, "--create-pr", "--dry-run")
    assert "One commit would propose" in planned
    proposed = contributor.json("publish", second.folder, name, "--create-pr")
    assert proposed["pull_request"] == f"{registry.endpoint}/{name}/discussions/1"
    assert not proposed["already_there"] and proposed["digest"] == second.digest
    assert versions(registry, name) == ["1.0"]
    assert versions(registry, name, "refs/pr/1") == ["1.0", "1.1"]

    assert shell.run("install", f"{name}==1.1", "-e", "early").returncode == 3
    for number, revision in enumerate(("refs/pr/1", proposed["commit"])):
        shell.succeed("install", f"{name}@{revision}", "-e", f"trial{number}")
        assert [one["version"] for one in shell.json("list", "-e", f"trial{number}")["packs"]] == ["1.1"]

    HfApi(endpoint=registry.endpoint, token=registry.token).merge_pull_request(name, 1)
    assert versions(registry, name) == ["1.0", "1.1"]
    shell.succeed("install", f"{name}==1.1", "-e", "late")
    assert shell.json("publish", second.folder, name)["already_there"]
    assert contributor.json("publish", second.folder, name, "--create-pr")["already_there"]


@pytest.mark.usefixtures("homes")
def test_a_proposal_is_signed_as_a_release_is(shell: Shell, registry: RegistryProcess, tmp_path: Path) -> None:
    name = f"{registry.user}/sealed-proposal"
    shell.succeed("publish", make_pack(tmp_path / "1", "sealed-proposal", "1.0").folder, name)
    signer = shell.json("key", "new")["signer"]
    said = shell.succeed("publish", make_pack(tmp_path / "2", "sealed-proposal", "1.1").folder, name, "--create-pr")
    assert f"Proposed {name} 1.1: {registry.endpoint}/{name}/discussions/1" in said and f"Signed by {signer}." in said
    HfApi(endpoint=registry.endpoint, token=registry.token).merge_pull_request(name, 1)
    shell.succeed("install", f"{name}==1.1", "-e", "env")


@pytest.mark.usefixtures("homes")
def test_nothing_is_proposed_to_a_repository_that_is_not_there(shell: Shell, tmp_path: Path) -> None:
    make_pack(tmp_path / "pack", "nowhere-pack", "1.0")
    for more in ((), ("--dry-run",)):
        said = shell.fail(4, "publish", "pack", "root/nowhere-pack", "--create-pr", *more)
        assert "Publish without --create-pr" in said
