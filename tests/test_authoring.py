"""``skillhub new`` and ``skillhub key``, as processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from skillhub import hub
from skillhub.authorfile import AuthorFile, new_author_file, read_author_file
from skillhub.errors import UsageError
from skillhub.manifest import Skill
from skillhub.releases import parse_releases
from tests.support.commands import Shell
from tests.support.registry_process import RegistryProcess


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def test_new_writes_a_file_that_is_valid_as_it_stands(shell: Shell) -> None:
    said = shell.succeed("new", "math-pack")
    assert "skillhub pack TUNED --base BASE" in said
    path = shell.home / "math-pack" / "skillpack.toml"
    assert read_author_file(path) == AuthorFile(name="math-pack", version="0.1.0")
    assert shell.json("new", "other", "--name", "chosen")["name"] == "chosen"
    assert read_author_file(shell.home / "other" / "skillpack.toml").name == "chosen"


def test_every_key_is_explained_with_an_example_that_can_be_used(tmp_path: Path) -> None:
    path, _ = new_author_file(tmp_path, "math-pack")
    used = []
    for line in path.read_text(encoding="utf-8").splitlines():
        key, _, example = line.removeprefix("# ").partition(" = ")
        empty, found, value = example.partition("  # ")
        used.append(
            f"{key} = {value}" if found and empty in ("[]", '""') else line.removeprefix("# ") if example else line
        )
    path.write_text("\n".join(used), encoding="utf-8")
    author = read_author_file(path)
    plain = AuthorFile(name="math-pack", version="0.1.0")
    assert all(getattr(author, name) != getattr(plain, name) for name in AuthorFile.__struct_fields__[2:])
    assert author.to_manifest().requires == ["acme/chat-pack>=1.2,<2"]
    assert author.skills == Skill(tags=["math", "arithmetic"], prompts=["What is 12 + 30?", "Multiply 14 by 3."])


def test_new_overwrites_nothing(shell: Shell) -> None:
    (shell.home / "skillpack.toml").write_text("mine")
    assert "already" in shell.fail(2, "new", "--name", "a")
    assert (shell.home / "skillpack.toml").read_text() == "mine"


@pytest.mark.parametrize(
    ("folder", "name"), [("My pack!", "My-pack"), ("a--b..c", "a-b.c"), ("_x_", "_x_"), ("Zahlen·pack", "Zahlen-pack")]
)
def test_a_folders_name_becomes_a_packs_name(folder: str, name: str, tmp_path: Path) -> None:
    assert new_author_file(tmp_path / folder)[1] == name


@pytest.mark.parametrize("name", ["", "a/b", "..", "a b"])
def test_a_name_that_no_pack_can_have_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no name for a pack") as caught:
        new_author_file(tmp_path / "x", name)
    assert "--name" in caught.value.hint and not (tmp_path / "x").exists()
    with pytest.raises(UsageError):
        new_author_file(tmp_path / "数学")


def test_requirements_reach_the_manifest_and_the_index(
    registry: RegistryProcess, tmp_path: Path, models: tuple[Path, Path]
) -> None:
    shell = Shell(tmp_path, registry.endpoint, registry.token)
    base, tuned = models
    shell.succeed("new", ".", "--name", "wanting-pack")
    path = tmp_path / "skillpack.toml"
    text = path.read_text().replace("requires = []", 'requires = ["acme/chat-pack>=1.2"]')
    path.write_text(text.replace("conflicts = []", 'conflicts = ["acme/old-pack<1"]'))
    shell.succeed("pack", tuned, "--base", base, "-o", "built")
    manifest = json.loads((tmp_path / "built" / "skillpack.json").read_text())
    assert (manifest["requires"], manifest["conflicts"]) == (["acme/chat-pack>=1.2"], ["acme/old-pack<1"])
    done = shell.run("publish", "built", f"{registry.user}/wanting-pack")
    assert done.returncode == 0
    assert "acme/chat-pack, which the pack requires, is not at " in done.stderr
    read = hub.read_releases(hub.Registry("hub", registry.endpoint, registry.token), f"{registry.user}/wanting-pack")
    assert read is not None
    event = parse_releases(read.data).releases[0].event
    assert (event.requires, event.conflicts) == (["acme/chat-pack>=1.2"], ["acme/old-pack<1"])
    path.write_text(text.replace('requires = ["acme/chat-pack>=1.2"]', 'requires = ["chat-pack"]'))
    assert "requires[0]: 'chat-pack' lacks an owner" in shell.fail(2, "pack", tuned, "--base", base, "-o", "x", "-q")


def test_a_key_is_made_once_and_shown(shell: Shell) -> None:
    assert "skillhub key new" in shell.fail(4, "key", "show")
    made = shell.json("key", "new")
    assert made["signer"].startswith("ed25519:") and Path(made["file"]).stat().st_mode & 0o77 == 0
    assert shell.json("key", "show") == made
    assert made["signer"] in shell.succeed("key", "show")
    assert "--force" in shell.fail(2, "key", "new")
    assert shell.json("key", "show") == made
    assert shell.json("key", "new", "--force")["signer"] != made["signer"]
