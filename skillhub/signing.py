"""Signatures of publishers: Ed25519 over a release's manifest digest, with a key that never leaves the user's machine.

The manifest names the public key (``signer``), so the digest that identifies a release covers who made it; the event
in the index carries the signature. What is signed is ``skillhub release 0``, a newline, and the digest in hexadecimal.
"""

from __future__ import annotations

import base64
import binascii
import os
from pathlib import Path
from typing import TYPE_CHECKING

from skillhub import settings
from skillhub.errors import DiskError, IntegrityError, NotFoundError, UsageError
from skillhub.files import disk_errors, staged_file
from skillhub.manifest import Signer

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

ALGORITHM = "ed25519"
KEY_FILE = "signing-key.pem"

_CONTEXT = b"skillhub release 0\n"  # a signature for a release is worth nothing as one for anything else


def key_path() -> Path:
    """Return where the user's key is, whether or not there is one (``SKILLHUB_SIGNING_KEY``)."""
    return settings.signing_key_file() or settings.configuration_folder() / KEY_FILE


def has_key() -> bool:
    """Say whether releases are signed when nobody says otherwise: the user has a key, or names one."""
    return settings.signing_key_file() is not None or key_path().exists()


def generate_key() -> Ed25519PrivateKey:
    """Return a new key."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.generate()


def save_key(key: Ed25519PrivateKey, path: Path, *, replace: bool = False) -> None:
    """Write a key that only its owner may read, as PKCS #8 in PEM.

    Raises:
        UsageError: there is a file already, and it is not to be replaced.
        DiskError: the disk is full or the folder may not be written.
    """
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    if path.exists() and not replace:
        raise UsageError(
            f"There is a key at {path} already.",
            hint="Users who installed your packs know it, and will refuse releases by another. To replace it: --force.",
            path=str(path),
        )
    with staged_file(path) as staged:
        staged.chmod(0o600)
        staged.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def load_key(path: Path | None = None) -> Ed25519PrivateKey:
    """Read a key.

    Args:
        path: its file; None means the user's own (see :func:`key_path`).

    Raises:
        NotFoundError: there is none.
        IntegrityError: the file holds no Ed25519 key that can be read without a passphrase.
        DiskError: the file may not be read, or others than its owner may read it.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    path = path or key_path()
    try:
        with disk_errors(path):
            data = path.read_bytes()
    except FileNotFoundError as error:
        raise NotFoundError(
            f"There is no key at {path}.", hint="Make one: skillhub key new.", path=str(path)
        ) from error
    _check_private(path)
    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _no_key(path) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _no_key(path)
    return key


def _check_private(path: Path) -> None:
    """Refuse a key that others may read, as ssh does; where there are no permissions, nothing can be said."""
    if os.name == "posix" and path.stat().st_mode & 0o077:
        raise DiskError(
            f"Others than you may read the key at {path}.",
            hint=f"Keep it to yourself: chmod 600 {path}.",
            path=str(path),
        )


def _no_key(path: Path) -> IntegrityError:
    return IntegrityError(
        f"{path} is no Ed25519 private key in PEM without a passphrase.",
        hint="Name the right file in SKILLHUB_SIGNING_KEY, or make a key: skillhub key new.",
        path=str(path),
    )


def signer_of(key: Ed25519PrivateKey) -> Signer:
    """Return what a manifest says of who signs it."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    raw = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return Signer(algorithm=ALGORITHM, public_key=base64.b64encode(raw).decode())


def signer_text(signer: Signer) -> str:
    """Return a signer in one word, ``ed25519:`` and the public key in base64, as lockfiles and messages have it."""
    return f"{signer.algorithm}:{signer.public_key}"


def sign_digest(key: Ed25519PrivateKey, digest: str) -> str:
    """Return the signature over a manifest's digest, in base64.

    Args:
        key: of the signer that the manifest names.
        digest: SHA-256 of the manifest in hexadecimal.
    """
    return base64.b64encode(key.sign(_CONTEXT + digest.encode())).decode()


def verify_digest(public_key: str, digest: str, signature: str) -> bool:
    """Say whether a signature over a manifest's digest was made by a key; whatever cannot be read was not.

    Args:
        public_key: in base64, as in a manifest.
        digest: SHA-256 of the manifest in hexadecimal.
        signature: in base64, as in an event.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        key = Ed25519PublicKey.from_public_bytes(base64.b64decode(public_key, validate=True))
        key.verify(base64.b64decode(signature, validate=True), _CONTEXT + digest.encode())
    except (InvalidSignature, binascii.Error, ValueError):
        return False
    return True
