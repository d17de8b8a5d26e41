"""Tokens that expire, and tokens that are for some repositories only."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest
import requests
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

from skillhub_registry import accounts
from skillhub_registry.tokens import create_token
from tests.registry.test_access import client
from tests.support.registry_process import RegistryProcess

OWNER = "tokens"


@pytest.fixture(scope="module")
def owner(registry: RegistryProcess) -> HfApi:
    """A user with a public and two private repositories, and a private and a gated one in an organisation."""
    api = client(registry, registry.add_user(OWNER))
    registry.add_organization("token-org", OWNER)
    for name in ("tokens/open", "tokens/mine", "tokens/other", "token-org/theirs"):
        api.create_repo(name, private=name != "tokens/open")
        api.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id=name)
    api.create_repo("token-org/gated")
    api.update_repo_settings("token-org/gated", gated="manual")
    return api


@pytest.fixture(scope="module")
def limited(registry: RegistryProcess, owner: HfApi) -> Callable[..., HfApi]:
    def make(*names: str, scope: str = "write") -> HfApi:
        options = [option for name in names for option in ("--repository", name)]
        return client(registry, registry.run("token", "create", OWNER, "--scope", scope, *options).strip())

    return make


def expired_token(registry: RegistryProcess, user: str) -> str:
    with registry.open_database() as database, database.write() as connection:
        account = accounts.get_account(connection, user, "user")
        return create_token(connection, account, "write", "over", expires_at=int(time.time()))


def refused(call: Callable[[], object]) -> int:
    with pytest.raises(HfHubHTTPError) as caught:
        call()
    return caught.value.response.status_code


def test_an_expired_token_is_refused_everywhere(registry: RegistryProcess, owner: HfApi) -> None:
    token = expired_token(registry, OWNER)
    for path in ("/api/whoami-v2", "/api/models/tokens/open", "/tokens/open/resolve/main/config.json", "/api/models"):
        answer = requests.get(registry.endpoint + path, headers={"Authorization": f"Bearer {token}"})
        assert (answer.status_code, answer.headers["X-Error-Code"]) == (401, "Unauthorized")
        assert "expired" in answer.json()["error"]
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        client(registry, token).whoami()


def test_a_token_is_good_until_it_expires(registry: RegistryProcess, owner: HfApi) -> None:
    token = registry.run("token", "create", OWNER, "--name", "quarter", "--expires", "90d").strip()
    assert client(registry, token).whoami()["name"] == OWNER
    listed = {one["name"]: one for one in json.loads(registry.run("token", "list", OWNER, "--json"))}
    assert abs(listed["quarter"]["expires_at"] - time.time() - 90 * 24 * 3600) < 60
    assert listed["default"]["expires_at"] is None
    day = time.strftime("%Y-%m-%d", time.gmtime(listed["quarter"]["expires_at"]))
    (line,) = [line for line in registry.run("token", "list", OWNER).splitlines() if line.endswith("quarter")]
    assert day in line
    with pytest.raises(RuntimeError, match="is no time span"):
        registry.run("token", "create", OWNER, "--expires", "soon")


def test_a_token_for_one_repository_is_a_strangers_elsewhere(owner: HfApi, limited: Callable[..., HfApi]) -> None:
    api = limited("tokens/mine")
    assert api.upload_file(path_or_fileobj=b"1", path_in_repo="a.txt", repo_id="tokens/mine")
    api.auth_check("tokens/mine", write=True)
    assert api.model_info("tokens/open").id == "tokens/open"
    for name in ("tokens/other", "token-org/theirs"):
        with pytest.raises(RepositoryNotFoundError):
            api.model_info(name)
        with pytest.raises(RepositoryNotFoundError):
            api.upload_file(path_or_fileobj=b"1", path_in_repo="a.txt", repo_id=name)
        with pytest.raises(RepositoryNotFoundError):
            api.delete_repo(name)
    assert refused(lambda: api.upload_file(path_or_fileobj=b"1", path_in_repo="a.txt", repo_id="tokens/open")) == 403
    assert refused(lambda: api.create_discussion("tokens/open", "Hello")) == 403
    assert refused(lambda: api.create_repo("tokens/new")) == 403
    assert refused(lambda: api.delete_repo("tokens/open")) == 403
    with pytest.raises(GatedRepoError):
        api.auth_check("token-org/gated")
    listed = [model.id for model in api.list_models(author=OWNER)]
    assert listed == ["tokens/open"]


def test_a_token_for_a_namespace_is_for_what_comes_there(owner: HfApi, limited: Callable[..., HfApi]) -> None:
    api = limited("TOKEN-ORG")
    api.create_repo("token-org/later", private=True)
    assert {model.id for model in api.list_models(author="token-org")} == {
        "token-org/theirs",
        "token-org/gated",
        "token-org/later",
    }
    api.auth_check("token-org/gated")
    assert not api.repo_exists("tokens/mine")
    assert refused(lambda: api.move_repo("token-org/later", "tokens/later")) == 403
    reader = limited("token-org", scope="read")
    assert reader.repo_exists("token-org/theirs")
    assert refused(lambda: reader.create_repo("token-org/more")) == 403


def test_a_tokens_repository_moves_and_goes(
    registry: RegistryProcess, owner: HfApi, limited: Callable[..., HfApi]
) -> None:
    owner.create_repo("tokens/wanders", private=True)
    api = limited("tokens/wanders")
    owner.move_repo("tokens/wanders", "token-org/wandered")
    assert api.repo_exists("token-org/wandered")
    (entry,) = [
        one
        for one in json.loads(registry.run("token", "list", OWNER, "--json"))
        if one["limits"] == ["token-org/wandered"]
    ]
    owner.delete_repo("token-org/wandered")
    owner.create_repo("token-org/wandered", private=True)  # another one under the same name
    assert not api.repo_exists("token-org/wandered")
    assert not api.repo_exists("tokens/mine")
    assert [
        one["limits"] for one in json.loads(registry.run("token", "list", OWNER, "--json")) if one["id"] == entry["id"]
    ] == [[]]
    assert "[nothing]" in registry.run("token", "list", OWNER)
    with pytest.raises(RuntimeError, match="There is no repository tokens/missing"):
        registry.run("token", "create", OWNER, "--repository", "tokens/missing")
