"""Packs from several registries: the first that has a pack is the one, patterns pin packs, and mirrors serve locks."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from skillhub import hub
from skillhub.environments import Environment, installed_packs
from skillhub.lockfile import read_lock
from skillhub.publisher import publish
from tests.support.commands import Shell
from tests.support.packs import BASE, make_pack
from tests.support.registry_process import RegistryProcess, running_registry

OWNER = "twice"


@pytest.fixture(scope="module")
def corp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryProcess]:
    with running_registry(tmp_path_factory.mktemp("corp")) as process:
        yield process


@pytest.fixture(scope="module")
def both(
    registry: RegistryProcess, corp: RegistryProcess, tmp_path_factory: pytest.TempPathFactory
) -> tuple[hub.Registry, hub.Registry]:
    """The public registry and the private one, with a pack of the same name in both and one of its own in each."""
    folder = tmp_path_factory.mktemp("packs")
    public = hub.Registry("hub", registry.endpoint, registry.add_user(OWNER))
    private = hub.Registry("corp", corp.endpoint, corp.add_user(OWNER))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKILLHUB_STATE", str(folder / "state"))
        for where, version, names in ((public, "99.0", ("same", "open")), (private, "1.0", ("same", "secret"))):
            for name in names:
                requires = [f"{OWNER}/same"] if name == "secret" else []
                seed = where.name
                pack = make_pack(folder / where.name / name, name, version, size=100, seed=seed, requires=requires)
                publish(pack, f"{OWNER}/{name}", registry=where)
    return public, private


@pytest.fixture
def user(tmp_path: Path, both: tuple[hub.Registry, hub.Registry]) -> Shell:
    shell = Shell(tmp_path, both[0].endpoint)
    shell.succeed("init", "--base", BASE)
    return shell


def configure(user: Shell, text: str) -> None:
    with (user.home / "skillhub.toml").open("a") as stream:
        stream.write(text)


def places(folder: Path) -> dict[str, tuple[str, str]]:
    """Return what is installed: bare name → version and registry."""
    return {one.name.name: (one.version, one.receipt.registry) for one in installed_packs(Environment(folder))}


def asked_of(user: Shell, endpoint: str, pack: str) -> bool:
    """Say whether a registry was ever asked for a pack, by what is remembered of it."""
    port = endpoint.rpartition(":")[2]
    return bool(list((user.home / "state").glob(f"registries/*_{port}-*/{pack}.*")))


def test_the_first_registry_that_has_a_pack_is_the_one(user: Shell, both: tuple[hub.Registry, hub.Registry]) -> None:
    user.succeed("install", f"{OWNER}/same")
    assert places(user.home) == {"same": ("99.0", "hub")}
    user.succeed("uninstall", "same")
    configure(user, f'\n[[registry]]\nname = "corp"\nurl = "{both[1].endpoint}"\n')
    user.succeed("install", f"{OWNER}/same", f"{OWNER}/open")
    assert places(user.home) == {"same": ("1.0", "corp"), "open": ("99.0", "hub")}
    user.succeed("uninstall", "same")
    said = user.fail(3, "install", f"{OWNER}/same>=2")
    assert "99.0" not in said  # the namesake elsewhere is no other version of this pack
    assert "same" not in places(user.home)


def test_a_pinned_pack_comes_from_its_registry_and_no_other_is_even_asked(
    user: Shell, both: tuple[hub.Registry, hub.Registry]
) -> None:
    pins = f'["{OWNER}/s*"]'
    configure(user, f'\n[[registry]]\nname = "corp"\nurl = "{both[1].endpoint}"\npacks = {pins}\n')
    user.succeed("install", f"{OWNER}/secret", f"{OWNER}/open")
    assert places(user.home) == {"same": ("1.0", "corp"), "secret": ("1.0", "corp"), "open": ("99.0", "hub")}
    assert asked_of(user, both[1].endpoint, f"{OWNER}/secret")
    assert not asked_of(user, both[0].endpoint, f"{OWNER}/secret")
    assert not asked_of(user, both[0].endpoint, f"{OWNER}/same")
    assert not asked_of(user, both[1].endpoint, f"{OWNER}/open")
    user.fail(4, "install", f"{OWNER}/s-unknown")
    assert "No registry is called nowhere" in user.fail(4, "install", f"{OWNER}/more", "--registry", "nowhere")


def test_registries_of_a_users_own_environment_count_when_packs_are_added_to_it(
    user: Shell, both: tuple[hub.Registry, hub.Registry]
) -> None:
    (user.home / "skillhub.toml").unlink()
    user.succeed("install", f"{OWNER}/open", "--base", BASE)
    (own,) = (user.home / "home" / "environments").iterdir()
    with (own / "skillhub.toml").open("a") as stream:
        stream.write(f'\n[[registry]]\nname = "corp"\nurl = "{both[1].endpoint}"\n')
    user.succeed("install", f"{OWNER}/secret", "--base", BASE)
    assert places(own) == {"same": ("1.0", "corp"), "secret": ("1.0", "corp"), "open": ("99.0", "hub")}


def test_what_is_locked_stays_with_its_registry(user: Shell, both: tuple[hub.Registry, hub.Registry]) -> None:
    user.succeed("install", f"{OWNER}/same")
    configure(user, f'\n[[registry]]\nname = "corp"\nurl = "{both[1].endpoint}"\n')
    user.succeed("upgrade")
    user.succeed("install", f"{OWNER}/secret")
    assert places(user.home) == {"same": ("99.0", "hub"), "secret": ("1.0", "corp")}
    user.succeed("uninstall", "same", "secret")
    user.succeed("install", f"{OWNER}/same", "--registry", "corp")
    assert places(user.home) == {"same": ("1.0", "corp")}


def test_what_is_locked_from_a_registry_that_is_not_known_here_is_looked_for_nowhere_else(
    user: Shell, both: tuple[hub.Registry, hub.Registry]
) -> None:
    project = (user.home / "skillhub.toml").read_bytes()
    configure(user, f'\n[[registry]]\nname = "corp"\nurl = "{both[1].endpoint}"\n')
    user.succeed("install", f"{OWNER}/same")
    (user.home / "skillhub.toml").write_bytes(project)
    for arguments in (["install", f"{OWNER}/same", f"{OWNER}/open"], ["install", f"{OWNER}/same>=2"]):
        assert "is locked from the registry corp, and none is called so here" in user.fail(4, *arguments)
    user.succeed("uninstall", "same")
    user.succeed("install", f"{OWNER}/same")
    assert places(user.home) == {"same": ("99.0", "hub")}


def test_a_lock_is_installed_from_a_mirror_too_and_after_a_squash(
    user: Shell, both: tuple[hub.Registry, hub.Registry], registry: RegistryProcess, tmp_path: Path
) -> None:
    user.succeed("install", f"{OWNER}/open", f"{OWNER}/same")
    shutil.copytree(registry.data, tmp_path / "mirror-data")
    with running_registry(tmp_path / "mirror-data", token="none") as mirror:
        HfApi(endpoint=mirror.endpoint, token=both[0].token).super_squash_history(f"{OWNER}/open")
        by_address = Shell(tmp_path / "by-address", "http://127.0.0.1:9")
        by_variable = Shell(tmp_path / "by-variable", mirror.endpoint)
        for other, options in ((by_address, ["--registry", mirror.endpoint]), (by_variable, [])):
            other.home.mkdir()
            for name in ("skillhub.toml", "skillhub.lock"):
                shutil.copy(user.home / name, other.home / name)
            other.succeed("sync", "--locked", *options)
            assert places(other.home) == places(user.home)
            assert read_lock(other.home / "skillhub.lock") == read_lock(user.home / "skillhub.lock")
            assert "2 packs verified" in other.succeed("verify")
