"""Candidates with their reasons, notes, and who knows the solver."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

import skillhub.resolver
from skillhub.names import parse_pack_name
from skillhub.releases import ReleaseIndex
from skillhub.resolver import BaseClaim, find_candidates
from skillhub.resolver.engine import Releases
from skillhub.resolver.resolution import notes_on
from tests.solving_examples import OURS, release, requirements
from tests.support.packs import BASE, OTHER_BASE

FILES = "f" * 64


def test_every_release_is_a_candidate_with_its_reason() -> None:
    index = ReleaseIndex(
        (
            release("2.0", bases=[OTHER_BASE]),
            release("1.0"),
            release("1.1", yanked="wrong weights"),
            release("1.2rc1"),
            release("3.0", bases=[]),
            release("0.9"),
        )
    )
    found = find_candidates(index, base=OURS, constraints=requirements("a/b>=1"))
    assert (
        [(str(one.version), one.rejection.reason if one.rejection else None) for one in found]
        == [
            ("0.9", "is left out by the constraint a/b>=1"),
            ("1.0", None),
            ("1.1", "was yanked (wrong weights)"),
            ("1.2rc1", None),  # whether a pre-release will do depends on who asks
            ("2.0", f"has no variant for our base, only for {OTHER_BASE[:17]}"),
            ("3.0", "has no variant for our base or any base"),
        ]
    )
    assert [one.fingerprint for one in found if one.rejection is None] == [BASE, BASE]


def test_a_locked_release_may_be_yanked() -> None:
    index = ReleaseIndex((release("1.0", yanked="x"), release("1.1", yanked="y")))
    assert [one.rejection is None for one in find_candidates(index, locked=Version("1.0"))] == [True, False]


def test_files_of_a_repository_claim_a_base() -> None:
    index = ReleaseIndex((release("1.0", bases=[OTHER_BASE], base_files=[FILES]), release("2.0")))
    found = find_candidates(index, base=BaseClaim(base_files=FILES, name="org/base"))
    assert [one.fingerprint for one in found] == [OTHER_BASE, None]
    assert all(one.rejection for one in find_candidates(index, base=BaseClaim(name="org/unknown")))
    assert str(BaseClaim(fingerprint=BASE)) == BASE[:17] and str(BaseClaim()) == "the base"


def test_yanks_deprecation_and_moves_are_told() -> None:
    index = ReleaseIndex((release("1.0", yanked="broken"),), deprecated="use a/c", moved_to="a/c", notes=("a note",))
    assert notes_on(parse_pack_name("a/b"), index.releases[0], index) == [
        "a/b 1.0 was yanked (broken); it stays because it is locked.",
        "a/b is deprecated: use a/c.",
        "a/b has moved to a/c.",
        "a note",
    ]


def test_only_the_engine_knows_the_solver() -> None:
    package = Path(skillhub.resolver.__file__).parent
    sources = [path for path in package.parent.rglob("*.py") if "nab_resolver" in path.read_text(encoding="utf-8")]
    assert sources == [package / "engine.py"]


def test_what_needs_no_solver_does_not_load_it() -> None:
    command = "import sys, skillhub.resolver, skillhub.resolver.problem; sys.exit('nab_resolver' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0


sets = st.integers(-(1 << 12), 1 << 12)


@given(sets, sets)
def test_sets_of_releases_keep_the_laws_that_the_solver_needs(first: int, second: int) -> None:
    one, other = Releases(first), Releases(second)
    assert one.is_subset((one - other) | other)
    assert (one & other).is_subset(one) and (one | other).is_superset(other)
    assert ~~one == one and hash(~~one) == hash(one)
    assert (one - other).is_disjoint(other) and (one & ~other) == (one - other)
    relation = one.relation(other)
    assert (relation.is_subset, relation.is_disjoint) == (one.is_subset(other), one.is_disjoint(other))
    assert Releases.empty().is_empty and not Releases.full().is_empty and ~Releases.empty() == Releases.full()
    assert all((number in one) == Releases.singleton(number).is_subset(one) for number in range(13))
