"""``list`` and ``show``: what is installed, what lies in a folder, and what a live registry has."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import Shell
from tests.support.packs import BASE, OTHER_BASE, make_pack
from tests.support.registry_process import RegistryProcess, running_registry
from tests.support.repositories import append_line, put_adapter
from tests.test_cli import on_a_terminal

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

LONG_NAME = "a-pack-with-a-long-name-that-would-never-fit-beside-the-other-columns"


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryProcess]:
    """A registry with packs, one of them yanked and one deprecated, and an adapter."""
    with running_registry(tmp_path_factory.mktemp("market")) as process:
        author = Shell(tmp_path_factory.mktemp("author"), process.endpoint, process.token)
        for name, version, requires, bases in (
            ("shared", "1.0.0", [], [BASE]),
            ("math-pack", "1.0.0", ["root/shared>=1"], [BASE, OTHER_BASE]),
            ("math-pack", "1.1.0", ["root/shared>=1"], [BASE]),
            ("math-pack", "2.0rc1", [], [BASE]),
            (LONG_NAME, "1.0.0", [], [BASE]),
        ):
            make_pack(author.home / f"{name}-{version}", name, version, bases, requires=requires)
            author.succeed("publish", f"{name}-{version}", f"root/{name}")
        append_line(process, "root/math-pack", "yank", "1.0.0", "it is broken")
        append_line(process, "root/shared", "deprecate", None, "use math-pack")
        put_adapter(process, "root/lora")
        yield process


@pytest.fixture(scope="module")
def prepared(market: RegistryProcess, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of somebody with a pack, what it requires, an adapter and a pack from a folder."""
    shell = Shell(tmp_path_factory.mktemp("prepared"), market.endpoint)
    (shell.home / "skillhub.toml").touch()
    make_pack(shell.home / "own", "own", "0.1")
    shell.succeed("install", "root/math-pack>=1", "peft:root/lora", "./own", f"root/{LONG_NAME}", "--base", BASE)
    return shell.home


@pytest.fixture
def user(prepared: Path, tmp_path: Path) -> Shell:
    """That person where no registry can be reached, in a copy of the home that a test may change."""
    shutil.copytree(prepared, tmp_path / "user")
    return Shell(tmp_path / "user")


@pytest.fixture
def online(user: Shell, market: RegistryProcess) -> Shell:
    return Shell(user.home, market.endpoint)


def test_list_tells_kinds_and_where_things_came_from(user: Shell) -> None:
    packs = {one["name"]: one for one in user.json("list")["packs"]}
    assert {name: (one["kind"], one["registry"], one["repository"]) for name, one in packs.items()} == {
        "own": ("pack", "local", "own"),
        "root/lora": ("peft", "hub", "root/lora"),
        "root/math-pack": ("pack", "hub", "root/math-pack"),
        "root/shared": ("pack", "hub", "root/shared"),
        f"root/{LONG_NAME}": ("pack", "hub", f"root/{LONG_NAME}"),
    }
    shown = user.succeed("list")
    assert shown.startswith(f"For {BASE[:17]}:\n")
    rows = [line.split() for line in shown.splitlines()]
    assert ["root/math-pack", "1.1.0", "pack", "6.2", "kB", "hub"] in rows
    assert ["own", "0.1", "pack", "6.2", "kB", "own"] in rows
    assert [row[2] for row in rows if row[:1] == ["root/lora"]] == ["adapter"]


def test_list_fits_a_terminal_of_eighty_columns(user: Shell) -> None:
    shown = on_a_terminal(user, ["list"])
    assert max(map(len, shown.splitlines())) <= 80 and "root/math-pack" in shown


def test_list_names_what_cannot_be_read_and_lists_the_rest(user: Shell) -> None:
    (user.home / ".skillhub" / "packs" / "root" / "shared" / "receipt.json").unlink()
    done = user.run("list")
    assert done.returncode == 0 and "receipt.json is missing" in done.stderr and "root/math-pack" in done.stdout
    told = user.json("list")
    assert len(told["packs"]) == 4 and len(told["damaged"]) == 1


def test_list_says_where_nothing_is(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    assert "No packs are installed" in shell.fail(4, "list")
    assert "is not an environment" in shell.fail(4, "list", "-e", "nowhere")
    (tmp_path / "skillhub.toml").touch()
    assert shell.succeed("list") == "No packs are installed here.\n"


def test_show_tells_what_is_known_of_an_installed_pack(online: Shell) -> None:
    shown = online.succeed("show", "math-pack")
    for fact in (
        "root/math-pack 1.1.0: math-pack for tests",
        "  Licence:      apache-2.0",
        "  Requires:     root/shared>=1",
        "  Asked for as: root/math-pack>=1",
        "  Releases:     2.0rc1, 1.1.0, 1.0.0 (yanked: it is broken)",
        "(this environment's base):",
    ):
        assert fact in shown
    assert all(len(line) <= 80 for line in shown.splitlines() if "Folder" not in line and "/user/" not in line)
    told = online.json("show", "root/math-pack")
    assert (told["name"], told["version"], told["kind"], told["registry"]) == ("root/math-pack", "1.1.0", "pack", "hub")
    assert (
        told["manifest"]["requires"] == ["root/shared>=1"] and len(told["digest"]) == 64 and len(told["commit"]) == 40
    )
    assert [(one["version"], one["yanked"]) for one in told["releases"]] == [
        ("1.0.0", "it is broken"),
        ("1.1.0", None),
        ("2.0rc1", None),
    ]
    assert (told["asked_for"], told["required_by"]) == (["root/math-pack>=1"], [])


def test_show_tells_what_requires_a_pack(online: Shell) -> None:
    shown = online.succeed("show", "shared")
    assert "  Required by:  root/math-pack 1.1.0" in shown and "  Deprecated:   use math-pack" in shown
    assert "Asked for as" not in shown
    assert online.json("show", "shared")["required_by"] == ["root/math-pack 1.1.0"]


def test_show_tells_of_an_adapter(user: Shell) -> None:
    for name in ("lora", "root/lora", "peft:root/lora"):
        told = user.json("show", name)
        assert (told["kind"], told["base"], len(told["commit"])) == ("peft", "acme/base-model", 40)
    shown = user.succeed("show", "lora")
    assert "a PEFT adapter" in shown and "acme/base-model, as it declares" in shown


def test_show_reads_a_folder(user: Shell) -> None:
    told = user.json("show", "./own")
    assert told["folder"] == "own" and told["manifest"]["version"] == "0.1"
    assert "own 0.1: own for tests" in user.succeed("show", "./own")
    assert "There is no folder" in user.fail(4, "show", "./nowhere")
    assert "folder" in user.fail(2, "show", "--remote", "./own")


def test_show_leaves_words_alone_that_are_no_secrets(user: Shell) -> None:
    path = user.home / "own" / "skillpack.json"
    path.write_bytes(path.read_bytes().replace(b"own for tests", b"Basic arithmetic"))
    assert "own 0.1: Basic arithmetic" in user.succeed("show", "./own")


def test_show_asks_no_server_unless_it_is_told_to(user: Shell, tmp_path: Path) -> None:
    assert "skillhub show --remote root/absent" in user.fail(4, "show", "root/absent")
    (tmp_path / "new").mkdir()
    assert "skillhub show --remote root/absent" in Shell(tmp_path / "new").fail(4, "show", "root/absent")
    assert "cannot be reached" in user.fail(8, "show", "--remote", "root/absent")


def test_show_asks_a_registry(online: Shell, market: RegistryProcess, tmp_path: Path) -> None:
    told = online.json("show", "--remote", "root/math-pack")
    assert (told["version"], told["registry"], len(told["releases"])) == ("1.1.0", "hub", 3)
    assert online.json("show", "--remote", "root/math-pack==1.0.0")["version"] == "1.0.0"
    assert online.json("show", "--remote", "math-pack")["name"] == "root/math-pack"  # asked for here, with that owner
    shown = online.succeed("show", "--remote", "root/math-pack")
    assert f"  Registry:     hub ({market.endpoint})" in shown and "(this environment's base)" in shown
    assert online.json("show", "--remote", "--offline", "root/math-pack")["version"] == "1.1.0"
    (tmp_path / "new").mkdir()
    stranger = Shell(tmp_path / "new")
    told = stranger.json("show", "--remote", "root/shared", "--registry", market.endpoint)
    assert told["deprecated"] == "use math-pack" and told["manifest"]["name"] == "shared"
    assert not (stranger.home / "home").exists()


def test_show_asks_a_registry_for_an_adapter(online: Shell) -> None:
    told = online.json("show", "--remote", "peft:root/lora")
    assert (told["kind"], told["base"], told["size"] > 3000) == ("peft", "acme/base-model", True)
    assert "a PEFT adapter" in online.succeed("show", "--remote", f"peft:root/lora@{told['commit']}")


def test_show_says_what_a_registry_does_not_have(online: Shell) -> None:
    online.fail(4, "show", "--remote", "root/absent")
    assert "No release" in online.fail(4, "show", "--remote", "root/math-pack>9")
    assert "SkillPack" in online.fail(4, "show", "--remote", "peft:root/math-pack")
