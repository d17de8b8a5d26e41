"""Candidates with their reasons, and the choice among them."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

from skillhub.errors import ResolutionError, WrongBaseError
from skillhub.names import parse_requirement
from skillhub.releases import Event, Release, ReleaseIndex, ReleaseVariant
from skillhub.resolver import BaseClaim, Request, find_candidates, find_conflict, resolve
from tests.support.packs import BASE, OTHER_BASE

FILES = "f" * 64
OURS = BaseClaim(fingerprint=BASE, name="our base")


def release(
    version: str,
    bases: Sequence[str] = (BASE,),
    *,
    yanked: str | None = None,
    requires: Sequence[str] = (),
    conflicts: Sequence[str] = (),
    base_files: Sequence[str] = (),
) -> Release:
    event = Event(
        schema=0,
        event="release",
        version=version,
        manifest="ab" * 32,
        requires=list(requires),
        conflicts=list(conflicts),
        variants=[ReleaseVariant(fingerprint=base, base_files=list(base_files)) for base in bases],
    )
    return Release(Version(version), event, yanked)


def request(text: str, *releases: Release, locked: str | None = None) -> Request:
    return Request(parse_requirement(text), ReleaseIndex(releases), Version(locked) if locked else None)


def chosen(text: str, *releases: Release, locked: str | None = None, base: BaseClaim | None = OURS) -> str:
    return str(resolve([request(text, *releases, locked=locked)], base=base).picks[0].release.version)


def test_the_newest_that_will_do_is_chosen() -> None:
    releases = [release("1.0"), release("1.10"), release("1.9"), release("2.0")]
    assert chosen("a/b", *releases) == "2.0"
    assert chosen("a/b<2", *releases) == "1.10"
    assert chosen("a/b==1.*,!=1.10", *releases) == "1.9"


def test_what_is_locked_stays_while_it_will_do() -> None:
    releases = [release("1.0"), release("1.1"), release("1.2rc1"), release("1.3", yanked="broken")]
    assert chosen("a/b", *releases, locked="1.0") == "1.0"
    assert chosen("a/b>1.0", *releases, locked="1.0") == "1.1"
    assert chosen("a/b", *releases, locked="1.2rc1") == "1.2rc1"
    assert chosen("a/b", *releases, locked="1.3") == "1.3"
    notes = resolve([request("a/b", *releases, locked="1.3")], base=OURS).notes
    assert notes == ("a/b 1.3 was yanked (broken); it stays because it is locked.",)


def test_pre_releases_are_asked_for_by_name() -> None:
    releases = [release("1.0"), release("2.0rc1")]
    assert chosen("a/b", *releases) == "1.0"
    assert chosen("a/b>=2.0rc1", *releases) == "2.0rc1"
    with pytest.raises(ResolutionError, match=r"2\.0rc1 is a pre-release") as caught:
        chosen("a/b", release("2.0rc1"))
    assert caught.value.hint == "A pre-release exists; ask for it by name: 'a/b==2.0rc1'."


def test_every_reason_is_told() -> None:
    releases = [release("0.9"), release("1.0", yanked="wrong weights"), release("1.1rc1"), release("3.0")]
    candidates = find_candidates(parse_requirement("a/b>=1,<2"), ReleaseIndex(tuple(releases)), base=OURS)
    told = [(str(one.version), one.rejection.kind if one.rejection else None) for one in candidates]
    assert told == [("3.0", "version"), ("1.1rc1", "pre-release"), ("1.0", "yanked"), ("0.9", "version")]
    with pytest.raises(ResolutionError) as caught:
        chosen("a/b>=1,<2", *releases)
    assert caught.value.exit_code == 3
    assert "a/b>=1,<2" in caught.value.message
    assert "1.0 was yanked (wrong weights)" in caught.value.message
    assert "1.1rc1 is a pre-release" in caught.value.message


def test_many_reasons_are_cut_short() -> None:
    with pytest.raises(ResolutionError, match="42 older releases are out as well"):
        chosen("a/b>=99", *(release(f"{major}.0") for major in range(50)))


def test_hints_name_what_would_help() -> None:
    with pytest.raises(ResolutionError) as caught:
        chosen("a/b>=2", release("1.5"), release("1.0"))
    assert caught.value.hint == "The newest release is 1.5; ask for it: 'a/b==1.5'."
    with pytest.raises(ResolutionError, match="no releases"):
        chosen("a/b")
    with pytest.raises(ResolutionError) as caught:
        chosen("a/b", release("1.0", yanked="x"))
    assert "yanked" in caught.value.hint


def test_hints_never_name_a_yanked_release() -> None:
    def hint(text: str, *releases: Release) -> str:
        with pytest.raises(ResolutionError) as caught:
            chosen(text, *releases)
        return caught.value.hint

    assert hint("a/b==3", release("1.0"), release("2.0", yanked="x")).startswith("The newest release is 1.0;")
    assert hint("a/b==3", release("1.0"), release("2.0rc1")).startswith("The newest release is 1.0;")
    assert hint("a/b", release("2.0rc1"), release("2.0rc2", yanked="x")).endswith("'a/b==2.0rc1'.")
    assert "was yanked" in hint("a/b==3", release("2.0", yanked="x"))


def test_a_release_for_another_base_is_no_candidate() -> None:
    assert chosen("a/b", release("1.0"), release("2.0", [OTHER_BASE])) == "1.0"
    with pytest.raises(WrongBaseError) as caught:
        chosen("a/b", release("1.0", [OTHER_BASE]), release("0.1", yanked="x"))
    assert caught.value.exit_code == 5
    assert "1.0 has no variant for our base" in caught.value.message
    assert OTHER_BASE[:17] in caught.value.hint


def test_files_of_a_repository_claim_a_base() -> None:
    releases = [release("1.0", [OTHER_BASE], base_files=[FILES]), release("2.0", [BASE])]
    picks = resolve([request("a/b", *releases)], base=BaseClaim(base_files=FILES)).picks
    assert picks[0].fingerprint == OTHER_BASE
    with pytest.raises(WrongBaseError):
        resolve([request("a/b", *releases)], base=BaseClaim(name="org/unknown"))


def test_without_a_base_any_will_do() -> None:
    assert chosen("a/b", release("1.0", [OTHER_BASE]), release("0.1"), base=None) == "1.0"


def test_dependencies_are_refused_and_not_ignored() -> None:
    needs = release("2.0", requires=["c/d>=1"])
    with pytest.raises(ResolutionError, match=r"a/b 2.0 requires c/d>=1") as caught:
        chosen("a/b", release("1.0"), needs)
    assert caught.value.hint == "Ask for a release that needs no other: 'a/b==1.0'."
    assert chosen("a/b<2", release("1.0"), needs) == "1.0"


def test_conflicts_are_refused() -> None:
    first = request("a/b", release("1.0", conflicts=["C/D<2"]))
    with pytest.raises(ResolutionError, match="conflicts with C/D<2"):
        resolve([first, request("c/d", release("1.5"))], base=OURS)
    assert len(resolve([first, request("c/d", release("2.0"))], base=OURS).picks) == 2
    assert find_conflict(["c/d"], parse_requirement("c/d").pack, Version("1.0rc1")) == "c/d"


def test_deprecation_and_moves_are_told() -> None:
    index = ReleaseIndex((release("1.0"),), deprecated="use a/c", moved_to="a/c", notes=("a note",))
    notes = resolve([Request(parse_requirement("a/b"), index)], base=OURS).notes
    assert notes == ("a/b is deprecated: use a/c.", "a/b has moved to a/c.", "a note")


versions = st.sampled_from(["0.9", "1.0", "1.0.post1", "1.1rc1", "1.1", "2.0.dev1", "2.0"])
releases_ = st.lists(
    st.builds(
        release,
        versions,
        st.lists(st.sampled_from([BASE, OTHER_BASE]), unique=True),
        yanked=st.none() | st.just("x"),
    ),
    unique_by=lambda one: one.version,
)
specifiers = st.sampled_from(["", ">=1", "<1", "==1.0", "~=1.0", "==1.1rc1", "!=1.1"])


@given(releases_, specifiers, st.none() | versions, st.integers())
def test_the_choice_agrees_with_the_rules_spelled_out(
    releases: list[Release], specifier: str, locked: str | None, seed: int
) -> None:
    def will_do(one: Release) -> bool:
        is_locked = str(one.version) == locked
        wanted = parse_requirement(f"a/b{specifier}").specifier
        return (
            one.version in list(wanted.filter([one.version], prereleases=True))
            and (is_locked or "rc" in specifier or not one.version.is_prerelease)
            and (is_locked or one.yanked is None)
            and BASE in [variant.fingerprint for variant in one.event.variants]
        )

    allowed = sorted(one.version for one in releases if will_do(one))
    expected = Version(locked) if locked and Version(locked) in allowed else (allowed or [None])[-1]
    random.Random(seed).shuffle(releases)
    try:
        found: Version | None = Version(chosen(f"a/b{specifier}", *releases, locked=locked))
    except (ResolutionError, WrongBaseError):
        found = None
    assert found == expected


@pytest.mark.parametrize("specifier", ["==1.0.0,==1.1.0", "<1,>=1", ">=1,<2,!=1.*", "==1.0,!=1.0.0", "~=1.2,<1.2"])
def test_requirements_that_exclude_each_other_are_said_to(specifier: str) -> None:
    with pytest.raises(ResolutionError) as caught:
        chosen(f"a/b{specifier}", release("1.0.0"), release("1.1.0"), release("4.0.3"))
    assert "exclude each other" in caught.value.hint and "4.0.3" not in caught.value.hint


@pytest.mark.parametrize(
    "specifier",
    [
        ">=2,<3",
        ">1,<1.0.1",
        "<0",
        "===x",
        ">1.0rc1,<1.0rc3",
        ">=1,<2,!=1.0,!=1.1,!=1.0.0.1",
        ">0,<0.1",
        "!=2.0.*,>=2,<2.2",
    ],
)
def test_requirements_that_only_no_release_meets_are_not(specifier: str) -> None:
    with pytest.raises(ResolutionError) as caught:
        chosen(f"a/b{specifier}", release("1.0"), release("1.1"), release("4.0.3"))
    assert "exclude each other" not in caught.value.hint
