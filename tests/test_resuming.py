"""Packing that is interrupted and goes on, and packing by several processes: always the pack that one run of one process makes."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from skillhub import partials
from skillhub.authorfile import AuthorFile
from skillhub.calibration.moments import Calibration, LayerRecord
from skillhub.calibration.texts import Row
from skillhub.checkpoints import open_checkpoint
from skillhub.codecs.allocation import analyse
from skillhub.deltas import Delta
from skillhub.errors import DiskError, EnvironmentLockedError, UsageError
from skillhub.locks import locked
from skillhub.packer import pack
from skillhub.packs import Pack
from skillhub.partials import KINDS, Partial, digest_inputs
from skillhub.progress import Progress
from skillhub.tensorfiles import write_tensors

METADATA = AuthorFile(name="tiny-pack", version="1.0.0")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a fine-tune of it whose matrices are large enough to be analysed, and the pack of both."""
    folder = tmp_path_factory.mktemp("models")
    generator = torch.Generator().manual_seed(1)
    base = {f"layers.{number}.weight": torch.randn(96, 80, generator=generator) for number in range(4)}
    base |= {"norm.weight": torch.ones(80), "embed_tokens.weight": torch.randn(70, 80, generator=generator)}
    tuned = {name: value + 0.01 * torch.randn(value.shape, generator=generator) for name, value in base.items()}
    tuned["embed_tokens.weight"] = torch.cat([tuned["embed_tokens.weight"], torch.ones(2, 80)])
    for name, tensors in (("base", base), ("tuned", tuned)):
        (folder / name).mkdir()
        save_file(tensors, folder / name / "model.safetensors")
    build(folder, folder / "pack")
    return folder


def build(place: Path, out: Path, progress: Progress | None = None, **options: object) -> Pack:
    return pack(
        place / "tuned", place / "base", out, metadata=METADATA, budget_bytes=20_000, progress=progress, **options
    )


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stopping(what: str, done: int, stop: Callable[[], None]) -> Progress:
    """Return a callback that stops the run at a step of its progress."""

    def progress(doing: str, count: int, _: int) -> None:
        if (doing, count) == (what, done):
            stop()

    return progress


def interrupt() -> None:
    raise KeyboardInterrupt


def fill_disk() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def fill_memory() -> None:
    torch.empty(1 << 60)


def fill_accelerator() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize(("what", "done"), [("Analysing", 1), ("Analysing", 6), ("Encoding", 3), ("Encoding", 6)])
@pytest.mark.parametrize(
    ("stop", "error"),
    [
        (interrupt, KeyboardInterrupt),
        (fill_disk, DiskError),
        (fill_memory, RuntimeError),
        (fill_accelerator, torch.OutOfMemoryError),
    ],
)
def test_an_interrupted_run_goes_on_where_it_was(
    place: Path, tmp_path: Path, what: str, done: int, stop: Callable[[], None], error: type[BaseException]
) -> None:
    out, steps, notices = tmp_path / "pack", list[tuple[str, int]](), list[str]()
    with pytest.raises(error):
        build(place, out, stopping(what, done, stop), notice=notices.append)
    assert [path.name for path in tmp_path.iterdir()] == [".pack.partial"]
    assert f"is kept in {tmp_path / '.pack.partial'}" in notices.pop()
    before = set(tmp_path.rglob("*.record"))
    times = {path: path.stat().st_mtime_ns for path in before}
    build(place, out, lambda doing, count, _: steps.append((doing, count)), notice=notices.append)
    assert f"{done if what == 'Analysing' else 6} of 6 tensors analysed" in notices[0]
    assert times and files(out) == files(place / "pack")
    assert [path.name for path in tmp_path.iterdir()] == ["pack"]


def test_a_killed_run_goes_on_where_it_was(place: Path, tmp_path: Path) -> None:
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from tests.test_resuming import build, stopping\n"
        "kill = lambda: os.kill(os.getpid(), signal.SIGKILL)\n"
        "build(Path(sys.argv[1]), Path(sys.argv[2]), stopping(sys.argv[3], 2, kill))"
    )
    for what in ("Analysing", "Encoding"):
        done = subprocess.run(
            [sys.executable, "-c", script, place, tmp_path / "pack", what], cwd=ROOT, env=environment()
        )
        assert done.returncode == -signal.SIGKILL
    notices: list[str] = []
    build(place, tmp_path / "pack", notice=notices.append)
    assert "(6 of 6 tensors analysed, 2 of 6 tensors encoded)" in notices[0]
    assert files(tmp_path / "pack") == files(place / "pack")
    assert [path.name for path in tmp_path.iterdir()] == ["pack"]


ROOT = Path(__file__).parents[1]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "registry")])}


def interrupted(place: Path, out: Path) -> list[Path]:
    """Leave a run that was interrupted at its last step, and return its records."""
    with pytest.raises(KeyboardInterrupt):
        build(place, out, stopping("Encoding", 6, interrupt))
    return sorted(out.parent.rglob("*.record"))


def test_damaged_records_are_made_again(place: Path, tmp_path: Path) -> None:
    records = interrupted(place, tmp_path / "pack")
    records[0].write_bytes(b"")
    records[1].write_bytes(records[1].read_bytes()[:-1])
    for path in records[2:]:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    for path in tmp_path.rglob("*.npz"):
        path.write_bytes(b"not factors")
    build(place, tmp_path / "pack")
    assert files(tmp_path / "pack") == files(place / "pack")


def test_records_of_other_inputs_or_of_a_run_that_is_not_to_be_resumed_are_removed(place: Path, tmp_path: Path) -> None:
    interrupted(place, tmp_path / "pack")
    other = tmp_path / "other"
    other.mkdir()
    tensors = load_file(place / "tuned" / "model.safetensors")
    save_file({**tensors, "norm.weight": tensors["norm.weight"] + 1}, other / "model.safetensors")
    notices: list[str] = []
    pack(other, place / "base", tmp_path / "pack", metadata=METADATA, budget_bytes=20_000, notice=notices.append)
    assert not notices and not (tmp_path / ".pack.partial").exists()
    interrupted(place, tmp_path / "second")
    build(place, tmp_path / "second", resume=False, notice=notices.append)
    assert not notices and files(tmp_path / "second") == files(place / "pack")


def test_what_cannot_succeed_leaves_nothing(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="too small"):
        pack(place / "tuned", place / "base", tmp_path / "pack", metadata=METADATA, budget_bytes=10)
    assert not list(tmp_path.iterdir())


def test_two_runs_into_one_folder_do_not_get_into_each_others_way(place: Path, tmp_path: Path) -> None:
    with locked(tmp_path / ".pack.partial" / "lock"), pytest.raises(EnvironmentLockedError, match=r"\.pack\.partial"):
        build(place, tmp_path / "pack")


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=60)
@given(value=values, key=st.text(max_size=10))
def test_a_record_is_read_as_it_was_written(place: Path, value: object, key: str) -> None:
    partial = Partial(place)
    partial.write("kind", key, value)
    assert partial.read("kind", key) == value
    assert partial.read("kind", key + "?") is None is partial.read("other", key)


def test_records_hold_what_packing_finds_out(tmp_path: Path) -> None:
    partial = Partial(tmp_path)
    delta = torch.randn(90, 80, generator=torch.Generator().manual_seed(1))
    for found in (analyse("a", delta, spool=tmp_path), analyse("a", delta[:5])):
        partial.write("analysis", "a", found)
        again = partial.read("analysis", "a")
        assert (again.prices, again.bits, again.errors) == (found.prices, found.bits, found.errors)
        assert again.factors == found.factors and len(again.fixed) == len(found.fixed)
        for one, other in zip(again.fixed, found.fixed, strict=True):
            assert (one.codec, one.config, one.arrays.keys()) == (other.codec, other.config, other.arrays.keys())
            assert all(np.array_equal(one.arrays[key], array) for key, array in other.arrays.items())
    with pytest.raises(KeyError, match="Factors"):  # not kept unread
        partial.write("analysis", "a", analyse("a", delta))


def test_a_record_is_as_good_as_the_files_that_it_names(tmp_path: Path) -> None:
    for name in ("inputs", "gradients"):
        (tmp_path / name).write_bytes(b"0123")
    layer = LayerRecord(tmp_path / "inputs", tmp_path / "gradients", 1, 1, 2, (2,), 0.5)
    calibration = Calibration({"a": layer}, {"b": 0.25}, 3.0, (Row((1, 2), 1, 0.5),), True)
    partial = Partial(tmp_path)
    partial.write("calibration", "", (calibration,))
    found = partial.read("calibration", "")[0]
    assert found.layers == {"a": layer} and (found.vocabularies, found.rows) == ({"b": 0.25}, calibration.rows)
    (tmp_path / "gradients").write_bytes(b"0124")
    assert partial.read("calibration", "") is None


def test_a_record_of_other_fields_is_as_if_it_were_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass
    class Row:
        tokens: tuple[int, ...]
        begin: int

    partial = Partial(tmp_path)
    monkeypatch.setitem(KINDS, "Row", Row)
    partial.write("calibration", "", [Row((1, 2), 1)])
    assert partial.read("calibration", "") == [Row((1, 2), 1)]
    monkeypatch.undo()
    assert partial.read("calibration", "") is None
    monkeypatch.delitem(KINDS, "Row")
    assert partial.read("calibration", "") is None


def test_records_of_another_schema_are_of_other_inputs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    delta = Delta(open_checkpoint(place / "base"), open_checkpoint(place / "tuned"))
    before = digest_inputs(delta, "near")
    assert digest_inputs(delta, "near") == before
    monkeypatch.setattr(partials, "RECORDS_SCHEMA", partials.RECORDS_SCHEMA + 1)
    assert digest_inputs(delta, "near") != before


def together(processes: int, place: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """Pack by several processes, as torchrun starts them."""
    command = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(processes),
        "-m",
        "skillhub",
        "pack",
    ]
    options = ["--name", "tiny-pack", "--version", "1.0.0", "--budget", "20kB", "--json"]
    paths = [str(place / "tuned"), "--base", str(place / "base"), "-o", str(out)]
    return subprocess.run(
        [sys.executable, *command, *paths, *options], env=environment(), cwd=ROOT, capture_output=True, text=True
    )


def test_several_processes_make_the_pack_that_one_makes(place: Path, tmp_path: Path) -> None:
    done = together(3, place, tmp_path / "pack")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('"digest"') == 1
    assert files(tmp_path / "pack") == files(place / "pack")
    assert [path.name for path in tmp_path.iterdir()] == ["pack"]


def test_where_one_process_fails_all_do_and_nothing_is_left(place: Path, tmp_path: Path) -> None:
    """The second process has a tensor that no pack can hold in its share."""
    for number, name in enumerate(("base", "tuned")):
        (tmp_path / name).mkdir()
        specs = {"w": ("F4", (4,)), "large": ("F32", (8,))}
        write_tensors(tmp_path / name / "model.safetensors", specs, [bytes([number, 2]), bytes([number] * 32)], {})
    done = together(2, tmp_path, tmp_path / "out" / "pack")
    assert done.returncode != 0
    assert "w is stored as F4, which a pack cannot hold" in done.stdout
    assert "Rank 1 failed: w is stored as F4" in done.stdout
    assert not list((tmp_path / "out").iterdir())
