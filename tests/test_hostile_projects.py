"""What a project that was cloned from a stranger can try with the files in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from skillhub.environments import as_environment, damaged_packs, read_project
from skillhub.errors import IntegrityError, UnsafeContentError
from skillhub.lockfile import parse_lock, read_lock
from tests.support.commands import Shell
from tests.support.packs import BASE

PROJECT = f'requirements = []\n\n[[base]]\nfingerprint = "{BASE}"\n'


@pytest.fixture
def user(tmp_path: Path) -> Shell:
    """A user without a network."""
    return Shell(tmp_path)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A project that asks for nothing, in a folder beside others of the user's."""
    (tmp_path / "own" / "photos" / "2024").mkdir(parents=True)
    (tmp_path / "own" / "photos" / "2024" / "sea.jpg").write_text("sea")
    (tmp_path / "own" / "photos" / ".hidden").write_text("hidden")
    folder = tmp_path / "clone"
    (folder / ".skillhub").mkdir(parents=True)
    (folder / "skillhub.toml").write_text(PROJECT)
    return folder


@pytest.mark.parametrize("link", [".skillhub", ".skillhub/packs", ".skillhub/packs/photos", ".skillhub/lock"])
def test_a_folder_of_packs_that_leads_elsewhere_is_left_alone(link: str, user: Shell, clone: Path) -> None:
    """Whatever is installed and not locked is removed; behind such a link lie the user's own folders."""
    own = clone.parent / "own"
    places = {".skillhub": own, ".skillhub/packs": own, ".skillhub/packs/photos": own / "photos"}
    target = places.get(link, own / "photos" / "2024" / "sea.jpg")
    if link == ".skillhub":
        (clone / link).rmdir()
        (own / "packs").symlink_to(own)
    (clone / link).parent.mkdir(exist_ok=True)
    (clone / link).symlink_to(target)
    for command in (["sync"], ["lock"], ["uninstall", "photos/2024"]):
        assert "is a symbolic link" in user.fail(12, *command, "-e", clone)
    assert (own / "photos" / "2024" / "sea.jpg").read_text() == "sea"
    assert (own / "photos" / ".hidden").read_text() == "hidden"


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no endless file here")
@pytest.mark.parametrize("file", ["skillhub.lock", "skillhub.toml", ".skillhub/packs/acme/x/receipt.json"])
def test_a_file_that_never_ends_is_not_read_into_memory(file: str, clone: Path) -> None:
    (clone / file).unlink(missing_ok=True)
    (clone / file).parent.mkdir(parents=True, exist_ok=True)
    (clone / file).symlink_to("/dev/zero")
    environment = as_environment(clone)
    with pytest.raises(UnsafeContentError, match="has more than"):
        if file == "skillhub.lock":
            read_lock(environment.lock_path)
        elif file == "skillhub.toml":
            read_project(environment)
        else:
            raise damaged_packs(environment)[0]


LOCKED = {"name": "acme/x", "version": "1.0", "registry": "hub", "repository": "acme/x"} | dict.fromkeys(
    ("id", "commit", "signer", "base"), "x"
)


@pytest.mark.parametrize("field", LOCKED)
@pytest.mark.parametrize("text", [r"\u001b[2J", r"\u202ex", r"\u009b31m"], ids=["escape", "direction", "control"])
def test_a_lock_commands_no_terminal(field: str, text: str) -> None:
    lines = [f'{name} = "{text if name == field else value}"' for name, value in LOCKED.items()]
    lock = "\n".join(
        ["lock_version = 0", f'inputs = "{"a" * 64}"', "[[pack]]", 'kind = "peft"', f'manifest = "{"b" * 64}"', *lines]
    )
    with pytest.raises(IntegrityError, match=field):
        parse_lock(f"{lock}\nfiles = []\n".encode())


def test_a_project_commands_no_terminal(clone: Path, user: Shell) -> None:
    (clone / "skillhub.toml").write_text(f'{PROJECT}repo = "\\u001b[2J"\n')
    assert "repo" in user.fail(2, "sync", "-e", clone)
