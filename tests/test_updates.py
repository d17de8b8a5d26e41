"""``skillhub outdated`` against a live registry: what is newer, what of it will do, and why the rest will not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import Shell
from tests.support.faults import FaultyProxy, faulty_proxy
from tests.support.packs import BASE, OTHER_BASE, make_pack
from tests.support.registry_process import RegistryProcess, running_registry
from tests.support.repositories import append_line, put_adapter
from tests.test_cli import on_a_terminal

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def market(tmp_path: Path) -> Iterator[RegistryProcess]:
    """An empty registry of the test's own, whose packs it may change."""
    with running_registry(tmp_path / "market") as process:
        yield process


@pytest.fixture
def author(market: RegistryProcess, tmp_path: Path) -> Shell:
    (tmp_path / "author").mkdir()
    return Shell(tmp_path / "author", market.endpoint, market.token)


@pytest.fixture
def user(market: RegistryProcess, tmp_path: Path) -> Shell:
    """Somebody with an empty project."""
    (tmp_path / "user").mkdir()
    (tmp_path / "user" / "skillhub.toml").touch()
    return Shell(tmp_path / "user", market.endpoint)


def publish(author: Shell, name: str, version: str, **more: Any) -> None:
    folder = author.home / f"{name}-{version}"
    make_pack(folder, name, version, **more)
    author.succeed("publish", folder, f"root/{name}")


def outdated(user: Shell, *arguments: str) -> dict[str, tuple[str, str | None, str | None, str]]:
    """Return what is outdated: name → locked, wanted, latest and reasons; looks at the exit code."""
    done = user.run("outdated", "--json", *arguments)
    told = json.loads(done.stdout)
    found = {one["name"]: one for one in told["packs"] if one["outdated"]}
    assert done.returncode == (1 if found else 0) and told["ok"] == (not found), done.stderr
    return {
        name: (one["current"], one["wanted"], one["latest"], "; ".join(one["reasons"])) for name, one in found.items()
    }


def test_what_is_newer_is_shown_with_what_keeps_it_out(user: Shell, author: Shell) -> None:
    publish(author, "shared", "1.0.0")
    publish(author, "math-pack", "1.0.0", requires=["root/shared>=1"])
    publish(author, "chat-pack", "1.0.0")
    user.succeed("install", "root/math-pack", "root/chat-pack<1.2", "--base", BASE)
    assert user.succeed("outdated") == "All 3 locked packs are up to date.\n"

    publish(author, "math-pack", "1.1.0", requires=["root/shared<2"])
    publish(author, "math-pack", "2.0.0", fingerprints=[OTHER_BASE])
    publish(author, "math-pack", "3.0rc1")
    publish(author, "shared", "2.0.0")
    publish(author, "chat-pack", "1.1.0")
    publish(author, "chat-pack", "1.2.0")
    wrong_base = f"2.0.0 has no variant for skb1:{BASE[5:17]}"
    expected = {
        "root/chat-pack": ("1.0.0", "1.1.0", "1.2.0", "root/chat-pack<1.2 is asked for"),
        "root/math-pack": ("1.0.0", "1.1.0", "2.0.0", wrong_base),
        "root/shared": ("1.0.0", "1.0.0", "2.0.0", "root/math-pack 1.1.0 requires root/shared<2"),
    }
    assert outdated(user) == expected
    assert outdated(user, "--offline") == expected  # as it was just seen
    assert outdated(user, "--pre")["root/math-pack"][2:] == ("3.0rc1", "3.0rc1 is a pre-release")
    shown = user.run("outdated", "--no-color").stdout
    assert "Wanted" in shown and "root/chat-pack<1.2 is asked for" in shown
    changes = user.json("upgrade")["changes"]
    assert {one["name"]: one["after"] for one in changes} == {"root/math-pack": "1.1.0", "root/chat-pack": "1.1.0"}
    assert {name: row[1] for name, row in outdated(user).items()} == {
        "root/chat-pack": "1.1.0",
        "root/math-pack": "1.1.0",
        "root/shared": "1.0.0",
    }


def test_rules_of_the_project_and_the_policy_are_named(user: Shell, author: Shell) -> None:
    publish(author, "math-pack", "1.0.0")
    user.succeed("install", "root/math-pack", "--base", BASE)
    publish(author, "math-pack", "1.1.0")
    text = (user.home / "skillhub.toml").read_text(encoding="utf-8")

    def reason(line: str) -> tuple[str | None, str]:
        (user.home / "skillhub.toml").write_text(f"{line}\n{text}", encoding="utf-8")
        (found,) = outdated(user).values()
        return found[1], found[3]

    assert reason("") == ("1.1.0", "")
    assert reason('constraints = ["root/math-pack<1.1"]') == (
        "1.0.0",
        "the constraint root/math-pack<1.1 does not allow 1.1.0",
    )
    assert reason('overrides = ["root/math-pack==1.0.0"]') == (
        "1.0.0",
        "the override root/math-pack==1.0.0 is asked for",
    )
    wanted, why = reason('exclude_newer = "2020-01-01"')
    assert wanted is None and "1.1.0 was published on" in why and "after the cut-off 2020-01-01" in why
    (user.home / "config").mkdir()
    (user.home / "config" / "policy.toml").write_text("require_signatures = true", encoding="utf-8")
    assert reason("") == (None, "1.1.0 is not signed, which the policy requires")


def test_yanked_and_deprecated_packs_are_told(user: Shell, author: Shell, market: RegistryProcess) -> None:
    publish(author, "math-pack", "1.0.0")
    publish(author, "math-pack", "1.1.0")
    publish(author, "old-pack", "1.0.0")
    user.succeed("install", "root/math-pack", "root/old-pack", "--base", BASE)
    append_line(market, "root/math-pack", "yank", "1.1.0", "it is broken")
    append_line(market, "root/old-pack", "deprecate", None, "use math-pack")
    assert outdated(user) == {"root/math-pack": ("1.1.0", "1.0.0", "1.1.0", "1.1.0 was yanked (it is broken)")}
    assert "root/old-pack 1.0.0: it is deprecated: use math-pack." in user.run("outdated").stderr


def test_a_pack_that_is_pinned_by_its_commit_stays(user: Shell, author: Shell, market: RegistryProcess) -> None:
    publish(author, "math-pack", "1.0.0")
    told = user.json("show", "--remote", "root/math-pack")
    assert told["version"] == "1.0.0"
    user.succeed("install", "root/math-pack", "--base", BASE)
    commit = user.json("show", "root/math-pack")["commit"]
    user.succeed("install", f"root/math-pack@{commit}")
    publish(author, "math-pack", "1.1.0")
    expected = {"root/math-pack": ("1.0.0", "1.0.0", "1.1.0", f"root/math-pack@{commit} is asked for")}
    assert outdated(user) == expected
    assert outdated(user, "--offline") == expected


def test_adapters_and_folders_are_compared_by_content(user: Shell, author: Shell, market: RegistryProcess) -> None:
    first = put_adapter(market, "root/lora")
    make_pack(user.home / "own", "own", "1.0.0")
    make_pack(user.home / "gone", "gone", "1.0.0")
    user.succeed("install", "./own", "./gone", "peft:root/lora", "--base", BASE)
    assert outdated(user) == {}
    assert "newer commits are not known offline" in user.run("outdated", "--offline").stderr
    second = put_adapter(market, "root/lora", "again")
    shutil.rmtree(user.home / "own")
    shutil.rmtree(user.home / "gone")
    make_pack(user.home / "own", "own", "1.0.0", seed="again")
    assert outdated(user) == {
        "own": ("1.0.0", "1.0.0", "1.0.0", "the pack in own is another one now"),
        "root/lora": (first[:12], second[:12], second[:12], ""),
    }
    assert "gone" in user.run("outdated").stderr
    user.succeed("install", f"peft:root/lora@{first}", "./own")
    assert outdated(user) == {
        "root/lora": (first[:12], first[:12], second[:12], f"peft:root/lora@{first} is asked for")
    }


def test_where_nothing_goes_together_any_more_the_newest_are_still_shown(
    user: Shell, author: Shell, market: RegistryProcess
) -> None:
    publish(author, "math-pack", "1.0.0")
    user.succeed("install", "root/math-pack==1.0.0", "--base", BASE)
    publish(author, "math-pack", "1.1.0")
    append_line(market, "root/math-pack", "yank", "1.0.0", "it is broken")
    reasons = "1.0.0 was yanked (it is broken); root/math-pack==1.0.0 is asked for"
    assert outdated(user) == {"root/math-pack": ("1.0.0", None, "1.1.0", reasons)}
    assert "What is locked cannot be upgraded" in user.run("outdated").stderr


def test_one_head_a_pack_is_asked_for(user: Shell, author: Shell, market: RegistryProcess) -> None:
    for name in ("one", "two", "three"):
        publish(author, name, "1.0.0")
    with faulty_proxy(market.endpoint) as proxy:
        through = Shell(user.home, proxy.endpoint)
        through.succeed("install", "root/one", "root/two", "root/three", "--base", BASE)
        assert requests_of(proxy, through, "outdated") == ["HEAD"] * 3
        assert requests_of(proxy, through, "outdated", "--offline") == []
        assert "GET" in requests_of(proxy, through, "outdated", "--refresh")
        publish(author, "two", "1.1.0")
        assert sorted(requests_of(proxy, through, "outdated")) == ["GET", "HEAD", "HEAD", "HEAD"]
        away = Shell(user.home)  # which reaches the registry only where it is named
        away.fail(8, "outdated")
        assert list(outdated(away, "--registry", proxy.endpoint, "--token", market.token)) == ["root/two"]


def requests_of(proxy: FaultyProxy, shell: Shell, *arguments: str) -> list[str]:
    proxy.reset()
    assert shell.run(*arguments).returncode in (0, 1)
    return [one.partition(" ")[0] for one in proxy.seen]


def test_outdated_says_what_it_needs(user: Shell, author: Shell) -> None:
    assert "skillhub lock" in user.fail(10, "outdated")
    publish(author, "a-pack-with-quite-a-long-name-for-a-table-that-has-eighty-columns", "1.0.0")
    user.succeed("install", "root/a-pack-with-quite-a-long-name-for-a-table-that-has-eighty-columns<2", "--base", BASE)
    publish(author, "a-pack-with-quite-a-long-name-for-a-table-that-has-eighty-columns", "2.0.0")
    shown = on_a_terminal(user, ["outdated"], code=1)
    assert max(map(len, shown.splitlines())) <= 80 and "2.0.0" in shown
    shutil.rmtree(user.home / "state")
    assert "never read" in user.fail(8, "outdated", "--offline")
    assert "cannot be reached" in Shell(user.home).fail(8, "outdated")
