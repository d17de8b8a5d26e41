"""Gated repositories: everybody sees them, and gets their files once access was asked for and given."""

from __future__ import annotations

from pathlib import Path

import pytest
import requests
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

from tests.support.commands import Shell
from tests.support.registry_process import RegistryProcess


@pytest.fixture(scope="module")
def api(registry: RegistryProcess) -> HfApi:
    return HfApi(endpoint=registry.endpoint, token=registry.token)


@pytest.fixture
def visitor(registry: RegistryProcess, request: pytest.FixtureRequest) -> tuple[str, HfApi]:
    """A user of its own for each test, and its client, whose token is for reading only."""
    name = f"visitor-{abs(hash(request.node.name)) % 10**9}"
    return name, HfApi(endpoint=registry.endpoint, token=registry.add_user(name, scope="read"))


def make_gated(api: HfApi, name: str, gate: str) -> str:
    repository = api.create_repo(name).repo_id
    api.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id=repository)
    api.update_repo_settings(repository, gated=gate)  # type: ignore[arg-type]
    return repository


def ask(registry: RegistryProcess, repository: str, token: str | bool | None) -> requests.Response:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return requests.post(f"{registry.endpoint}/{repository}/ask-access", headers=headers)


def test_access_is_asked_for_and_given(
    registry: RegistryProcess, api: HfApi, visitor: tuple[str, HfApi], tmp_path: Path
) -> None:
    repository = make_gated(api, f"{registry.user}/gate-manual", "manual")
    name, client = visitor

    def download(number: int) -> Path:
        return Path(client.hf_hub_download(repository, "config.json", cache_dir=tmp_path / str(number)))

    assert client.model_info(repository).gated == "manual"
    assert "config.json" in client.list_repo_files(repository)
    assert repository in [model.id for model in client.list_models(author=registry.user, gated=True)]
    assert repository not in [model.id for model in client.list_models(author=registry.user, gated=False)]
    for token in (None, client.token):
        answer = requests.get(
            f"{registry.endpoint}/{repository}/resolve/main/config.json",
            headers={"Authorization": f"Bearer {token}"} if token else {},
        )
        assert (answer.status_code, answer.headers["X-Error-Code"]) == (403 if token else 401, "GatedRepo")
    with pytest.raises(GatedRepoError, match=f"{repository}/ask-access"):
        download(0)
    with pytest.raises(GatedRepoError):
        client.auth_check(repository)

    assert ask(registry, repository, None).status_code == 401
    for _ in range(2):
        assert ask(registry, repository, client.token).json() == {"status": "pending"}
    with pytest.raises(GatedRepoError):
        download(1)
    (request,) = api.list_pending_access_requests(repository)
    assert (request.username, request.status) == (name, "pending")
    assert request.timestamp == next(iter(api.list_pending_access_requests(repository))).timestamp

    api.accept_access_request(repository, request_id=request.request_id)
    assert download(2).read_bytes() == b"{}"
    client.auth_check(repository)
    assert [one.username for one in api.list_accepted_access_requests(repository)] == [name]
    api.cancel_access_request(repository, name)
    assert [one.username for one in api.list_pending_access_requests(repository)] == [name]
    with pytest.raises(GatedRepoError):
        download(3)
    api.reject_access_request(repository, name.upper(), rejection_reason="not yet")
    assert [one.username for one in api.list_rejected_access_requests(repository)] == [name]
    assert ask(registry, repository, client.token).json() == {"status": "rejected"}
    with pytest.raises(GatedRepoError):
        download(4)
    api.grant_access(repository, name)
    assert download(5).read_bytes() == b"{}"
    api.update_repo_settings(repository, gated=False)
    assert Path(hf_hub_download(repository, "config.json", endpoint=registry.endpoint, token=False, local_dir=tmp_path))
    assert api.model_info(repository).gated is False


def test_an_automatic_gate_opens_to_whoever_asks(
    registry: RegistryProcess, api: HfApi, visitor: tuple[str, HfApi], tmp_path: Path
) -> None:
    repository = make_gated(api, f"{registry.user}/gate-auto", "auto")
    _, client = visitor
    with pytest.raises(GatedRepoError):
        snapshot_download(repository, endpoint=registry.endpoint, token=client.token, local_dir=tmp_path / "0")
    assert ask(registry, repository, client.token).json() == {"status": "accepted"}
    snapshot_download(repository, endpoint=registry.endpoint, token=client.token, local_dir=tmp_path / "1")
    assert (tmp_path / "1" / "config.json").read_bytes() == b"{}"


def test_what_cannot_be_is_refused(registry: RegistryProcess, api: HfApi, visitor: tuple[str, HfApi]) -> None:
    repository = make_gated(api, f"{registry.user}/gate-refusals", "manual")
    name, client = visitor
    for refused, status in (
        (lambda: api.accept_access_request(repository, name), 404),
        (lambda: api.accept_access_request(repository, request_id="nothing"), 404),
        (lambda: api.grant_access(repository, "nobody-at-all"), 404),
        (lambda: client.grant_access(repository, name), 403),
        (lambda: list(client.list_pending_access_requests(repository)), 403),
        (lambda: client.update_repo_settings(repository, gated=False), 403),
        (lambda: api.update_repo_settings(repository, gated="sometimes"), 400),  # type: ignore[arg-type]
    ):
        with pytest.raises((HfHubHTTPError, ValueError)) as caught:
            refused()
        if isinstance(caught.value, HfHubHTTPError):
            assert caught.value.response.status_code == status
    api.grant_access(repository, name)
    with pytest.raises(HfHubHTTPError, match="has access to"):
        api.grant_access(repository, name)
    open_repository = api.create_repo(f"{registry.user}/no-gate").repo_id
    assert ask(registry, open_repository, client.token).status_code == 400
    with pytest.raises(HfHubHTTPError, match="is not gated"):
        api.grant_access(open_repository, name)


def test_a_gate_does_not_show_what_is_private(
    registry: RegistryProcess, api: HfApi, visitor: tuple[str, HfApi]
) -> None:
    repository = make_gated(api, f"{registry.user}/gate-private", "auto")
    api.update_repo_settings(repository, private=True)
    _, client = visitor
    answer = ask(registry, repository, client.token)
    assert (answer.status_code, answer.headers["X-Error-Code"]) == (404, "RepoNotFound")
    with pytest.raises(RepositoryNotFoundError):
        client.auth_check(repository)


def test_requests_are_listed_in_pages(registry: RegistryProcess, api: HfApi) -> None:
    repository = make_gated(api, f"{registry.user}/gate-pages", "manual")
    from skillhub_registry import accounts

    names = [f"paged-{number:03d}" for number in range(120)]
    with registry.open_database() as database, database.write() as connection:
        for name in names:
            accounts.add_account(connection, name)
    for name in names:
        api.grant_access(repository, name)
    assert sorted(one.username or "" for one in api.list_accepted_access_requests(repository)) == names


def test_the_text_of_a_pull_request_is_not_shown_past_the_gate(
    registry: RegistryProcess, api: HfApi, visitor: tuple[str, HfApi]
) -> None:
    repository = make_gated(api, f"{registry.user}/gate-diff", "manual")
    api.upload_file(path_or_fileobj=b"a secret line\n", path_in_repo="a.txt", repo_id=repository, create_pr=True)
    _, client = visitor
    assert "a secret line" in (api.get_discussion_details(repository, 1).diff or "")  # type: ignore[attr-defined]
    assert not client.get_discussion_details(repository, 1).diff  # type: ignore[attr-defined]
    page = requests.get(f"{registry.endpoint}/{repository}/discussions/1")
    assert page.status_code == 200
    assert "a secret line" not in page.text


def test_skillhub_says_where_access_is_asked_for(
    registry: RegistryProcess, api: HfApi, visitor: tuple[str, HfApi], tmp_path: Path
) -> None:
    repository = api.create_repo(f"{registry.user}/gate-pack").repo_id
    api.upload_file(path_or_fileobj=b"", path_in_repo="releases.jsonl", repo_id=repository)
    api.update_repo_settings(repository, gated="manual")
    _, client = visitor
    shell = Shell(tmp_path, registry.endpoint, str(client.token))
    done = shell.run("install", repository)
    assert done.returncode == 9
    assert f"{registry.endpoint}/{repository}" in done.stderr.replace("\n", "")
    assert "Access" in done.stderr
