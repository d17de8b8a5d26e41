from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from skillhub.remembered import FOLDER, remembered


class Reader:
    """Reads a file and counts how often."""

    def __init__(self, path: Path) -> None:
        self.path, self.reads = path, 0

    def read(self) -> str:
        self.reads += 1
        return self.path.read_text("utf-8")

    def ask(self, fact: str = "text-0") -> str:
        def decode(value: Any) -> str:
            if not isinstance(value, str):
                raise ValueError("not a text")
            return value

        return remembered(self.path, fact, decode, str, self.read)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SKILLHUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / FOLDER


@pytest.fixture
def reader(tmp_path: Path, cache: Path) -> Reader:
    path = tmp_path / "file"
    write_aged(path, "one")
    return Reader(path)


def write_aged(path: Path, text: str, age: int = 100) -> None:
    path.write_text(text, "utf-8")
    seconds = path.stat().st_mtime - age
    os.utime(path, (seconds, seconds))


def test_a_fact_is_read_once(reader: Reader, tmp_path: Path) -> None:
    assert [reader.ask(), reader.ask()] == ["one", "one"]
    link = tmp_path / "link"
    link.symlink_to(reader.path)
    assert remembered(link, "text-0", str, str, reader.read) == "one"
    assert reader.reads == 1
    reader.ask("text-1")
    assert reader.reads == 2


def test_a_changed_file_is_read_again(reader: Reader) -> None:
    reader.ask()
    write_aged(reader.path, "two", age=50)
    assert reader.ask() == "two"
    write_aged(reader.path, "three", age=50)
    assert reader.ask() == "three"
    assert reader.reads == 3


def test_a_file_changed_just_now_is_not_remembered(reader: Reader) -> None:
    reader.path.write_text("new", "utf-8")
    assert [reader.ask(), reader.ask()] == ["new", "new"]
    assert reader.reads == 2


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"key": 1}', b"\xff", None])
def test_a_damaged_memo_is_ignored_and_written_again(reader: Reader, cache: Path, damage: bytes | None) -> None:
    reader.ask()
    (memo,) = cache.iterdir()
    good = memo.read_bytes()
    memo.write_bytes(good.replace(b'"one"', b"5") if damage is None else damage)
    assert reader.ask() == "one"
    assert reader.reads == 2
    assert memo.read_bytes() == good


def test_a_cache_that_cannot_be_written_costs_only_time(reader: Reader, cache: Path) -> None:
    cache.parent.write_text("a file where the folder should be", "utf-8")
    assert [reader.ask(), reader.ask()] == ["one", "one"]
    assert reader.reads == 2
