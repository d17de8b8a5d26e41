"""Whether a registry has all that it acknowledged to the clients of ``registry_load.py``, and nothing else by half."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from urllib.parse import quote

from registry_load import Client, RefusedError, Stage, Write, read_back


async def check_everything(stage: Stage) -> None:
    """Check what was written since the last check, while no client does anything; what is wrong, the record then says."""
    record = stage.record
    interrupted, merges = list(record.interrupted), list(record.merges)
    touched = {*record.acknowledged, *record.latest, *(write.repository for write in [*interrupted, *record.denied])}
    touched |= {repository for repository, _, _ in merges}
    checks = [
        _check_repository(
            stage,
            repository,
            [write for write in interrupted if write.repository == repository],
            [(number, files) for other, number, files in merges if other == repository],
        )
        for repository in sorted(touched)
    ]
    await asyncio.gather(*checks, *(_read_all_back(stage) for _ in range(8)))
    for known in (record.interrupted, record.denied, record.merges, record.acknowledged, record.latest):
        known.clear()


async def _read_all_back(stage: Stage) -> None:
    client = Client(stage, -1, 0)
    while stage.record.unread:
        write, commit = stage.record.unread.popleft()
        await read_back(client, write, commit)
    client.wire.close()


async def _check_repository(
    stage: Stage, repository: str, interrupted: list[Write], merges: list[tuple[int, Mapping[str, str]]]
) -> None:
    client, record = Client(stage, -1, 0), stage.record
    acknowledged, latest = set(record.acknowledged[repository]), dict(record.latest[repository])
    new = await _read_history(client, repository, "main", stage.heads.get(repository))
    for commit in acknowledged - set(new.values()):
        record.wrong.append(f"{repository}: {commit} was acknowledged and is not in main's history")
    for write in interrupted:
        commit = await _find(client, write, new)
        record.found["there" if commit else "not there"] += 1
        if commit:
            await read_back(client, write, commit)
            if write.ref == "main" and not write.proposes:
                latest.update(write.files)
    for write in record.denied:
        if write.repository == repository and await _find(client, write, new):
            record.wrong.append(f"{repository}: {write.title} was refused and is there")
    for number, files in merges:
        answer = await client.ask("discussion", "GET", f"/api/models/{repository}/discussions/{number}")
        merged = answer.json()["status"] == "merged"
        record.found["there" if merged else "not there"] += 1
        if merged:
            latest.update(files)
    await _check_main(client, repository, latest)
    stage.heads[repository] = next(iter(new.values()), stage.heads.get(repository, ""))
    client.wire.close()


async def _read_history(client: Client, repository: str, revision: str, until: str | None) -> dict[str, str]:
    """Return title → id of the commits after one that is known, the newest first; merges are called by their ids."""
    found: dict[str, str] = {}
    path = f"/api/models/{repository}/commits/{quote(revision, safe='')}"
    while path:
        answer = await client.ask("history", "GET", path)
        for commit in answer.json():
            if commit["id"] == until:
                return found
            title = commit["title"]
            found[title if title.startswith("w") and title not in found else commit["id"]] = commit["id"]
        link = answer.headers.get("link", "")
        path = "/" + link[1:].partition(">")[0].split("/", 3)[3] if link else ""
    return found


async def _find(client: Client, write: Write, new: Mapping[str, str]) -> str | None:
    """Return the id of a commit that nobody acknowledged, or None where it was not made."""
    if write.ref == "main" and not write.proposes:
        return new.get(write.title)
    ref = write.ref
    if write.proposes:
        page = await client.ask("discussions", "GET", f"/api/models/{write.repository}/discussions")
        number = next((one["num"] for one in page.json()["discussions"] if one["title"] == write.title), None)
        if number is None:
            return None
        ref = f"refs/pr/{number}"
    history = await _read_history(client, write.repository, ref, None)
    if write.proposes and write.title not in history:
        client.stage.record.wrong.append(f"{write.title} is a pull request without its commit")
    return history.get(write.title)


async def _check_main(client: Client, repository: str, latest: Mapping[str, str]) -> None:
    for path, sha256 in latest.items():
        try:
            answer = await client.ask("resolve", "GET", f"/{repository}/resolve/main/{quote(path)}")
        except RefusedError as error:
            client.stage.record.wrong.append(f"{repository}: {path} on main: {error}")
            continue
        if hashlib.sha256(answer.body).hexdigest() != sha256:
            client.stage.record.wrong.append(f"{repository}: {path} on main is not what was written last")
