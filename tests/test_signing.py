"""Keys and signatures."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as generate_curve_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat

from skillhub.errors import DiskError, IntegrityError, NotFoundError, UsageError
from skillhub.signing import (
    generate_key,
    key_path,
    load_key,
    save_key,
    sign_digest,
    signer_of,
    signer_text,
    verify_digest,
)

# the first test vector of RFC 8032, section 7.1
SEED = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
PUBLIC = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
DIGEST = "ab" * 32
# by `openssl pkeyutl -sign -rawin` with that key
SIGNATURE = "Y9TL0pv2tKgBznknHoXLJy3pW6awnxwkSY7xmhpw+1yTCo6UhrLNY7QKQDYaen735902RN6Gv0g1t1SAIsrsAA=="


def test_a_signature_is_over_the_documented_message() -> None:
    key = Ed25519PrivateKey.from_private_bytes(SEED)
    assert signer_of(key).algorithm == "ed25519"
    assert base64.b64decode(signer_of(key).public_key) == PUBLIC
    assert sign_digest(key, DIGEST) == SIGNATURE
    message = b"skillhub release 0\n" + b"ab" * 32
    Ed25519PublicKey.from_public_bytes(PUBLIC).verify(base64.b64decode(SIGNATURE), message)


def test_only_the_right_key_digest_and_signature_verify() -> None:
    key, other = generate_key(), generate_key()
    public, signature = signer_of(key).public_key, sign_digest(key, DIGEST)
    assert verify_digest(public, DIGEST, signature)
    assert not verify_digest(signer_of(other).public_key, DIGEST, signature)
    assert not verify_digest(public, "cd" * 32, signature)
    assert not verify_digest(public, DIGEST, sign_digest(other, DIGEST))
    raw = base64.b64encode(key.sign(DIGEST.encode())).decode()  # signed for some other purpose
    assert not verify_digest(public, DIGEST, raw)


@pytest.mark.parametrize("text", ["", "AAAA", "not base64!", "é", "A" * 200, "=" * 8, f"{'A' * 43}=\n"])
def test_what_cannot_be_read_does_not_verify(text: str) -> None:
    key = generate_key()
    assert not verify_digest(text, DIGEST, sign_digest(key, DIGEST))
    assert not verify_digest(signer_of(key).public_key, DIGEST, text)


def test_a_key_is_kept_to_its_owner(tmp_path: Path) -> None:
    path, key = tmp_path / "config" / "key.pem", generate_key()
    save_key(key, path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [one.name for one in path.parent.iterdir()] == ["key.pem"]
    assert signer_of(load_key(path)) == signer_of(key)
    with pytest.raises(UsageError, match="already"):
        save_key(generate_key(), path)
    assert signer_of(load_key(path)) == signer_of(key)
    other = generate_key()
    save_key(other, path, replace=True)
    assert signer_of(load_key(path)) == signer_of(other)


@pytest.mark.skipif(os.name != "posix", reason="permissions")
def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    save_key(generate_key(), path)
    path.chmod(0o644)
    with pytest.raises(DiskError, match="Others") as caught:
        load_key(path)
    assert "chmod 600" in caught.value.hint


def test_what_is_no_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError) as caught:
        load_key(tmp_path / "nothing.pem")
    assert "skillhub key new" in caught.value.hint
    locked = generate_key().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    curve = generate_curve_key(SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path = tmp_path / "key.pem"
    path.touch(mode=0o600)
    for data in (b"", b"-----BEGIN", os.urandom(100), locked, curve):
        path.write_bytes(data)
        with pytest.raises(IntegrityError, match="no Ed25519 private key"):
            load_key(path)


def test_where_the_key_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SKILLHUB_CONFIG", str(tmp_path / "config"))
    monkeypatch.delenv("SKILLHUB_SIGNING_KEY", raising=False)
    assert key_path() == tmp_path / "config" / "signing-key.pem"
    monkeypatch.setenv("SKILLHUB_SIGNING_KEY", str(tmp_path / "ci.pem"))
    assert key_path() == tmp_path / "ci.pem"


def test_a_signer_in_one_word() -> None:
    assert signer_text(signer_of(Ed25519PrivateKey.from_private_bytes(SEED))) == (
        "ed25519:11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="
    )
