"""The registry under load and killed: a short one of ``benchmarks/registry_soak.py``, and whether that would find anything."""

from __future__ import annotations

import asyncio
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def benchmarks_importable() -> Iterator[None]:
    before = list(sys.path)
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path[:] = before


def test_what_is_acknowledged_under_load_outlives_kills_and_nothing_is_there_by_half(tmp_path: Path) -> None:
    from registry_soak import COMMITS, Soak

    record = asyncio.run(Soak(tmp_path, clients=12, seed=1).run(seconds=3, kills=3))
    assert record.wrong == []
    assert record.refused == {}
    assert all(record.done[kind] for kind in COMMITS)
    assert record.found["not there"] + record.found["there"] > 0


def test_the_soak_notices_what_is_lost_and_what_is_torn(tmp_path: Path) -> None:
    """Commits that somebody made are told of as others than they were."""
    from registry_checks import check_everything
    from registry_load import RefusedError, Writer
    from registry_soak import Soak

    async def run() -> list[str]:
        soak = Soak(tmp_path, clients=2, seed=1)
        await asyncio.to_thread(soak.start)
        try:
            return await tell_lies(soak)
        finally:
            await asyncio.to_thread(soak.stop)

    async def tell_lies(soak: Any) -> list[str]:
        await soak.make_repositories()
        stage, record = soak.stage, soak.record
        writer = Writer(stage, 1, 0)
        while sum(record.done[kind] for kind in ("commit", "pull request")) < 4:
            await writer.turn()
        with pytest.raises(RefusedError, match="400"):
            await writer._commit("commit", stage.repositories[0], "main", {"../outside.txt": b""})
        writer.wire.close()
        assert (len(record.denied), record.interrupted) == (1, [])
        made = list(record.unread)
        await check_everything(stage)
        assert record.wrong == []
        on_main = next((write, commit) for write, commit in made if write.ref == "main" and not write.proposes)
        torn = dataclasses.replace(on_main[0], files={"w1/absent.txt": "0" * 64, **on_main[0].files})
        changed = dataclasses.replace(on_main[0], files=dict.fromkeys(on_main[0].files, "0" * 64))
        for write, commit in ((torn, on_main[1]), (changed, on_main[1]), (on_main[0], "0" * 40)):
            record.wrong.clear()
            record.unread.append((write, commit))
            await check_everything(stage)
            assert record.wrong
        lies = [*record.wrong]
        record.acknowledged[on_main[0].repository].add("0" * 40)
        record.latest[on_main[0].repository]["w1/absent.txt"] = "0" * 64
        record.denied.append(on_main[0])
        stage.heads.clear()
        await check_everything(stage)
        return record.wrong[len(lies) :]

    found = asyncio.run(run())
    assert any("is not in main's history" in one for one in found)
    assert any("on main: 404" in one for one in found)
    assert any("was refused and is there" in one for one in found)
