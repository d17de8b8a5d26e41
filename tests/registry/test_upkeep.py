"""Inspecting the data, and removing from it what nothing refers to: under uploads, and nothing else."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from huggingface_hub import CommitOperationAdd, HfApi

from skillhub_registry.blobs import is_kept
from skillhub_registry.garbage import XORB_SECONDS, Collected, collect_garbage, spare_blob
from skillhub_registry.inspection import Finding, inspect_registry
from skillhub_registry.registry import Place, open_storage
from tests.support.hub_client import client_environment, make_content
from tests.support.registry_process import ROOT, RegistryProcess, running_registry
from tests.support.replicas import ReplicatedRegistry, running_replicas

DAY = 24 * 3600


@pytest.fixture(scope="module", params=["folder", "replicas"])
def registry(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryProcess]:
    """A registry of this module's own: what it forgets, others rely on."""
    folder = tmp_path_factory.mktemp("upkeep")
    if request.param == "folder":
        with running_registry(folder) as process:
            yield process
        return
    postgresql, s3 = request.getfixturevalue("postgresql"), request.getfixturevalue("s3")
    with running_replicas(folder, postgresql, s3, "upkeep") as replicas:
        yield replicas


def place_of(registry: RegistryProcess) -> Place:
    storage = None
    if isinstance(registry, ReplicatedRegistry):
        storage = f"s3://{registry.bucket}/in/it?endpoint={registry.s3.meta.endpoint_url}&region=us-east-1"
    return Place(
        registry.data, dict(zip(registry.place[::2], registry.place[1::2], strict=True)).get("--database"), storage
    )


def collect(registry: RegistryProcess, **more: Any) -> Collected:
    with registry.open_database() as database:
        return collect_garbage(database, open_storage(place_of(registry)), **more)


def collect_twice(registry: RegistryProcess) -> Collected:
    """Mark what is garbage, and remove it a day later."""
    collect(registry)
    return collect(registry, now=int(time.time()) + DAY)


def findings(registry: RegistryProcess, *, quick: bool = False) -> list[Finding]:
    with registry.open_database() as database:
        return list(inspect_registry(database, open_storage(place_of(registry)), quick=quick))


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def api(registry: RegistryProcess) -> HfApi:
    return HfApi(endpoint=registry.endpoint, token=registry.token)


def upload(api: HfApi, repository: str, **files: bytes) -> str:
    operations = [CommitOperationAdd(path.replace("_", "."), content) for path, content in files.items()]
    return api.create_commit(repository, operations, commit_message="Files").oid


def test_what_deleted_repositories_and_squashed_histories_had_goes_and_the_rest_stays(
    registry: RegistryProcess, api: HfApi
) -> None:
    kept, gone = (api.create_repo(f"{registry.user}/gc-{name}").repo_id for name in ("kept", "gone"))
    shared, lost = make_content(1, 4000), make_content(2, 4000)
    upload(api, gone, a_bin=shared, b_bin=lost, c_txt=b"lost text")
    old = upload(api, kept, a_bin=lost, d_txt=b"old text")
    upload(api, kept, a_bin=shared, d_txt=b"new text")
    assert findings(registry) == []
    api.delete_repo(gone)
    api.super_squash_history(kept)
    assert collect(registry).blobs == 0
    assert api.repo_info(kept, revision=old).sha == old  # still there to be read
    planned = collect(registry, now=int(time.time()) + DAY, dry_run=True)
    assert registry.read_blob(digest(lost)) == lost
    done = collect(registry, now=int(time.time()) + DAY)
    assert (done.commits, done.trees, done.blobs) == (planned.commits, planned.trees, planned.blobs)
    assert done.commits == 3
    for content in (lost, b"lost text", b"old text"):
        assert registry.read_blob(digest(content)) is None
    for content in (shared, b"new text"):
        assert registry.read_blob(digest(content)) == content
    assert findings(registry) == []
    assert registry.query("SELECT sha256 FROM uploads WHERE sha256 = ?", digest(lost)) == []
    upload(api, kept, again_bin=lost)  # nobody believes that it is still there
    assert registry.read_blob(digest(lost)) == lost
    assert collect_twice(registry).blobs == 0
    assert findings(registry) == []


@pytest.mark.parametrize("rewrite", [True, False])
def test_large_files_that_were_deleted_for_good_are_gone_for_good(
    registry: RegistryProcess, api: HfApi, rewrite: bool
) -> None:
    repository = api.create_repo(f"{registry.user}/gc-deleted-{rewrite}").repo_id
    content = make_content(3 + rewrite, 5000)
    upload(api, repository, a_bin=content, b_txt=b"stays")
    (file,) = api.list_lfs_files(repository)
    api.permanently_delete_lfs_files(repository, [file], rewrite_history=rewrite)
    collect_twice(registry)
    assert registry.read_blob(digest(content)) is None
    assert findings(registry) == []
    assert ("a.bin" in api.list_repo_files(repository)) is not rewrite


def test_a_marked_blob_that_is_sent_again_stays(registry: RegistryProcess, api: HfApi) -> None:
    """Between the sender's look and its commit no collection gets at the blob, whatever its mark said before."""
    repository = api.create_repo(f"{registry.user}/gc-again").repo_id
    content = make_content(5, 6000)
    upload(api, repository, a_bin=content)
    api.delete_repo(repository)
    collect(registry)
    later = int(time.time()) + DAY
    store = open_storage(place_of(registry))
    with registry.open_database() as database:
        store.spare = lambda sha256: spare_blob(database, sha256)
        assert is_kept(store, digest(content))
        collect_garbage(database, store, now=later)
        assert store.has(digest(content))
        collect_garbage(database, store, now=later + DAY)  # it was never committed
        assert not is_kept(store, digest(content))


SENDER = """
    import sys
    from huggingface_hub import HfApi
    name, path = sys.argv[1:]
    api = HfApi()
    api.create_repo(name, exist_ok=True)
    api.upload_file(path_or_fileobj=path, path_in_repo="w.safetensors", repo_id=name)
"""


def send(registry: RegistryProcess, home: Path, name: str, path: Path) -> None:
    """Send a file from a process of its own, whose client remembers in its home which chunks it has sent."""
    command = [sys.executable, "-c", textwrap.dedent(SENDER), name, str(path)]
    environment = client_environment(registry, home, xet=True)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_xorbs_outlive_the_clients_memory_of_them(registry: RegistryProcess, api: HfApi, tmp_path: Path) -> None:
    """The client refers to chunks of a file that is long gone; after a month it sends them anew."""
    content = make_content(6, 300_000)
    paths = [tmp_path / "first", tmp_path / "second"]
    paths[0].write_bytes(content)
    paths[1].write_bytes(content + b"and more")
    name = f"{registry.user}/gc-xorbs"
    send(registry, tmp_path / "home", name, paths[0])
    api.delete_repo(name)
    collect_twice(registry)
    assert registry.read_blob(digest(content)) is None
    send(registry, tmp_path / "home", name, paths[1])
    assert registry.read_blob(digest(paths[1].read_bytes())) is not None
    assert findings(registry) == []
    month = int(time.time()) + XORB_SECONDS + 1
    collect(registry, now=month)
    collect(registry, now=month + DAY)
    assert registry.query("SELECT * FROM xorbs") == []
    assert findings(registry) == []


def test_collecting_while_others_upload_and_commit_loses_nothing(registry: RegistryProcess, api: HfApi) -> None:
    """The same few contents are sent, deleted and sent again, while garbage that was marked five seconds ago is removed."""
    contents = [make_content(10 + number, 2000) for number in range(3)]
    over = Event()

    def write(number: int) -> int:
        count = 0
        while not over.is_set() or count < 3:
            name = api.create_repo(f"{registry.user}/gc-loop-{number}").repo_id
            files = {f"f{place}_bin": content for place, content in enumerate(contents)}
            upload(api, name, **files, a_txt=contents[count % 3].hex().encode())
            for place, content in enumerate(contents):
                assert registry.read_blob(digest(content)) == content, place
            api.delete_repo(name)
            count += 1
        return count

    with ThreadPoolExecutor(2) as threads:
        writers = [threads.submit(write, number) for number in range(2)]
        removed, deadline = 0, time.monotonic() + 20
        try:
            while removed == 0 and time.monotonic() < deadline:
                removed += collect(registry, grace=5).blobs
                over.wait(0.5)
        finally:
            over.set()
        assert min(writer.result() for writer in writers) >= 3
    assert findings(registry) == []


def test_every_kind_of_damage_is_found(registry: RegistryProcess, api: HfApi) -> None:
    if isinstance(registry, ReplicatedRegistry):
        pytest.skip("damages files, which the other registry has in a folder")
    repository = api.create_repo(f"{registry.user}/fsck").repo_id
    content = make_content(20, 3000)
    oid = upload(api, repository, a_bin=content, b_txt=b"some text")
    blob = registry.data / "blobs" / digest(content)[:2] / digest(content)[2:]
    blob.chmod(0o644)
    blob.write_bytes(content[::-1])
    assert findings(registry, quick=True) == []
    assert [(one.kind, one.where) for one in findings(registry)] == [("blob", digest(content))]
    blob.write_bytes(content[:-1])
    (short,) = findings(registry, quick=True)
    assert "2999 bytes instead of 3000" in short.message
    blob.unlink()
    with pytest.raises(RuntimeError, match="ended with 1"):
        registry.run("fsck")
    assert [(one.kind, one.message) for one in findings(registry)] == [("file", "its blob is not there")]
    blob.write_bytes(content)
    (tree,) = registry.query("SELECT tree FROM commits WHERE id = ?", oid)[0]
    changes = [
        (
            "UPDATE commits SET title = 'x' WHERE id = ?",
            "UPDATE commits SET title = 'Files' WHERE id = ?",
            oid,
            "commit",
        ),
        (
            "UPDATE commits SET id = 'x' || id WHERE id = ?",
            "UPDATE commits SET id = substr(id, 2) WHERE id = 'x' || ?",
            oid,
            "ref",
        ),
        (
            "UPDATE trees SET id = 'x' || id WHERE id = ?",
            "UPDATE trees SET id = substr(id, 2) WHERE id = 'x' || ?",
            tree,
            "tree",
        ),
        (
            "UPDATE files SET sha256 = 'x' || sha256 WHERE sha256 = ?",
            "UPDATE files SET sha256 = substr(sha256, 2) WHERE sha256 = 'x' || ?",
            digest(content),
            "file",
        ),
        (
            "UPDATE uploads SET sha256 = 'x' || sha256 WHERE sha256 = ?",
            "UPDATE uploads SET sha256 = substr(sha256, 2) WHERE sha256 = 'x' || ?",
            digest(content),
            "upload",
        ),
    ]
    for damage, repair, value, kind in changes:
        for statement in (damage, repair):
            with registry.open_database() as database, database.write() as connection:
                connection.execute(statement, (value,))
            kinds = {one.kind for one in findings(registry)}
            assert (kind in kinds) if statement == damage else not kinds


def test_the_commands(registry: RegistryProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    if (storage := place_of(registry).storage) is not None:
        monkeypatch.setenv("SKILLHUB_REGISTRY_STORAGE", storage)
    assert json.loads(registry.run("fsck", "--json")) == []
    assert registry.run("fsck", "--quick") == ""
    said = json.loads(registry.run("gc", "--dry-run", "--older-than", "72h", "--json"))
    assert (said["dry_run"], said["blobs"]) == (True, 0)
    assert registry.run("gc").startswith("Removed 0 blobs")
