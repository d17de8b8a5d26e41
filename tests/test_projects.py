"""skillhub.toml: what people wrote in it stays when a command changes it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skillhub.errors import UsageError
from skillhub.projects import Base, Project, RegistryEntry, parse_project, updated_text
from tests.support.packs import BASE

WRITTEN = f"""# our assistant's skills
requirements = [
  'acme/math-pack>=1',  # sums
  "acme/spanish",
]

[[base]]  # small
fingerprint = "{BASE}"
""".encode()

TEXTS = st.lists(st.text("ab/.=1é\"'#\\ ", min_size=1, max_size=8), unique=True, max_size=4)


def test_comments_and_quotes_stay() -> None:
    project = Project(
        requirements=["acme/math-pack>=1", "acme/french"],
        constraints=["acme/shared<2"],
        pre_releases=True,
        base=[Base(fingerprint=BASE)],
        registry=[RegistryEntry(name="corp", url="https://hub.corp.example", packs=["corp/*"])],
    )
    text = updated_text(WRITTEN, project).decode()
    assert parse_project(text.encode()) == project
    assert "# our assistant's skills" in text
    assert "'acme/math-pack>=1',  # sums" in text
    assert "[[base]]  # small" in text
    assert "spanish" not in text


def test_a_byte_order_mark_is_no_obstacle() -> None:
    project = Project(requirements=["acme/french"])
    assert parse_project(updated_text(b"\xef\xbb\xbf" + WRITTEN, project)) == project


@given(before=TEXTS, after=TEXTS, constraints=TEXTS, pre_releases=st.booleans())
def test_what_is_written_is_what_is_read(
    before: list[str], after: list[str], constraints: list[str], pre_releases: bool
) -> None:
    first = Project(requirements=before, base=[Base(fingerprint=BASE)], exclude_newer="2026-01-01T00:00:00Z")
    second = Project(requirements=after, constraints=constraints, pre_releases=pre_releases)
    text = updated_text(b"", first)
    assert parse_project(text) == first
    read = parse_project(updated_text(text, second))
    assert sorted(read.requirements) == sorted(second.requirements)
    assert (read.constraints, read.pre_releases, read.base, read.exclude_newer) == (constraints, pre_releases, [], None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"requirements = 3", "$.requirements"),
        (b"requirement = []", "requirement"),
        (b"requirements = [}", "line 1"),
        (f'[[base]]\nfingerprint = "{BASE}"\n[[base]]\nfingerprint = "{BASE}"\n'.encode(), "several bases"),
        (b'[[registry]]\nurl = "x"', "name"),
    ],
)
def test_bad_files_name_the_place(text: bytes, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_project(text)
    assert said in caught.value.message
