"""Who gets what from a mirror when the other Hub closes it, and whom names lead to that were mirrored once."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import threading
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import BinaryIO

import pytest
from anyio import CapacityLimiter
from huggingface_hub import HfApi

from skillhub_registry.arrivals import Arrival, Arrivals
from skillhub_registry.errors import HubError, busy
from skillhub_registry.folderstore import FolderStore
from skillhub_registry.recency import Recent
from tests.registry.test_mirror import get, organize, publish, reader
from tests.support.hub_client import make_content
from tests.support.registry_process import RegistryProcess, running_registry

CONTENT = make_content(71, 5000)


@pytest.fixture(scope="module")
def upstream(folder_registry: RegistryProcess) -> RegistryProcess:
    """The other Hub."""
    return folder_registry


@pytest.fixture(scope="module")
def author(upstream: RegistryProcess) -> HfApi:
    """Who publishes on the other Hub."""
    return HfApi(endpoint=upstream.endpoint, token=upstream.token)


@pytest.fixture(scope="module")
def mirror(upstream: RegistryProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryProcess]:
    """A mirror whose operator's token sees everything there, and that does not ask for a branch again for an hour."""
    options = ("--mirror", upstream.endpoint, "--mirror-refresh", "1h", "--max-file-size", "1")
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:  # for that process alone
            patch.setenv("SKILLHUB_REGISTRY_MIRROR_TOKEN", upstream.token)
            process = stack.enter_context(running_registry(tmp_path_factory.mktemp("mirror"), options))
        yield process


@pytest.mark.parametrize("span", ["", "bytes=0-9"])
def test_what_became_private_there_is_not_fetched_with_the_operators_token(
    mirror: RegistryProcess, upstream: RegistryProcess, author: HfApi, span: str
) -> None:
    name = f"{organize(upstream, f'closing{len(span)}')}/model"
    head = publish(author, name, {"a.txt": b"text", "w.bin": CONTENT + span.encode()})
    assert reader(mirror).model_info(name).sha == head
    author.update_repo_settings(name, private=True)
    for revision in ("main", head):
        answer = get(mirror, f"/{name}/resolve/{revision}/w.bin", None, **({"Range": span} if span else {}))
        assert (answer.status_code, answer.headers["X-Error-Code"]) == (404, "RepoNotFound")
    (file,) = author.get_paths_info(name, ["w.bin"])
    assert mirror.read_blob(file.lfs.sha256) is None  # type: ignore[union-attr]
    assert get(mirror, f"/{name}/resolve/main/a.txt").content == b"text"  # it was here before


@pytest.mark.parametrize("span", ["", "bytes=0-9"])
def test_what_became_gated_there_is_for_accounts_from_then_on(
    mirror: RegistryProcess, upstream: RegistryProcess, author: HfApi, span: str
) -> None:
    name = f"{organize(upstream, f'gating{len(span)}')}/model"
    head = publish(author, name, {"a.txt": b"text", "w.bin": CONTENT + b"." + span.encode()})
    assert reader(mirror).model_info(name).sha == head
    author.update_repo_settings(name, gated="auto")
    headers = {"Range": span} if span else {}
    for path in ("w.bin", "a.txt"):
        answer = get(mirror, f"/{name}/resolve/{head}/{path}", None, **headers)
        assert (answer.status_code, answer.headers["X-Error-Code"]) == (401, "GatedRepo")
    answer = get(mirror, f"/{name}/resolve/{head}/w.bin", mirror.token, **headers)
    assert answer.content == (CONTENT[:10] if span else CONTENT + b".")


def test_names_of_a_namespace_that_becomes_somebodys_lead_to_no_mirror(
    mirror: RegistryProcess, upstream: RegistryProcess, author: HfApi
) -> None:
    first, second, other = (organize(upstream, name) for name in ("first_owner", "second-owner", "firstxowner"))
    for name in ("seen", "not-seen"):
        publish(author, f"{first}/{name}", {"a.txt": b"text"})
    publish(author, f"{other}/model", {"a.txt": b"text"})
    api = reader(mirror)
    api.model_info(f"{first}/seen")
    for moved in (f"{first}/seen", f"{first}/not-seen", f"{other}/model"):
        author.move_repo(moved, f"{second}/{moved.replace('/', '-')}")
    assert api.model_info(f"{first}/not-seen").id == f"{second}/{first}-not-seen"
    assert api.model_info(f"{other}/model").id == f"{second}/{other}-model"
    assert api.model_info(f"{second}/{first}-seen").sha
    mirror.run("mirror", "drop", first)  # no mirror is there any more, but the name is free
    mirror.add_organization(first)
    for name in ("seen", "not-seen"):
        assert get(mirror, f"/api/models/{first}/{name}").headers["X-Error-Code"] == "RepoNotFound"
    assert api.model_info(f"{other}/model").id == f"{second}/{other}-model"
    mirror.add_organization(other)
    assert get(mirror, f"/api/models/{other}/model").headers["X-Error-Code"] == "RepoNotFound"
    with pytest.raises(RuntimeError, match="There is no mirror %"):
        mirror.run("mirror", "drop", "%")


class Answer:
    """What a failing function holds in memory."""


def test_what_failed_lately_is_remembered_without_what_the_failing_functions_held() -> None:
    recent, held = Recent(60), []

    def fail() -> None:
        answer = Answer()
        held.append(weakref.ref(answer))
        try:
            raise ValueError(answer)
        except ValueError as error:
            raise busy("Later") from error

    for _ in range(2):
        with pytest.raises(HubError, match="Later") as caught:
            recent.run("key", fail)
        assert (caught.value.status, caught.value.headers) == (503, busy().headers)
        del caught
    gc.collect()
    assert [one() for one in held] == [None]


def test_readers_of_what_does_not_go_on_arriving_take_turns_and_those_who_leave_hold_no_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skillhub_registry.arrivals._TURN_SECONDS", 0.01)
    monkeypatch.setattr("skillhub_registry.arrivals._BEGIN_SECONDS", 0.1)
    more, store = threading.Event(), FolderStore(tmp_path, tmp_path)

    def pieces() -> Iterator[bytes]:
        yield CONTENT[:2000]
        more.wait(60)
        yield CONTENT[2000:]

    def arrive() -> Arrival:
        return Arrival(hashlib.sha256(CONTENT).hexdigest(), len(CONTENT), lambda: nullcontext(pieces()), lambda: None)

    async def read(arrival: Arrival, file: BinaryIO, got: bytearray, begun: asyncio.Event) -> None:
        async for piece in arrival.follow(file, 0, len(CONTENT), limiter):
            got += piece
            begun.set()

    async def run() -> None:
        arrival = arrive()
        fetching = threading.Thread(target=arrival.run, args=(store,))
        fetching.start()
        tasks, contents = [], [bytearray() for _ in range(2)]
        try:
            for got in contents:
                file, begun = await asyncio.to_thread(arrival.open, to_its_end=True), asyncio.Event()
                assert file is not None
                tasks.append(asyncio.create_task(read(arrival, file, got, begun)))
                await asyncio.wait_for(begun.wait(), 10)
            tasks[0].cancel()
            with pytest.raises(asyncio.CancelledError):
                await tasks[0]
        finally:
            more.set()
        await asyncio.wait_for(tasks[1], 10)
        assert (contents[0], contents[1]) == (CONTENT[:2000], CONTENT)
        await asyncio.to_thread(fetching.join)

    limiter = CapacityLimiter(1)
    asyncio.run(run())
    with pytest.raises(HubError, match="try again") as caught:
        arrive().open(to_its_end=True)  # nobody fetches it
    assert caught.value.status == 503


def test_what_the_other_hub_need_not_be_asked_holds_no_thread_that_waits_for_it() -> None:
    now = [0.0]
    recent = Recent(60, lambda: now[0])
    assert not recent.recall("done")
    recent.run("done", lambda: None)
    assert recent.recall("done")
    with pytest.raises(HubError, match="busy"):
        recent.run("failed", raise_busy)
    with pytest.raises(HubError, match="busy"):
        recent.recall("failed")
    now[0] = 60.0
    assert not recent.recall("done") and not recent.recall("failed")


def raise_busy() -> None:
    """Fail."""
    raise busy()


def test_what_comes_with_a_commit_may_be_no_larger_than_other_files(
    mirror: RegistryProcess, upstream: RegistryProcess, author: HfApi
) -> None:
    name = f"{organize(upstream, 'wordy')}/model"
    publish(author, name, {"a.txt": b"words\n" * 200_000})
    (file,) = author.get_paths_info(name, ["a.txt"])
    assert file.lfs is None  # type: ignore[union-attr]
    assert get(mirror, f"/api/models/{name}").status_code == 413


def test_what_is_arriving_counts_as_if_it_were_here(tmp_path: Path) -> None:
    told, over, arrivals = [], threading.Event(), Arrivals(FolderStore(tmp_path, tmp_path))

    def pieces() -> Iterator[bytes]:
        over.wait(60)
        yield from ()

    def make(size: int, arriving: int) -> Arrival:
        told.append(arriving)
        return Arrival("0" * 64, size, lambda: nullcontext(pieces()), lambda: None)

    try:
        for owner, name, size in (
            ("one", "a", 5),
            ("one", "b", 7),
            ("other", "a", 9),
            ("one", "c", 1),
            ("one", "a", 5),
        ):
            arrivals.join(owner, name, partial(make, size))
    finally:
        over.set()
        arrivals.close()
    assert told == [0, 5, 0, 12]
