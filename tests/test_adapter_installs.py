"""Adapters of peft that are on a registry, installed as packs: by processes, against a live registry."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from skillhub.adapters import CONFIG_FILE, PICKLE_FILE
from skillhub.checkpointfiles import ADAPTER_FILE
from skillhub.environments import Environment, installed_packs
from tests.support.commands import Shell
from tests.support.registry_process import RegistryProcess

Save = Callable[..., Path]


@pytest.fixture(scope="module")
def save(models: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Save:
    """Make an adapter of the tiny model; the seed decides its weights."""
    from tests.support.peft_adapters import make_adapter

    def make(seed: int = 1) -> Path:
        folder = tmp_path_factory.mktemp("adapters") / "lora"
        return make_adapter(models[0], folder, seed=seed, target_modules=["q_proj", "v_proj"])

    return make


@pytest.fixture(scope="module")
def adapter(save: Save) -> Path:
    return save()


@pytest.fixture
def api(registry: RegistryProcess) -> HfApi:
    return HfApi(endpoint=registry.endpoint, token=registry.token)


@pytest.fixture
def name(api: HfApi, registry: RegistryProcess, request: pytest.FixtureRequest) -> str:
    """An empty repository for one test."""
    digest = hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]
    return str(api.create_repo(f"{registry.user}/lora-{digest}").repo_id)


@pytest.fixture
def project(shell: Shell, models: tuple[Path, Path]) -> Path:
    """The shell's home, made a project for the tiny model."""
    shell.succeed("init", "--base", models[0])
    return shell.home


def bytes_below(project: Path) -> dict[str, str]:
    """Return path → SHA-256 of the installed files."""
    folder = project / ".skillhub" / "packs"
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def elsewhere(shell: Shell, project: Path, folder: Path, **changes: str) -> Shell:
    """Return the shell of another machine, with the project file and the lock only."""
    folder.mkdir()
    for file in ("skillhub.toml", "skillhub.lock"):
        shutil.copyfile(project / file, folder / file)
    return replace(shell, home=folder, **changes)


def test_an_adapter_is_installed_listed_shown_verified_and_removed(
    shell: Shell, project: Path, api: HfApi, name: str, adapter: Path
):
    commit = api.upload_folder(repo_id=name, folder_path=adapter).oid
    assert f"Installed {name} {commit[:12]}" in shell.succeed("install", f"peft:{name}")
    [listed] = shell.json("list")["packs"]
    assert (listed["name"], listed["version"], listed["kind"]) == (name, commit[:12], "peft")
    assert (
        bytes_below(project)[f"{name}/{ADAPTER_FILE}"]
        == hashlib.sha256((adapter / ADAPTER_FILE).read_bytes()).hexdigest()
    )
    assert "acme/tiny, as it declares" in shell.succeed("show", name)
    assert shell.succeed("freeze") == f"peft:{name}@{commit}\n"
    assert f"{name} {commit[:12]} (peft:{name})" in shell.succeed("tree")
    assert shell.json("verify")["ok"] and shell.json("check")["ok"]
    assert f'"peft:{name}"' in (project / "skillhub.toml").read_text()
    shell.succeed("uninstall", f"peft:{name}")
    assert shell.json("list")["packs"] == []
    assert bytes_below(project) == {}


def test_a_frozen_list_installs_the_same_commit_and_a_wrong_hash_is_refused(
    shell: Shell, project: Path, api: HfApi, name: str, save: Save, tmp_path: Path, models: tuple[Path, Path]
):
    api.upload_folder(repo_id=name, folder_path=save(1))
    shell.succeed("install", f"peft:{name}")
    before = bytes_below(project)
    [frozen] = shell.json("freeze")["requirements"]
    api.upload_folder(repo_id=name, folder_path=save(2))
    listed = project / "listed.txt"
    listed.write_text(f"{frozen['requirement']} --hash=sha256:{frozen['digest']}\n")
    shell.succeed("install", "-r", listed, "--require-hashes", "--base", models[0], "-e", tmp_path / "other")
    assert bytes_below(tmp_path / "other") == before
    listed.write_text(f"{frozen['requirement']} --hash=sha256:{'0' * 64}\n")
    shell.fail(6, "install", "-r", listed, "--base", models[0], "-e", tmp_path / "third")
    assert bytes_below(tmp_path / "third") == {}


def test_it_stays_at_its_commit_until_it_is_upgraded_and_goes_back_when_asked(
    shell: Shell, project: Path, api: HfApi, name: str, save: Save
):
    first = api.upload_folder(repo_id=name, folder_path=save(1)).oid
    shell.succeed("install", f"peft:{name}")
    before = bytes_below(project)
    second = api.upload_folder(repo_id=name, folder_path=save(2)).oid
    for arguments in (["sync"], ["install", f"peft:{name}"], ["lock"], ["sync", "--locked"]):
        shell.succeed(*arguments)
        assert bytes_below(project) == before
    done = shell.run("outdated")
    assert (done.returncode, second[:12] in done.stdout) == (1, True)
    assert second[:12] in shell.succeed("upgrade", name)
    [listed] = shell.json("list")["packs"]
    assert listed["version"] == second[:12]
    assert bytes_below(project) != before
    shell.succeed("install", f"peft:{name}@{first}")
    assert bytes_below(project) == before
    shell.succeed("upgrade", "--all")
    assert bytes_below(project) == before
    project_file = project / "skillhub.toml"
    project_file.write_text(project_file.read_text().replace(first, second))
    shell.fail(10, "sync", "--locked")
    shell.succeed("sync")
    assert second in (project / "skillhub.lock").read_text()
    api.create_branch(name, branch="old", revision=first)
    shell.succeed("install", f"peft:{name}@old")
    assert bytes_below(project) == before


def test_another_machine_gets_the_same_bytes_and_the_store_does_offline(
    shell: Shell, project: Path, api: HfApi, name: str, save: Save, tmp_path: Path
):
    api.upload_folder(repo_id=name, folder_path=save(1))
    shell.succeed("install", f"peft:{name}")
    api.upload_folder(repo_id=name, folder_path=save(2))
    other = elsewhere(shell, project, tmp_path / "machine")
    other.succeed("sync", "--locked")
    assert bytes_below(other.home) == bytes_below(project)
    shutil.rmtree(other.home / ".skillhub")
    other.succeed("sync", "--locked", "--offline")
    assert bytes_below(other.home) == bytes_below(project)
    third = elsewhere(shell, project, tmp_path / "third")
    third.fail(8, "sync", "--offline")


def test_a_squashed_history_does_no_harm(
    shell: Shell, project: Path, api: HfApi, name: str, save: Save, tmp_path: Path
):
    api.upload_folder(repo_id=name, folder_path=save(1))
    shell.succeed("install", f"peft:{name}")
    api.super_squash_history(name)
    other = elsewhere(shell, project, tmp_path / "machine")
    other.succeed("sync", "--locked")
    assert bytes_below(other.home) == bytes_below(project)


def test_a_vendored_adapter_needs_no_network(
    shell: Shell, project: Path, api: HfApi, name: str, adapter: Path, tmp_path: Path, models: tuple[Path, Path]
):
    commit = api.upload_folder(repo_id=name, folder_path=adapter).oid
    shell.succeed("install", f"peft:{name}")
    shell.succeed("vendor", "vendored")
    island = elsewhere(shell, project, tmp_path / "island", endpoint="http://127.0.0.1:9")
    shutil.copytree(project / "vendored", island.home / "vendored")
    island.succeed("sync", "--locked", "--registry", "vendored")
    assert bytes_below(island.home) == bytes_below(project)
    island.succeed(
        "install", f"peft:{name}@{commit[:12]}", "--registry", "vendored", "--base", models[0], "-e", tmp_path / "new"
    )
    assert bytes_below(tmp_path / "new").keys() == bytes_below(project).keys()
    done = island.run("install", f"peft:{name}@{'0' * 12}", "--registry", "vendored")
    assert (done.returncode, "not at 000000000000" in done.stderr) == (4, True)
    (island.home / "vendored" / "hub" / name / ADAPTER_FILE).write_bytes(b"other bytes")
    shutil.rmtree(island.home / ".skillhub")
    shutil.rmtree(island.home / "cache")
    island.fail(6, "sync", "--locked", "--registry", "vendored")


def test_pickles_other_kinds_and_what_is_no_adapter_are_refused_before_anything_is_there(
    shell: Shell, project: Path, api: HfApi, name: str, adapter: Path
):
    assert "no adapter_config.json" in shell.fail(4, "install", f"peft:{name}")
    config = json.loads((adapter / CONFIG_FILE).read_text())

    def put(path: str, data: bytes) -> None:
        api.upload_file(repo_id=name, path_in_repo=path, path_or_fileobj=data)

    put(CONFIG_FILE, json.dumps(config).encode())
    put(PICKLE_FILE, b"\x80\x02pickle")
    assert "save_pretrained" in shell.fail(12, "install", f"peft:{name}")
    put(ADAPTER_FILE, b"\xff" * 64)
    shell.fail(12, "install", f"peft:{name}")
    put(ADAPTER_FILE, b"\x02" + b"\0" * 7 + b"{]")
    shell.fail(6, "install", f"peft:{name}")
    put(ADAPTER_FILE, (adapter / ADAPTER_FILE).read_bytes())
    for key, said in (("use_dora", "DoRA"), ("use_qalora", "QALoRA")):
        put(CONFIG_FILE, json.dumps({**config, key: True}).encode())
        told = shell.fail(2, "install", f"peft:{name}")
        assert said in told and "skillhub pack" in told
    put(CONFIG_FILE, json.dumps({**config, "peft_type": "PREFIX_TUNING"}).encode())
    assert "PREFIX_TUNING" in shell.fail(2, "install", f"peft:{name}")
    assert bytes_below(project) == {}
    assert "peft:" not in (project / "skillhub.toml").read_text()


def test_the_policy_holds_for_adapters(shell: Shell, project: Path, api: HfApi, name: str, save: Save):
    api.upload_folder(repo_id=name, folder_path=save(1))
    policy = project / "config" / "policy.toml"
    policy.parent.mkdir(exist_ok=True)
    policy.write_text('allowed_owners = ["acme"]\n')
    shell.fail(7, "install", f"peft:{name}")
    assert bytes_below(project) == {}
    policy.write_text("cooldown_days = 3\n")
    assert "less than the 3 days ago" in shell.fail(7, "install", f"peft:{name}")
    policy.unlink()
    assert "after the cut-off" in shell.fail(3, "install", f"peft:{name}", "--exclude-newer", "2020-01-01")
    assert bytes_below(project) == {}
    shell.succeed("install", f"peft:{name}", "--exclude-newer", "2999-01-01")
    before = bytes_below(project)
    policy.write_text("cooldown_days = 3\n")
    shell.succeed("sync")
    api.upload_folder(repo_id=name, folder_path=save(2))
    done = shell.run("upgrade", "--all")
    assert (done.returncode, "It stays at" in done.stderr) == (0, True)
    assert bytes_below(project) == before


def test_a_repository_that_was_made_anew_is_not_followed(
    shell: Shell, project: Path, api: HfApi, name: str, save: Save, tmp_path: Path
):
    api.upload_folder(repo_id=name, folder_path=save(1))
    shell.succeed("install", f"peft:{name}")
    before = bytes_below(project)
    api.delete_repo(name)
    api.create_repo(name)
    api.upload_folder(repo_id=name, folder_path=save(2))
    assert "another repository than before" in shell.fail(7, "upgrade", name)
    assert bytes_below(project) == before
    shell.succeed("sync")
    other = elsewhere(shell, project, tmp_path / "machine")
    other.fail(6, "sync", "--locked")
    assert bytes_below(other.home) == {}
    shell.succeed("trust", "forget", name)
    shell.succeed("upgrade", name)
    assert bytes_below(project) != before


def test_a_moved_repository_is_told_and_locked(
    shell: Shell, project: Path, api: HfApi, name: str, save: Save, tmp_path: Path
):
    api.upload_folder(repo_id=name, folder_path=save(1))
    api.move_repo(name, f"{name}-new")
    done = shell.run("install", f"peft:{name}")
    assert (done.returncode, f"{name} has moved to {name}-new" in done.stderr) == (0, True)
    assert f'repository = "{name}-new"' in (project / "skillhub.lock").read_text()
    other = elsewhere(shell, project, tmp_path / "machine")
    other.succeed("sync", "--locked")
    assert bytes_below(other.home).keys() == bytes_below(project).keys()


def test_a_base_that_differs_is_told_when_installing_and_when_grafting(
    shell: Shell, project: Path, api: HfApi, name: str, adapter: Path, models: tuple[Path, Path]
):
    api.upload_folder(repo_id=name, folder_path=adapter)
    file = project / "skillhub.toml"
    file.write_text(re.sub(r"(fingerprint = .*)", r'\1\nrepo = "acme/other"', file.read_text()))
    done = shell.run("install", f"peft:{name}")
    assert done.returncode == 0, done.stderr
    assert f"{name} declares acme/tiny as its base; this environment is for acme/other." in done.stderr
    done = shell.run("fuse", "--base", models[0], "--pack", f"peft:{name}@0.5", "-o", "fused")
    assert done.returncode == 0, done.stderr
    assert "declares acme/tiny as its base" in done.stderr
    shell.succeed("run", "--base", "fused", "a b c", "--max-new-tokens", "2")


def test_an_installed_adapter_is_grafted_by_name_and_an_altered_one_is_not(
    shell: Shell, project: Path, api: HfApi, name: str, adapter: Path, models: tuple[Path, Path]
):
    import skillhub
    from tests.support.tiny_models import bits, load_model

    api.upload_folder(repo_id=name, folder_path=adapter)
    shell.succeed("install", f"peft:{name}")
    model, expected = load_model(models[0]), load_model(models[0])
    before = bits(model)
    skillhub.graft(expected, [adapter], rounding="nearest")
    for spelling in (name, f"peft:{name}", f"peft:{name.upper()}", name.partition("/")[2]):
        skillhub.graft(model, [spelling], rounding="nearest", environment=project)
        assert bits(model) == bits(expected)
        skillhub.ungraft(model, spelling)
        assert bits(model) == before
    [installed] = installed_packs(Environment(project))
    weights = installed.folder / ADAPTER_FILE
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.unlink()
    weights.write_bytes(data)
    assert shell.run("verify").returncode == 1
    with pytest.raises(skillhub.IntegrityError, match="were altered since it was installed") as caught:
        skillhub.graft(model, [name], environment=project)
    assert f"--reinstall peft:{name}" in caught.value.hint
    shell.succeed("install", "--reinstall", f"peft:{name}")
    assert shell.json("verify")["ok"]


def test_a_pack_and_an_adapter_live_in_one_environment(
    shell: Shell, project: Path, api: HfApi, name: str, adapter: Path, models: tuple[Path, Path]
):
    from tests.support.tiny_models import build_pack

    build_pack(models[1], models[0], project / "tiny-pack")
    api.upload_folder(repo_id=name, folder_path=adapter)
    shell.succeed("install", "./tiny-pack", f"peft:{name}")
    assert {one["kind"] for one in shell.json("list")["packs"]} == {"pack", "peft"}
    shell.succeed("fuse", "--base", models[0], "--pack", "tiny-pack", "--pack", f"peft:{name}@0.5", "-o", "fused")
    card = (project / "fused" / "README.md").read_text()
    assert f"| {name} |" in card and "| tiny-pack | pack | 1.0.0 |" in card
    assert "the same weights up to rounding" in card
    assert f"Removed {name}" in shell.succeed("uninstall", name)
    assert [one["kind"] for one in shell.json("list")["packs"]] == ["pack"]


def test_without_a_base_it_is_asked_for(shell: Shell, api: HfApi, name: str, adapter: Path):
    api.upload_folder(repo_id=name, folder_path=adapter)
    assert "Name the base: --base" in shell.fail(5, "install", f"peft:{name}")
