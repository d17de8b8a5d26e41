"""Installing, uninstalling and verifying, against a real registry."""

from __future__ import annotations

import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from skillhub import hub
from skillhub.documents import canonical_json
from skillhub.environments import installed_packs, read_project, user_environment, user_environments
from skillhub.errors import (
    DiskError,
    IntegrityError,
    NetworkError,
    NewerSchemaError,
    NotFoundError,
    OfflineError,
    ResolutionError,
    TrustError,
    UnsafeContentError,
    UsageError,
    WrongBaseError,
)
from skillhub.files import sha256_of_file
from skillhub.fingerprint import base_files_digest
from skillhub.installer import install, uninstall
from skillhub.integrity import verify
from skillhub.lockfile import read_lock
from skillhub.packs import Pack, verify_pack
from skillhub.publisher import publish
from skillhub.store import default_store
from tests.support.packs import BASE, OTHER_BASE, make_pack
from tests.support.registry_process import RegistryProcess
from tests.support.tampering import put_unchecked


@pytest.fixture(scope="module")
def owner(registry: RegistryProcess) -> hub.Registry:
    return hub.Registry("hub", registry.endpoint, registry.add_user("installer"))


@pytest.fixture(scope="module")
def packs(owner: hub.Registry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Pack]]:
    """Two versions of one pack, one for two bases, one that needs another."""
    folder = tmp_path_factory.mktemp("packs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKILLHUB_STATE", str(folder / "state"))
        made = {
            "math 1.0": make_pack(folder / "1", "math-pack", "1.0", repo="Acme/Base"),
            "math 1.1": make_pack(folder / "2", "math-pack", "1.1"),
            "math 2.0rc1": make_pack(folder / "3", "math-pack", "2.0rc1"),
            "both": make_pack(folder / "4", "both-pack", "1.0", [BASE, OTHER_BASE]),
            "needy": make_pack(folder / "5", "needy-pack", "1.0", requires=["installer/math-pack"]),
            "rival": make_pack(folder / "6", "rival-pack", "1.0", conflicts=["installer/math-pack>=1.1"]),
        }
        for pack in made.values():
            publish(pack, f"installer/{pack.manifest.name}", registry=owner)
    yield made


@pytest.fixture
def anyone(registry: RegistryProcess, homes: Path, packs: dict[str, Pack]) -> hub.Registry:
    """The registry without a token, seen by a user with empty folders."""
    return hub.Registry("hub", registry.endpoint)


def blobs() -> set[str]:
    folder = default_store().folder / "sha256"
    found = {path for path in folder.rglob("*") if path.is_file()}
    assert all(sha256_of_file(path) == path.name for path in found)
    return {path.name for path in found}


def test_a_pack_is_installed_with_only_the_fitting_variant(
    anyone: hub.Registry, packs: dict[str, Pack], tmp_path: Path
) -> None:
    seen: list[tuple[str, int, int]] = []
    done = install(
        ["installer/both-pack"],
        base=OTHER_BASE,
        environment=tmp_path / "env",
        registry=anyone,
        progress=lambda *step: seen.append(step),
    )
    assert [(str(one.name), one.version, one.fingerprint) for one in done] == [
        ("installer/both-pack", "1.0", OTHER_BASE)
    ]
    pack, variant = done[0].pack, packs["both"].variant_for(OTHER_BASE)
    assert verify_pack(pack, fingerprint=OTHER_BASE) == []
    assert sorted(path.name for path in (pack.folder / "variants").iterdir()) == [Path(variant.folder).name]
    assert blobs() == {entry.sha256 for entry in variant.files} | {pack.digest}
    assert max(step[1] for step in seen) == seen[0][2] == variant.size
    receipt = done[0].receipt
    assert (receipt.registry, receipt.repository, receipt.manifest) == ("hub", "installer/both-pack", pack.digest)

    assert receipt.files == variant.files
    assert installed_packs(user_environment(BASE)) == []


def test_files_are_shared_with_the_store_and_read_only(anyone: hub.Registry, tmp_path: Path) -> None:
    done = install(["installer/math-pack"], environment=tmp_path / "env", registry=anyone)
    entry = done[0].receipt.files[0]
    path = done[0].pack.path_of(entry)
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    assert path.samefile(default_store().path_of(entry.sha256))


def test_the_newest_final_release_is_chosen_and_then_kept(anyone: hub.Registry, tmp_path: Path) -> None:
    env = tmp_path / "env"
    assert install(["installer/math-pack<1.1"], base=BASE, environment=env, registry=anyone)[0].version == "1.0"
    assert read_project(installed_env(env)).requirements == ["installer/math-pack<1.1"]
    assert install(["installer/math-pack"], environment=env, registry=anyone)[0].version == "1.0"
    assert install(["installer/math-pack>=1.0"], environment=env, registry=anyone)[0].version == "1.0"
    assert install(["Installer/Math-Pack>=1.1"], environment=env, registry=anyone)[0].version == "1.1"
    assert install(["installer/math-pack==2.0rc1"], environment=env, registry=anyone)[0].version == "2.0rc1"
    assert len(installed_packs(installed_env(env))) == 1
    lock = read_lock(env / "skillhub.lock")
    assert lock is not None
    assert [(one.name.lower(), one.version) for one in lock.packs] == [("installer/math-pack", "2.0rc1")]


def installed_env(folder: Path):  # type: ignore[no-untyped-def]
    from skillhub.environments import as_environment

    return as_environment(folder)


def test_the_lock_holds_every_variant_and_no_place(
    anyone: hub.Registry, packs: dict[str, Pack], tmp_path: Path
) -> None:
    install(["installer/both-pack"], base=BASE, environment=tmp_path / "env", registry=anyone)
    data = (tmp_path / "env" / "skillhub.lock").read_text()
    lock = read_lock(tmp_path / "env" / "skillhub.lock")
    assert lock is not None
    every = [entry for variant in packs["both"].manifest.variants for entry in variant.files]
    assert lock.packs[0].files == sorted(every, key=lambda entry: entry.path)
    assert str(tmp_path) not in data
    assert "127.0.0.1" not in data
    install(["installer/both-pack"], base=BASE, environment=tmp_path / "again", registry=anyone)
    assert (tmp_path / "again" / "skillhub.lock").read_text() == data


def test_without_an_environment_there_is_one_for_each_base(anyone: hub.Registry) -> None:
    notes: list[str] = []
    install(["installer/math-pack"], registry=anyone, notice=notes.append)
    assert notes == [f"Using the base {BASE[:17]}: the only one that installer/math-pack fits."]
    assert user_environments() == [user_environment(BASE)]
    notes.clear()
    install(["installer/both-pack"], registry=anyone, notice=notes.append)
    assert notes == [f"Using the base {BASE[:17]}: the only one of yours that installer/both-pack fits."]
    assert [str(one.name) for one in installed_packs(user_environment(BASE))] == [
        "installer/both-pack",
        "installer/math-pack",
    ]
    install(["installer/both-pack"], base=OTHER_BASE, registry=anyone)
    with pytest.raises(WrongBaseError, match="several bases") as caught:
        install(["installer/both-pack"], registry=anyone)
    assert "--base" in caught.value.hint


def test_a_base_that_a_pack_does_not_fit(anyone: hub.Registry, tmp_path: Path) -> None:
    with pytest.raises(WrongBaseError) as caught:
        install(["installer/math-pack"], base=OTHER_BASE, environment=tmp_path / "env", registry=anyone)
    assert caught.value.exit_code == 5
    assert BASE[:17] in caught.value.hint
    assert blobs() == set()
    assert not (tmp_path / "env" / "skillhub.toml").exists()
    install(["installer/both-pack"], base=BASE, environment=tmp_path / "env", registry=anyone)
    with pytest.raises(WrongBaseError, match="is another one"):
        install(["installer/both-pack"], base=OTHER_BASE, environment=tmp_path / "env", registry=anyone)
    with pytest.raises(UsageError):
        install(["installer/both-pack"], base="skb1:12", environment=tmp_path / "env", registry=anyone)


def test_a_base_on_the_registry_is_known_by_its_files(
    anyone: hub.Registry, owner: hub.Registry, tmp_path: Path
) -> None:
    hub.create_repository(owner, "installer/a-base")
    hub.commit(owner, "installer/a-base", {"model.safetensors": b"weights"}, message="Add", parent=None)
    digests = hub.base_file_digests(anyone, "installer/a-base")
    pack = make_pack(tmp_path / "pack", "based-pack", "1.0", [OTHER_BASE], weights=digests, repo=None)
    release = publish(pack, "installer/based-pack", registry=owner).release
    assert release.event.variants[0].base_files == [base_files_digest(digests.values())]
    done = install(["installer/based-pack"], base="installer/a-base", registry=anyone)
    assert done[0].fingerprint == OTHER_BASE
    assert read_project(user_environment(OTHER_BASE)).base[0].repo == "installer/a-base"
    env = tmp_path / "env"
    install(["installer/based-pack"], base="installer/a-base", environment=env, registry=anyone)
    assert 'repo = "installer/a-base"' in (env / "skillhub.lock").read_text()
    install(["installer/based-pack"], base="installer/a-base", environment=env, registry=anyone)


def test_a_base_may_be_a_path(anyone: hub.Registry, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nowhere"):
        install(["installer/math-pack"], base=tmp_path / "nowhere", environment=tmp_path / "env", registry=anyone)


def test_a_base_that_a_pack_only_declares_is_told(anyone: hub.Registry, owner: hub.Registry) -> None:
    hub.create_repository(owner, "installer/other-base")
    hub.commit(owner, "installer/other-base", {"model.safetensors": b"other"}, message="Add", parent=None)
    notes: list[str] = []
    with pytest.raises(WrongBaseError):
        install(["installer/math-pack"], base="installer/other-base", registry=anyone)
    done = install(["installer/math-pack==1.1"], base="Acme/base-model", registry=anyone, notice=notes.append)
    assert done[0].fingerprint == BASE
    assert "declares Acme/base-model as its base" in notes[0]


def test_a_folder_is_installed_and_installed_anew(anyone: hub.Registry, tmp_path: Path) -> None:
    env = tmp_path / "env"
    folder = tmp_path / "built"
    make_pack(folder, "own-pack", "0.1")
    done = install([str(folder)], environment=env, registry=anyone)
    assert (str(done[0].name), done[0].receipt.registry, done[0].receipt.repository) == (
        "own-pack",
        "local",
        "../built",
    )
    assert read_project(installed_env(env)).requirements == ["../built"]
    make_pack(folder, "own-pack", "0.1", seed="built again")
    assert install([str(folder)], environment=env, registry=anyone)[0].pack.digest != done[0].pack.digest
    shutil.rmtree(folder)
    shutil.rmtree(env / ".skillhub")
    assert install([], environment=env, registry=anyone)[0].version == "0.1"
    assert verify(env) == []
    uninstall(["own-pack"], environment=env)
    assert installed_packs(installed_env(env)) == []


def test_an_altered_folder_is_refused(anyone: hub.Registry, tmp_path: Path) -> None:
    pack = make_pack(tmp_path / "built", "own-pack", "0.1")
    (pack.folder / pack.manifest.variants[0].files[0].path).write_bytes(b"altered")
    with pytest.raises(IntegrityError):
        install([str(pack.folder)], environment=tmp_path / "env", registry=anyone)
    with pytest.raises(NotFoundError, match="There is no folder"):
        install([str(tmp_path / "nothing")], environment=tmp_path / "env", registry=anyone)
    assert installed_packs(installed_env(tmp_path / "env")) == []


def test_sync_installs_what_the_lock_says_from_the_store(anyone: hub.Registry, tmp_path: Path) -> None:
    env, copy = tmp_path / "env", tmp_path / "copy"
    install(["installer/math-pack==1.0", "installer/both-pack"], environment=env, registry=anyone)
    copy.mkdir()
    for name in ("skillhub.toml", "skillhub.lock"):
        shutil.copy(env / name, copy / name)
    nowhere = hub.Registry("hub", "http://127.0.0.1:1")
    done = install([], environment=copy, registry=nowhere)
    assert [(str(one.name), one.version) for one in done] == [
        ("installer/both-pack", "1.0"),
        ("installer/math-pack", "1.0"),
    ]
    assert (copy / "skillhub.lock").read_bytes() == (env / "skillhub.lock").read_bytes()
    project = (copy / "skillhub.toml").read_text().replace('    "installer/both-pack",\n', "")
    (copy / "skillhub.toml").write_text(project)
    assert len(install([], environment=copy, registry=anyone, offline=True)) == 1
    assert [str(one.name) for one in installed_packs(installed_env(copy))] == ["installer/math-pack"]


def test_a_locked_pack_of_another_registry_is_not_looked_for_here(anyone: hub.Registry, tmp_path: Path) -> None:
    install(["installer/math-pack"], environment=tmp_path / "env", registry=anyone)
    shutil.rmtree(default_store().folder)
    shutil.rmtree(tmp_path / "env" / ".skillhub")
    other = hub.Registry("own", anyone.endpoint)
    with pytest.raises(NotFoundError, match="locked from the registry hub"):
        install([], environment=tmp_path / "env", registry=other)


def test_offline_everything_comes_from_the_store(anyone: hub.Registry, tmp_path: Path) -> None:
    with pytest.raises(OfflineError) as caught:
        install(["installer/math-pack"], base=BASE, environment=tmp_path / "env", registry=anyone, offline=True)
    assert caught.value.exit_code == 8
    install(["installer/math-pack==1.0"], environment=tmp_path / "first", registry=anyone)
    nowhere = hub.Registry("hub", anyone.endpoint, None)
    done = install(["installer/math-pack==1.0"], environment=tmp_path / "env", registry=nowhere, offline=True)
    assert verify_pack(done[0].pack, fingerprint=BASE) == []
    with pytest.raises(OfflineError, match="not in the store"):
        install(["installer/math-pack==1.1"], environment=tmp_path / "env", registry=nowhere, offline=True)
    assert installed_packs(installed_env(tmp_path / "env"))[0].version == "1.0"


def test_offline_by_variable(anyone: hub.Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(OfflineError):
        install(["installer/math-pack"], environment=tmp_path / "env", registry=anyone)


def test_an_unknown_pack(anyone: hub.Registry, owner: hub.Registry, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="installer/nothing") as caught:
        install(["installer/nothing"], environment=tmp_path / "env", registry=anyone)
    assert caught.value.exit_code == 4
    assert caught.value.hint
    hub.create_repository(owner, "installer/no-pack")
    with pytest.raises(NotFoundError, match="is no pack"):
        install(["installer/no-pack"], environment=tmp_path / "env", registry=anyone)


def test_an_unreachable_registry(homes: Path, tmp_path: Path) -> None:
    with pytest.raises(NetworkError) as caught:
        install(["a/b"], environment=tmp_path / "env", registry="http://127.0.0.1:1")
    assert caught.value.exit_code == 8
    assert "127.0.0.1:1" in caught.value.message


def test_short_names_are_never_guessed(anyone: hub.Registry, tmp_path: Path) -> None:
    env = tmp_path / "env"
    with pytest.raises(NotFoundError) as caught:
        install(["math-pack>=1"], base=BASE, environment=env, registry=anyone)
    assert caught.value.exit_code == 4
    assert "skillhub install 'installer/math-pack>=1'" in caught.value.hint
    assert "installer/math-pack" in caught.value.details["candidates"]
    env.mkdir(exist_ok=True)
    (env / "skillhub.toml").write_text('owners = ["nobody", "installer"]\n')
    assert str(install(["math-pack"], environment=env, registry=anyone)[0].name) == "installer/math-pack"
    assert read_project(installed_env(env)).owners == ["nobody", "installer"]
    (env / "skillhub.toml").write_text((env / "skillhub.toml").read_text().replace('    "nobody",\n', ""))
    assert install(["math-pack==1.0"], environment=env, registry=anyone)[0].version == "1.0"


def test_a_short_name_of_something_installed_is_known(anyone: hub.Registry) -> None:
    install(["installer/math-pack"], registry=anyone)
    assert str(install(["math-pack"], base=BASE, registry=anyone)[0].name) == "installer/math-pack"


def test_dependencies_come_in_and_conflicts_are_refused(anyone: hub.Registry, tmp_path: Path) -> None:
    assert [
        str(one.name) for one in install(["installer/needy-pack"], environment=tmp_path / "1", registry=anyone)
    ] == ["installer/needy-pack"]
    assert [str(one.name) for one in installed_packs(installed_env(tmp_path / "1"))] == [
        "installer/math-pack",
        "installer/needy-pack",
    ]
    install(["installer/math-pack==1.0", "installer/rival-pack"], environment=tmp_path / "env", registry=anyone)
    with pytest.raises(ResolutionError, match="conflict") as caught:
        install(["installer/math-pack>=1.1"], environment=tmp_path / "env", registry=anyone)
    assert "installer/rival-pack" in caught.value.message
    assert installed_packs(installed_env(tmp_path / "env"))[0].version == "1.0"


def test_requirements_given_together_must_all_hold(anyone: hub.Registry, tmp_path: Path) -> None:
    env = tmp_path / "env"
    with pytest.raises(ResolutionError) as caught:
        install(["installer/math-pack>=1.1", "installer/math-pack<1.1"], base=BASE, environment=env, registry=anyone)
    assert caught.value.exit_code == 3
    assert "installer/math-pack>=1.1 and installer/math-pack<1.1" in caught.value.message
    assert not (env / "skillhub.toml").exists()
    done = install(["installer/math-pack>=1.0", "Installer/Math-Pack<1.1"], environment=env, registry=anyone)
    assert [one.version for one in done] == ["1.0"]
    assert read_project(installed_env(env)).requirements == ["installer/math-pack<1.1,>=1.0"]
    (env / "skillhub.toml").write_text('requirements = ["installer/math-pack<1.1", "installer/math-pack>=1.1"]\n')
    with pytest.raises(ResolutionError, match=r"installer/math-pack<1\.1 and installer/math-pack>=1\.1"):
        install([], environment=env, registry=anyone)


def test_a_new_requirement_takes_the_place_of_the_old_one(anyone: hub.Registry, tmp_path: Path) -> None:
    env, notes = tmp_path / "env", list[str]()
    install(["installer/math-pack<1.1"], environment=env, registry=anyone)
    install(["installer/math-pack>=1.1"], environment=env, registry=anyone, notice=notes.append)
    assert notes == ["installer/math-pack>=1.1 takes the place of installer/math-pack<1.1."]
    folder = str(make_pack(tmp_path / "own", "math-pack", "3.0").folder)
    with pytest.raises(UsageError, match="both are called math-pack"):
        install(["installer/math-pack", folder], environment=env, registry=anyone)
    install([folder], environment=env, registry=anyone, notice=notes.append)
    assert [(str(one.name), one.version) for one in installed_packs(installed_env(env))] == [("math-pack", "3.0")]
    assert notes[1] == f"{folder} takes the place of installer/math-pack>=1.1."
    assert install(["installer/math-pack==1.0"], environment=env, registry=anyone)[0].version == "1.0"
    assert read_project(installed_env(env)).requirements == ["installer/math-pack==1.0"]


def test_a_pack_named_twice_is_installed_once(anyone: hub.Registry, tmp_path: Path) -> None:
    done = install(["installer/math-pack", "Installer/math-pack"], environment=tmp_path / "env", registry=anyone)
    assert [str(one.name) for one in done] == ["installer/math-pack"]


def test_short_names_in_the_project_file_have_owners_as_well(anyone: hub.Registry, tmp_path: Path) -> None:
    env = tmp_path / "env"
    env.mkdir()
    (env / "skillhub.toml").write_text('requirements = ["math-pack"]\nowners = ["installer"]\n')
    assert [str(one.name) for one in install([], environment=env, registry=anyone)] == ["installer/math-pack"]
    (env / "skillhub.toml").write_text('requirements = ["math-pack"]\n')
    nowhere = hub.Registry("hub", "http://127.0.0.1:1")
    assert [str(one.name) for one in install([], base=BASE, environment=env, registry=nowhere)] == [
        "installer/math-pack"
    ]


def test_uninstall_removes_the_pack_and_keeps_the_store(anyone: hub.Registry, tmp_path: Path) -> None:
    env = tmp_path / "env"
    install(["installer/math-pack", "installer/both-pack"], environment=env, registry=anyone)
    before = blobs()
    with pytest.raises(NotFoundError):
        uninstall(["math-pack", "unknown"], environment=env)
    assert len(installed_packs(installed_env(env))) == 2
    removed = uninstall(["MATH-pack"], environment=env)
    assert [str(one.name) for one in removed] == ["installer/math-pack"]
    assert [str(one.name) for one in installed_packs(installed_env(env))] == ["installer/both-pack"]
    assert read_project(installed_env(env)).requirements == ["installer/both-pack"]
    assert blobs() == before
    assert verify(env) == []
    with pytest.raises(NotFoundError):
        uninstall(["both-pack"], environment=tmp_path / "no-environment")


def test_what_is_named_twice_is_uninstalled_once(anyone: hub.Registry, tmp_path: Path) -> None:
    env = tmp_path / "env"
    install(["installer/math-pack"], environment=env, registry=anyone)
    removed = uninstall(["installer/math-pack", "math-pack", "math-pack"], environment=env)
    assert [(str(one.name), one.before) for one in removed] == [("installer/math-pack", "1.1")]
    assert read_project(installed_env(env)).requirements == []


def test_a_damaged_pack_blocks_nothing_and_can_be_removed(anyone: hub.Registry, tmp_path: Path) -> None:
    env = tmp_path / "env"
    done = install(["installer/math-pack", "installer/both-pack"], environment=env, registry=anyone)
    math, both = done
    (math.pack.folder / "receipt.json").write_text("{")
    (both.pack.folder / "skillpack.json").chmod(0o644)
    (both.pack.folder / "skillpack.json").write_bytes(b"")
    findings = verify(env)
    assert {Path(finding.details["path"]) for finding in findings if "path" in finding.details} == {
        math.pack.folder,
        both.pack.folder,
    }
    removed = uninstall(["math-pack"], environment=env)
    assert [(str(one.name), one.before) for one in removed] == [("installer/math-pack", None)]
    assert not math.pack.folder.exists()
    install([], environment=env, registry=anyone)
    assert verify(env) == []
    assert [str(one.name) for one in installed_packs(installed_env(env))] == ["installer/both-pack"]


def test_a_file_that_cannot_be_read_is_a_disk_error(anyone: hub.Registry, tmp_path: Path) -> None:
    env = tmp_path / "env"
    done = install(["installer/math-pack"], environment=env, registry=anyone)
    shutil.rmtree(done[0].pack.folder)
    done[0].pack.folder.parent.rmdir()
    (env / "skillhub.lock").unlink()
    (env / "skillhub.lock").mkdir()
    for call in (lambda: verify(env), lambda: install([], environment=env, registry=anyone)):
        with pytest.raises(DiskError) as caught:
            call()
        assert caught.value.exit_code == 14


def test_verify_finds_what_was_altered_and_install_repairs_it(anyone: hub.Registry, tmp_path: Path) -> None:
    env = tmp_path / "env"
    done = install(["installer/math-pack"], environment=env, registry=anyone)
    read: list[tuple[str, int, int]] = []
    assert verify(env, progress=lambda *step: read.append(step)) == []
    assert read[-1][1] == read[-1][2] > 0
    path = done[0].pack.path_of(done[0].receipt.files[0])
    path.chmod(0o644)
    path.write_bytes(b"x" * path.stat().st_size)  # through the hard link, in the store as well
    (done[0].pack.folder / "extra.txt").write_text("x")
    findings = verify(env)
    assert [finding.exit_code for finding in findings] == [6, 6]
    assert install(["installer/math-pack"], environment=env, registry=anyone)
    assert verify(env) == []
    blobs()
    shutil.rmtree(done[0].pack.folder)
    assert "locked and not installed" in verify(env)[0].message
    install([], environment=env, registry=anyone)
    assert verify(env) == []
    (done[0].pack.folder / "receipt.json").write_bytes(b"{}")
    assert len(verify(env)) == 1
    install(["installer/math-pack"], environment=env, registry=anyone)
    assert verify(env) == []


def rewrite(registry: RegistryProcess, owner: hub.Registry, name: str, files: dict[str, bytes]) -> None:
    """Put another repository with some other files in the place of a pack's: its registry lets nobody change releases."""
    api = HfApi(endpoint=owner.endpoint, token=owner.token)
    kept: dict[str, bytes] = {}
    for path in api.list_repo_files(name):
        read = hub.read_file(owner, name, path, limit=1 << 20)
        assert read is not None
        kept[path] = read.data
    api.delete_repo(name)
    hub.create_repository(owner, name)
    put_unchecked(registry, owner.token, name, {**kept, **files})


def test_a_changed_release_is_tampering(
    registry: RegistryProcess, anyone: hub.Registry, owner: hub.Registry, tmp_path: Path
) -> None:
    name = "installer/tampered-pack"
    publish(make_pack(tmp_path / "1", "tampered-pack", "1.0"), name, registry=owner)
    install([name], environment=tmp_path / "env", registry=anyone)
    read = hub.read_releases(owner, name)
    assert read is not None
    digest = installed_packs(installed_env(tmp_path / "env"))[0].pack.digest
    rewrite(registry, owner, name, {"releases.jsonl": read.data.replace(digest.encode(), b"0" * 64)})
    with pytest.raises(TrustError, match="not what it was") as caught:
        install([name], environment=tmp_path / "other", registry=anyone)
    assert caught.value.exit_code == 7
    rewrite(registry, owner, name, {"releases.jsonl": b"\n" + read.data})
    with pytest.raises(IntegrityError):
        install([name], environment=tmp_path / "other", registry=anyone)
    rewrite(registry, owner, name, {"releases.jsonl": b""})
    with pytest.raises(IntegrityError, match="rewritten"):
        install([name], environment=tmp_path / "other", registry=anyone)


def test_a_manifest_that_is_not_the_announced_one(
    registry: RegistryProcess, anyone: hub.Registry, owner: hub.Registry, tmp_path: Path
) -> None:
    name = "installer/swapped-pack"
    publish(make_pack(tmp_path / "1", "swapped-pack", "1.0"), name, registry=owner)
    other = make_pack(tmp_path / "2", "swapped-pack", "1.0", seed="other")
    rewrite(registry, owner, name, {"releases/1.0/skillpack.json": other.manifest.to_bytes()})
    with pytest.raises(IntegrityError) as caught:
        install([name], environment=tmp_path / "env", registry=anyone)
    assert caught.value.exit_code == 6
    assert blobs() == set()


def announce(registry: RegistryProcess, owner: hub.Registry, name: str, pack: Pack, manifest: bytes) -> None:
    """Publish a manifest that no publisher would write."""
    import hashlib

    hub.create_repository(owner, name)
    line = {
        "schema": 0,
        "event": "release",
        "version": pack.manifest.version,
        "manifest": hashlib.sha256(manifest).hexdigest(),
        "variants": [{"fingerprint": BASE, "bytes": pack.manifest.variants[0].size}],
    }
    files = {"releases.jsonl": canonical_json(line), "releases/1.0/skillpack.json": manifest}
    rewrite(registry, owner, name, files)


def test_a_path_that_leaves_the_folder(
    registry: RegistryProcess, anyone: hub.Registry, owner: hub.Registry, tmp_path: Path
) -> None:
    pack = make_pack(tmp_path / "1", "climbing-pack", "1.0")
    data = pack.manifest.to_bytes().replace(pack.manifest.variants[0].files[0].path.encode(), b"../../../../evil")
    announce(registry, owner, "installer/climbing-pack", pack, data)
    with pytest.raises(UnsafeContentError) as caught:
        install(["installer/climbing-pack"], environment=tmp_path / "env", registry=anyone)
    assert caught.value.exit_code == 12
    assert not list(tmp_path.rglob("evil"))


def test_a_newer_schema(registry: RegistryProcess, anyone: hub.Registry, owner: hub.Registry, tmp_path: Path) -> None:
    pack = make_pack(tmp_path / "1", "newer-pack", "1.0")
    data = pack.manifest.to_bytes().replace(b'"schema":0', b'"news":[],"schema":1')
    announce(registry, owner, "installer/newer-pack", pack, data)
    with pytest.raises(NewerSchemaError) as caught:
        install(["installer/newer-pack"], environment=tmp_path / "env", registry=anyone)
    assert caught.value.exit_code == 15


def test_nothing_to_install(homes: Path, anyone: hub.Registry, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nothing to install"):
        install([], registry=anyone)
    with pytest.raises(NotFoundError, match="nothing to install"):
        install([], environment=tmp_path / "env", registry=anyone)


def test_installing_never_imports_torch(anyone: hub.Registry, tmp_path: Path) -> None:
    code = (
        "import sys; from skillhub import verify; from skillhub.installer import install; from skillhub import hub;"
        f"install(['installer/math-pack'], environment={str(tmp_path / 'env')!r},"
        f" registry=hub.Registry('hub', {anyone.endpoint!r}));"
        "print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False False\n", done.stderr


def test_several_processes_install_at_once(anyone: hub.Registry, tmp_path: Path) -> None:
    code = (
        "import sys; from skillhub.installer import install; from skillhub import hub;"
        "install(['installer/math-pack', 'installer/both-pack'], base=sys.argv[2], environment=sys.argv[1],"
        " registry=hub.Registry('hub', sys.argv[3]))"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path / f"env{number % 2}"), BASE, anyone.endpoint])
        for number in range(6)
    ]
    assert [process.wait() for process in processes] == [0] * 6
    for number in range(2):
        assert verify(tmp_path / f"env{number}") == []
        assert len(installed_packs(installed_env(tmp_path / f"env{number}"))) == 2
    blobs()
