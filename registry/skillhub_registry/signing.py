"""Signed grants: links and access tokens that allow one thing, on one repository, for some time.

Uploads of large files carry no ``Authorization``, so the link itself must prove that this registry handed it out, for
that object and size. A grant is base64url(JSON) and its HMAC-SHA256 by a key that never leaves the data folder, or the
database where several replicas share one.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skillhub_registry.database import Database
from skillhub_registry.errors import HubError


@dataclass(frozen=True)
class Signer:
    """Makes and checks grants."""

    key: bytes

    def grant(self, purpose: str, claims: Mapping[str, str | int], seconds: int) -> str:
        """Return a grant for a purpose with claims, good for so many seconds."""
        payload = {**claims, "purpose": purpose, "expires": int(time.time()) + seconds}
        body = _encode(json.dumps(payload, sort_keys=True).encode())
        return f"{body}.{self._mac(body)}"

    def check(self, purpose: str, grant: str) -> dict[str, Any]:
        """Return the claims of a grant that this registry made for this purpose and that has not expired.

        Raises:
            HubError: 403, anything else.
        """
        body, _, mac = grant.partition(".")
        if not hmac.compare_digest(mac.encode("utf-8", "replace"), self._mac(body).encode()):
            raise HubError(403, "InvalidGrant", "The link or access token was not made by this registry")
        payload: dict[str, Any] = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        if payload.pop("purpose") != purpose:
            raise HubError(403, "InvalidGrant", "The link or access token is for something else")
        if payload.pop("expires") < time.time():
            raise HubError(403, "InvalidGrant", "The link or access token has expired; ask for a new one")
        return payload

    def _mac(self, body: str) -> str:
        return _encode(hmac.digest(self.key, body.encode("utf-8", "replace"), hashlib.sha256))


def load_signer(path: Path) -> Signer:
    """Return the signer whose key is in a file, made at the first start, readable by its owner only."""
    if not path.exists():
        draft = path.with_suffix(".new")
        draft.unlink(missing_ok=True)
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(32))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    return Signer(path.read_bytes())


def load_shared_signer(database: Database) -> Signer:
    """Return the signer whose key is in a database, made at the first start, for all who serve from it."""
    with database.write() as connection:
        connection.execute(
            "INSERT INTO secrets VALUES (?, ?) ON CONFLICT DO NOTHING", ("signing key", secrets.token_bytes(32))
        )
        (key,) = connection.execute("SELECT value FROM secrets WHERE name = ?", ("signing key",)).fetchone()
    return Signer(key)


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
