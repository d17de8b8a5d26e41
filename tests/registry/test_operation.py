"""What operators see and set: health, metrics, logs, limits on rates, and the audit log."""

from __future__ import annotations

import io
import json
import logging
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError

from skillhub_registry import limits
from skillhub_registry.errors import HubError
from skillhub_registry.rates import RateLimiter, Rates
from tests.support.hub_client import make_content
from tests.support.registry_process import RegistryProcess, running_registry

OWN_LIMIT = 20


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryProcess]:
    """A registry that limits its callers, even those of its own machine."""
    folder = tmp_path_factory.mktemp("watched")
    with running_registry(
        folder,
        ["--limit-local", "--download-limit", str(OWN_LIMIT), "--max-file-size", "1", "--max-repository-size", "2"],
    ) as process:
        yield process


def samples(registry: RegistryProcess) -> dict[str, float]:
    answer = requests.get(f"{registry.endpoint}/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    lines = [line for line in answer.text.splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r'[a-z_]+(\{[a-z_]+="[^"\\]*"(,[a-z_]+="[^"\\]*")*\})? [0-9.e+-]+', line) for line in lines)
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def test_health_is_told(watched: RegistryProcess) -> None:
    for path, said in (("/healthz", "ok"), ("/readyz", "ready")):
        answer = requests.get(watched.endpoint + path)
        assert (answer.status_code, answer.text) == (200, said)
        assert re.fullmatch("[0-9a-f]{16}", answer.headers["X-Request-Id"])


def test_metrics_count_what_was_done(watched: RegistryProcess) -> None:
    api = HfApi(endpoint=watched.endpoint, token=watched.token)
    before = samples(watched)
    repository = api.create_repo(f"{watched.user}/counted").repo_id
    for number in range(2):
        operation = CommitOperationAdd("a.txt", b"%d" % number)
        api.create_commit(repository, [operation], commit_message="Counted")
    requests.get(f"{watched.endpoint}/no/such/path/at-all", data=b"x" * 1000)
    after = samples(watched)

    def grown(name: str) -> float:
        name = f"skillhub_registry_{name}"
        return after[name] - before.get(name, 0)

    route = 'route="/api/models/{namespace}/{name}/commit/{revision}",method="POST"'
    assert grown("commits_total") == 2
    assert grown(f'requests_total{{{route},status="200"}}') == 2
    assert grown(f'request_duration_seconds_bucket{{{route},le="+Inf"}}') == 2
    assert grown(f"request_duration_seconds_count{{{route}}}") == 2
    assert grown("received_bytes_total") > 0
    assert grown("sent_bytes_total") > 0
    assert grown("database_transactions_total") > 4
    assert after["skillhub_registry_uploads_in_progress"] == 0
    assert after["skillhub_registry_requests_in_progress"] == 1  # the one that asks
    assert watched.user not in str(after)


def test_metrics_are_for_accounts_and_this_machine(watched: RegistryProcess) -> None:
    """A proxy on this machine says who is calling; a stranger from elsewhere learns nothing."""
    elsewhere = {"X-Forwarded-For": "192.0.2.7"}
    url = f"{watched.endpoint}/metrics"
    assert requests.get(url, headers=elsewhere).status_code == 401
    with_token = {**elsewhere, "Authorization": f"Bearer {watched.token}"}
    assert requests.get(url, headers=with_token).status_code == 200


def test_who_asks_too_often_has_to_wait_as_long_as_told(watched: RegistryProcess) -> None:
    api = HfApi(endpoint=watched.endpoint, token=watched.token)
    repository = api.create_repo(f"{watched.user}/wanted").repo_id
    url = f"{watched.endpoint}/{repository}/resolve/main/.gitattributes"
    answers = [requests.head(url) for _ in range(OWN_LIMIT + 2)]
    assert [answer.status_code for answer in answers[:OWN_LIMIT]] == [200] * OWN_LIMIT
    last = answers[-1]
    assert (last.status_code, last.headers["X-Error-Code"]) == (429, "TooManyRequests")
    assert 0 < int(last.headers["Retry-After"]) <= 300 // OWN_LIMIT
    assert last.headers["RateLimit"] == f'"resolvers";r=0;t={last.headers["Retry-After"]}'
    assert requests.head(url, headers={"Authorization": f"Bearer {watched.token}"}).status_code == 200  # counted apart
    assert requests.get(f"{watched.endpoint}/api/models/{repository}").status_code == 200  # as the API is


def test_the_page_that_says_to_wait_has_its_style(tmp_path: Path) -> None:
    with running_registry(tmp_path, ["--limit-local", "--api-limit", "1"]) as process:
        answers = [requests.get(f"{process.endpoint}/models", headers={"Accept": "text/html"}) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [200, 429]
        found = re.findall(r'(?:href|src)="(/static/[^"]+)"', answers[1].text)
        assert len(found) >= 3
        assert {requests.get(process.endpoint + path).status_code for path in found} == {200}


def test_whoever_guesses_tokens_has_to_wait(watched: RegistryProcess) -> None:
    guessing = {"Authorization": "Bearer hf_guessed", "X-Forwarded-For": "192.0.2.77"}
    url = f"{watched.endpoint}/nobody/at-all/resolve/main/a.txt"
    answers = [requests.get(url, headers=guessing).status_code for _ in range(OWN_LIMIT + 2)]
    assert answers[:OWN_LIMIT] == [401] * OWN_LIMIT
    assert answers[-1] == 429


def test_a_bucket_fills_up_steadily() -> None:
    time = 0.0
    limiter = RateLimiter(Rates(api=300), clock=lambda: time)  # one a second

    def admitted(caller: str = "ann", address: str = "192.0.2.7") -> bool:
        try:
            limiter.check("api", caller, address)
        except HubError as error:
            assert (error.status, error.headers["Retry-After"]) == (429, "1")
            return False
        return True

    assert sum(admitted() for _ in range(400)) == 300
    time = 10.0
    assert sum(admitted() for _ in range(50)) == 10
    assert admitted("ben")
    assert admitted("")
    assert all(admitted("", "127.0.0.1") for _ in range(400))  # this machine is not limited unless told
    assert all(admitted("", "::1") for _ in range(400))
    limiter.check("downloads", "ann", "192.0.2.7")


def test_every_change_is_in_the_audit_log(watched: RegistryProcess) -> None:
    api = HfApi(endpoint=watched.endpoint, token=watched.token)
    other = api.create_repo(f"{watched.user}/unchanged").repo_id
    name = api.create_repo(f"{watched.user}/audited").repo_id
    api.create_commit(name, [CommitOperationAdd("a.txt", b"1")], commit_message="One")
    api.create_tag(name, tag="v1")
    api.update_repo_settings(name, private=True)
    api.move_repo(name, f"{watched.user}/renamed")
    api.delete_repo(f"{watched.user}/renamed")
    with pytest.raises(RevisionNotFoundError):
        api.delete_tag(other, tag="v9")
    secret = watched.run("token", "create", watched.user, "--name", "for-audit").strip()
    entries = json.loads(watched.run("audit", "--json"))
    assert [entry["action"].removeprefix("POST /api/") for entry in entries[:7]] == [
        entries[0]["action"],
        "DELETE /api/repos/delete",
        "repos/move",
        "PUT /api/models/{namespace}/{name}/settings",
        "models/{namespace}/{name}/tag/{revision}",
        "models/{namespace}/{name}/commit/{revision}",
        "repos/create",
    ]
    assert "token create" in entries[0]["action"]
    assert entries[0]["account"] == "(command line)"
    assert {(entry["account"], entry["address"]) for entry in entries[1:7]} == {(watched.user, "127.0.0.1")}
    assert json.loads(entries[2]["detail"])["toRepo"] == f"{watched.user}/renamed"
    assert secret not in str(entries)
    assert len(json.loads(watched.run("audit", "--json", "--repository", name.upper()))) == 3
    assert name in watched.run("audit")


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_requests_are_logged_without_secrets(tmp_path: Path, log_format: str) -> None:
    """Every request is a line, with who and what and how long, and no token, signed link or password is in any."""
    from skillhub_registry.logs import configure_logs, log_request
    from skillhub_registry.observation import Observation

    root, stream = logging.getLogger(), io.StringIO()
    handlers, level = root.handlers[:], root.level
    root.handlers[:] = []
    try:
        configure_logs(log_format)
        root.handlers[0].setStream(stream)  # type: ignore[attr-defined]
        seen = Observation("PUT", "192.0.2.7", route="/lfs/object/{grant}", account="ann", status=200, seconds=0.0123)
        log_request(seen)
        logging.getLogger("skillhub_registry").warning("the bucket: %s", "postgresql://u:pass-word@db/x")
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.getLogger("skillhub_registry.requests").setLevel(logging.NOTSET)
    first, second = stream.getvalue().splitlines()
    if log_format == "json":
        said = json.loads(first)
        assert (said["route"], said["account"], said["status"], said["milliseconds"]) == (
            "/lfs/object/{grant}",
            "ann",
            200,
            12.3,
        )
        assert said["request_id"] == seen.request_id
        assert json.loads(second)["level"] == "warning"
    else:
        assert "PUT /lfs/object/{grant} 200 12.3 ms ann 192.0.2.7" in first
    assert "the bucket" in second and "pass-word" not in second


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_a_servers_log_has_routes_and_neither_tokens_nor_links_nor_passwords(tmp_path: Path, log_format: str) -> None:
    log = tmp_path / "log"
    with running_registry(tmp_path / "data", ["--log-format", log_format], log=log) as process:
        bearer = {"Authorization": f"Bearer {process.token}"}
        repository = HfApi(endpoint=process.endpoint, token=process.token).create_repo(f"{process.user}/logged").repo_id
        asked = {"operation": "upload", "objects": [{"oid": sha256(b"x").hexdigest(), "size": 1}]}
        batch = requests.post(f"{process.endpoint}/{repository}.git/info/lfs/objects/batch", json=asked, headers=bearer)
        link = batch.json()["objects"][0]["actions"]["upload"]["href"]
        assert requests.put(link, data=b"x").status_code == 200
        assert requests.get(f"{process.endpoint}/?secret=hf_in_a_query", headers=bearer).status_code == 200
        requests.post(f"{process.endpoint}/login", data={"name": process.user, "password": "a-word-to-guess"})
    written = log.read_text()
    for route in ("/lfs/object/{grant}", "/{namespace}/{name}.git/info/lfs/objects/batch", "/login"):
        assert route in written
    for secret in (process.token, link.rpartition("/")[2], "hf_in_a_query", "a-word-to-guess"):
        assert secret not in written


def test_every_route_is_in_the_description(watched: RegistryProcess) -> None:
    from skillhub_registry.routes.table import ENDPOINTS

    document = requests.get(f"{watched.endpoint}/openapi.json").json()
    described = {
        (method.upper(), path): operation
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }
    assert len(described) == len(ENDPOINTS)
    for endpoint in ENDPOINTS:
        path = re.sub(r"\{(\w+):path\}", r"{\1}", endpoint.path)
        operation = described[endpoint.method, path]
        assert operation["x-permission"] == endpoint.permission.name.lower()
        named = {one["name"] for one in operation["parameters"] if one["in"] == "path"}
        assert named == set(re.findall(r"\{(\w+)\}", path))
        assert operation["summary"]
    assert len({operation["operationId"] for operation in described.values()}) == len(described)


def test_what_operators_allow_of_files_and_repositories(watched: RegistryProcess) -> None:
    api = HfApi(endpoint=watched.endpoint, token=watched.token)
    repository = api.create_repo(f"{watched.user}/sized").repo_id
    with pytest.raises(HfHubHTTPError, match="a file may have 1000000 bytes here"):
        api.upload_file(path_or_fileobj=make_content(1, 1_000_001), path_in_repo="large.bin", repo_id=repository)
    batch = requests.post(
        f"{watched.endpoint}/{repository}.git/info/lfs/objects/batch",
        json={"operation": "upload", "objects": [{"oid": "0" * 64, "size": 1_000_001}]},
        headers={"Authorization": f"Bearer {watched.token}"},
    )
    assert (batch.status_code, batch.headers["X-Error-Code"]) == (413, "PayloadTooLarge")
    for number in range(2):
        api.upload_file(path_or_fileobj=make_content(number, 900_000), path_in_repo=f"{number}.bin", repo_id=repository)
    with pytest.raises(HfHubHTTPError, match="2000000 bytes allowed here"):
        api.upload_file(path_or_fileobj=make_content(3, 900_000), path_in_repo="3.bin", repo_id=repository)
    assert "3.bin" not in api.list_repo_files(repository)
    api.upload_file(path_or_fileobj=b"small", path_in_repo="small.txt", repo_id=repository)


def test_what_a_request_may_bring_is_limited(watched: RegistryProcess) -> None:
    bearer = {"Authorization": f"Bearer {watched.token}"}
    url = f"{watched.endpoint}/api/validate-yaml"
    assert requests.post(url, data=b"x" * (limits.JSON_BODY + 1)).status_code == 413
    address = urlsplit(watched.endpoint)
    long = b"X-Long: " + b"x" * limits.HEADERS
    for sent in (
        b"GET / HTTP/1.1\r\n" + long,  # and no end in sight
        b"GET / HTTP/1.1\r\n" + long + b"\r\n\r\n",
        b"GET /" + long,
        b"GET / HTTP/1.1\r\n" + b"X-A: b\r\n" * (limits.HEADERS // 8),
        b"POST /api/validate-yaml HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n" + long * 5,
    ):
        with socket.create_connection((str(address.hostname), address.port or 80), timeout=30) as connection:
            answer = b""
            with suppress(ConnectionError):  # the server does not wait for the rest
                connection.sendall(sent)
                answer = connection.recv(100)
            assert answer[:13] in (b"HTTP/1.1 400 ", b"")
    api = HfApi(endpoint=watched.endpoint, token=watched.token)
    repository = api.create_repo(f"{watched.user}/bounded").repo_id
    grant = requests.get(f"{watched.endpoint}/api/models/{repository}/xet-write-token/main", headers=bearer).json()
    header = {"Authorization": f"Bearer {grant['accessToken']}"}
    shard = requests.post(f"{grant['casUrl']}/v1/shards", data=bytes(limits.SHARD + 1), headers=header)
    assert (shard.status_code, shard.headers["X-Error-Code"]) == (413, "PayloadTooLarge")
    xorb = requests.post(f"{grant['casUrl']}/v1/xorbs/default/{'0' * 64}", data=bytes(limits.XORB + 1), headers=header)
    assert (xorb.status_code, xorb.headers["X-Error-Code"]) == (413, "PayloadTooLarge")
    assert watched.arriving() == []
