"""A vendored folder as a registry: reading, copying and listing, and what no file of it may do."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from skillhub import hub
from skillhub.documents import canonical_json
from skillhub.errors import (
    IntegrityError,
    NetworkError,
    NewerSchemaError,
    NotFoundError,
    UnsafeContentError,
    UsageError,
)
from skillhub.hub.folders import list_files, read_repository, registry_folder
from skillhub.indexes import read_index
from skillhub.manifest import FileEntry
from skillhub.names import PackName
from skillhub.releases import append_event, release_event
from tests.support.commands import Shell
from tests.support.packs import make_pack

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def vendored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, homes: Path) -> Path:
    """A vendored folder, written by hand, on a machine whose network may not be used."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "vendored"
    repository = folder / "hub" / "acme" / "math-pack"
    repository.mkdir(parents=True)
    (folder / "vendor.json").write_bytes(canonical_json({"schema": 0, "registries": ["hub", "127.0.0.1:80/a"]}))
    (repository / "vendored.json").write_bytes(canonical_json({"schema": 0, "commit": COMMIT, "id": "42"}))
    pack = make_pack(tmp_path / "pack")
    (repository / "releases.jsonl").write_bytes(append_event(b"", release_event(pack.manifest, {})))
    (repository / "releases" / "1.0.0").mkdir(parents=True)
    (repository / "releases" / "1.0.0" / "skillpack.json").write_bytes(pack.manifest.to_bytes())
    (repository / "releases" / "some.bin").write_bytes(b"x" * 100)
    return folder


@pytest.fixture
def registry(vendored: Path) -> hub.Registry:
    return hub.vendored_registries(vendored)["hub"]


def test_the_registries_keep_their_names(vendored: Path) -> None:
    found = hub.vendored_registries(vendored)
    assert {name: one.folder for name, one in found.items()} == {
        "hub": vendored / "hub",
        "127.0.0.1:80/a": vendored / "127.0.0.1%3A80%2Fa",
    }
    assert all(one.name == name and one.token is None for name, one in found.items())
    assert hub.is_vendored(vendored) and not hub.is_vendored(vendored / "hub")


def test_files_are_read_and_copied_without_the_network(registry: hub.Registry, tmp_path: Path) -> None:
    read = hub.read_file(registry, "Acme/Math-Pack", "releases/some.bin", limit=100)
    assert read is not None and (read.data, read.commit) == (b"x" * 100, COMMIT)
    assert hub.read_file(registry, "acme/math-pack", "absent", limit=100) is None
    counts: list[int] = []
    copied = hub.download_file(
        registry, "acme/math-pack", "releases/some.bin", into=tmp_path / "to", size=100, progress=counts.append
    )
    assert copied == tmp_path / "to" / "releases" / "some.bin" and copied.read_bytes() == b"x" * 100
    assert sum(counts) == 100
    seen = read_index(registry, PackName("acme", "math-pack"), offline=True)
    assert [str(one.version) for one in seen.index.releases] == ["1.0.0"] and seen.commit == COMMIT


def test_files_that_are_too_long_are_not_read_through(registry: hub.Registry, tmp_path: Path) -> None:
    with pytest.raises(NetworkError):
        hub.read_file(registry, "acme/math-pack", "releases/some.bin", limit=99)
    with pytest.raises(IntegrityError, match="more than the 99 bytes"):
        hub.download_file(registry, "acme/math-pack", "releases/some.bin", into=tmp_path / "to", size=99)


def test_only_the_vendored_commit_is_there(registry: hub.Registry, tmp_path: Path) -> None:
    for revision in (COMMIT, COMMIT[:7], "main"):
        assert read_repository(registry, "acme/math-pack", revision=revision).id == "42"
    for revision in ("v1.0.0", "f" * 40, "refs/pr/1", "0", ""):
        with pytest.raises(NotFoundError, match="not at"):
            hub.read_releases(registry, "acme/math-pack", revision=revision)
    with pytest.raises(NotFoundError, match="no repository acme/other"):
        hub.read_releases(registry, "acme/other")
    with pytest.raises(NotFoundError, match="has no absent"):
        hub.download_file(registry, "acme/math-pack", "absent", into=tmp_path / "to")


def test_files_are_listed_with_their_digests(registry: hub.Registry) -> None:
    found = list_files(registry, "acme/math-pack")
    assert [one.path for one in found] == ["releases.jsonl", "releases/1.0.0/skillpack.json", "releases/some.bin"]
    assert found[2] == FileEntry(path="releases/some.bin", size=100, sha256=hashlib.sha256(b"x" * 100).hexdigest())


def test_no_path_and_no_link_leaves_the_folder(registry: hub.Registry, vendored: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret", encoding="utf-8")
    (outside / "vendored.json").write_bytes(canonical_json({"schema": 0}))
    repository = vendored / "hub" / "acme" / "math-pack"
    (repository / "link").symlink_to(outside / "secret")
    (repository / "linked").symlink_to(outside)
    (vendored / "hub" / "acme" / "away").symlink_to(outside)
    for path in ("../../../../outside/secret", "/etc/hostname", "link", "linked/secret"):
        with pytest.raises(UnsafeContentError):
            hub.read_file(registry, "acme/math-pack", path, limit=100)
        with pytest.raises(UnsafeContentError):
            hub.download_file(registry, "acme/math-pack", path, into=tmp_path / "to")
    for name in ("../acme/math-pack", "acme/away", ".."):
        with pytest.raises((UnsafeContentError, NotFoundError)):
            hub.read_file(registry, name, "secret", limit=100)
    with pytest.raises(UnsafeContentError):
        list_files(registry, "acme/math-pack")


@pytest.mark.parametrize("name", ["..", ".git", "con", ""])
def test_a_registrys_name_that_is_no_folder_is_refused(vendored: Path, name: str) -> None:
    (vendored / "vendor.json").write_bytes(canonical_json({"schema": 0, "registries": [name]}))
    with pytest.raises(UnsafeContentError):
        hub.vendored_registries(vendored)
    assert registry_folder(vendored, "a/b").parent == vendored


def test_notes_that_cannot_be_read_are_named(registry: hub.Registry, vendored: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"vendor\.json"):
        hub.vendored_registries(tmp_path)
    note = vendored / "hub" / "acme" / "math-pack" / "vendored.json"
    note.write_bytes(b'{"schema": 0, "commit": 7}')
    with pytest.raises(IntegrityError, match=r"\$\.commit"):
        read_repository(registry, "acme/math-pack")
    note.write_bytes(b'{"schema": 1}')
    with pytest.raises(NewerSchemaError):
        read_repository(registry, "acme/math-pack")
    (vendored / "vendor.json").write_bytes(b"[]")
    with pytest.raises(IntegrityError):
        hub.vendored_registries(vendored)


def test_a_vendored_folder_cannot_be_asked_for_more(registry: hub.Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    for find in (hub.find_packs, hub.find_namesakes):
        with pytest.raises(UsageError, match="cannot be searched"):
            find(registry, "math")
    with pytest.raises(NotFoundError, match="is a vendored folder"):
        hub.base_file_digests(registry, "acme/base-model")


def test_the_hubs_client_is_not_imported(vendored: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from skillhub import hub\n"
        f"registry = hub.vendored_registries(Path({str(vendored)!r}))['hub']\n"
        "assert hub.read_releases(registry, 'acme/math-pack')\n"
        "hub.download_file(registry, 'acme/math-pack', 'releases/some.bin', into=Path('to'))\n"
        "assert not {'huggingface_hub', 'httpx2'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], env=Shell(tmp_path).variables, cwd=tmp_path, check=True)
