"""``config.toml``: what is read and written, by the command line and by hand."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest

from skillhub.configuration import (
    Configuration,
    add_registry,
    configuration_path,
    parse_configuration,
    parse_size,
    read_configuration,
    remove_registry,
    set_value,
)
from skillhub.errors import NotFoundError, UsageError
from skillhub.projects import RegistryEntry
from tests.support.commands import Shell
from tests.support.faults import faulty_proxy
from tests.support.packs import BASE, make_pack
from tests.support.registry_process import RegistryProcess


@pytest.fixture
def user(tmp_path: Path) -> Shell:
    """A user without any registry in reach."""
    return Shell(tmp_path)


def test_every_setting_is_listed_with_what_decided_it(user: Shell) -> None:
    user.succeed("config", "set", "owners", "acme", "corp")
    told = user.json("config", "list")
    found = told["settings"]
    assert found["owners"] == {"value": ["acme", "corp"], "source": str(user.home / "config" / "config.toml")}
    assert found["cache_limit"] == {"value": None, "source": "default"}
    assert found["endpoint"] == {"value": user.endpoint, "source": "HF_ENDPOINT"}
    assert found["offline"] == {"value": False, "source": "default"}
    for name in ("cache", "home", "state", "config"):
        assert found[name] == {"value": str(user.home / name), "source": f"SKILLHUB_{name.upper()}"}
    assert found["policy"] == {"value": str(user.home / "config" / "policy.toml"), "source": "default"}
    assert told["registries"] == [{"name": "hub", "url": user.endpoint, "packs": []}]
    printed = user.succeed("config", "list")
    assert all(name in printed for name in found) and "acme, corp" in printed


def test_a_setting_is_set_got_and_unset(user: Shell) -> None:
    told = "cache_limit is 50GB, which the store is kept below.\n"
    assert user.succeed("config", "set", "cache_limit", "50GB") == told
    assert user.succeed("config", "get", "cache_limit") == "50GB\n"
    assert user.json("config", "get", "cache_limit")["value"] == "50GB"
    user.succeed("config", "set", "owners", "acme", "corp")
    assert user.succeed("config", "get", "owners") == "acme\ncorp\n"
    assert user.succeed("config", "unset", "cache_limit") == "cache_limit is not set.\n"
    user.succeed("config", "unset", "cache_limit")
    assert (user.home / "config" / "config.toml").read_text() == 'owners = ["acme", "corp"]\n'
    assert user.succeed("config", "get", "cache") == f"{user.home / 'cache'}\n"


def test_what_is_wrong_is_said_and_nothing_is_written(user: Shell) -> None:
    assert "'much' is not a size" in user.fail(2, "config", "set", "cache_limit", "much")
    assert "not an owner's name" in user.fail(2, "config", "set", "owners", "a/b")
    assert "has one value" in user.fail(2, "config", "set", "cache_limit", "1GB", "2GB")
    assert "HF_ENDPOINT" in user.fail(2, "config", "set", "endpoint", "https://hub.example")
    assert "config registry add" in user.fail(2, "config", "set", "registry", "x")
    for verb in (["get", "nothing"], ["set", "nothing", "1"], ["unset", "nothing"]):
        assert "cache_limit" in user.fail(2, "config", *verb)
    assert not (user.home / "config" / "config.toml").exists()


def test_a_file_that_is_not_valid_is_never_overwritten(user: Shell) -> None:
    path = user.home / "config" / "config.toml"
    path.parent.mkdir()
    for text, told in (("owners = [", "config.toml"), ("ownres = []", "ownres"), ("owners = 1", "$.owners")):
        path.write_text(text)
        for verb in (["set", "cache_limit", "1GB"], ["list"], ["registry", "add", "corp", "https://hub.example"]):
            assert told in user.fail(2, "config", *verb)
        assert path.read_text() == text


def test_registries_are_named_asked_in_order_and_removed(user: Shell) -> None:
    user.succeed("config", "registry", "add", "corp", "https://hub.corp.example/", "--packs", "corp/*")
    user.succeed("config", "registry", "add", "other", "http://[::1]:8000")
    told = user.json("config", "registry", "list")["registries"]
    assert told == [
        {"name": "corp", "url": "https://hub.corp.example", "packs": ["corp/*"]},
        {"name": "other", "url": "http://[::1]:8000", "packs": []},
        {"name": "hub", "url": user.endpoint, "packs": []},
    ]
    assert "corp/*" in user.succeed("config", "registry", "list")
    assert "corp/*" in user.succeed("config", "list")
    assert "already" in user.fail(2, "config", "registry", "add", "corp", "https://elsewhere.example")
    user.succeed("config", "registry", "remove", "corp")
    assert "other" in user.fail(4, "config", "registry", "remove", "corp")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["hub", "https://hub.example"], "HF_ENDPOINT"),
        (["local", "https://hub.example"], "cannot be the name"),
        (["a/b", "https://hub.example"], "cannot be the name"),
        (["corp", "hub.example"], "no address"),
        (["corp", "ftp://hub.example"], "no address"),
        (["corp", "http://[::1"], "no address"),
        (["corp", "https://hub:port"], "no address"),
        (["corp", "https://user:secretsecret@hub.example"], "skillhub login"),
        (["corp", "https://hub.example", "--packs", "corp"], "OWNER/NAME"),
    ],
)
def test_a_registry_that_will_not_do_is_refused(user: Shell, arguments: list[str], told: str) -> None:
    said = user.fail(2, "config", "registry", "add", *arguments)
    assert told in said and "secretsecret" not in said
    assert not (user.home / "config" / "config.toml").exists()


def test_packs_come_from_a_registry_that_was_named(shell: Shell, registry: RegistryProcess) -> None:
    pack = make_pack(shell.home / "pack", name="named-pack", repo=None)
    shell.succeed("publish", pack.folder, f"{registry.user}/named-pack")
    elsewhere = Shell(shell.home)  # whose HF_ENDPOINT answers nothing
    elsewhere.succeed("config", "registry", "add", "corp", registry.endpoint, "--packs", f"{registry.user}/*")
    elsewhere.succeed("config", "set", "owners", registry.user)
    elsewhere.succeed("install", "named-pack", "--base", BASE)
    assert elsewhere.json("list")["packs"][0]["registry"] == "corp"


def test_what_is_locked_stays_with_its_registry_when_another_one_is_chosen(
    shell: Shell, registry: RegistryProcess
) -> None:
    for name in ("stays-there", "comes-new"):
        folder = make_pack(shell.home / name, name=name, repo=None).folder
        shell.succeed("publish", folder, f"{registry.user}/{name}")
    with faulty_proxy(registry.endpoint) as proxy:
        shell.succeed("config", "registry", "add", "corp", proxy.endpoint)
        shell.succeed("install", f"{registry.user}/stays-there", "--base", BASE, "--registry", "hub")
        shell.succeed("install", f"{registry.user}/comes-new", "--base", BASE, "--registry", "corp")
        assert proxy.seen and not [request for request in proxy.seen if "stays-there" in request]
    found = {one["name"]: one["registry"] for one in shell.json("list")["packs"]}
    assert found == {f"{registry.user}/comes-new": "corp", f"{registry.user}/stays-there": "hub"}


COMMENTED = """\
# of mine
cache_limit = "5GB"  # a small disk

# the first
[[registry]]
name = "corp"
url = "https://hub.corp.example"  # moved once
"""


def test_comments_and_order_stay(homes: Path) -> None:
    configuration_path().parent.mkdir(parents=True)
    configuration_path().write_text(COMMENTED)
    set_value("owners", ["acme"])
    add_registry(RegistryEntry(name="other", url="https://other.example", packs=["o/*", "p/*"]))
    text = configuration_path().read_text()
    assert all(line in text for line in COMMENTED.splitlines())
    assert [one.name for one in read_configuration().registry] == ["corp", "other"]
    remove_registry("other")
    set_value("owners", [])
    assert configuration_path().read_text().strip() == COMMENTED.strip()
    remove_registry("corp")
    assert read_configuration() == Configuration(cache_limit="5GB")


@pytest.mark.parametrize("text", ["", "registry = []\n", 'registry = [{name = "x", url = "https://x.example"}]\n'])
def test_registries_are_added_to_whatever_is_there(homes: Path, text: str) -> None:
    configuration_path().parent.mkdir(parents=True)
    configuration_path().write_text(text)
    before = read_configuration().registry
    added = RegistryEntry(name="corp", url="https://hub.example", packs=["a/*"])
    assert add_registry(added).registry == [*before, added] == read_configuration().registry
    assert remove_registry("corp").registry == before
    with pytest.raises(NotFoundError):
        remove_registry("corp")


def test_two_registries_of_one_name_are_a_mistake() -> None:
    with pytest.raises(UsageError, match=r"registry\[1\].*two called 'a'"):
        parse_configuration(b"[[registry]]\nname = 'a'\n[[registry]]\nname = 'a'\n")


def test_a_linked_file_stays_a_link(homes: Path, tmp_path: Path) -> None:
    real = tmp_path / "dotfiles" / "config.toml"
    real.parent.mkdir()
    real.write_text("# here\n")
    configuration_path().parent.mkdir(parents=True)
    configuration_path().symlink_to(real)
    set_value("cache_limit", ["1GB"])
    assert configuration_path().is_symlink() and real.read_text() == '# here\ncache_limit = "1GB"\n'


def _add(number: int) -> None:
    add_registry(RegistryEntry(name=f"r{number}", url="https://hub.example"))


def test_changes_at_the_same_time_are_all_kept(homes: Path) -> None:
    with multiprocessing.get_context("fork").Pool(8) as pool:
        pool.map(_add, range(24), chunksize=1)
    assert {one.name for one in read_configuration().registry} == {f"r{number}" for number in range(24)}


@pytest.mark.parametrize(
    ("text", "size"),
    [("50GB", 50 * 10**9), ("1.5 MB", 1_500_000), ("2000", 2000), ("3k", 3000), ("2tb", 2 * 10**12), ("2MiB", 2 << 20)],
)
def test_a_size_has_units_of_a_thousand(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "much", "-1", "1e9", "9" * 400, f"0.{'1' * 400}", "5 i", "5XB", "nan", "inf"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size such as 50GB"):
        parse_size(text)


def test_settings_are_shown_without_passwords(user: Shell) -> None:
    user = replace(user, endpoint="http://ann:pass5word@127.0.0.1:9")
    (user.home / "config").mkdir()
    (user.home / "config" / "config.toml").write_text(
        '[[registry]]\nname = "corp"\nurl = "https://ann:pass5word@hub.corp.example"\n'
    )
    for arguments in (["list"], ["get", "endpoint"], ["registry", "list"]):
        shown = user.succeed("config", *arguments) + user.succeed("config", *arguments, "--json")
        assert "pass5word" not in shown and "http://***@127.0.0.1:9" in shown
