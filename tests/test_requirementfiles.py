"""Requirements files: lines, comments, continuations, hashes, files in files; and errors that name the line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skillhub.errors import DiskError, NotFoundError, UsageError
from skillhub.requirementfiles import FileRequirement, read_requirement_file

ONE, TWO = "1" * 64, "ab" * 32


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_each_kind_of_line(tmp_path: Path) -> None:
    text = f"""\ufeff# wanted

acme/math-pack>=1.2,<2   # the newest will do
  acme/chat-pack == 1.0.0 --hash=sha256:{ONE} \\
      --hash sha256:{TWO.upper()}
./packs/my own#1
peft:acme/lora@0123456789ab
acme/last"""
    path = write(tmp_path / "wanted.txt", text)
    assert read_requirement_file(path) == [
        FileRequirement("acme/math-pack>=1.2,<2", (), 3, path),
        FileRequirement("acme/chat-pack == 1.0.0", (ONE, TWO), 4, path),
        FileRequirement("./packs/my own#1", (), 6, path),
        FileRequirement("peft:acme/lora@0123456789ab", (), 7, path),
        FileRequirement("acme/last", (), 8, path),
    ]


def test_a_line_that_goes_on_ends_with_a_comment_or_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "wanted.txt", "acme/a>=1, \\\n<2 # and no more \\\nacme/b \\\n\\\n")
    assert [(one.text, one.line) for one in read_requirement_file(path)] == [("acme/a>=1,  <2", 1), ("acme/b", 3)]


def test_files_in_files_are_relative_to_the_file_that_names_them(tmp_path: Path) -> None:
    inner = write(tmp_path / "sets" / "inner.txt", "acme/b\n-c narrow.txt\n-r ../outer.txt\n")
    narrow = write(tmp_path / "sets" / "narrow.txt", "acme/a<2\n-r more.txt\n")
    more = write(tmp_path / "sets" / "more.txt", "acme/c<3")
    outer = write(tmp_path / "outer.txt", "acme/a\n-r sets/inner.txt\n--requirement=sets/inner.txt\nacme/d\n")
    found = read_requirement_file(outer)
    assert [(one.text, one.path.resolve(), one.constraint) for one in found] == [
        ("acme/a", outer, False),
        ("acme/b", inner, False),
        ("acme/a<2", narrow, True),
        ("acme/c<3", more, True),  # whatever a file of constraints includes is constraints
        ("acme/d", outer, False),
    ]
    assert found[1].where == f"{tmp_path / 'sets/inner.txt'}, line 1" and found[1].start == tmp_path / "sets"


def test_a_file_may_be_both_requirements_and_constraints(tmp_path: Path) -> None:
    path = write(tmp_path / "both.txt", "acme/a\n-c both.txt\n")
    assert [(one.text, one.constraint) for one in read_requirement_file(path)] == [("acme/a", False), ("acme/a", True)]
    assert [one.constraint for one in read_requirement_file(path, constraint=True)] == [True]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("acme/b --hash=md5:0123", "'--hash=md5:0123'"),
        (f"acme/b --hash=sha256:{ONE}0", "--hash=sha256:1111"),
        ("acme/b --pre", "'--pre'"),
        ("--index-url https://registry.example", "'--index-url"),
        ("-e ./folder", "'-e ./folder'"),
        ("-r", "'' is no file"),
        ("-r https://registry.example/list.txt", "list.txt' is no file"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(tmp_path: Path, line: str, said: str) -> None:
    path = write(tmp_path / "wanted.txt", f"acme/a\n\n{line}\n")
    with pytest.raises(UsageError) as caught:
        read_requirement_file(path)
    assert caught.value.message.startswith(f"{path}, line 3: ") and said in caught.value.message
    assert caught.value.hint


def test_a_missing_file_is_named_with_the_line_that_includes_it(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"absent\.txt does not exist"):
        read_requirement_file(tmp_path / "absent.txt")
    path = write(tmp_path / "wanted.txt", "\n-r absent.txt")
    with pytest.raises(NotFoundError, match=r"wanted\.txt, line 2 includes"):
        read_requirement_file(path)


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "wanted.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not UTF-8"):
        read_requirement_file(tmp_path / "wanted.txt")
    with pytest.raises(DiskError):
        read_requirement_file(tmp_path)
    with (tmp_path / "long.txt").open("wb") as stream:
        os.ftruncate(stream.fileno(), 1 << 30)
    with pytest.raises(UsageError, match="longer"):
        read_requirement_file(tmp_path / "long.txt")


@given(st.lists(st.text(max_size=30), max_size=8))
def test_any_text_is_requirements_or_one_error(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    path = tmp_path_factory.mktemp("any") / "wanted.txt"
    path.write_bytes("\n".join(lines).encode(errors="replace"))
    try:
        found = read_requirement_file(path)
    except (UsageError, NotFoundError, DiskError):
        return
    assert all(one.text == one.text.strip() != "" for one in found)
