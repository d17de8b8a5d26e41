"""Each rule of the resolver by itself."""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

from skillhub.errors import NetworkError, ResolutionError, ResolverLimitError, WrongBaseError
from skillhub.names import PackName, parse_pack_name, parse_requirement
from skillhub.releases import Release, ReleaseIndex
from skillhub.resolver import BaseClaim, Rejection
from skillhub.resolver.problem import Problem
from skillhub.resolver.solving import resolve
from tests.solving_examples import OURS, Shelf, chosen, forbidding, release, requirements, solve
from tests.support.packs import BASE, OTHER_BASE


def locked(**versions: str) -> dict[PackName, Version]:
    return {PackName("o", name): Version(version) for name, version in versions.items()}


def test_the_newest_that_will_do_is_chosen() -> None:
    table = {"o/a": [release("1.0"), release("1.10"), release("1.9"), release("2.0")]}
    assert solve(table, "o/a") == {"o/a": "2.0"}
    assert solve(table, "o/a<2") == {"o/a": "1.10"}
    assert solve(table, "o/a==1.*,!=1.10") == {"o/a": "1.9"}
    assert solve(table, "o/a<2", "o/a!=1.10") == {"o/a": "1.9"}


def test_names_are_compared_without_case() -> None:
    table = {"O/A": [release("1.0", ["o/B"])], "o/b": [release("1.0", ["O/a"])]}
    assert solve(table, "o/a", "O/A>=1") == {"o/a": "1.0", "o/B": "1.0"}


def test_what_a_release_requires_comes_in() -> None:
    table = {
        "o/a": [release("1.0", ["o/b<2"]), release("2.0", ["o/b>=2", "o/c"])],
        "o/b": [release("1.0"), release("2.0", ["o/c<2"])],
        "o/c": [release("1.0"), release("2.0")],
    }
    assert solve(table, "o/a") == {"o/a": "2.0", "o/b": "2.0", "o/c": "1.0"}
    assert solve(table, "o/a", "o/c>1") == {"o/a": "1.0", "o/b": "1.0", "o/c": "2.0"}
    picks = resolve(Problem(requirements("o/a"), OURS), Shelf(table)).picks
    assert [tuple(map(str, pick.dependencies)) for pick in picks] == [("o/b", "o/c"), ("o/c",), ()]


def test_without_dependencies_they_are_named_and_do_not_come_in() -> None:
    table = {"o/a": [release("1.0", ["o/b>=2", "o/c"])], "o/b": [release("1.0")]}
    shelf = Shelf(table)
    picks = resolve(Problem(requirements("o/a"), OURS, with_dependencies=False), shelf).picks
    assert [(str(one.name), list(map(str, one.dependencies))) for one in picks] == [("o/a", ["o/b", "o/c"])]
    assert shelf.asked == [["o/a"]]


def test_packs_may_require_each_other_and_themselves() -> None:
    table = {"o/a": [release("1.0", ["o/b", "o/a>=1"])], "o/b": [release("1.0", ["o/a"])]}
    picks = resolve(Problem(requirements("o/a"), OURS), Shelf(table)).picks
    assert [tuple(map(str, pick.dependencies)) for pick in picks] == [("o/b",), ("o/a",)]
    with pytest.raises(ResolutionError, match=r"1\.0 requires o/a>1, not itself"):
        solve({"o/a": [release("1.0", ["o/a>1"])]}, "o/a")
    assert solve({"o/a": [release("1.0"), release("2.0", ["o/a<2"])]}, "o/a") == {"o/a": "1.0"}


def test_conflicts_keep_releases_apart() -> None:
    table = {
        "o/a": [release("1.0"), release("2.0", conflicts=["O/B<2", "o/a<1", "o/absent"])],
        "o/b": [release("1.0"), release("1.5rc1")],
    }
    assert solve(table, "o/a", "o/b") == {"o/a": "1.0", "o/b": "1.0"}
    assert solve(table, "o/a", "o/b==1.5rc1") == {"o/a": "1.0", "o/b": "1.5rc1"}
    assert solve(table, "o/a") == {"o/a": "2.0"}


def test_a_conflict_with_a_pack_that_comes_in_later_counts() -> None:
    table = {
        "o/a": [release("1.0", conflicts=["o/z"])],
        "o/b": [release("1.0"), release("2.0", ["o/y"])],
        "o/y": [release("1.0", ["o/z"])],
        "o/z": [release("1.0")],
    }
    assert solve(table, "o/a", "o/b") == {"o/a": "1.0", "o/b": "1.0"}


def test_a_pack_that_is_only_in_a_conflict_is_not_read() -> None:
    shelf = Shelf({"o/a": [release("1.0", conflicts=["o/b"])], "o/b": [release("1.0")]})
    assert solve(shelf, "o/a") == {"o/a": "1.0"}
    assert shelf.asked == [["o/a"]]


def test_a_release_for_another_base_is_no_candidate() -> None:
    table = {
        "o/a": [release("1.0"), release("2.0", ["o/b"]), release("3.0", bases=[OTHER_BASE])],
        "o/b": [release("1.0", bases=[OTHER_BASE])],
    }
    assert solve(table, "o/a") == {"o/a": "1.0"}
    assert solve(table, "o/a", base=None) == {"o/a": "3.0"}
    assert resolve(Problem(requirements("o/a"), OURS), Shelf(table)).picks[0].fingerprint == BASE
    assert resolve(Problem(requirements("o/a")), Shelf(table)).picks[0].fingerprint is None


def test_files_of_a_repository_claim_a_base() -> None:
    table = {"o/a": [release("1.0", bases=[OTHER_BASE], base_files=["f" * 64]), release("2.0")]}
    picks = resolve(Problem(requirements("o/a"), BaseClaim(base_files="f" * 64)), Shelf(table)).picks
    assert picks[0].fingerprint == OTHER_BASE


def test_it_is_the_base_only_where_nothing_else_is_in_the_way() -> None:
    other = {"o/a": [release("1.0", ["o/b>=2"])], "o/b": [release("1.0"), release("2.0", bases=[OTHER_BASE])]}
    with pytest.raises(WrongBaseError):
        solve(other, "o/a")
    with pytest.raises(ResolutionError):
        solve(other, "o/a", "o/b<2")


def test_pre_releases_are_asked_for() -> None:
    table = {
        "o/a": [release("1.0"), release("2.0rc1")],
        "o/b": [release("1.0", ["o/a>=1.5rc1"])],
        "o/c": [release("1.0", ["o/a"])],
    }
    assert solve(table, "o/a") == {"o/a": "1.0"}
    assert solve(table, "o/a", allow_pre=True) == {"o/a": "2.0rc1"}
    assert solve(table, "o/b") == {"o/a": "2.0rc1", "o/b": "1.0"}
    assert solve(table, "o/a", locked=locked(a="2.0rc1")) == {"o/a": "2.0rc1"}
    # where the user names one, others need not
    assert solve(table, "o/c", "o/a>=2.0rc1") == {"o/a": "2.0rc1", "o/c": "1.0"}
    assert solve(table, "o/c", constraints=requirements("o/a>=2.0rc1")) == {"o/a": "2.0rc1", "o/c": "1.0"}
    with pytest.raises(ResolutionError):
        solve(table, "o/b", "o/c")  # who requires o/a did not ask for a pre-release


def test_a_pre_release_in_a_folder_is_asked_for() -> None:
    assert solve({"a": [release("1.0rc1")]}, "a") == {"a": "1.0rc1"}


def test_yanked_releases_are_passed_over_unless_locked() -> None:
    table = {"o/a": [release("1.0"), release("2.0", yanked="broken")]}
    assert solve(table, "o/a") == {"o/a": "1.0"}
    found = resolve(Problem(requirements("o/a"), OURS, locked=locked(a="2.0")), Shelf(table))
    assert chosen(found) == {"o/a": "2.0"}
    assert found.notes == ("o/a 2.0 was yanked (broken); it stays because it is locked.",)


def test_constraints_narrow_what_comes_in() -> None:
    table = {"o/a": [release("1.0", ["o/b"])], "o/b": [release("1.0"), release("2.0")], "o/c": [release("1.0")]}
    assert solve(table, "o/a", constraints=requirements("O/B<2", "o/c==9")) == {"o/a": "1.0", "o/b": "1.0"}
    with pytest.raises(ResolutionError, match=r"2\.0 is left out by the constraint o/b<2"):
        solve(table, "o/a", "o/b>=2", constraints=requirements("o/b<2"))


def test_overrides_take_the_place_of_every_requirement() -> None:
    table = {"o/a": [release("1.0", ["o/b<2"])], "o/b": [release("1.0"), release("2.0"), release("3.0")]}
    assert solve(table, "o/a", overrides=requirements("o/b>1", "O/b<3")) == {"o/a": "1.0", "o/b": "2.0"}
    assert solve(table, "o/b<2", overrides=requirements("o/b")) == {"o/b": "3.0"}
    assert solve(table, "o/a", overrides=requirements("o/c==9")) == {"o/a": "1.0", "o/b": "1.0"}


def test_the_screen_is_asked_last_and_only_for_what_would_do() -> None:
    asked: list[str] = []

    def screen(name: PackName, found: Release) -> Rejection | None:
        asked.append(f"{name} {found.version}")
        return Rejection("too-new", "was published after the cut-off") if found.version.major > 1 else None

    table = {
        "o/a": [release("1.0"), release("2.0"), release("3.0", yanked="x"), release("4.0")],
        "o/b": [release("1.0", bases=[OTHER_BASE]), release("0.5")],
    }
    assert solve(table, "o/a<4", "o/b", screen=screen) == {"o/a": "1.0", "o/b": "0.5"}
    assert sorted(asked) == ["o/a 1.0", "o/a 2.0", "o/b 0.5"]
    with pytest.raises(ResolutionError, match=r"4\.0 was published after the cut-off"):
        solve(table, "o/a>=4", screen=screen)


def test_a_screened_out_dependency_makes_room_for_an_older_one() -> None:
    table = {
        "o/a": [release("1.0", ["o/b<2"]), release("2.0", ["o/b>=2"])],
        "o/b": [release("1.0"), release("2.0")],
    }
    assert solve(table, "o/a", screen=forbidding({("o/b", "2.0")})) == {"o/a": "1.0", "o/b": "1.0"}


class TestLocked:
    TABLE: ClassVar = {
        "o/a": [release("1.0", ["o/b"]), release("2.0", ["o/b>=2"])],
        "o/b": [release("1.0"), release("2.0"), release("3.0")],
        "o/c": [release("1.0", ["o/b<3"]), release("2.0", ["o/b>=3"])],
    }

    def test_what_is_locked_stays_while_it_will_do(self) -> None:
        old = locked(a="1.0", b="1.0")
        assert solve(self.TABLE, "o/a", locked=old) == {"o/a": "1.0", "o/b": "1.0"}
        assert solve(self.TABLE, "o/a", "o/b>=2", locked=old) == {"o/a": "1.0", "o/b": "3.0"}
        assert solve(self.TABLE, "o/a", locked=locked(a="0.5", b="2.0")) == {"o/a": "2.0", "o/b": "2.0"}

    def test_what_is_upgraded_takes_along_what_it_needs(self) -> None:
        assert solve(self.TABLE, "o/a", locked=locked(b="1.0")) == {"o/a": "2.0", "o/b": "3.0"}
        assert solve(self.TABLE, "o/b", "o/a", locked=locked(b="1.0")) == {"o/a": "2.0", "o/b": "3.0"}

    def test_a_version_that_is_preferred_wins_over_locked_ones_that_do_not_go_with_it(self) -> None:
        assert solve(self.TABLE, "o/b", "o/a", locked=locked(a="2.0", b="1.0")) == {"o/a": "2.0", "o/b": "3.0"}

    def test_what_only_comes_in_gives_way_to_what_is_locked(self) -> None:
        table = {
            **self.TABLE,
            "o/new": [release("1.0", ["o/c"])],
        }
        old = locked(a="1.0", b="1.0")
        assert solve(table, "o/a", "o/new", locked=old) == {"o/a": "1.0", "o/b": "1.0", "o/c": "1.0", "o/new": "1.0"}

    def test_a_dependency_is_upgraded_by_itself(self) -> None:
        table = {
            "o/a": [release("1.0", ["o/b"])],
            "o/b": [release("1.0", ["o/c"]), release("2.0", ["o/c>=2"])],
            "o/c": [release("1.0"), release("2.0")],
        }
        expected = {"o/a": "1.0", "o/b": "2.0", "o/c": "2.0"}
        assert solve(table, "o/a", locked=locked(a="1.0", c="1.0")) == expected

    def test_a_locked_pack_that_nothing_requires_any_more_goes(self) -> None:
        assert solve(self.TABLE, "o/b", locked=locked(a="1.0", b="1.0", c="1.0")) == {"o/b": "1.0"}


class TestFolders:
    TABLE: ClassVar = {
        "b": [release("7.0")],
        "o/a": [release("1.0", ["o/b>=2"])],
        "o/b": [release("1.0"), release("2.0")],
    }

    def test_the_pack_of_a_folder_serves_who_requires_its_name(self) -> None:
        found = resolve(Problem(requirements("o/a", "b"), OURS), Shelf(self.TABLE))
        assert chosen(found) == {"b": "7.0", "o/a": "1.0"}
        assert solve(self.TABLE, "o/a") == {"o/a": "1.0", "o/b": "2.0"}

    def test_its_version_must_be_one_that_is_required(self) -> None:
        with pytest.raises(ResolutionError, match=r"o/a 1.0 requires o/b>=2, of which there is only 1.0"):
            solve({**self.TABLE, "b": [release("1.0")]}, "o/a", "b")

    def test_rules_and_conflicts_mean_it_too(self) -> None:
        overridden = solve({**self.TABLE, "b": [release("1.0")]}, "o/a", "b", overrides=requirements("o/b"))
        assert overridden == {"b": "1.0", "o/a": "1.0"}
        with pytest.raises(ResolutionError, match="is left out by the constraint o/b<7"):
            solve(self.TABLE, "b", constraints=requirements("o/b<7"))
        with pytest.raises(ResolutionError, match=r"o/a 1\.0 conflicts with o/b"):
            solve({**self.TABLE, "o/a": [release("1.0", conflicts=["o/b"])]}, "o/a", "b")


class TestReading:
    def test_what_packs_require_is_read_at_once_and_only_once(self) -> None:
        leaves = {f"o/leaf{number}": [release("1.0")] for number in range(5)}
        shelf = Shelf({"o/a": [release("1.0", list(leaves))], "o/b": [release("1.0", ["o/leaf0", "o/a"])], **leaves})
        solve(shelf, "o/b", "o/a")
        assert shelf.asked == [["o/a", "o/b"], sorted(leaves)]

    def test_only_what_may_come_in_is_read(self) -> None:
        table = {"o/a": [release("1.0", ["o/old"]), release("2.0", ["o/new"])], "o/new": [release("1.0")]}
        shelf = Shelf(table)
        solve(shelf, "o/a")
        assert shelf.asked == [["o/a"], ["o/new"]]

    def test_what_is_locked_is_followed_first(self) -> None:
        table = {"o/a": [release("1.0", ["o/old"]), release("2.0", ["o/new"])], "o/old": [release("1.0")]}
        shelf = Shelf(table)
        solve(shelf, "o/a", locked=locked(a="1.0"))
        assert shelf.asked == [["o/a"], ["o/old"]]

    def test_explaining_reads_no_pack_again(self) -> None:
        shelf = Shelf({"o/a": [release("1.0", ["o/b<2"])], "o/b": [release("1.0", yanked="x"), release("2.0rc1")]})
        with pytest.raises(ResolutionError):
            solve(shelf, "o/a", "o/b>=1")
        assert shelf.asked == [["o/a", "o/b"]]

    def test_an_error_of_reading_is_the_callers(self) -> None:
        def read(names: Sequence[PackName]) -> dict[PackName, ReleaseIndex]:
            raise NetworkError("The registry does not answer.")

        with pytest.raises(NetworkError):
            solve(read, "o/a")

    def test_threads_of_the_reader_do_not_change_the_answer(self) -> None:
        table = {f"o/p{n}": [release("1.0", [f"o/p{m}" for m in range(n)]), release("2.0")] for n in range(8)}

        def read(names: Sequence[PackName]) -> dict[PackName, ReleaseIndex]:
            shelf = Shelf(table)
            with ThreadPoolExecutor(4) as pool:
                found = list(pool.map(lambda name: shelf([name]), names))
            random.shuffle(found)
            return {name: index for one in found for name, index in one.items()}

        wanted = ("o/p7<2", "o/p6<2")
        assert {str(solve(read, *wanted)) for _ in range(5)} == {str(solve(table, *wanted))}


def test_notes_are_about_the_chosen_releases() -> None:
    indexes = {
        parse_pack_name("o/a"): ReleaseIndex((release("1.0", ["o/b"]),), deprecated="use o/c"),
        parse_pack_name("o/b"): ReleaseIndex((release("1.0"),), moved_to="p/b", notes=("a note",)),
    }
    found = resolve(Problem(requirements("o/a"), OURS), lambda names: {name: indexes[name] for name in names})
    assert found.notes == ("o/a is deprecated: use o/c.", "o/b has moved to p/b.", "a note")


def pigeons(holes: int) -> dict[str, list[Release]]:
    """Return packs that must all be of different versions, of which there is one too few."""
    names = [f"o/p{number}" for number in range(holes + 1)]
    return {
        name: [release(f"{hole}.0", conflicts=[f"{one}=={hole}.0" for one in names]) for hole in range(holes)]
        for name in names
    }


def test_the_limit_ends_the_search_and_names_the_packs() -> None:
    table = pigeons(8)
    problem = Problem(requirements(*table), OURS, limit=100)
    with pytest.raises(ResolverLimitError, match="in 100 steps") as caught:
        resolve(problem, Shelf(table))
    assert caught.value.exit_code == 13 and caught.value.hint
    assert set(caught.value.details["packs"]) <= set(table) and "o/p" in caught.value.message
    with pytest.raises(ResolverLimitError) as again:
        resolve(replace(problem, requirements=problem.requirements[::-1]), Shelf(table))
    assert again.value.message == caught.value.message


def test_a_deep_graph_without_solution_takes_few_steps() -> None:
    table = {
        f"o/p{depth:02}": [release(f"{n}.0", [f"o/p{depth + 1:02}>={max(n - 2, 0)},<={n + 2}"]) for n in range(10)]
        for depth in range(20)
    }
    table["o/p20"] = [release(f"{n}.0", ["o/end>=2"]) for n in range(10)]
    table["o/end"] = [release("1.0"), release("2.0")]
    with pytest.raises(ResolutionError, match="o/end<2"):
        solve(table, "o/p00", "o/end<2", limit=3_000)


versions = st.sampled_from(["0.9", "1.0", "1.0.post1", "1.1rc1", "1.1", "2.0.dev1", "2.0"])
releases_ = st.lists(
    st.builds(
        release,
        versions,
        bases=st.lists(st.sampled_from([BASE, OTHER_BASE]), unique=True),
        yanked=st.none() | st.just("x"),
    ),
    unique_by=lambda one: one.version,
)
specifiers = st.sampled_from(["", ">=1", "<1", "==1.0", "~=1.0", "==1.1rc1", "!=1.1"])


@given(releases_, specifiers, st.none() | versions, st.randoms(use_true_random=False))
def test_the_choice_agrees_with_the_rules_spelled_out(
    releases: list[Release], specifier: str, kept: str | None, rng: random.Random
) -> None:
    def will_do(one: Release) -> bool:
        is_locked = str(one.version) == kept
        return (
            parse_requirement(f"o/a{specifier}").specifier.contains(one.version, prereleases=True)
            and (is_locked or "rc" in specifier or not one.version.is_prerelease)
            and (is_locked or one.yanked is None)
            and BASE in [variant.fingerprint for variant in one.event.variants]
        )

    allowed = sorted(one.version for one in releases if will_do(one))
    expected = Version(kept) if kept and Version(kept) in allowed else (allowed or [None])[-1]
    rng.shuffle(releases)
    try:
        old = locked(a=kept) if kept else {}
        found: Version | None = Version(solve({"o/a": releases}, f"o/a{specifier}", locked=old)["o/a"])
    except (ResolutionError, WrongBaseError):
        found = None
    assert found == expected


def test_packs_that_require_others_without_end_are_given_up() -> None:
    """A publisher can make them faster than anyone can read them."""
    asked: list[PackName] = []

    def endless(names: Sequence[PackName]) -> dict[PackName, ReleaseIndex]:
        asked.extend(names)
        number = len(asked)
        return {name: ReleaseIndex((release("1.0", [f"o/n{number}"]),)) for name in names}

    with pytest.raises(ResolverLimitError, match="More than 5000 packs") as caught:
        resolve(Problem(requirements("o/a"), OURS), endless)
    assert len(asked) == 5000
    assert "o/n5000" in caught.value.message
