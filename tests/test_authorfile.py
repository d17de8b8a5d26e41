"""The author's file: what a person writes, with errors that name the line or the field."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skillhub.authorfile import AuthorFile, read_author_file
from skillhub.errors import DiskError, NotFoundError, SkillhubError, UsageError
from skillhub.manifest import Skill, parse_manifest

GOLDEN = Path(__file__).parent / "golden" / "skillpack_0.toml"


def read(tmp_path: Path, text: str | bytes) -> AuthorFile:
    path = tmp_path / "skillpack.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_author_file(path)


def test_what_the_golden_file_says() -> None:
    assert read_author_file(GOLDEN) == AuthorFile(
        name="math-pack",
        version="1.2.0rc1",
        summary="Summen, 和, ∑ – of three digits",
        license="apache-2.0",
        base="acme/small-base@main",
        requires=["acme/chat-pack>=1,<2"],
        conflicts=["acme/other-pack"],
        skills=Skill(tags=["math", "数学"], prompts=["What is 12 + 30?\nAnswer:"]),
    )


def test_the_golden_file_begins_the_golden_manifest() -> None:
    begun = read_author_file(GOLDEN).to_manifest()
    built = parse_manifest((GOLDEN.parent / "manifest_0.json").read_bytes())
    for field in ("schema", "name", "version", "summary", "license", "requires", "conflicts", "skills"):
        assert getattr(begun, field) == getattr(built, field)
    assert begun.variants == [] and parse_manifest(begun.to_bytes()) == begun


def test_a_name_and_a_version_are_enough(tmp_path: Path) -> None:
    author = read(tmp_path, 'name = "a"\nversion = "1"\n')
    assert author == AuthorFile(name="a", version="1")
    assert author.base is None and author.to_manifest().skills == Skill()


def test_windows_line_ends_and_byte_order_mark_are_fine(tmp_path: Path) -> None:
    assert read(tmp_path, b'\xef\xbb\xbfname = "a"\r\nversion = "1"\r\n').name == "a"


NAMED = 'name = "a"\nversion = "1"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name = "a\n', "line 1"),
        (NAMED + "summary =\n", "line 3"),
        (NAMED + 'name = "b"\n', "line 3"),
        (NAMED + "[skills\n", "line 3"),
        ('version = "1"', "missing required field `name`"),
        ('name = "a"\nversion = 1.0', "version: Expected `str`, got `float`"),
        (NAMED + "requires = 'acme/b'", "requires: Expected `array`, got `str`"),
        (NAMED + "requires = ['acme/b', 3]", "requires[1]: Expected `str`, got `int`"),
        (NAMED + "[skills]\nprompts = [1]", "skills.prompts[0]: Expected `str`, got `int`"),
        (NAMED + "license = 2024-01-01", "license: Expected "),
        (NAMED + "licence = 'mit'", "unknown field `licence`"),
        (NAMED + "[skills]\ntag = []", "unknown field `tag`"),
        (NAMED + "x = " + "9" * 5_000, "A number is too long"),
        (NAMED + "x = " + "[" * 50_000, "nested too deeply"),
        (b"\xff\xfe", "It is not UTF-8 text"),
    ],
    ids=range(15),
)
def test_a_mistake_is_named_by_line_or_field(text: str | bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        read(tmp_path, text)
    assert str(tmp_path / "skillpack.toml") in caught.value.message and message in caught.value.message
    assert "$" not in caught.value.message
    assert caught.value.exit_code == 2 and caught.value.hint


@pytest.mark.parametrize(
    ("author", "message"),
    [
        (
            AuthorFile(name="a/b", version="1"),
            "name: 'a/b' is not a pack's bare name (letters, digits, '.', '_' and '-')",
        ),
        (
            AuthorFile(name="a", version="1.0-1"),
            "version: The version '1.0-1' is not in its normalized public form, '1.0.post1'",
        ),
        (AuthorFile(name="a", version="one"), "version: 'one' is not a version"),
        (AuthorFile(name="a", version="1", requires=["b"]), "requires[0]: 'b' lacks an owner: write OWNER/b"),
        (AuthorFile(name="a", version="1", conflicts=["x/y z"]), "conflicts[0]: "),
        (AuthorFile(name="a", version="1", summary="x" * 10_001), "summary: "),
        (AuthorFile(name="a", version="1", summary="\x1b[31m"), "summary: It contains control characters"),
        (AuthorFile(name="a", version="1", license="a\nb"), "license: It contains control characters"),
        (AuthorFile(name="a", version="1", skills=Skill(tags=["ok", "\x07"])), "skills.tags[1]: "),
    ],
    ids=range(9),
)
def test_what_cannot_become_a_manifest_is_named_by_its_field(author: AuthorFile, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        author.to_manifest()
    assert caught.value.message.startswith(message) and "skillpack.toml" in caught.value.hint


def test_a_file_that_cannot_be_read_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="There is no ") as caught:
        read_author_file(tmp_path / "skillpack.toml")
    assert "--name" in caught.value.hint
    with pytest.raises(DiskError):
        read_author_file(tmp_path)


@given(data=st.binary(max_size=60) | st.text(st.sampled_from('nameversion=[]"\n1. {},'), max_size=60).map(str.encode))
@settings(max_examples=60)
def test_any_bytes_are_read_or_refused(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("any")
    try:
        read(folder, data)
    except SkillhubError as error:
        assert error.exit_code == 2 and error.hint
