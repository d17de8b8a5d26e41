"""Which registries are asked for a pack, in which order, and which one stands in for which."""

from __future__ import annotations

from pathlib import Path

import pytest

from skillhub import hub
from skillhub.errors import NotFoundError, SkillhubError, UsageError
from skillhub.hub.folders import VENDOR_SCHEMA, VendoredFolder
from skillhub.names import parse_pack_name
from skillhub.projects import RegistryEntry
from skillhub.registries import Registries, find_registries, find_registry, known_registries, single_registry

pytestmark = pytest.mark.usefixtures("homes")

CORP = RegistryEntry(name="corp", url="https://hub.corp.example/", packs=["corp/*", "Shared/secret-*"])
MIRROR = RegistryEntry(name="mirror", url="https://mirror.example")
PLACES = {"corp/x": ["corp"], "CORP/x": ["corp"], "shared/Secret-1": ["corp"], "shared/open": ["mirror", "hub"]}


@pytest.fixture
def configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SKILLHUB_CONFIG", str(tmp_path))
    return tmp_path / "config.toml"


def names(registries: Registries, pack: str) -> list[str]:
    return [one.name for one in registries.for_pack(parse_pack_name(pack))]


def vendored(folder: Path, *registries: str) -> Path:
    folder.mkdir()
    (folder / "vendor.json").write_bytes(VendoredFolder(schema=VENDOR_SCHEMA, registries=list(registries)).to_bytes())
    return folder


@pytest.mark.parametrize(("pack", "places"), PLACES.items())
def test_a_registry_with_patterns_has_those_packs_and_nobody_else_has_them(pack: str, places: list[str]) -> None:
    assert names(find_registries([MIRROR, CORP]), pack) == places
    assert names(find_registries([CORP, MIRROR]), pack) == places


def test_projects_come_before_the_user_and_the_hub_is_last(configuration: Path) -> None:
    configuration.write_text('[[registry]]\nname = "own"\nurl = "https://own.example"\n')
    assert [one.name for one in find_registries([MIRROR]).all] == ["mirror", "own", "hub"]


def test_the_hub_can_have_patterns_and_another_place_in_the_order_but_no_other_address(configuration: Path) -> None:
    registries = find_registries([RegistryEntry(name="hub", packs=["acme/*"]), MIRROR])
    assert [one.name for one in registries.all] == ["hub", "mirror"]
    assert names(registries, "acme/x") == ["hub"]
    assert names(registries, "other/x") == ["mirror"]
    with pytest.raises(UsageError, match="HF_ENDPOINT"):
        find_registries([RegistryEntry(name="hub", url="https://evil.example")])


def test_the_users_address_counts_for_a_name_that_a_project_uses(configuration: Path) -> None:
    configuration.write_text('[[registry]]\nname = "corp"\nurl = "https://inside.example"\n')
    registries = find_registries([RegistryEntry(name="corp", url="https://evil.example", packs=["corp/*"])])
    assert registries.named("corp").endpoint == "https://inside.example"
    assert names(registries, "corp/x") == ["corp"]


def test_no_project_takes_away_what_the_user_has_pinned(configuration: Path) -> None:
    configuration.write_text('[[registry]]\nname = "corp"\nurl = "https://inside.example"\npacks = ["corp/*"]\n')
    evil = RegistryEntry(name="evil", url="https://evil.example", packs=["corp/*", "other/*"])
    for project in ([evil], [RegistryEntry(name="corp", packs=["team/*"]), evil], [RegistryEntry(name="corp"), evil]):
        assert names(find_registries(project), "corp/x") == ["corp"]
        assert names(find_registries(project), "other/x") == ["evil"]


@pytest.mark.parametrize(
    ("entry", "match"),
    [
        (RegistryEntry(name="corp"), "no address"),
        (RegistryEntry(name="corp", url="hub.corp.example"), "is no address"),
        (RegistryEntry(name="corp", url="ftp://hub.corp.example"), "is no address"),
        (RegistryEntry(name="corp", url="http://[::1"), "is no address"),
        (RegistryEntry(name="corp", url="https://hub.corp.example:x"), "is no address"),
        (RegistryEntry(name="corp", url="https:///packs"), "is no address"),
        (RegistryEntry(name="local", url="https://hub.corp.example"), "local"),
    ],
)
def test_an_entry_that_cannot_be_used_is_refused_with_the_remedy(entry: RegistryEntry, match: str) -> None:
    with pytest.raises(UsageError, match=match) as caught:
        find_registries([entry])
    assert caught.value.hint


def test_one_registry_is_found_without_looking_others_up() -> None:
    broken = RegistryEntry(name="broken", url="https://broken.example:x")
    with pytest.raises(UsageError, match="is no address"):
        known_registries([broken])
    unknown = RegistryEntry(name="unknown")  # has no address here, which matters to whoever asks for it
    assert find_registry([unknown], "https://one.example/", token="tok").endpoint == "https://one.example"
    assert find_registry([MIRROR], "https://mirror.example/").name == "mirror"
    assert find_registry([CORP], "corp").name == "corp"
    for wrong in ("http://[::1", "https://", "https://hub:port"):
        with pytest.raises(UsageError, match="is no address"):
            find_registry([], wrong)


def test_a_chosen_name_is_asked_alone_and_others_keep_what_is_locked_from_them() -> None:
    registries = find_registries([CORP, MIRROR], chosen="mirror")
    assert names(registries, "acme/x") == ["mirror"]
    assert names(registries, "corp/x") == ["corp"]
    assert registries.named("hub").name == "hub"
    assert registries.named("corp").endpoint == "https://hub.corp.example"
    with pytest.raises(NotFoundError, match="No registry is called nothing") as caught:
        find_registries([CORP], chosen="nothing")
    assert "corp, hub" in caught.value.hint


def test_a_chosen_address_stands_in_for_what_is_not_configured_except_for_pinned_packs() -> None:
    registries = find_registries([CORP, MIRROR], chosen="https://other.example")
    assert names(registries, "acme/x") == ["other.example"]
    assert names(registries, "corp/x") == ["corp"]
    assert registries.named("hub").endpoint == "https://other.example"
    assert registries.named("mirror").endpoint == "https://other.example"
    assert registries.named("corp").endpoint == "https://hub.corp.example"


def test_a_chosen_address_that_is_configured_is_that_registry() -> None:
    assert find_registries([MIRROR], chosen="https://mirror.example").all[0].name == "mirror"


def test_a_vendored_folder_stands_in_for_its_registries_only(tmp_path: Path) -> None:
    folder = vendored(tmp_path / "vendor", "hub", "corp")
    registries = find_registries([CORP], chosen=str(folder))
    assert [one.name for one in registries.all] == ["corp", "hub"]
    assert all(one.folder is not None and one.token is None for one in registries.all)
    assert names(registries, "corp/x") == ["corp"]
    with pytest.raises(NotFoundError, match="mirror"):
        registries.named("mirror")
    only_hub = find_registries([CORP], chosen=str(vendored(tmp_path / "less", "hub")))
    assert names(only_hub, "corp/x") == []


def test_a_folder_that_was_not_vendored_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="vendored"):
        find_registries([], chosen=str(tmp_path))


def test_a_token_is_for_the_chosen_registry_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_ambient")
    tokens = {one.name: one.token for one in find_registries([CORP, MIRROR]).all}
    assert tokens == {"corp": None, "mirror": None, "hub": "hf_ambient"}
    chosen = find_registries([CORP, MIRROR], chosen="mirror", token="hf_given")
    assert [(one.name, one.token) for one in (*chosen.all, *chosen.elsewhere)] == [
        ("mirror", "hf_given"),
        ("corp", None),
        ("hub", "hf_ambient"),
    ]
    mirror = find_registries([CORP], chosen="https://other.example", token="hf_given")
    assert [one.token for one in (*mirror.all, *mirror.elsewhere)] == ["hf_given", None]
    assert find_registries([], chosen="https://other.example").all[0].token is None
    assert find_registries([], token="hf_given").all[0].token == "hf_given"


def test_a_single_registry_is_the_only_one() -> None:
    one = hub.Registry("hub", "https://one.example")
    registries = single_registry(one)
    assert registries.for_pack(parse_pack_name("a/b")) == [one]
    assert registries.named("hub") is one
    with pytest.raises(SkillhubError, match="locked from the registry corp"):
        registries.named("corp")
