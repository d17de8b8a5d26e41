"""What is told of an upload while it goes on."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from skillhub import hub
from tests.support.faults import AFTER, faulty_proxy, on
from tests.support.registry_process import RegistryProcess

pytestmark = [
    pytest.mark.usefixtures("homes"),
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),  # huggingface_hub's own way of sending
]

SIZE = 3_000_000


def random_file(path: Path, seed: str) -> Path:
    path.write_bytes(random.Random(seed).randbytes(SIZE))
    return path


@pytest.fixture(scope="module")
def repository(registry: RegistryProcess) -> str:
    name = f"{registry.user}/uploads-tests"
    HfApi(endpoint=registry.endpoint, token=registry.token).create_repo(name)
    return name


def commit(endpoint: str, token: str, repository: str, files: dict[str, bytes | Path]) -> list[int]:
    """Commit files on top of what there is, and return the counts that were told."""
    registry = hub.Registry("hub", endpoint, token)
    counts: list[int] = []
    parent = hub.repository_head(registry, repository)
    hub.commit(registry, repository, files, message="Add files", parent=parent, progress=counts.append)
    return counts


@pytest.mark.parametrize("without_xet", [True, False])
def test_the_counts_add_up_to_all_bytes(
    registry: RegistryProcess,
    repository: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    without_xet: bool,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", without_xet)
    files: dict[str, bytes | Path] = {
        f"{without_xet}-{number}.safetensors": random_file(tmp_path / f"{number}", f"{without_xet} {number}")
        for number in range(2)
    }
    files[f"{without_xet}.txt"] = b"a few words"
    counts = commit(registry.endpoint, registry.token, repository, files)
    assert sum(counts) == 2 * SIZE + len(b"a few words")
    assert min(counts) > 0
    assert len(counts) > 1
    assert sum(counts[:-1]) >= 2 * SIZE  # before the end, where the rest is told at once

    again = {f"again-{path}": source for path, source in files.items()}
    assert commit(registry.endpoint, registry.token, repository, again)[-1] > 0


def test_what_is_sent_again_is_told_once(
    registry: RegistryProcess, repository: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    source = random_file(tmp_path / "file", "sent again")
    with faulty_proxy(registry.endpoint) as proxy:
        proxy.reset(on("PUT", "/", AFTER, times=1))
        counts = commit(proxy.endpoint, registry.token, repository, {"sent-again.safetensors": source})
        assert sum(request.startswith("PUT ") for request in proxy.seen) >= 2
    assert sum(counts) == SIZE
    assert min(counts) > 0


def test_commits_of_two_threads_tell_their_own(registry: RegistryProcess, tmp_path: Path) -> None:
    found: dict[int, int] = {}
    api = HfApi(endpoint=registry.endpoint, token=registry.token)

    def upload(number: int) -> None:
        name = f"{registry.user}/uploads-thread-{number}"
        api.create_repo(name)
        source = random_file(tmp_path / f"thread-{number}", f"thread {number}")
        found[number] = sum(commit(registry.endpoint, registry.token, name, {"a.safetensors": source, "b": b"b"}))

    threads = [threading.Thread(target=upload, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {0: SIZE + 1, 1: SIZE + 1}
