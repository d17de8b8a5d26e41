"""Environments: where they are found, and what is listed in them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from skillhub.environments import (
    PROJECT_FILE,
    RECEIPT_SCHEMA,
    Environment,
    Receipt,
    as_environment,
    damaged_packs,
    find_folder,
    find_installed,
    find_project,
    installed_packs,
    read_project,
    unfinished_paths,
    user_environment,
    user_environments,
    write_project,
)
from skillhub.errors import DiskError, IntegrityError, NewerSchemaError, NotFoundError, UsageError
from skillhub.lockfile import read_lock
from skillhub.names import PackName, parse_pack_name
from skillhub.packs import RECEIPT_FILE
from skillhub.projects import Base, Project
from tests.support.packs import BASE, OTHER_BASE, make_pack

pytestmark = pytest.mark.usefixtures("homes")


def put_pack(environment: Environment, name: str, version: str = "1.0.0") -> Path:
    """Put an installed pack into an environment by hand; a name without owner is a pack from a folder."""
    wanted = parse_pack_name(name)
    folder = environment.pack_folder(wanted)
    pack = make_pack(folder, wanted.name, version)
    receipt = Receipt(
        schema=RECEIPT_SCHEMA,
        name=name,
        registry="hub" if wanted.owner else "local",
        repository=name if wanted.owner else "../somewhere",
        version=version,
        manifest=pack.digest,
        fingerprint=BASE,
        files=pack.manifest.variants[0].files,
    )
    (folder / RECEIPT_FILE).write_bytes(receipt.to_bytes())
    return folder


def test_a_project_is_found_from_below(tmp_path: Path) -> None:
    (tmp_path / PROJECT_FILE).write_text("")
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    assert find_project(deep) == Environment(tmp_path.resolve())
    assert find_project(tmp_path) == Environment(tmp_path.resolve())


def test_the_search_ends_at_the_root_of_a_git_repository(tmp_path: Path) -> None:
    (tmp_path / PROJECT_FILE).write_text("")
    (tmp_path / "clone" / ".git").mkdir(parents=True)
    (tmp_path / "clone" / "deep").mkdir()
    assert find_project(tmp_path / "clone" / "deep") is None
    (tmp_path / "clone" / PROJECT_FILE).write_text("")
    assert find_project(tmp_path / "clone" / "deep") == Environment((tmp_path / "clone").resolve())


def test_the_search_ends_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / PROJECT_FILE).write_text("")
    home = tmp_path / "home"
    (home / "deep").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    assert find_project(home / "deep") is None


def test_one_environment_a_base_for_each_user(homes: Path) -> None:
    assert user_environments() == []
    first, second = user_environment(BASE), user_environment(OTHER_BASE)
    assert first.folder.is_relative_to(homes)
    assert first != second
    write_project(first, Project(base=[Base(fingerprint=BASE)]))
    assert user_environments() == [first]


def test_the_project_file_comes_back(tmp_path: Path) -> None:
    environment = as_environment(tmp_path / "new")
    assert read_project(environment) == Project()
    project = Project(
        base=[Base(fingerprint=BASE, repo="acme/base")], requirements=["acme/math-pack>=1.0,<2"], owners=["acme"]
    )
    write_project(environment, project)
    assert read_project(environment) == project
    assert 'requirements = [\n    "acme/math-pack>=1.0,<2",\n]' in environment.project_path.read_text()
    before = environment.project_path.stat().st_ino
    write_project(environment, project)
    assert environment.project_path.stat().st_ino == before


def test_an_unchanged_project_file_keeps_its_comments(tmp_path: Path) -> None:
    environment = as_environment(tmp_path)
    environment.project_path.write_text('# ours\nrequirements = ["a/b"]\n')
    write_project(environment, Project(requirements=["a/b"]))
    assert environment.project_path.read_text().startswith("# ours")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("requirements = 3", r"\$\.requirements"),
        ("requirement = []", "requirement"),
        ("requirements = [", "skillhub.toml"),
        ('[[base]]\nfingerprint = "abc"', r"\$\.base\[0\]\.fingerprint"),
        (f'[[base]]\nfingerprint = "{BASE}"\n[[base]]\nfingerprint = "{OTHER_BASE}"', "several bases"),
    ],
)
def test_a_bad_project_file_is_a_usage_error(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / PROJECT_FILE).write_text(text)
    with pytest.raises(UsageError, match=words):
        read_project(as_environment(tmp_path))


def test_what_is_installed_is_listed_by_name(tmp_path: Path) -> None:
    environment = as_environment(tmp_path)
    assert installed_packs(environment) == []
    put_pack(environment, "zeta/b-pack")
    put_pack(environment, "Acme/Math-Pack", "2.0")
    put_pack(environment, "from-folder")
    listed = installed_packs(environment)
    assert [str(installed.name) for installed in listed] == ["Acme/Math-Pack", "from-folder", "zeta/b-pack"]
    assert [installed.version for installed in listed] == ["2.0", "1.0.0", "1.0.0"]
    assert listed[1].name == PackName(None, "from-folder")
    assert listed[0].fingerprint == BASE


def test_what_a_killed_process_left_is_not_listed(tmp_path: Path) -> None:
    environment = as_environment(tmp_path)
    folder = put_pack(environment, "acme/math-pack")
    half = folder.with_name(".math-pack.abc.part")
    shutil.copytree(folder, half / "new")
    (half / "new" / RECEIPT_FILE).unlink()
    assert len(installed_packs(environment)) == 1
    assert list(unfinished_paths(environment)) == [half]


def test_an_installed_pack_is_found_by_either_name(tmp_path: Path) -> None:
    environment = as_environment(tmp_path)
    put_pack(environment, "acme/math-pack")
    assert find_installed(environment, "MATH-pack") == find_installed(environment, "acme/math-pack")
    with pytest.raises(NotFoundError, match="code-pack is not installed") as caught:
        find_installed(environment, "code-pack")
    assert "skillhub install code-pack" in caught.value.hint
    put_pack(environment, "other/math-pack")
    with pytest.raises(UsageError, match="acme/math-pack, other/math-pack"):
        find_installed(environment, "math-pack")
    put_pack(environment, "math-pack")
    assert find_installed(environment, "math-pack").receipt.registry == "local"


def test_an_altered_manifest_or_receipt_is_noticed(tmp_path: Path) -> None:
    environment = as_environment(tmp_path)
    folder = put_pack(environment, "acme/math-pack")
    shutil.copy(make_pack(tmp_path / "elsewhere", version="9.0").folder / "skillpack.json", folder / "skillpack.json")
    with pytest.raises(IntegrityError, match="not the one that was installed") as caught:
        find_installed(environment, "math-pack")
    assert "skillhub install acme/math-pack" in caught.value.hint
    (folder / RECEIPT_FILE).write_text('{"schema": 0}')
    with pytest.raises(IntegrityError, match="missing required field"):
        find_installed(environment, "math-pack")
    (folder / RECEIPT_FILE).write_text('{"schema": 7}')
    with pytest.raises(NewerSchemaError):
        find_installed(environment, "math-pack")
    (folder / RECEIPT_FILE).unlink()
    with pytest.raises(IntegrityError, match="missing"):
        find_installed(environment, "math-pack")
    (folder / RECEIPT_FILE).mkdir()
    with pytest.raises(DiskError, match="directory") as disk:
        find_installed(environment, "math-pack")
    assert disk.value.exit_code == 14


def test_a_damaged_pack_leaves_the_others_alone(tmp_path: Path) -> None:
    environment = as_environment(tmp_path)
    put_pack(environment, "acme/math-pack")
    bad = [put_pack(environment, name) for name in ("acme/bad-manifest", "acme/bad-receipt", "acme/moved")]
    (bad[0] / "skillpack.json").write_text("{")
    (bad[1] / RECEIPT_FILE).write_text('{"schema": 9}')
    moved = bad[2].rename(bad[2].with_name("stranger"))
    assert [str(one.name) for one in installed_packs(environment)] == ["acme/math-pack"]
    assert find_installed(environment, "math-pack").version == "1.0.0"
    damaged = damaged_packs(environment)
    assert [error.details["path"] for error in damaged] == [str(bad[0]), str(bad[1]), str(moved)]
    assert [error.exit_code for error in damaged] == [6, 15, 6]
    assert find_folder(environment, "BAD-receipt") == bad[1]
    with pytest.raises(NewerSchemaError):
        find_installed(environment, "bad-receipt")


def test_a_folder_in_the_place_of_a_file_is_a_disk_error(tmp_path: Path) -> None:
    environment = as_environment(tmp_path)
    for path in (environment.project_path, environment.lock_path):
        path.mkdir()
    with pytest.raises(DiskError) as caught:
        read_project(environment)
    assert caught.value.exit_code == 14
    with pytest.raises(DiskError):
        read_lock(environment.lock_path)
    environment.packs_folder.parent.mkdir()
    environment.packs_folder.write_text("")
    assert installed_packs(environment) == []
    with pytest.raises(DiskError):
        read_project(as_environment(environment.packs_folder / "below-a-file"))
