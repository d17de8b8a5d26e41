"""The policy file: who may be installed at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from skillhub.errors import DiskError, TrustError, UsageError
from skillhub.lockfile import Lock, LockedPack
from skillhub.names import PackName
from skillhub.policy import Policy, check_lock, policy_path, read_policy

ACME, OTHER = PackName("Acme", "math-pack"), PackName("other", "math-pack")


@pytest.fixture(autouse=True)
def folder(homes: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SKILLHUB_CONFIG", str(homes / "config"))
    monkeypatch.delenv("SKILLHUB_POLICY", raising=False)
    (homes / "config").mkdir(parents=True)
    return homes / "config"


def locked(name: str, **fields: object) -> LockedPack:
    values = {"version": "1.0", "manifest": "0" * 64, "registry": "hub", "repository": name, "files": [], **fields}
    return LockedPack(name=name, **values)  # type: ignore[arg-type]


def test_without_a_file_nothing_is_forbidden() -> None:
    policy = read_policy()
    assert policy == Policy()
    assert policy.allows_owner(ACME) and not policy.requires_signature(ACME)
    check_lock(policy, Lock("", packs=(locked("other/x"),)))


def test_every_field_is_read(folder: Path) -> None:
    (folder / "policy.toml").write_text(
        'allowed_owners = ["acme"]\nrequire_signatures = ["acme"]\ncooldown_days = 7\n', encoding="utf-8"
    )
    policy = read_policy()
    assert policy == Policy(allowed_owners=["acme"], require_signatures=["acme"], cooldown_days=7)
    assert policy.allows_owner(ACME) and not policy.allows_owner(OTHER)
    assert policy.requires_signature(ACME) and not policy.requires_signature(OTHER)
    assert Policy(require_signatures=True).requires_signature(OTHER)


def test_another_file_may_be_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "policy.toml").write_text("cooldown_days = 1\n", encoding="utf-8")
    monkeypatch.setenv("SKILLHUB_POLICY", str(folder / "corp.toml"))
    assert policy_path() == folder / "corp.toml"
    with pytest.raises(UsageError, match="does not exist"):  # a slip in the name must not lift the policy
        read_policy()
    (folder / "corp.toml").write_text("cooldown_days = 2\n", encoding="utf-8")
    assert read_policy().cooldown_days == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cooldown_days = -1", "$.cooldown_days: "),
        ('cooldown_days = "7"', "$.cooldown_days: Expected `int`, got `str`"),
        ('allowed_owners = "acme"', "$.allowed_owners: Expected `array`, got `str`"),
        ('allowed_owners = ["acme/x"]', "$.allowed_owners[0]: 'acme/x' is not an owner's name"),
        ('require_signatures = ["acme", "*"]', "$.require_signatures[1]: '*' is not an owner's name"),
        ("require_signatures = 1", "$.require_signatures: "),
        ("allow_owners = []", "unknown field `allow_owners`"),
        ("cooldown_days =", "line 1"),
    ],
)
def test_a_mistake_is_named_by_its_field_and_forbids_nothing_silently(text: str, words: str, folder: Path) -> None:
    path = folder / "policy.toml"
    path.write_text(text + "\n", encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        read_policy()
    assert words in caught.value.message and str(path) in caught.value.message


def test_a_policy_that_cannot_be_read_is_an_error(folder: Path) -> None:
    (folder / "policy.toml").mkdir()
    with pytest.raises(DiskError):
        read_policy()


def test_a_lock_that_others_made_must_keep_the_policy() -> None:
    signed = locked("acme/signed", signer="ed25519:AAAA")
    exempt = [locked("mine", registry="local"), locked("acme/lora", kind="peft", version="0123456789ab")]
    check_lock(Policy(allowed_owners=["ACME"], require_signatures=True), Lock("", packs=(signed, *exempt)))
    with pytest.raises(TrustError, match="other/x is not by one of the owners that the policy allows: acme") as caught:
        check_lock(Policy(allowed_owners=["acme"]), Lock("", packs=(signed, locked("other/x"))))
    assert str(policy_path()) in caught.value.hint
    with pytest.raises(TrustError, match=r"acme/y 1\.0 is not signed, which the policy requires"):
        check_lock(Policy(require_signatures=["acme"]), Lock("", packs=(locked("other/x"), locked("acme/y"))))
