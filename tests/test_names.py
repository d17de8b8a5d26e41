"""Names of packs, requirements and versions, against huggingface_hub's and PEP 440's own rules."""

from __future__ import annotations

import re

import pytest
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from hypothesis import example, given
from hypothesis import strategies as st
from packaging.version import VERSION_PATTERN, Version

from skillhub.errors import UsageError
from skillhub.names import PackName, is_bare_name, parse_pack_name, parse_requirement, parse_version
from tests.support.manifests import NAMES, VERSIONS

NEARLY_NAMES = st.text("aZ0._-", max_size=12) | st.sampled_from(
    ["a.git", "a.git.b", "a" * 96, "a" * 97, "é", "a b", "a\n"]
)


def hub_accepts(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


@given(NEARLY_NAMES | st.text(max_size=5))
@example("_a_")
@example("a--b")
@example("a..b")
@example("")
def test_a_bare_name_is_what_the_hub_takes(name: str) -> None:
    assert is_bare_name(name) == ("/" not in name and hub_accepts(name) and not name.lower().endswith(".git"))


@given(NEARLY_NAMES, NEARLY_NAMES)
def test_a_full_name_that_we_take_the_hub_takes_too(owner: str, name: str) -> None:
    if is_bare_name(owner) and is_bare_name(name) and owner != "_":
        assert hub_accepts(f"{owner}/{name}")
        assert parse_pack_name(f"{owner}/{name}") == PackName(owner, name)


def test_a_git_ending_is_refused_in_capitals_too() -> None:
    assert not is_bare_name("pack.GIT")  # stricter than huggingface_hub: such a folder is git's on some systems


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "a/",
        "/a",
        "a/b/c",
        "_/b",  # the folder of packs without an owner
        "../b",
        "a/..",
        "a\\b",
        "C:a",
        "a b",
        " a",
        "a\n",
        "a\x00",
        "a@main",
        "a#b",
        "a%2fb",
        "é",
        "a/b.git",
        "-a",
        "a-",
        ".a",
        "a.",
        "a" * 97,
        "ａ",
        "a\u200b",
        "https://huggingface.co/a/b",
        "x" * 100000,
    ],
)
def test_what_is_no_name_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_pack_name(text)
    assert caught.value.hint and len(caught.value.message) < 200


@given(NAMES, NAMES, NAMES)
def test_names_compare_without_regard_to_case(owner: str, name: str, other: str) -> None:
    full, shout, short = PackName(owner, name), PackName(owner.upper(), name.upper()), PackName(None, name)
    assert full == shout and hash(full) == hash(shout) and len({full, shout}) == 1
    assert full != short and full != str(full)
    assert full.matches(shout) and short.matches(shout) and shout.matches(short)
    assert full.matches(PackName(other, name)) == (owner == other)
    assert full.matches(PackName(owner, other)) == (name == other)
    assert str(full) == f"{owner}/{name}" and str(short) == name


@given(
    NAMES,
    st.lists(st.tuples(st.sampled_from([">=", "<=", "==", "!=", "<", ">"]), VERSIONS), max_size=3),
    st.sampled_from(["", " ", "  "]),
)
def test_requirements_are_pep_440(name: str, clauses: list[tuple[str, str]], space: str) -> None:
    text = f"{space}acme/{name}{space}" + f"{space},".join(f"{sign}{space}{version}" for sign, version in clauses)
    requirement = parse_requirement(text)
    assert requirement.pack == PackName("acme", name)
    assert {str(one) for one in requirement.specifier} == {f"{sign}{version}" for sign, version in clauses}
    assert requirement.text == text.strip()
    assert parse_requirement(str(requirement)).specifier == requirement.specifier


@pytest.mark.parametrize(
    ("text", "allowed", "refused"),
    [
        ("a>=1.2,<2", ["1.2", "1.10", "1.9.post1"], ["1.1", "2.0", "2.0.1"]),
        ("a==1.0.*", ["1.0", "1.0.7"], ["1.1"]),
        ("a~=1.4.2", ["1.4.2", "1.4.9"], ["1.5", "1.4.1"]),
        ("a!=1.0", ["1.1"], ["1.0", "1.0.0"]),
        ("a", ["0.1", "99"], []),
    ],
)
def test_requirements_mean_what_pep_440_says(text: str, allowed: list[str], refused: list[str]) -> None:
    specifier = parse_requirement(text).specifier
    assert all(version in specifier for version in allowed)
    assert not any(version in specifier for version in refused)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        ">=1",
        "a>=",
        "a>=x",
        "a=1",
        "a 1.0",
        "a>=1;python_version<'3'",
        "a[extra]>=1",
        "a @ https://x/y",
        "a>=1\n>=2",
        "../a>=1",
        "a/b/c>=1",
        "a/..>=1",
        "a,b",
        "a>=1.0+local",
        "a==1.0+",
        "a>=1\x00",
        "a>=" + "9" * 5000,
        "a" * 5000,
    ],
)
def test_what_is_no_requirement_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_requirement(text)
    assert caught.value.hint


@given(st.text(max_size=30))
def test_any_text_is_a_requirement_or_a_usage_error(text: str) -> None:
    try:
        parse_requirement(text)
    except UsageError as error:
        assert error.hint


@given(VERSIONS)
def test_normalized_versions_are_taken(text: str) -> None:
    assert re.fullmatch(VERSION_PATTERN, text, re.VERBOSE | re.IGNORECASE)
    assert str(parse_version(text)) == text


@pytest.mark.parametrize(
    ("text", "instead"),
    [
        ("v1.0", "1.0"),
        ("1.0-rc1", "1.0rc1"),
        ("1.0RC1", "1.0rc1"),
        (" 1.0", "1.0"),
        ("01.2", "1.2"),
        ("1.0+cpu", "1.0"),
        ("1.0alpha", "1.0a0"),
        ("1.0-1", "1.0.post1"),
    ],
)
def test_a_version_in_another_form_is_answered_with_the_right_one(text: str, instead: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_version(text)
    assert caught.value.hint == f"Write {instead!r}."
    assert str(parse_version(instead)) == str(Version(instead))


@pytest.mark.parametrize(
    "text", ["", "latest", "1.0/..", "1..0", "1.0 ", "1.x", "1." + "9" * 5_000, "1.0\0", "1" + ".0" * 5_000]
)
def test_what_is_no_version_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_version(text)
    assert caught.value.hint and len(caught.value.message) < 200
