"""The table of routes, walked: what each declares is what happens, whoever calls."""

from __future__ import annotations

import time
from typing import Any

import pytest
import requests
from huggingface_hub import HfApi

from skillhub_registry import accounts
from skillhub_registry.calls import Endpoint, Permission
from skillhub_registry.routes.table import ENDPOINTS
from skillhub_registry.signing import load_signer
from skillhub_registry.tokens import create_token
from tests.registry.test_access import send
from tests.support.registry_process import RegistryProcess

ORGANIZATION = "routes-org"
MEMBERS = {"reader": "read", "contributor": "contributor", "writer": "write", "admin": "admin"}
CALLERS = ("anonymous", "expired", "stranger", *MEMBERS)

OPEN = frozenset([Permission.ANYONE, Permission.OPERATE, Permission.READ, Permission.DOWNLOAD])
"""What asks for no token: of what is public, and OPERATE on the machine itself."""

ROLES = {
    Permission.WRITE: frozenset(["writer", "admin"]),
    Permission.ADMINISTER: frozenset(["admin"]),
}
"""Who may do what not every caller with an account may."""

NAMELESS = (Permission.ANYONE, Permission.OPERATE, Permission.ACCOUNT)


@pytest.fixture(scope="module")
def tokens(registry: RegistryProcess) -> dict[str, str | None]:
    """The token of each caller, with a public and a private repository of an organisation in place."""
    found: dict[str, str | None] = {"anonymous": None}
    with registry.open_database() as database, database.write() as connection:
        organization = accounts.add_account(connection, ORGANIZATION, "organization")
        for caller in ("stranger", *MEMBERS):
            account = accounts.add_account(connection, f"routes-{caller}")
            found[caller] = create_token(connection, account, "write", "walking")
            if caller in MEMBERS:
                accounts.add_member(connection, organization, account, MEMBERS[caller])
        found["expired"] = create_token(connection, account, "write", "over", expires_at=int(time.time()))
    api = HfApi(endpoint=registry.endpoint, token=found["admin"])
    for kind in ("public", "private"):
        api.create_repo(f"{ORGANIZATION}/{kind}", private=kind == "private")
        api.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id=f"{ORGANIZATION}/{kind}")
    return found


def expected(permission: Permission, kind: str, caller: str) -> int | None:
    """Return the status with which a caller is sent away, or None where it is let in."""
    if caller == "expired":
        return 401
    if permission not in NAMELESS and kind == "private" and caller not in MEMBERS:
        return 404
    if caller == "anonymous" and permission not in OPEN:
        return 401
    return None if caller in ROLES.get(permission, CALLERS) else 403


def walked() -> list[Any]:
    """Return the routes that a token gets through; signed links and browsers' sessions have tests of their own."""
    return [
        pytest.param(endpoint, id=f"{endpoint.method} {endpoint.path}")
        for endpoint in ENDPOINTS
        if endpoint.permission.name not in ("GRANT", "SESSION")
        and not (getattr(endpoint, "sessions", False) and endpoint.method != "GET")
    ]


@pytest.mark.parametrize("endpoint", walked())
def test_what_a_route_declares_is_what_happens(
    registry: RegistryProcess, tokens: dict[str, str | None], endpoint: Endpoint
) -> None:
    for kind in ("public", "private"):
        for caller in CALLERS:
            answer = send(registry, endpoint, f"{ORGANIZATION}/{kind}", tokens[caller])
            status, code = answer.status_code, answer.headers.get("X-Error-Code")
            wanted = expected(endpoint.permission, kind, caller)
            told = (kind, caller, status, code)
            assert status < 500, told
            if wanted is not None:
                assert status == wanted, told
                assert wanted != 404 or code == "RepoNotFound", told
                continue
            assert status != 401 or (caller == "anonymous" and endpoint.method != "GET"), told  # the handler's own wish
            if endpoint.permission not in NAMELESS:
                assert code != "RepoNotFound", told
            if endpoint.permission in ROLES:
                assert status != 403, told


@pytest.mark.parametrize(
    "path", ["/lfs/object/{grant}", "/lfs/part/{grant}", "/lfs/complete/{grant}", "/xet/v1/shards"]
)
def test_what_was_signed_for_something_else_or_by_nobody_is_refused(
    registry: RegistryProcess, tokens: dict[str, str | None], path: str
) -> None:
    (endpoint,) = (one for one in ENDPOINTS if one.path == path)
    purpose = {"object": "lfs-object", "part": "lfs-part", "complete": "lfs-complete"}.get(
        path.split("/")[2], "xet-write"
    )
    signer = load_signer(registry.data / "signing.key")
    claims = {"repository": 1, "sender": 0, "account": 1, "oid": "0" * 64, "size": 1, "upload": "x", "count": 1}
    valid = signer.grant(purpose, {**claims, "number": 1, "length": 1}, 60)
    body, _, mac = valid.partition(".")
    for grant in (
        "",
        "x",
        str(tokens["admin"]),
        f"{body}.",
        f"{body}.{mac[::-1]}",
        f"{body[:-4]}AAAA.{mac}",
        signer.grant("something-else", claims, 60),
        signer.grant(purpose, claims, -1),
    ):
        answer = requests.request(
            endpoint.method,
            registry.endpoint + path.replace("{grant}", grant or "%20"),
            headers={"Authorization": f"Bearer {grant}"} if "{grant}" not in path else {},
            data=b"x",
            timeout=30,
        )
        assert (answer.status_code, answer.headers["X-Error-Code"]) == (403, "InvalidGrant"), grant
    if "{grant}" not in path:
        assert requests.post(registry.endpoint + path, data=b"x", timeout=30).status_code == 401
