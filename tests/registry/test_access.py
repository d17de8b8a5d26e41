"""Who may do what: the table of routes walked, private repositories, scopes, organisations."""

from __future__ import annotations

import re
from typing import Any

import pytest
import requests
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from skillhub_registry.calls import Endpoint, Permission
from skillhub_registry.routes.table import ENDPOINTS
from tests.support.registry_process import RegistryProcess

NAMELESS = (Permission.ANYONE, Permission.GRANT, Permission.ACCOUNT, Permission.OPERATE, Permission.SESSION)
"""What is asked of the caller where the path names no repository."""

BODIES: dict[str, Any] = {"POST": {}, "PUT": {}}


def client(registry: RegistryProcess, token: str | bool | None = None) -> HfApi:
    return HfApi(endpoint=registry.endpoint, token=registry.token if token is None else token)


def send(
    registry: RegistryProcess, endpoint: Endpoint, repository: str, token: str | None, method: str | None = None
) -> requests.Response:
    namespace, name = repository.split("/")
    values = {
        "namespace": namespace,
        "name": name,
        "revision": "main",
        "path": "config.json",
        "branch": "b",
        "number": "1",
    }
    path = re.sub(r"\{(\w+)(?::path)?\}", lambda match: values.get(match[1], "x"), endpoint.path)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return requests.request(
        method or endpoint.method,
        registry.endpoint + path,
        headers=headers,
        json=BODIES.get(endpoint.method),
        timeout=30,
    )


@pytest.fixture(scope="module")
def stranger(registry: RegistryProcess) -> str:
    return registry.add_user("stranger")


@pytest.fixture(scope="module")
def repositories(registry: RegistryProcess) -> dict[str, str]:
    """A public and a private repository."""
    made = {kind: f"{registry.user}/access-{kind}" for kind in ("public", "private")}
    for kind, name in made.items():
        client(registry).create_repo(name, private=kind == "private")
        client(registry).upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id=name)
    return made


def of_kind(*permissions: Permission) -> list[Any]:
    return [
        pytest.param(endpoint, id=f"{endpoint.method} {endpoint.path}")
        for endpoint in ENDPOINTS
        if endpoint.permission in permissions
    ]


@pytest.mark.parametrize("endpoint", of_kind(*(one for one in Permission if one not in NAMELESS)))
def test_private_looks_like_missing(
    registry: RegistryProcess, repositories: dict[str, str], stranger: str, endpoint: Endpoint
) -> None:
    for token in (None, stranger):
        private = send(registry, endpoint, repositories["private"], token)
        missing = send(registry, endpoint, f"{registry.user}/access-missing", token)
        nobody = send(registry, endpoint, "nobody/at-all", token)
        assert private.status_code == 404
        assert private.headers["X-Error-Code"] == "RepoNotFound"
        for other in (missing, nobody):
            assert (other.status_code, other.content) == (private.status_code, private.content)
            dropped = {"date", "x-request-id"}
            assert {k: v for k, v in other.headers.items() if k not in dropped} == {
                k: v for k, v in private.headers.items() if k not in dropped
            }


@pytest.mark.parametrize("endpoint", of_kind(Permission.WRITE, Permission.ADMINISTER))
def test_writing_needs_a_member_with_a_write_token(
    registry: RegistryProcess, repositories: dict[str, str], stranger: str, endpoint: Endpoint
) -> None:
    reading = registry.create_token(registry.user, scope="read")
    for kind, token, status in [("public", None, 401), ("public", stranger, 403), ("private", reading, 403)]:
        answer = send(registry, endpoint, repositories[kind], token)
        assert answer.status_code == status
        assert answer.headers["X-Error-Code"] in ("Unauthorized", "Forbidden")
        assert answer.json()["error"]


@pytest.mark.parametrize("endpoint", of_kind(Permission.PROPOSE))
def test_proposing_needs_a_write_token_and_changes_no_branch(
    registry: RegistryProcess, repositories: dict[str, str], stranger: str, endpoint: Endpoint
) -> None:
    reading = registry.create_token(registry.user, scope="read")
    for kind, token, status in [("public", None, 401), ("public", reading, 403), ("private", reading, 403)]:
        answer = send(registry, endpoint, repositories[kind], token)
        assert answer.status_code == status
        assert answer.headers["X-Error-Code"] in ("Unauthorized", "Forbidden")
    answer = send(registry, endpoint, repositories["public"], stranger)
    assert answer.status_code >= 400
    if "{revision}" in endpoint.path:
        assert (answer.status_code, answer.headers["X-Error-Code"]) == (403, "Forbidden")


@pytest.mark.parametrize("endpoint", of_kind(Permission.ACCOUNT))
def test_accounts_are_asked_for(registry: RegistryProcess, endpoint: Endpoint) -> None:
    assert send(registry, endpoint, "a/b", None).status_code == 401


@pytest.mark.parametrize("endpoint", of_kind(*(one for one in Permission if one is not Permission.GRANT)))
def test_wrong_tokens_are_refused(registry: RegistryProcess, repositories: dict[str, str], endpoint: Endpoint) -> None:
    for token in ("hf_wrong", "é"):
        answer = send(registry, endpoint, repositories["public"], token)
        assert answer.status_code == 401
        assert answer.headers["X-Error-Message"] == "Invalid credentials in Authorization header"


@pytest.mark.parametrize("endpoint", of_kind(*Permission))
def test_errors_are_the_hubs(registry: RegistryProcess, repositories: dict[str, str], endpoint: Endpoint) -> None:
    """Empty bodies and odd methods get a proper answer from every route."""
    for method in (endpoint.method, "PATCH"):
        answer = send(registry, endpoint, repositories["private"], registry.token, method)
        assert answer.status_code < 500
        if answer.status_code >= 400:
            assert answer.headers["X-Error-Code"]
            assert answer.headers["X-Error-Message"]
            assert answer.json()["error"]


def test_owner_sees_private(registry: RegistryProcess, repositories: dict[str, str], stranger: str) -> None:
    private = repositories["private"]
    assert client(registry).model_info(private).private
    assert private in [model.id for model in client(registry).list_models(author=registry.user)]
    for token in (stranger, False):
        assert not client(registry, token).repo_exists(private)
        assert private not in [model.id for model in client(registry, token).list_models(author=registry.user)]
    with pytest.raises(RepositoryNotFoundError):
        client(registry, stranger).delete_repo(private)
    with pytest.raises(RepositoryNotFoundError):
        client(registry, stranger).move_repo(private, "stranger/mine")
    with pytest.raises(HfHubHTTPError, match="403"):
        client(registry, stranger).create_repo(f"{registry.user}/intruder")
    with pytest.raises(HfHubHTTPError, match="skillhub-registry org add nobodys --member stranger"):
        client(registry, stranger).create_repo("nobodys/pack")
    with pytest.raises(HfHubHTTPError, match="no user or organisation 'settings' here"):
        client(registry, stranger).create_repo("settings/pack")
    with pytest.raises(HfHubHTTPError, match="403"):
        client(registry, stranger).delete_repo(repositories["public"])
    client(registry).auth_check(private, write=True)
    with pytest.raises(RepositoryNotFoundError):
        client(registry, stranger).auth_check(private)


def test_visibility_can_change(registry: RegistryProcess, stranger: str) -> None:
    name = f"{registry.user}/access-changing"
    client(registry).create_repo(name, private=True)
    client(registry).update_repo_settings(name, private=False)
    assert client(registry, stranger).repo_exists(name)
    client(registry).update_repo_settings(name, visibility="private")
    assert not client(registry, stranger).repo_exists(name)


def test_members_write_to_organizations(registry: RegistryProcess, stranger: str) -> None:
    token = registry.add_user("member")
    registry.add_organization("Team", "member")
    api = client(registry, token)
    assert [organization["name"] for organization in api.whoami()["orgs"]] == ["Team"]
    assert api.create_repo("team/pack", private=True).repo_id == "Team/pack"
    api.upload_file(path_or_fileobj=b"1", path_in_repo="a.txt", repo_id="Team/pack")
    assert api.model_info("team/PACK").id == "Team/pack"
    assert not client(registry, stranger).repo_exists("Team/pack")
    assert not client(registry).repo_exists("Team/pack")
    with pytest.raises(HfHubHTTPError, match="403"):
        client(registry, stranger).create_repo("Team/other")


def test_whoami(registry: RegistryProcess) -> None:
    said = client(registry, registry.create_token(registry.user, scope="read")).whoami()
    assert (said["name"], said["type"], said["auth"]["accessToken"]["role"]) == (registry.user, "user", "read")
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        client(registry, "hf_nothing").whoami()
