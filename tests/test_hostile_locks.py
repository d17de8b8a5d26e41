"""What a lock that a stranger made can try: it is installed without asking what is published."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from skillhub import hub
from skillhub.configuration import add_registry
from skillhub.environments import as_environment, installed_packs
from skillhub.errors import IntegrityError, TrustError
from skillhub.installer import install, sync, upgrade
from skillhub.lockfile import Lock, LockedPack, read_lock, write_lock
from skillhub.policy import policy_path
from skillhub.projects import RegistryEntry
from skillhub.publisher import publish
from skillhub.sessions import Session
from skillhub.signing import generate_key, save_key
from skillhub.transactions import Terms
from tests.support.packs import BASE, make_pack
from tests.support.registry_process import RegistryProcess

pytestmark = pytest.mark.usefixtures("homes")


@pytest.fixture(scope="module")
def owner(registry: RegistryProcess) -> hub.Registry:
    return hub.Registry("hub", registry.endpoint, registry.add_user("locks"))


@pytest.fixture(scope="module")
def mallory(registry: RegistryProcess) -> hub.Registry:
    return hub.Registry("hub", registry.endpoint, registry.add_user("mallory"))


@pytest.fixture(autouse=True)
def configured(homes: Path, registry: RegistryProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", registry.endpoint)


def clone(environment: Path, folder: Path, **changes: object) -> Path:
    """Copy an environment's project and lock, in which something else is then said of the only pack."""
    folder.mkdir()
    (folder / "skillhub.toml").write_bytes((environment / "skillhub.toml").read_bytes())
    lock = read_lock(environment / "skillhub.lock")
    assert lock is not None
    entry: LockedPack = msgspec.structs.replace(lock.packs[0], **changes)
    write_lock(folder / "skillhub.lock", Lock(lock.inputs, lock.bases, (entry,)))
    return folder


def write_policy(text: str) -> None:
    policy_path().parent.mkdir(parents=True, exist_ok=True)
    policy_path().write_text(text)


def refuse(folder: Path, words: str) -> None:
    """Sync a clone, which must end in an error about trust and install nothing, frozen or not."""
    for terms in (Terms(), Terms(frozen=True), Terms(locked=True)):
        with pytest.raises(TrustError, match=words):
            sync(Session(), as_environment(folder), terms)
        assert installed_packs(as_environment(folder)) == []


def test_another_release_than_the_one_that_was_seen(owner: hub.Registry, mallory: hub.Registry, tmp_path: Path) -> None:
    """A lock may name any repository, or the commit of a proposal, and the digest of what that brings."""
    name = "locks/proposed"
    publish(make_pack(tmp_path / "1", "proposed", "1.0"), name, registry=owner)
    install([name], base=BASE, environment=tmp_path / "env")
    evil = make_pack(tmp_path / "2", "proposed", "1.0", seed="evil")
    publish(evil, "mallory/proposed", registry=mallory)
    folder = clone(
        tmp_path / "env", tmp_path / "clone", manifest=evil.digest, repository="mallory/proposed", commit=None
    )
    refuse(folder, "first seen")


def test_another_owner_s_repository_behind_an_allowed_name(owner: hub.Registry, tmp_path: Path) -> None:
    publish(make_pack(tmp_path / "1", "plain"), "locks/plain", registry=owner)
    install(["locks/plain"], base=BASE, environment=tmp_path / "env")
    folder = clone(tmp_path / "env", tmp_path / "clone", name="acme/plain")
    write_policy('allowed_owners = ["acme"]\n')
    with pytest.raises(TrustError, match="locks/plain"):
        sync(Session(), as_environment(folder), Terms(frozen=True))
    assert installed_packs(as_environment(folder)) == []


def test_another_registry_than_the_one_that_a_pack_is_pinned_to(owner: hub.Registry, tmp_path: Path) -> None:
    publish(make_pack(tmp_path / "1", "pinned"), "locks/pinned", registry=owner)
    install(["locks/pinned"], base=BASE, environment=tmp_path / "env")
    folder = clone(tmp_path / "env", tmp_path / "clone")
    add_registry(RegistryEntry(name="corp", url="http://127.0.0.1:9", packs=["locks/*"]))
    refuse(folder, "corp")


def test_a_signature_that_the_lock_only_claims(
    owner: hub.Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock says who signed; where the policy wants a signature, the index must have it."""
    write_policy("require_signatures = true\n")
    key = tmp_path / "key"
    save_key(generate_key(), key)
    monkeypatch.setenv("SKILLHUB_SIGNING_KEY", str(key))
    publish(make_pack(tmp_path / "1", "signed", "1.0"), "locks/signed", registry=owner)
    install(["locks/signed"], base=BASE, environment=tmp_path / "env")
    sync(Session(), as_environment(clone(tmp_path / "env", tmp_path / "good")), Terms())
    assert len(installed_packs(as_environment(tmp_path / "good"))) == 1
    monkeypatch.delenv("SKILLHUB_SIGNING_KEY")
    plain = publish(make_pack(tmp_path / "2", "unsigned", "1.0"), "locks/unsigned", registry=owner)
    claims = {"name": "locks/unsigned", "repository": "locks/unsigned", "manifest": plain.release.manifest_digest}
    folder = clone(tmp_path / "env", tmp_path / "clone", commit=None, **claims)
    with pytest.raises(TrustError, match="not signed"):
        sync(Session(), as_environment(folder), Terms(frozen=True))
    assert installed_packs(as_environment(folder)) == []


def test_a_lock_whose_file_list_was_edited_is_refused_and_locked_anew_by_upgrade(
    owner: hub.Registry, tmp_path: Path
) -> None:
    name = "locks/edited"
    publish(make_pack(tmp_path / "1", "edited", "1.0"), name, registry=owner)
    (whole,) = install([name], base=BASE, environment=tmp_path / "env")
    files = [msgspec.structs.replace(entry, size=entry.size + 1) for entry in whole.receipt.files]
    folder = clone(tmp_path / "env", tmp_path / "clone", files=files)
    with pytest.raises(IntegrityError, match="other files, sizes or digests") as caught:
        sync(Session(), as_environment(folder), Terms())
    assert f"skillhub upgrade {name}" in caught.value.hint
    assert installed_packs(as_environment(folder)) == []
    upgrade(Session(), as_environment(folder), [name], Terms())
    assert [str(one) for one in installed_packs(as_environment(folder))] == [str(whole)]
