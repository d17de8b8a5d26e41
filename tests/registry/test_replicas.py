"""Many replicas on one database and one bucket: nothing is lost between them, and outages are told as what they are."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest
import requests
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError

from skillhub_registry.database import Database
from skillhub_registry.postgresql import open_postgresql, translate_schema
from skillhub_registry.s3store import parse_bucket
from skillhub_registry.schema import MIGRATIONS
from tests.support.hub_client import make_content, run_client
from tests.support.postgresql_server import PostgreSQLServer, running_postgresql
from tests.support.registry_process import registry_environment, running_registry
from tests.support.replicas import ReplicatedRegistry, running_replicas
from tests.support.s3_server import CREDENTIALS

SECRET = "a-secret-word"


def api_of(endpoint: str, registry: ReplicatedRegistry) -> HfApi:
    return HfApi(endpoint=endpoint, token=registry.token)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "skillhub_registry", *arguments]
    environment = {**registry_environment(), **CREDENTIALS}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


def test_replicas_that_commit_at_once_lose_nothing(replicas: ReplicatedRegistry) -> None:
    """Each sends its commits to its own replica; all are in the history, and of those on one parent one is."""
    clients = [api_of(member.endpoint, replicas) for member in replicas.members]
    repository = clients[0].create_repo(f"{replicas.user}/at-once").repo_id
    head = clients[0].model_info(repository).sha

    def commit(number: int, parent: str | None = None) -> str | None:
        operation = CommitOperationAdd(f"f{number}.txt", str(number).encode())
        try:
            return (
                clients[number % 2]
                .create_commit(repository, [operation], commit_message=str(number), parent_commit=parent)
                .oid
            )
        except HfHubHTTPError as error:
            assert error.response.status_code == 412
            return None

    with ThreadPoolExecutor(8) as threads:
        rivals = [oid for oid in threads.map(lambda number: commit(number, head), range(8)) if oid]
        others = list(threads.map(commit, range(100, 120)))
    assert len(rivals) == 1
    history = [entry.commit_id for entry in clients[1].list_repo_commits(repository)]
    assert len(history) == 22
    assert {*rivals, *others} <= set(history)
    files = set(clients[0].list_repo_files(repository))
    assert {f"f{number}.txt" for number in range(100, 120)} <= files


def test_replicas_give_a_name_once(replicas: ReplicatedRegistry) -> None:
    def create(number: int) -> bool:
        client = api_of(replicas.members[number % 2].endpoint, replicas)
        try:
            client.create_repo(f"{replicas.user}/{'Same' if number % 3 else 'sAME'}-name")
        except HfHubHTTPError as error:
            assert error.response.status_code == 409
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(create, range(8))) == 1


def test_large_files_are_fetched_from_the_bucket(replicas: ReplicatedRegistry, tmp_path: Path) -> None:
    api = api_of(replicas.endpoint, replicas)
    repository = api.create_repo(f"{replicas.user}/linked", private=True).repo_id
    content = make_content(21, 100_000)
    api.upload_file(path_or_fileobj=content, path_in_repo="w.safetensors", repo_id=repository)
    commit = api.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id=repository).oid
    url, headers = (
        f"{replicas.endpoint}/{repository}/resolve/main/w.safetensors",
        {"Authorization": f"Bearer {api.token}"},
    )
    sha256 = hashlib.sha256(content).hexdigest()
    answer = requests.get(url, headers=headers, allow_redirects=False)
    assert answer.status_code == 302
    link = urlsplit(answer.headers["Location"])
    assert link.path == f"/shared/in/it/blobs/{sha256[:2]}/{sha256[2:]}"
    assert 0 < int(parse_qs(link.query)["X-Amz-Expires"][0]) <= 300
    assert replicas.token not in answer.headers["Location"]
    head = requests.head(url, headers=headers)
    for told in (answer, head):
        assert told.headers["X-Repo-Commit"] == commit
        assert told.headers["X-Linked-Size"] == "100000"
        assert told.headers["X-Linked-ETag"] == f'"{sha256}"'
    assert head.status_code == 200
    assert requests.get(url, headers=headers).content == content
    part = requests.get(url, headers={**headers, "Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, content[10:20])
    # What the store may understand otherwise never gets there, and nobody gets a link who may not read.
    for odd in ({"Range": "lines=0-1"}, {"Range": "bytes=0-1", "If-Range": '"another"'}):
        served = requests.get(url, headers={**headers, **odd}, allow_redirects=False)
        assert (served.status_code, served.content) == (200, content)
    assert requests.get(url, headers={**headers, "Range": "bytes=100000-"}, allow_redirects=False).status_code == 416
    assert requests.get(url, allow_redirects=False).status_code == 404
    assert (
        requests.get(url.replace("w.safetensors", "config.json"), headers=headers, allow_redirects=False).text == "{}"
    )
    assert Path(api.hf_hub_download(repository, "w.safetensors", local_dir=tmp_path)).read_bytes() == content


@pytest.fixture(scope="module")
def own_server() -> Iterator[PostgreSQLServer]:
    """A server that is stopped and started."""
    with running_postgresql() as server:
        yield server


@pytest.fixture(scope="module")
def own_replicas(
    own_server: PostgreSQLServer, s3: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ReplicatedRegistry]:
    """Replicas that take uploads in small parts, and send files themselves."""
    options = ["--part-size", "1", "--proxy-downloads"]
    with running_replicas(tmp_path_factory.mktemp("own"), own_server, s3, "proxied", options) as process:
        yield process


def test_parts_reach_different_replicas(own_replicas: ReplicatedRegistry, tmp_path: Path) -> None:
    api = api_of(own_replicas.endpoint, own_replicas)
    repository = api.create_repo(f"{own_replicas.user}/parts").repo_id
    files = {"a.safetensors": (5, 3_500_000), "small.bin": (7, 10)}
    run_client(own_replicas, tmp_path, "upload_files", xet=False, repository=repository, files=files)
    assert own_replicas.arriving() == []
    url = f"{own_replicas.endpoint}/{repository}/resolve/main/a.safetensors"
    content = make_content(5, 3_500_000)
    whole = requests.get(url, allow_redirects=False)
    assert (whole.status_code, whole.content) == (200, content)
    part = requests.get(url, headers={"Range": "bytes=-7"}, allow_redirects=False)
    assert (part.status_code, part.content) == (206, content[-7:])


def test_a_database_that_was_away_is_used_again(own_replicas: ReplicatedRegistry, own_server: PostgreSQLServer) -> None:
    api = api_of(own_replicas.endpoint, own_replicas)
    repository = api.create_repo(f"{own_replicas.user}/outage").repo_id
    before = api.model_info(repository).sha
    own_server.stop()
    try:
        for member in own_replicas.members:
            answer = requests.get(f"{member.endpoint}/api/models/{repository}", timeout=60)
            assert (answer.status_code, answer.headers["X-Error-Code"]) == (503, "Busy")
            assert answer.headers["Retry-After"]
    finally:
        own_server.start()
    for member in own_replicas.members:
        assert api_of(member.endpoint, own_replicas).model_info(repository).sha == before
    api.create_commit(repository, [CommitOperationAdd("a.txt", b"1")], commit_message="It works")


def test_replicas_that_start_at_once_agree(postgresql: PostgreSQLServer, tmp_path: Path) -> None:
    place = ("--database", postgresql.create_database("empty"))

    def start(name: str) -> tuple[str, str]:
        with running_registry(tmp_path / "shared", place=place) as one:
            return one.user, one.token

    with ThreadPoolExecutor(3) as threads:
        started = list(threads.map(start, "abc"))
    assert len({user for user, _ in started}) == 1
    assert sum(bool(token) for _, token in started) == 1
    assert list((tmp_path / "shared" / "incoming").iterdir()) == []
    with psycopg.connect(place[1]) as connection:
        assert connection.execute("SELECT version FROM schema_version").fetchall() == [(len(MIGRATIONS),)]
        assert connection.execute("SELECT count(*) FROM secrets").fetchone() == (1,)
        connection.execute("UPDATE schema_version SET version = 99")
    newer = run("user", "list", *place)
    assert (newer.returncode, newer.stdout) == (15, "")
    assert "is of version 99" in newer.stderr


@pytest.fixture
def database(postgresql: PostgreSQLServer, request: pytest.FixtureRequest) -> Iterator[Database]:
    opened = open_postgresql(postgresql.create_database(f"d{os.urandom(4).hex()}"))
    yield opened
    opened.close()


def test_statements_mean_what_they_mean_on_sqlite(database: Database) -> None:
    with database.write() as connection:
        connection.execute("INSERT INTO accounts (name, kind, created_at) VALUES ('50%?', 'user', ?)", (2**40,))
        rows = [("b", "user", 1), ("B.", "user", 1), ("a", "organization", 1)]
        connection.executemany("INSERT INTO accounts (name, kind, created_at) VALUES (?, ?, ?)", rows)
    with database.read() as connection:
        row = connection.execute(
            "SELECT id, name, created_at FROM accounts WHERE name LIKE '50%' AND 1 = ?", (1,)
        ).fetchone()
        assert (row["name"], row[1], list(row)[2], len(row)) == ("50%?", "50%?", 2**40, 3)
        names = [row["name"] for row in connection.execute("SELECT name FROM accounts ORDER BY name")]
        assert names == ["50%?", "B.", "a", "b"]  # by bytes
        (total,) = connection.execute("SELECT sum(created_at) FROM accounts").fetchone()
        assert type(total) is int
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction), database.read() as connection:
        connection.execute("DELETE FROM accounts")
    with pytest.raises(psycopg.errors.UniqueViolation), database.write() as connection:
        connection.execute("INSERT INTO accounts (name, kind, created_at) VALUES ('A', 'user', 1)")
    with database.read() as connection:
        assert connection.execute("SELECT count(*) FROM accounts").fetchone()[0] == 4


def test_the_schema_in_postgresqls_language() -> None:
    statement = (
        "CREATE TABLE t (id INTEGER PRIMARY KEY AUTOINCREMENT, n TEXT COLLATE NOCASE, b BLOB, i INTEGER) WITHOUT ROWID"
    )
    assert translate_schema(statement) == (
        'CREATE TABLE t (id BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, n TEXT COLLATE "C", b BYTEA, i BIGINT)'
    )


def test_what_is_wrong_with_a_database_is_a_sentence(postgresql: PostgreSQLServer, tmp_path: Path) -> None:
    latin = postgresql.create_database("latin", encoding="LATIN1")
    for address, code, said in [
        (f"postgresql://u:{SECRET}@127.0.0.1:1/name", 8, "Cannot use the database name at 127.0.0.1"),
        (postgresql.address(password=SECRET), 9, "password authentication failed"),
        (postgresql.address("missing"), 4, '"missing" does not exist'),
        (f"postgresql://u:{SECRET}@x@localhost/name", 2, "more than one @"),
        (f"postgresql://u:{SECRET}@localhost/name?no=such", 2, "malformed"),
        (f"mysql://u:{SECRET}@localhost/name", 2, "does not begin with postgresql://"),
        (latin, 2, "UTF-8"),
    ]:
        for command in (["user", "list"], ["serve", "--port", "0", "--data", str(tmp_path)])[: 1 + (code == 8)]:
            done = run(*command, "--database", address)
            assert done.returncode == code, done.stderr
            assert said in done.stderr
            assert "Hint: " in done.stderr
            assert SECRET not in done.stderr
            assert "Traceback" not in done.stderr


def test_what_is_wrong_with_a_bucket_is_a_sentence(s3: str, tmp_path: Path) -> None:
    for address, code, said in [
        (f"s3://no-such-bucket?endpoint={s3}", 4, "There is no bucket no-such-bucket"),
        (f"s3://key:{SECRET}@bucket", 2, "credentials in it"),
        ("s3:///prefix", 2, "malformed"),
        ("s3://bucket?endpoints=x", 2, "malformed"),
        ("https://bucket", 2, "malformed"),
    ]:
        done = run("serve", "--port", "0", "--data", str(tmp_path), "--storage", address)
        assert done.returncode == code, done.stderr
        assert said in done.stderr
        assert "Hint: " in done.stderr
        assert SECRET not in done.stderr
    bucket = parse_bucket("s3://name/a/b/?endpoint=https://e:1/&region=eu-1")
    assert (bucket.name, bucket.prefix, bucket.endpoint, bucket.region) == ("name", "a/b/", "https://e:1/", "eu-1")


@pytest.mark.parametrize(("module", "option"), [("psycopg", "--database"), ("boto3", "--storage")])
def test_a_missing_driver_is_a_sentence(tmp_path: Path, module: str, option: str) -> None:
    code = f"import sys; sys.modules['{module}'] = None; from skillhub_registry.cli import main; main()"
    address = {"--database": "postgresql://localhost/x", "--storage": "s3://x"}[option]
    command = [sys.executable, "-c", code, "serve", "--port", "0", "--data", str(tmp_path), option, address]
    done = subprocess.run(command, env=registry_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"needs {module}, which is not installed" in done.stderr
    assert 'pip install "skillhub-packs[replicas]"' in done.stderr


def test_each_may_be_had_without_the_other(postgresql: PostgreSQLServer, s3: str, tmp_path: Path) -> None:
    """A bucket beside SQLite, then its data folder's files beside PostgreSQL."""
    import boto3

    os.environ.update(CREDENTIALS)
    boto3.client("s3", endpoint_url=s3, region_name="us-east-1").create_bucket(Bucket="alone")
    storage = ["--storage", f"s3://alone?endpoint={s3}"]
    for folder, options, place in (
        ("sqlite", storage, ()),
        ("files", [], ("--database", postgresql.create_database("alone"))),
    ):
        with running_registry(tmp_path / folder, options, place=place) as registry:
            api = HfApi(endpoint=registry.endpoint, token=registry.token)
            repository = api.create_repo(f"{registry.user}/{folder}").repo_id
            content = make_content(len(folder), 5000)
            api.upload_file(path_or_fileobj=content, path_in_repo="w.bin", repo_id=repository)
            fetched = api.hf_hub_download(repository, "w.bin", local_dir=tmp_path / f"{folder}-fetched")
            assert Path(fetched).read_bytes() == content
            kept = [path for path in (tmp_path / folder / "blobs").rglob("*") if path.is_file()] if not options else []
            assert bool(kept) == (not options)
