"""Clients that read and write a registry as many at once as one process can play, and a record of what they were told.

Every client does one thing after another. What a writer writes, it never writes again: titles are unique, and the
contents follow from them.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import random
import time
from collections import Counter, defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, urlsplit

from wire import Answer, Wire

from tests.registry.releases import line, manifest

BROKEN = (OSError, EOFError, TimeoutError)
"""What a request ends with when its server dies."""

TIMEOUT_SECONDS = 120
_LARGE_BYTES, _SMALL_BYTES, _PATHS, _RELEASING = (16_000, 128_000), (50, 4000), 6, 5


@dataclass(frozen=True)
class Write:
    """A commit that a client wants: its unique title and path → SHA-256 of what it puts there; with ``proposes`` as a pull request."""

    repository: str
    ref: str
    title: str
    files: Mapping[str, str]
    proposes: bool = False


@dataclass
class Record:
    """What clients know.

    Attributes:
        unread: acknowledged writes and their commits' ids, which nobody has read back yet.
        acknowledged: repository → ids of commits on its main branch, since they were last looked for in its history.
        latest: repository → path → SHA-256 of what was last acknowledged on its main branch, as far as it was written since the last check.
        interrupted: writes that nobody answered.
        denied: writes that were refused, and must not be there.
        merges: the same as ``interrupted`` of merges: repository, number, files.
        done: kind of call → how many were answered.
        refused: status and kind → how many were answered with an error.
        seconds: kind → how long each answer took.
        found: how many interrupted commits and merges were there, or not there, afterwards.
        wrong: what must not be.
    """

    unread: deque[tuple[Write, str]] = field(default_factory=deque)
    acknowledged: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    latest: defaultdict[str, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    interrupted: list[Write] = field(default_factory=list)
    denied: list[Write] = field(default_factory=list)
    merges: list[tuple[str, int, Mapping[str, str]]] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    seconds: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    found: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def acknowledge(self, write: Write, commit: str) -> None:
        """Note that a commit was made."""
        self.unread.append((write, commit))
        if write.ref == "main" and not write.proposes:
            self.acknowledged[write.repository].add(commit)
            self.latest[write.repository].update(write.files)


@dataclass
class Stage:
    """The registry that clients ask, and when they may.

    Attributes:
        heads: repository → the commit of its main branch up to which everything was checked.
        open: set while clients may begin something.
        over: whether they are to end.
        active: how many are doing something.
    """

    endpoint: str
    token: str
    user: str
    repositories: list[str]
    record: Record = field(default_factory=Record)
    heads: dict[str, str] = field(default_factory=dict)
    open: asyncio.Event = field(default_factory=asyncio.Event)
    over: bool = False
    active: int = 0


class RefusedError(Exception):
    """The registry answered with an error."""


class Client:
    """One client.

    Args:
        stage: what it plays on.
        number: another for each client.
        seed: of all that it chooses.
    """

    kind = ""

    def __init__(self, stage: Stage, number: int, seed: int) -> None:
        self.stage, self.number = stage, number
        self.chance = random.Random(f"{seed} {self.kind} {number}")
        self.wire = Wire(stage.endpoint, stage.token)
        self.endpoint = stage.endpoint

    async def run(self) -> None:
        """Do one thing after another until all is over; wait while the registry is away."""
        while not self.stage.over:
            await self.stage.open.wait()
            if self.endpoint != self.stage.endpoint:
                self.wire.close()
                self.endpoint, self.wire = self.stage.endpoint, Wire(self.stage.endpoint, self.stage.token)
            self.stage.active += 1
            try:
                await self.turn()
            except BROKEN as error:
                if self.stage.open.is_set():
                    self.stage.record.wrong.append(f"a connection broke while the registry ran: {error!r}")
            except RefusedError as error:
                self.stage.record.refused[str(error)] += 1
                await asyncio.sleep(0.1)
            finally:
                self.stage.active -= 1
            await asyncio.sleep(self.chance.uniform(0, 0.05))
        self.wire.close()

    async def turn(self) -> None:
        """Do one thing."""
        raise NotImplementedError

    async def ask(self, kind: str, method: str, path: str, body: bytes = b"") -> Answer:
        """Ask, and note how long it took.

        Raises:
            RefusedError: the status says so.
        """
        began = time.perf_counter()
        async with asyncio.timeout(TIMEOUT_SECONDS):
            answer = await self.wire.ask(method, path, body)
        self.stage.record.seconds[kind].append(time.perf_counter() - began)
        if answer.status != 200:
            raise RefusedError(f"{answer.status} {answer.headers.get('x-error-code', '')} for {kind}")
        self.stage.record.done[kind] += 1
        return answer


class Reader(Client):
    """Reads back what was acknowledged, and otherwise what clients look at."""

    kind = "reader"

    async def turn(self) -> None:
        """Read one commit back, or look at something."""
        record, repository = self.stage.record, self.chance.choice(self.stage.repositories)
        if record.unread:
            write, commit = record.unread.popleft()
            try:
                await read_back(self, write, commit)
            except (*BROKEN, RefusedError):
                record.unread.append((write, commit))
                raise
            return
        model = f"/api/models/{repository}"
        kind, path = self.chance.choice(
            [
                ("tree", f"{model}/tree/main?recursive=true"),
                ("model_info", model),
                ("refs", f"{model}/refs?include_prs=true"),
                ("list_models", "/api/models?limit=20"),
                ("page", f"/{repository}"),
            ]
        )
        await self.ask(kind, "GET", path)


async def read_back(client: Client, write: Write, commit: str) -> None:
    """Compare every byte of what a commit was to put somewhere."""
    for path, sha256 in write.files.items():
        try:
            answer = await client.ask("resolve", "GET", f"/{write.repository}/resolve/{commit}/{quote(path)}")
        except RefusedError as error:
            if str(error).startswith("429"):
                raise
            client.stage.record.wrong.append(f"{write.title}: {path} at {commit}: {error}")
            continue
        if hashlib.sha256(answer.body).hexdigest() != sha256:
            client.stage.record.wrong.append(f"{write.title}: {path} at {commit} has other bytes")


class Writer(Client):
    """Commits, on its own paths of repositories that it shares with others, and publishes releases of a pack of its own."""

    kind = "writer"

    def __init__(self, stage: Stage, number: int, seed: int) -> None:
        super().__init__(stage, number, seed)
        self.count = 0
        self.has_pack = False

    async def turn(self) -> None:
        """Make one commit, of one of five kinds."""
        self.count += 1
        repository = self.chance.choice(self.stage.repositories)
        turns = (
            [self._commit_files] * 10 + [self._commit_large] * 4 + [self._commit_to_branch] * 2 + [self._propose] * 2
        )
        if self.number % _RELEASING == 0:
            turns += [self._release] * 4
        await self.chance.choice(turns)(repository)

    def _small(self) -> dict[str, bytes]:
        paths = self.chance.sample(range(_PATHS), self.chance.randint(1, 3))
        return {
            f"w{self.number}/f{place}.txt": self.chance.randbytes(self.chance.randint(*_SMALL_BYTES)) for place in paths
        }

    async def _commit_files(self, repository: str) -> None:
        await self._commit("commit", repository, "main", self._small())

    async def _commit_large(self, repository: str) -> None:
        content = self.chance.randbytes(self.chance.randint(*_LARGE_BYTES))
        sha256 = hashlib.sha256(content).hexdigest()
        batch = {"operation": "upload", "objects": [{"oid": sha256, "size": len(content)}], "transfers": ["basic"]}
        answer = await self.ask(
            "LFS batch", "POST", f"/{repository}.git/info/lfs/objects/batch", json.dumps(batch).encode()
        )
        href = answer.json()["objects"][0]["actions"]["upload"]["href"]
        await self.ask("LFS upload", "PUT", urlsplit(href).path, content)
        path = f"w{self.number}/l{self.chance.randrange(_PATHS)}.bin"
        line = {"key": "lfsFile", "value": {"path": path, "algo": "sha256", "oid": sha256, "size": len(content)}}
        await self._commit("LFS commit", repository, "main", {}, (line, {path: sha256}))

    async def _commit_to_branch(self, repository: str) -> None:
        branch = f"w{self.number}-{self.count}"
        await self.ask("branch", "POST", f"/api/models/{repository}/branch/{branch}", b"{}")
        await self._commit("commit to a branch", repository, branch, self._small())
        await self.ask("branch, deleted", "DELETE", f"/api/models/{repository}/branch/{branch}")

    async def _propose(self, repository: str) -> None:
        files = {f"w{self.number}/p{self.chance.randrange(_PATHS)}.txt": self.chance.randbytes(500)}
        answer = await self._commit("pull request", repository, "main", files, proposes=True)
        number = int(answer.json()["pullRequestUrl"].rpartition("/")[2])
        record, digests = self.stage.record, _digests(files)
        record.merges.append((repository, number, digests))  # until somebody says what came of it
        merged = await self.ask("merge", "POST", f"/api/models/{repository}/discussions/{number}/merge", b"{}")
        record.merges.remove((repository, number, digests))
        record.acknowledged[repository].add(merged.json()["commitOid"])
        record.latest[repository].update(digests)

    async def _release(self, _: str) -> None:
        pack = f"{self.stage.user}/pack-{self.number}"
        if not self.has_pack:
            try:
                await self.ask(
                    "create_repo", "POST", "/api/repos/create", json.dumps({"name": f"pack-{self.number}"}).encode()
                )
            except RefusedError as error:  # a try before this one may have made it, and nobody said so
                if not str(error).startswith("409"):
                    raise
            self.has_pack = True
        answer = await self.wire.ask("GET", f"/{pack}/resolve/main/releases.jsonl")
        index, version = answer.body if answer.status == 200 else b"", f"1.{self.count}"
        files = {f"releases/{version}/skillpack.json": manifest(version), "releases.jsonl": index + line(version)}
        await self._commit("release", pack, "main", files)

    async def _commit(
        self,
        kind: str,
        repository: str,
        ref: str,
        files: Mapping[str, bytes],
        large: tuple[dict[str, object], Mapping[str, str]] | None = None,
        *,
        proposes: bool = False,
    ) -> Answer:
        title = f"w{self.number} n{self.count}"
        lines: list[dict[str, object]] = [{"key": "header", "value": {"summary": title}}]
        for path, content in files.items():
            value = {"path": path, "content": base64.b64encode(content).decode(), "encoding": "base64"}
            lines.append({"key": "file", "value": value})
        lines += [large[0]] if large else []
        write = Write(repository, ref, title, _digests(files) | (dict(large[1]) if large else {}), proposes)
        record = self.stage.record
        record.interrupted.append(write)  # until somebody says what came of it
        target = f"/api/models/{repository}/commit/{ref}{'?create_pr=1' if proposes else ''}"
        try:
            answer = await self.ask(kind, "POST", target, b"".join(json.dumps(one).encode() + b"\n" for one in lines))
        except RefusedError as error:
            if str(error).startswith("4"):  # a failure of the registry's own says less
                record.interrupted.remove(write)
                record.denied.append(write)
            raise
        record.interrupted.remove(write)
        record.acknowledge(write, answer.json()["commitOid"])
        return answer


def _digests(files: Mapping[str, bytes]) -> dict[str, str]:
    return {path: hashlib.sha256(content).hexdigest() for path, content in files.items()}
