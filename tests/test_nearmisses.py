"""Names that are easily mistaken for others."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skillhub import hub
from skillhub.indexes import remember_index
from skillhub.installer import install
from skillhub.names import PackName, parse_pack_name
from skillhub.nearmisses import _distance, near_misses, seen_names, warn_of_near_misses
from skillhub.publisher import publish
from tests.support.packs import BASE, make_pack
from tests.support.registry_process import RegistryProcess
from tests.test_indexes import index

texts = st.text(alphabet="abl10-_", min_size=1, max_size=9).map(lambda text: f"x{text}x")
names = st.builds(PackName, texts, texts)


@pytest.mark.parametrize(
    ("new", "known"),
    [
        ("acne/math-pack", "acme/math-pack"),  # another letter
        ("acmee/chat-pack", "acme/math-pack"),  # the owner is what counts
        ("amce/math-pack", "acme/math-pack"),
        ("acrne/math-pack", "acme/math-pack"),
        ("skil1hub/math-pack", "skillhub/math-pack"),
        ("skill-hub/x", "skillhub/math-pack"),
        ("g00gle/x", "google/x"),
        ("hugingfase/x", "huggingface/x"),  # two slips in a long name
        ("acme-ai/math-pack", "acme/math-pack"),
        ("theacme/math_pack", "acme/math-pack"),
        ("acme/math_pack", "acme/math-pack"),
        ("acme/math.pack", "acme/mathpack"),
        ("acme/math-pakc", "acme/math-pack"),
        ("ACNE/math-pack", "acme/Math-Pack"),
    ],
)
def test_a_look_alike_is_seen_from_either_side(new: str, known: str) -> None:
    one, other = parse_pack_name(new), parse_pack_name(known)
    assert near_misses(one, [other, PackName("zebra", "crossing")]) == [other]
    assert near_misses(other, [one]) == [one]


@pytest.mark.parametrize(
    ("new", "known"),
    [
        ("acme/math-pack", "acme/math-pack"),
        ("Acme/Math-Pack", "acme/math-pack"),
        ("acme/math-pack-2", "acme/math-pack-1"),  # one owner's packs differ by a digit or a letter on purpose
        ("acme/pack-en", "acme/pack-es"),
        ("acme/pack-21", "acme/pack-12"),
        ("bob/math-pack", "acme/math-pack"),  # another's pack for the same
        ("acme-ai/chat", "acme/math-pack"),
        ("ibm/x", "ibn/x"),  # too short to tell slips from names
        ("math-pack", "acme/math-pack"),
    ],
)
def test_what_is_another_name_for_good_reasons_is_not_near(new: str, known: str) -> None:
    one, other = parse_pack_name(new), parse_pack_name(known)
    assert near_misses(one, [other]) == near_misses(other, [one]) == []


@given(names, names)
def test_nearness_has_no_direction_and_nothing_is_near_itself(one: PackName, other: PackName) -> None:
    assert bool(near_misses(one, [other])) == bool(near_misses(other, [one]))
    assert near_misses(one, [one, PackName(one.owner.upper() if one.owner else None, one.name)]) == []


@given(st.text(alphabet="abc", max_size=5), st.text(alphabet="abc", max_size=5))
def test_the_distance_is_the_shortest_way_of_single_slips(one: str, other: str) -> None:
    """Compared with a recursion straight from the definition of the optimal alignment."""

    def shortest(a: str, b: str) -> int:
        if not a or not b:
            return len(a) + len(b)
        ways = [shortest(a[1:], b) + 1, shortest(a, b[1:]) + 1, shortest(a[1:], b[1:]) + (a[0] != b[0])]
        if len(a) > 1 and len(b) > 1 and a[:2] == b[1::-1]:
            ways.append(shortest(a[2:], b[2:]) + 1)
        return min(ways)

    assert _distance(one, other) == shortest(one, other)


@pytest.mark.usefixtures("homes")
def test_what_was_read_before_is_known() -> None:
    assert seen_names() == set()
    for name in ("Acme/Math.Pack", "acme/chat"):
        remember_index(hub.Registry("hub", "https://registry.example"), parse_pack_name(name), index("1.0"), known=None)
    assert {str(name) for name in seen_names()} == {"acme/math.pack", "acme/chat"}


def test_only_what_is_new_and_looks_known_is_told() -> None:
    told: list[str] = []
    known = [parse_pack_name(text) for text in ("acme/math-pack", "acme/chat-pack")]
    new = [parse_pack_name(text) for text in ("acme/math-pack", "acne/math-pack", "zebra/math-pack", "skil1hub/tiny")]
    warn_of_near_misses(new, known, ["skillhub"], told.append)
    assert told == [
        "acne/math-pack is new here and easily mistaken for acme/chat-pack or acme/math-pack: make sure that it is the one "
        "you mean.",
        "skil1hub/tiny is new here and easily mistaken for skillhub/tiny: make sure that it is the one you mean.",
    ]


@pytest.mark.usefixtures("homes")
def test_a_look_alike_that_only_another_pack_requires_is_told(
    registry: RegistryProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = hub.Registry("hub", registry.endpoint, registry.add_user("tidelands"))
    alike = hub.Registry("hub", registry.endpoint, registry.add_user("tide1ands"))
    publish(make_pack(tmp_path / "1", "maths"), "tidelands/maths", registry=known)
    publish(make_pack(tmp_path / "2", "maths"), "tide1ands/maths", registry=alike)
    publish(make_pack(tmp_path / "3", "chat", requires=["tide1ands/maths"]), "tidelands/chat", registry=known)
    monkeypatch.setenv("SKILLHUB_STATE", str(tmp_path / "state"))  # of somebody else than who published
    anyone = hub.Registry("hub", registry.endpoint)
    told: list[str] = []
    install(["tidelands/maths"], base=BASE, environment=tmp_path / "env", registry=anyone, notice=told.append)
    assert told == []
    install(["tidelands/chat"], environment=tmp_path / "env", registry=anyone, notice=told.append)
    assert [text for text in told if "tide1ands/maths is new here and easily mistaken for tidelands/" in text]
