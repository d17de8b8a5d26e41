"""What the resolver says where there is no solution: why, and what would help."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import ClassVar

import pytest

from skillhub.errors import ResolutionError, SkillhubError, WrongBaseError
from skillhub.names import PackName
from skillhub.releases import Release
from skillhub.resolver import Rejection
from skillhub.resolver.hints import exclude_each_other
from skillhub.resolver.listings import Listing
from skillhub.resolver.problem import Problem
from skillhub.resolver.solving import resolve
from skillhub.resolver.wording import enumerate_words, reasons_words, versions_words
from tests.solving_examples import OURS, Shelf, Table, forbidding, release, requirements, solve
from tests.support.packs import BASE, OTHER_BASE


def failure(table: Table, *wanted: str, **rules: object) -> SkillhubError:
    with pytest.raises((ResolutionError, WrongBaseError)) as caught:
        solve(table, *wanted, **rules)
    shown = f"{caught.value.message}\n{caught.value.hint}"
    assert len(shown.splitlines()) < 40 and len(shown) < 8_000
    assert caught.value.hint
    json.dumps(caught.value.to_json())
    return caught.value


class TestOneRequirement:
    def test_each_reason_is_told_once(self) -> None:
        found = [release("0.9"), release("1.0", yanked="wrong weights"), release("1.1rc1"), release("3.0")]
        error = failure({"o/a": found}, "o/a>=1, <2")
        assert error.exit_code == 3
        assert error.message == (
            "No release of o/a>=1, <2 will do: 3.0 (like 1 more) does not match; 1.1rc1 is a pre-release, which nobody asked "
            "for; 1.0 was yanked (wrong weights)."
        )
        assert error.details["requirements"] == ["o/a>=1, <2"] and error.details["chain"] == []

    def test_reasons_are_cut_short(self) -> None:
        found = [release(f"{n}.0", yanked=f"reason {n} " + "x" * 900) for n in range(50)]
        error = failure({"o/a": found}, "o/a")
        assert "46 older releases are out as well" in error.message

    def test_the_newest_release_is_named(self) -> None:
        found = [release("1.5"), release("1.0"), release("2.0rc1"), release("2.1", yanked="x")]
        assert failure({"o/a": found}, "o/a>=3").hint == "The newest release is 1.5; ask for it: 'o/a==1.5'."

    def test_a_pre_release_is_named(self) -> None:
        found = [release("2.0rc1"), release("2.0rc2", yanked="x")]
        assert failure({"o/a": found}, "o/a").hint == "A pre-release exists; ask for it by name: 'o/a==2.0rc1'."

    def test_only_a_yanked_release_is_left(self) -> None:
        hint = failure({"o/a": [release("1.0", yanked="x")]}, "o/a").hint
        assert hint == "What would do was yanked (o/a 1.0); ask its publisher for a new release."

    def test_there_is_no_such_pack_or_no_release(self) -> None:
        assert failure({}, "o/a").message == "No release of o/a will do: no registry has it."
        error = failure({"o/a": []}, "o/a")
        assert error.message == "No release of o/a will do: it has no releases."
        assert error.hint == "Its publisher has to publish one."

    def test_another_base(self) -> None:
        found = [release("1.0", bases=[OTHER_BASE]), release("0.1", yanked="x")]
        error = failure({"o/a": found}, "o/a>=0.1")
        assert error.exit_code == 5
        assert error.message == (
            f"No release that o/a>=0.1 allows fits our base: 1.0 has no variant for our base, only for {OTHER_BASE[:17]}; "
            "0.1 was yanked (x)."
        )
        assert error.hint == f"o/a has variants for {OTHER_BASE[:17]}; use one of these bases."

    def test_the_policy_forbids_all(self) -> None:
        error = failure(
            {"o/a": [release("1.0"), release("2.0")]}, "o/a", screen=forbidding({("o/a", "1.0"), ("o/a", "2.0")})
        )
        assert error.message == (
            "No release of o/a will do: 2.0 (like 1 more) is not signed, which the policy requires."
        )
        assert error.hint == "What would do is o/a 2.0, which is not signed, which the policy requires."


class TestSeveralPacks:
    TABLE: ClassVar = {
        "o/a": [release("1.0", ["o/b >= 2"]), release("1.1", ["o/b >= 2"])],
        "o/b": [release("1.0"), release("2.0"), release("2.1")],
    }

    def test_requirements_are_quoted_as_they_were_written(self) -> None:
        error = failure(self.TABLE, "o/a", "o/b < 2")
        assert error.message == (
            "o/a and o/b < 2 cannot be had together:\n"
            "  Because every o/a requires o/b >= 2 and o/b < 2 is asked for, no o/a can be chosen."
        )
        assert error.hint == "With o/b 2.1 there is a solution; ask for 'o/b==2.1' in place of 'o/b < 2'."
        assert error.details["chain"] == [
            "Because every o/a requires o/b >= 2 and o/b < 2 is asked for, no o/a can be chosen."
        ]

    def test_a_conflict_is_named_by_who_declares_it(self) -> None:
        table = {
            "o/a": [release("1.0", conflicts=["O/B<9"]), release("1.1", conflicts=["O/B<9"])],
            "o/b": [release("2.0")],
        }
        error = failure(table, "o/a", "o/b")
        assert "Because every o/a conflicts with O/B<9 and o/b is asked for, no o/a can be chosen." in error.message
        assert error.hint == (
            "Leave out o/a, or install it into another environment. Leave out o/b, or install it into another environment."
        )

    def test_a_chain_is_told_step_by_step(self) -> None:
        table = {
            "o/a": [release("1.0", ["o/b>=2"])],
            "o/b": [release("1.0"), release("2.0", ["o/c<1"]), release("2.1", ["o/c<1"])],
            "o/c": [release("0.5", yanked="bad"), release("1.0")],
        }
        error = failure(table, "o/a")
        assert error.message == (
            "No release of o/a will do:\n"
            "  Because o/b 2.0 and newer require o/c<1, and no release of it will do, o/b 2.0 and newer cannot be chosen.\n"
            "  And because o/a 1.0 requires o/b>=2, o/a 1.0 cannot be chosen.\n"
            "  o/c 0.5 was yanked (bad)."
        )
        assert error.hint == "What would do was yanked (o/c 0.5); ask its publisher for a new release."

    def test_a_step_that_is_used_again_has_a_number(self) -> None:
        table = {
            f"o/p{n}": [release(f"{v}.0", [f"o/p{(n + 1) % 3}!={v}.0"]) for v in range(2)] for n in range(3)
        }  # a ring of three that must differ from their neighbours
        assert failure(table, "o/p0").message.splitlines() == [
            "No release of o/p0 will do:",
            "  Because o/p2 1.0 requires o/p0!=1.0 and o/p1 0.0 requires o/p2!=0.0, o/p1 0.0 needs o/p0 0.0.",
            "  And because o/p0 1.0 requires o/p1!=1.0, o/p0 1.0 cannot be chosen (1).",
            "  Because o/p0 0.0 requires o/p1!=0.0 and o/p1 1.0 requires o/p2!=1.0, o/p0 0.0 needs o/p2 0.0.",
            "  And because o/p2 0.0 requires o/p0!=0.0, o/p0 0.0 cannot be chosen.",
            "  And because o/p0 1.0 cannot be chosen (1), no o/p0 can be chosen.",
        ]

    def test_a_pack_that_no_registry_has(self) -> None:
        error = failure({"o/a": [release("1.0", ["o/b>=2"])]}, "o/a")
        assert "Because o/a 1.0 requires o/b>=2, which no registry has, o/a 1.0 cannot be chosen." in error.message
        assert error.hint.startswith("No registry has o/b;")
        assert "which has no releases" in failure({"o/a": [release("1.0", ["o/b>=2"])], "o/b": []}, "o/a").message

    def test_releases_that_there_are(self) -> None:
        table = {"o/a": [release("1.0", ["o/b>=2"])], "o/b": [release("1.0"), release("1.5")]}
        assert "o/a 1.0 requires o/b>=2, of which there are 1.0 to 1.5," in failure(table, "o/a").message

    def test_a_pre_release_of_a_dependency_is_named(self) -> None:
        table = {"o/a": [release("1.0", ["o/b>=2"])], "o/b": [release("1.0"), release("2.1rc1")]}
        error = failure(table, "o/a")
        assert "o/b 2.1rc1 is a pre-release, which nobody asked for." in error.message
        assert error.hint == "A pre-release exists; ask for it by name: 'o/b==2.1rc1'."

    def test_rules_that_are_in_the_way_are_named(self) -> None:
        error = failure(self.TABLE, "o/a", constraints=requirements("o/b<2", "o/z<1"))
        assert "o/b 2.1 (like 1 more) is left out by the constraint o/b<2." in error.message
        assert error.hint == "Without the constraint 'o/b<2' there is a solution."
        error = failure(self.TABLE, "o/a", overrides=requirements("o/b<1"))
        assert "every o/a requires o/b >= 2 (the override o/b<1 takes its place)" in error.message
        assert error.hint == "Without the override 'o/b<1' there is a solution."

    def test_a_cut_off_is_told_as_such(self) -> None:
        def screen(name: PackName, found: Release) -> Rejection | None:
            late = Rejection("too-new", "was published on 2026-11-02, after the cut-off 2026-11-01")
            return late if found.version.major > 1 else None

        error = failure(self.TABLE, "o/a", screen=screen)
        assert "o/b 2.1 (like 1 more) was published on 2026-11-02, after the cut-off 2026-11-01." in error.message
        assert error.hint.startswith("What would do is o/b 2.1, which was published on 2026-11-02")

    def test_bases_of_packs_that_do_not_go_together(self) -> None:
        table = {"o/a": [release("1.0", ["o/b"])], "o/b": [release("2.0", bases=[OTHER_BASE])]}
        error = failure(table, "o/a")
        assert error.exit_code == 5
        assert error.message.startswith("No release of o/a fits our base with what it requires:\n")
        assert error.hint.startswith(f"No base fits them all: o/a is for {BASE[:17]} and o/b is for {OTHER_BASE[:17]}.")
        table["o/a"] = [release("1.0", ["o/b"], bases=[BASE, OTHER_BASE])]
        assert failure(table, "o/a").hint == f"o/a and o/b go together on the base {OTHER_BASE[:17]}; use that one."


def test_a_graph_that_is_hard_to_explain_is_listed_in_part() -> None:
    table = {
        f"o/p{depth:02}": [
            release(f"{n}.0", [f"o/p{depth + 1:02}>={max(n - 2, 0)},<={n + 2}"], conflicts=[f"o/p00=={n + 90}"])
            for n in range(20)
        ]
        for depth in range(30)
    }
    table["o/p30"] = [release(f"{n}.0", [f"o/end>={n + 2}"]) for n in range(20)]
    table["o/end"] = [release(f"{n}.0") for n in range(30)]
    error = failure(table, "o/p00", "o/end<2")
    assert error.message.splitlines()[0] == "o/end<2 and o/p00 cannot be had together:"
    assert "other requirements and conflicts take part." in error.message
    assert error.hint.startswith("With o/end ")


@pytest.mark.parametrize("seed", range(12))
def test_random_graphs_without_solution_are_explained_in_few_lines(seed: int) -> None:
    rng = random.Random(seed)

    def requirement() -> str:
        low = rng.randint(1, 8)
        return f"o/p{rng.randrange(40):02}>={low},<{low + rng.randint(1, 3)}"

    table = {
        f"o/p{number:02}": [release(str(v), [requirement() for _ in range(rng.randint(1, 4))]) for v in range(1, 9)]
        for number in range(40)
    }
    message = failure(table, "o/p01", "o/p02").message
    assert "o/p0" in message.splitlines()[0] and len(message) < 3_000


def test_very_long_texts_are_cut() -> None:
    long = "o/b" + ",".join([">=2"] * 120)
    table = {
        "o/a": [release(f"{n}.0", [f"{long}.{n}"] * 40) for n in range(30)],
        "o/b": [release("1.0", yanked="y" * 2_000)],
    }
    error = failure(table, "o/a")
    assert max(map(len, error.message.splitlines())) < 1_200


@pytest.mark.parametrize("specifier", ["==1.0.0,==1.1.0", "<1,>=1", ">=1,<2,!=1.*", "==1.0,!=1.0.0", "~=1.2,<1.2"])
def test_requirements_that_exclude_each_other_are_said_to(specifier: str) -> None:
    hint = failure({"o/a": [release("1.0.0"), release("1.1.0"), release("4.0.3")]}, f"o/a{specifier}").hint
    assert hint.startswith("No version can match ") and "exclude each other" in hint


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
    assert not exclude_each_other(requirements(f"o/a{specifier}")[0].specifier)


def listing(*versions: str) -> Listing:
    from skillhub.releases import ReleaseIndex
    from skillhub.resolver import find_candidates

    index = ReleaseIndex(tuple(map(release, versions)))
    accepted = tuple(find_candidates(index, base=OURS))
    return Listing(PackName("o", "a"), index, accepted, accepted, None, takes_pre=False)


@pytest.mark.parametrize(
    ("bits", "words"),
    [
        (0b000001, "1.0"),
        (0b000111, "1.2 and older"),
        (0b111000, "1.3 and newer"),
        (0b011110, "1.1 to 1.4"),
        (0b010101, "1.0, 1.2 and 1.4"),
        (-1, "1.0 and newer"),
        (~0b1, "1.1 and newer"),
    ],
)
def test_versions_are_summed_up(bits: int, words: str) -> None:
    assert versions_words(listing(*(f"1.{minor}" for minor in range(6))), bits) == words


def test_long_lists_are_cut_short() -> None:
    def letters(most: int) -> Sequence[str]:
        return [chr(ord("a") + number) for number in range(most)]

    assert [enumerate_words(letters(count)) for count in (0, 1, 2, 4)] == ["", "a", "a and b", "a, b, c and d"]
    assert enumerate_words(letters(9), last="or") == "a, b, c or 6 others"
    one = listing("1.0").accepted[0].version
    assert reasons_words([(one, f"reason {n}") for n in range(5)]).endswith("; 1 older release is out as well")


def test_what_releases_require_is_quoted_only_where_all_of_them_say_it() -> None:
    table = {
        "o/chat": [release("1.0", ["o/fix>=1,<2"]), release("2.0", ["o/fix>=2"])],
        "o/fix": [release("1.0"), release("2.0")],
    }
    with pytest.raises(ResolutionError) as caught:
        resolve(Problem(requirements("o/chat"), OURS, constraints=requirements("o/fix<0")), Shelf(table))
    assert "every o/chat requires o/fix, and no release of it will do" in caught.value.message
