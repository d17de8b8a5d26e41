"""``verify`` and ``check`` on real environments, as processes: each thing that can be wrong is found, told and repaired."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from skillhub.lockfile import Lock, LockedPack, read_lock, write_lock
from tests.support.commands import Shell
from tests.support.packs import BASE, OTHER_BASE, make_pack
from tests.support.registry_process import RegistryProcess, running_registry
from tests.support.repositories import append_line, put_adapter

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryProcess]:
    """A registry with two packs, of which one requires the other, and an adapter."""
    with running_registry(tmp_path_factory.mktemp("market")) as process:
        author = Shell(tmp_path_factory.mktemp("author"), process.endpoint, process.token)
        owner = process.user
        for name, version, requires in (
            ("shared", "1.0.0", []),
            ("shared", "2.0.0", []),
            ("math-pack", "1.0.0", [f"{owner}/shared<2"]),
            ("math-pack", "1.1.0", [f"{owner}/shared<2"]),
        ):
            make_pack(author.home / f"{name}-{version}", name, version, (BASE, OTHER_BASE), requires=requires)
            author.succeed("publish", f"{name}-{version}", f"{owner}/{name}")
        put_adapter(process, f"{owner}/lora")
        yield process


@pytest.fixture(scope="module")
def prepared(market: RegistryProcess, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of somebody who has installed a pack, what it requires and an adapter."""
    shell = Shell(tmp_path_factory.mktemp("prepared"), market.endpoint)
    (shell.home / "skillhub.toml").touch()
    shell.succeed("install", f"{market.user}/math-pack==1.0.0", f"peft:{market.user}/lora", "--base", BASE)
    return shell.home


@pytest.fixture
def user(prepared: Path, market: RegistryProcess, tmp_path: Path) -> Shell:
    """That person, in a copy of the home that a test may change."""
    shutil.copytree(prepared, tmp_path / "user")
    return Shell(tmp_path / "user", market.endpoint)


def pack_folder(shell: Shell, name: str = "math-pack") -> Path:
    return shell.home / ".skillhub" / "packs" / "root" / name


def a_file(shell: Shell, name: str = "math-pack") -> Path:
    return sorted(pack_folder(shell, name).rglob("*.safetensors"))[0]


def alter(path: Path) -> None:
    path.chmod(0o644)
    path.write_bytes(bytes([path.read_bytes()[0]]) + b"?" + path.read_bytes()[2:])


def exchange_manifest(shell: Shell) -> None:
    path = pack_folder(shell) / "skillpack.json"
    make_pack(shell.home / "other", "math-pack", "1.0.0", seed="other")
    path.unlink()
    shutil.copy(shell.home / "other" / "skillpack.json", path)


def edit_receipt(shell: Shell, **fields: Any) -> None:
    path = pack_folder(shell) / "receipt.json"
    receipt = json.loads(path.read_text(encoding="utf-8"))
    path.chmod(0o644)
    path.write_text(json.dumps(receipt | fields), encoding="utf-8")


def edit_lock(shell: Shell, edit: Callable[[LockedPack], LockedPack | None]) -> None:
    path = shell.home / "skillhub.lock"
    lock = read_lock(path)
    assert lock is not None
    write_lock(path, Lock(lock.inputs, lock.bases, tuple(one for entry in lock.packs if (one := edit(entry)))))


def findings(shell: Shell, command: str) -> list[dict[str, Any]]:
    """Return what ``verify`` or ``check`` finds, after looking at its two forms and its exit code."""
    done, as_json = shell.run(command), shell.run(command, "--json")
    assert done.returncode == as_json.returncode == 1, done.stderr
    told: list[dict[str, Any]] = json.loads(as_json.stdout)["findings"]
    assert not json.loads(as_json.stdout)["ok"] and told
    assert done.stdout.splitlines() == [f"{one['message']} {one['hint']}" for one in told]
    assert all(one["hint"].endswith((".", "policy.toml")) for one in told)
    return told


DAMAGES: list[tuple[Callable[[Shell], object], str]] = [
    (lambda shell: alter(a_file(shell)), "was altered"),
    (lambda shell: a_file(shell).unlink(), "is missing"),
    (lambda shell: (pack_folder(shell) / "extra.bin").write_bytes(b"x"), "is not listed in the manifest"),
    (lambda shell: exchange_manifest(shell), "is not the one that was installed"),
    (lambda shell: edit_receipt(shell, files=[]), "do not say the same"),
    (lambda shell: edit_receipt(shell, fingerprint=OTHER_BASE), "is missing"),
    (lambda shell: (pack_folder(shell) / "receipt.json").unlink(), "receipt.json is missing"),
    (lambda shell: shutil.rmtree(pack_folder(shell)), "is locked and not installed"),
    (lambda shell: shutil.rmtree(pack_folder(shell, "lora")), "is locked and not installed"),
    (lambda shell: alter(pack_folder(shell, "lora") / "adapter_model.safetensors"), "was altered"),
    (lambda shell: (pack_folder(shell, "lora") / "adapter_config.json").unlink(), "is missing"),
    (lambda shell: (pack_folder(shell, "lora") / "model.bin").write_bytes(b"x"), "is not one of the adapter's files"),
]


@pytest.mark.parametrize(
    ("damage", "told"), DAMAGES, ids=[f"{number}-{told}" for number, (_, told) in enumerate(DAMAGES)]
)
def test_verify_finds_what_is_wrong_and_names_the_remedy(
    damage: Callable[[Shell], object], told: str, user: Shell
) -> None:
    assert "3 packs verified" in user.succeed("verify")
    damage(user)
    found = findings(user, "verify")
    assert any(told in one["message"] for one in found)
    assert {one["error"] for one in found} == {"integrity"} and {one["exit_code"] for one in found} == {6}
    assert {one["details"]["pack"] for one in found} <= {"root/math-pack", "root/lora"}
    remedy = found[0]["hint"].partition("skillhub ")[2].rstrip(".").split()
    user.succeed(*remedy)
    assert user.json("verify") == {
        "schema": 0,
        "environment": str(user.home),
        "ok": True,
        "findings": [],
        "restored": [],
    }


def test_verify_compares_with_the_lock(user: Shell) -> None:
    edit_lock(user, lambda entry: None if entry.name == "root/shared" else entry)
    (found,) = findings(user, "verify")
    assert "root/shared 1.0.0 is installed and not in the lock" in found["message"]
    edit_lock(user, lambda entry: msgspec.structs.replace(entry, manifest="ab" * 32))
    assert (
        sum("another release of that version is installed" in one["message"] for one in findings(user, "verify")) == 2
    )
    (user.home / "skillhub.lock").unlink()
    (found,) = findings(user, "verify")
    assert "has no skillhub.lock" in found["message"]


def test_verify_looks_at_every_pack_although_one_cannot_be_read(user: Shell) -> None:
    (pack_folder(user) / "receipt.json").unlink()
    alter(a_file(user, "shared"))
    assert {one["details"]["pack"] for one in findings(user, "verify")} == {"root/math-pack", "root/shared"}


def rules(shell: Shell) -> set[tuple[str, str | None]]:
    return {(one["rule"], one["pack"]) for one in findings(shell, "check")}


def requirements(shell: Shell, text: str) -> None:
    path = shell.home / "skillhub.toml"
    path.write_text(f"{text}\n[[base]]\nfingerprint = {BASE!r}\n", encoding="utf-8")


def test_check_finds_nothing_where_all_is_well(user: Shell, market: RegistryProcess, tmp_path: Path) -> None:
    assert user.succeed("check") == "3 packs checked: everything fits together.\n"
    assert user.json("check") == {"schema": 0, "environment": str(user.home), "ok": True, "findings": []}
    assert user.json("check", "-e", user.home)["ok"]
    empty = Shell(tmp_path / "empty")
    empty.home.mkdir()
    assert "No packs are installed" in empty.fail(4, "check")
    (empty.home / "skillhub.toml").touch()
    assert "0 packs" in empty.succeed("check")
    (empty.home / "skillhub.toml").write_text("requirements = 3", encoding="utf-8")
    assert "skillhub.toml" in empty.fail(2, "check")


def test_check_compares_the_lock_with_what_is_asked_for(user: Shell) -> None:
    requirements(user, 'requirements = ["root/math-pack==1.1.0", "peft:root/lora"]')
    assert rules(user) == {("lock", None)}
    user.succeed("lock")
    (found,) = findings(user, "check")
    assert found["message"] == "root/math-pack 1.1.0 is locked, and 1.0.0 is installed."
    user.succeed("sync")
    user.succeed("check")
    requirements(user, 'requirements = ["math-pack==1.1.0", "peft:root/lora"]')  # as sync takes it
    user.succeed("check")
    (user.home / "skillhub.lock").unlink()
    assert "there is none" in findings(user, "check")[0]["message"]


def test_check_compares_what_is_installed_with_the_lock(user: Shell) -> None:
    shutil.rmtree(pack_folder(user, "shared"))
    a_file(user).unlink()
    assert rules(user) == {("installed", "root/shared"), ("installed", "root/math-pack")}
    user.succeed("sync")
    edit_lock(user, lambda entry: None if entry.name == "root/shared" else entry)
    assert rules(user) == {("installed", "root/shared"), ("dependency", "root/math-pack")}


def test_check_tells_another_release_of_the_same_version_apart(user: Shell) -> None:
    digest = "0" * 64
    edit_lock(user, lambda entry: msgspec.structs.replace(entry, manifest=digest) if "shared" in entry.name else entry)
    found = [one["message"] for one in findings(user, "check")]
    assert "root/shared 1.0.0 is locked, and another 1.0.0 is installed." in found


def test_check_knows_requirements_with_and_without_their_packs(user: Shell) -> None:
    edit_lock(user, lambda entry: msgspec.structs.replace(entry, version="2.0.0") if "shared" in entry.name else entry)
    found = [one["message"] for one in findings(user, "check")]
    assert "root/math-pack 1.0.0 requires root/shared<2, and root/shared 2.0.0 is locked." in found
    shutil.rmtree(user.home / ".skillhub")  # the remembered index knows the requirement as well
    assert ("dependency", "root/math-pack") in rules(user)
    shutil.rmtree(user.home / "state")  # the lock knows the names of what is required, and not the versions
    assert ("dependency", "root/math-pack") not in rules(user)
    edit_lock(user, lambda entry: None if "shared" in entry.name else entry)
    assert ("dependency", "root/math-pack") in rules(user)


def test_check_follows_overrides_and_constraints(user: Shell) -> None:
    asked = 'requirements = ["root/math-pack==1.0.0", "peft:root/lora"]\n'
    requirements(user, asked + 'overrides = ["root/shared==2.0.0"]')
    assert "The override root/shared==2.0.0 does not allow root/shared 1.0.0, which is locked." in [
        one["message"] for one in findings(user, "check")
    ]
    user.succeed("sync")
    user.succeed("check")
    requirements(user, asked + 'constraints = ["root/shared<1"]')
    assert ("dependency", "root/shared") in rules(user)


def test_check_finds_packs_that_were_installed_without_what_they_require(
    market: RegistryProcess, tmp_path: Path
) -> None:
    user = Shell(tmp_path, market.endpoint)
    (tmp_path / "skillhub.toml").touch()
    user.succeed("install", "root/math-pack", "--no-deps", "--base", BASE)
    (found,) = findings(user, "check")
    assert "requires root/shared<2, which is not locked" in found["message"]
    user.succeed("lock")
    user.succeed("sync")
    user.succeed("check")


def test_check_finds_conflicts(tmp_path: Path) -> None:
    user = Shell(tmp_path)
    (tmp_path / "skillhub.toml").touch()
    make_pack(tmp_path / "one", "one", conflicts=["acme/two<2"])
    make_pack(tmp_path / "two", "two", "2.0")
    user.succeed("install", "./one", "./two", "--base", BASE)
    user.succeed("check")
    edit_lock(user, lambda entry: msgspec.structs.replace(entry, version="1.0") if entry.name == "two" else entry)
    assert ("conflict", "one") in rules(user)


def test_check_compares_bases(user: Shell) -> None:
    path = user.home / "skillhub.toml"
    path.write_text(path.read_text(encoding="utf-8").replace(BASE, "skb1:" + "0" * 64), encoding="utf-8")
    found = rules(user)
    assert {("base", None), ("base", "root/math-pack"), ("base", "root/shared")} <= found
    assert ("base", "root/lora") not in found  # what it declares, nobody verified


def test_check_keeps_the_policy(user: Shell) -> None:
    (user.home / "config").mkdir(exist_ok=True)
    (user.home / "config" / "policy.toml").write_text('allowed_owners = ["corp"]', encoding="utf-8")
    assert rules(user) == {("policy", f"root/{name}") for name in ("math-pack", "shared", "lora")}


def test_check_knows_yanks_that_were_seen(user: Shell, market: RegistryProcess, tmp_path: Path) -> None:
    make_pack(tmp_path / "hasty", "hasty", "1.0.0")
    Shell(tmp_path, market.endpoint, market.token).succeed("publish", "hasty", "root/hasty")
    user.succeed("install", "root/hasty")
    append_line(market, "root/hasty", "yank", "1.0.0", "it is broken")
    user.succeed("check")
    user.run("outdated")
    (found,) = findings(user, "check")
    assert found["rule"] == "yanked" and "was yanked by its publisher (it is broken)" in found["message"]


def test_check_knows_a_release_whose_digest_changed(user: Shell) -> None:
    edit_lock(user, lambda entry: msgspec.structs.replace(entry, manifest="ab" * 32) if "math" in entry.name else entry)
    assert rules(user) == {("tampering", "root/math-pack"), ("installed", "root/math-pack")}
