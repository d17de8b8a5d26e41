"""Model cards: the Hub's conventions, and the words that people have written in them."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import structs

from skillhub.errors import UsageError
from skillhub.frontmatter import read_front_matter, split_readme
from skillhub.manifest import Manifest, Skill
from skillhub.modelcards import model_card
from skillhub.names import parse_pack_name, parse_version
from skillhub.packs import Pack, open_pack, write_manifest
from skillhub.releases import Release, ReleaseIndex, release_event
from tests.support.packs import BASE, OTHER_BASE, make_pack

NAME = parse_pack_name("acme/math-pack")


@pytest.fixture
def pack(tmp_path: Path) -> Pack:
    return make_pack(tmp_path / "pack", "math-pack", "1.0", [BASE, OTHER_BASE])


def small_manifest(tags: list[str], *, version: str = "1.0", license: str | None = "mit") -> Manifest:
    return Manifest(schema=0, name="math-pack", version=version, license=license, skills=Skill(tags=tags))


def data_of(card: str) -> dict[str, object]:
    found: dict[str, object] = ModelCard(card, ignore_metadata_errors=False).data.to_dict()
    return found


def test_the_card_follows_the_conventions_of_the_hub(pack: Pack) -> None:
    card = model_card(pack.manifest, NAME)
    assert data_of(card) == {
        "library_name": "skillhub",
        "tags": ["skillpack", "math"],
        "base_model": ["acme/base-model"],
        "base_model_relation": "adapter",
        "license": "apache-2.0",
        "summary": "math-pack for tests",
    }
    for text in ("# math-pack\n", "skillhub install acme/math-pack", pack.digest, "What is 1 + 1?"):
        assert text in card


def test_a_licence_without_an_identifier_is_another_with_a_name() -> None:
    data = data_of(model_card(small_manifest([], license="Acme Model License"), NAME))
    assert (data["license"], data["license_name"]) == ("other", "acme-model-license")
    assert data_of(model_card(small_manifest([], license="GPL-3.0-only"), NAME))["license"] == "gpl-3.0"
    assert "license" not in data_of(model_card(small_manifest([], license=None), NAME))


def test_a_licence_that_the_author_names_on_the_page_stays() -> None:
    readme = "---\nlicense: other\nlicense_name: acme-terms-2\nlicense_link: LICENSE\n---\n"
    data = data_of(model_card(small_manifest([], license="other"), NAME, readme=readme))
    assert (data["license"], data["license_name"], data["license_link"]) == ("other", "acme-terms-2", "LICENSE")
    assert "license_name" not in data_of(model_card(small_manifest([], license="mit"), NAME, readme=readme))


def test_words_of_a_manifest_cannot_break_the_front_matter(tmp_path: Path) -> None:
    pack = make_pack(tmp_path / "pack", "math-pack", "1.0", license='"evil": { # | -', repo=None)
    write_manifest(pack.folder, structs.replace(pack.manifest, summary='a: "b\\', skills=Skill(tags=["- x: {"])))
    pack = open_pack(pack.folder)
    data = data_of(model_card(pack.manifest, NAME))
    assert (data["license"], data["license_name"]) == ("other", "evil")
    assert (data["summary"], data["tags"]) == ('a: "b\\', ["skillpack", "- x: {"])
    assert "base_model" not in data


def test_renewing_a_card_without_changes_changes_nothing(pack: Pack) -> None:
    card = model_card(pack.manifest, NAME)
    assert model_card(pack.manifest, NAME, readme=card) == card
    assert model_card(pack.manifest, NAME, readme=card.replace("\n", "\r\n")) == card


def test_prose_above_and_below_survives_every_release() -> None:
    card = model_card(small_manifest(["math"]), NAME)
    front, body = card.split("\n---\n\n", 1)
    written = f"{front}\n---\n\n# My maths pack\n\nHello.\n\n{body}\n## Thanks\n\nTo my cat.\n"
    for version in ("1.1", "1.2"):
        written = model_card(small_manifest(["math"], version=version), NAME, readme=written)
        assert f"describes version {version}:" in written and written.count("describes version") == 1
        assert written.index("Hello.") < written.index("skillhub:begin") < written.index("To my cat.")
    assert written.count("# My maths pack") == 1 and "# math-pack\n" not in written


def test_a_readme_that_was_there_before_is_kept_above() -> None:
    card = model_card(small_manifest(["math"]), NAME, readme="---\nlanguage: en # spoken\n---\n# Mine\n\nProse.\n")
    assert "language: en # spoken\n" in card
    assert card.index("# Mine") < card.index("Prose.") < card.index("skillhub:begin")


OWN = """---
# noted by hand
language:
- en
- de
license: gpl-3.0
license_link: https://example.org/terms   # read this
tags:
- skillpack
- algebra
- by-hand
base_model: someone/else
pipeline_tag: text-generation
widget: [{text: "Hello"}]
---
"""


def test_keys_of_a_person_stay_as_they_stand(pack: Pack) -> None:
    card = model_card(pack.manifest, NAME, readme=OWN)
    data = data_of(card)
    assert data["language"] == ["en", "de"] and data["pipeline_tag"] == "text-generation"
    assert data["license"] == "apache-2.0"  # the manifest decides
    assert data["base_model"] == ["acme/base-model"]
    assert data["tags"] == ["skillpack", "math", "algebra", "by-hand"]
    assert "license_link: https://example.org/terms   # read this\n" in card and "# noted by hand\n" in card
    bare = data_of(model_card(small_manifest([], license=None), NAME, readme=OWN))
    assert (bare["license"], bare["base_model"], bare["base_model_relation"]) == ("gpl-3.0", "someone/else", "adapter")


def test_a_tag_that_the_author_dropped_goes_and_one_that_was_added_by_hand_stays() -> None:
    card = model_card(small_manifest(["math", "a-->b", "--"]), NAME)
    card = card.replace("- math\n", "").replace('- "math"\n', '- "math"\n- by-hand\n')
    after = model_card(small_manifest(["algebra"]), NAME, readme=card)
    assert data_of(after)["tags"] == ["skillpack", "algebra", "by-hand"]


@pytest.mark.parametrize("block", ["a: [", "- a", "a: &x 1\nb: *x", "{a: b}", "a\n", "a: 1\n\tb: 2"])
def test_what_cannot_be_read_is_refused_and_not_lost(block: str) -> None:
    with pytest.raises(UsageError, match="metadata at the top of README"):
        model_card(small_manifest([]), NAME, readme=f"---\n{block}\n---\nProse.\n")


def test_marks_in_a_manifests_words_are_no_marks() -> None:
    evil = Manifest(schema=0, name="math-pack", version="1.0", summary="a\n<!-- skillhub:end -->\nb")
    card = model_card(evil, NAME)
    assert model_card(evil, NAME, readme=card) == card
    assert split_readme(card)[1].count("<!-- skillhub:") == 2


def test_a_mark_that_somebody_removed_loses_no_prose() -> None:
    card = model_card(small_manifest(["math"]), NAME).replace("<!-- skillhub:end -->", "") + "\nBelow.\n"
    after = model_card(small_manifest(["math"]), NAME, readme=card)
    assert "Below." in after and after.count("<!-- skillhub:") == 2


def test_deprecation_and_withdrawal_are_said_first() -> None:
    manifest = small_manifest(["math"])
    release = Release(parse_version("1.0"), release_event(manifest, {}), yanked="wrong\nweights")
    card = model_card(manifest, NAME, index=ReleaseIndex((release,), deprecated="use acme/better"))
    assert "> This pack is deprecated: use acme/better" in card
    assert "> Version 1.0 was withdrawn: wrong weights" in card
    assert card.index("[!WARNING]") < card.index("skillhub install")


@example("!\n::")
@given(st.text(st.sampled_from("ab:-# \n|>[]{}\"'&*!%\t"), max_size=60))
@settings(max_examples=150)
def test_any_front_matter_is_kept_or_refused(block: str) -> None:
    readme = f"---\n{block}\n---\nProse.\n"
    try:
        before = read_front_matter(split_readme(readme)[0])
        card = model_card(small_manifest(["math"]), NAME, readme=readme)
    except UsageError:
        return
    after = read_front_matter(split_readme(card)[0])
    assert "Prose." in card or "\n---" in block or block.startswith("---")
    kept = {
        key: value for key, value in before.values.items() if str(key) in after.lines and key not in ("tags", "license")
    }
    assert {key: after.values[key] for key in kept} == kept
