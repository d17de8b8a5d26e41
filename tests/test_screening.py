"""Releases that are left alone: too new, or against the policy."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from skillhub import hub
from skillhub.documents import canonical_json
from skillhub.errors import NetworkError, NotFoundError, OfflineError, UsageError
from skillhub.indexes import read_index
from skillhub.names import PackName
from skillhub.policy import Policy
from skillhub.publisher import publish
from skillhub.releases import Release
from skillhub.resolver.candidates import Rejection
from skillhub.screening import make_screen, parse_cut_off
from skillhub.sightings import read_sightings, state_path
from tests.support.faults import FaultyProxy, faulty_proxy
from tests.support.packs import make_pack
from tests.support.registry_process import RegistryProcess

pytestmark = pytest.mark.usefixtures("homes")

NAME = PackName("screened", "math-pack")
FUTURE, PAST = datetime(2999, 1, 1, tzinfo=UTC), datetime(2001, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def owner(registry: RegistryProcess, tmp_path_factory: pytest.TempPathFactory) -> hub.Registry:
    """The owner of a pack with one release."""
    owner = hub.Registry("hub", registry.endpoint, registry.add_user("screened"))
    folder = tmp_path_factory.mktemp("packs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKILLHUB_STATE", str(folder / "state"))
        publish(make_pack(folder / "1", "math-pack", "1.0"), str(NAME), registry=owner)
    return owner


@pytest.fixture
def proxy(owner: hub.Registry) -> Iterator[FaultyProxy]:
    with faulty_proxy(owner.endpoint) as proxy:
        yield proxy


@pytest.fixture
def anyone(proxy: FaultyProxy) -> hub.Registry:
    return hub.Registry("hub", proxy.endpoint)


def the_release(registry: hub.Registry) -> Release:
    return read_index(registry, NAME, offline=False).index.releases[0]


def was_seen(registry: hub.Registry, moment: datetime) -> None:
    """Date back, or ahead, what the user remembers."""
    seen = read_sightings(registry, NAME)
    releases = [{"version": one.version, "seen": moment.isoformat(), "signed": one.signed} for one in seen.releases]
    state_path(registry, NAME, ".json").write_bytes(canonical_json({"schema": 0, "releases": releases}))


def rejection(
    registry: hub.Registry | None,
    release: Release,
    cut_off: datetime | None = None,
    policy: Policy | None = None,
    *,
    offline: bool = False,
    now: datetime | None = None,
) -> Rejection | None:
    screen = make_screen(policy or Policy(), cut_off, lambda name: registry, offline=offline, now=now)
    assert screen is not None
    return screen(NAME, release)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-11-01", datetime(2026, 11, 1, tzinfo=UTC)),
        (" 2026-11-01 ", datetime(2026, 11, 1, tzinfo=UTC)),
        ("2026-11-01T00:00:00Z", datetime(2026, 11, 1, tzinfo=UTC)),
        ("2026-11-01t12:30:00.5z", datetime(2026, 11, 1, 12, 30, 0, 500_000, tzinfo=UTC)),
        ("2026-11-01 02:00:00+02:00", datetime(2026, 11, 1, tzinfo=UTC)),
        ("2026-10-31T19:00:00-05:00", datetime(2026, 11, 1, tzinfo=UTC)),
    ],
)
def test_a_cut_off_is_a_date_or_a_time_with_its_offset(text: str, moment: datetime) -> None:
    assert parse_cut_off(text) == moment


@pytest.mark.parametrize("text", ["", "yesterday", "2026-13-01", "2026-11-01T00:00:00", "20261101", "7", "2026-11-01T"])
def test_anything_else_is_no_cut_off(text: str) -> None:
    with pytest.raises(UsageError, match="is not a time") as caught:
        parse_cut_off(text)
    assert "2026-11-01" in caught.value.hint


def test_without_rules_nobody_is_asked() -> None:
    assert make_screen(Policy(), None, lambda name: None, offline=False) is None


def test_the_registry_tells_when_a_release_was_published(owner: hub.Registry) -> None:
    told = hub.release_times(owner, str(NAME))
    commits = HfApi(endpoint=owner.endpoint, token=owner.token).list_repo_commits(str(NAME))
    assert list(told) == ["1.0"]
    assert told["1.0"] in [commit.created_at for commit in commits]
    with pytest.raises(NotFoundError):
        hub.release_times(owner, "screened/nothing")


def test_a_release_that_was_seen_in_time_needs_no_registry(anyone: hub.Registry, proxy: FaultyProxy) -> None:
    release = the_release(anyone)
    was_seen(anyone, PAST)
    proxy.reset()
    assert rejection(anyone, release, PAST) is None
    assert rejection(anyone, release, PAST + timedelta(days=1), offline=True) is None
    assert proxy.seen == []


def test_otherwise_the_registry_decides_and_is_asked_once(anyone: hub.Registry, proxy: FaultyProxy) -> None:
    release = the_release(anyone)
    was_seen(anyone, FUTURE)
    published = hub.release_times(anyone, str(NAME))["1.0"]
    assert rejection(anyone, release, published) is None
    proxy.reset()
    screen = make_screen(Policy(cooldown_days=3), published - timedelta(seconds=1), lambda name: anyone, offline=False)
    assert screen is not None
    found = [screen(NAME, release) for _ in range(3)]
    assert found[0] is not None and found[0].kind == "too-new" and found == found[:1] * 3
    assert found[0].reason.startswith("was published on 20") and ", after the cut-off 20" in found[0].reason
    assert len(proxy.seen) == 1 and "/tree/main/releases" in proxy.seen[0]


def test_the_cool_down_counts_from_now(anyone: hub.Registry) -> None:
    release = the_release(anyone)
    published = hub.release_times(anyone, str(NAME))["1.0"]
    policy = Policy(cooldown_days=7)
    early = rejection(anyone, release, policy=policy, now=published + timedelta(days=6, hours=23))
    assert early is not None and early.kind == "policy"
    assert early.reason.endswith("less than the 7 days ago that the policy asks for")
    assert rejection(anyone, release, policy=policy, now=published + timedelta(days=7)) is None


def test_offline_what_was_not_seen_in_time_is_left_alone(anyone: hub.Registry, proxy: FaultyProxy) -> None:
    release = the_release(anyone)
    proxy.reset()
    found = rejection(anyone, release, PAST, offline=True)
    assert found is not None and found.kind == "too-new"
    assert found.reason.startswith("was first seen here on 20") and "offline" in found.reason
    assert proxy.seen == []


def test_a_registry_that_does_not_tell_is_not_believed(
    anyone: hub.Registry, owner: hub.Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = the_release(anyone)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(OfflineError):
        rejection(anyone, release, PAST)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with pytest.raises(NetworkError):
        rejection(hub.Registry("hub", "http://127.0.0.1:9"), release, PAST)
    hub.create_repository(owner, "screened/empty")
    hub.commit(owner, "screened/empty", {"README.md": b"# nothing"}, message="Begin", parent=None)
    assert hub.release_times(owner, "screened/empty") == {}
    screen = make_screen(Policy(), PAST, lambda name: anyone, offline=False)
    assert screen is not None
    found = screen(PackName("screened", "empty"), release)
    assert found is not None and "does not say" in found.reason


def test_the_policy_forbids_owners_and_unsigned_releases(anyone: hub.Registry) -> None:
    release = the_release(anyone)
    found = rejection(anyone, release, policy=Policy(allowed_owners=["acme", "corp"]))
    assert found == Rejection("policy", "is not by acme or corp, the owners that the policy allows")
    assert rejection(anyone, release, policy=Policy(allowed_owners=["Screened"])) is None
    found = rejection(anyone, release, policy=Policy(require_signatures=True))
    assert found == Rejection("policy", "is not signed, which the policy requires")
    assert rejection(anyone, release, policy=Policy(require_signatures=["acme"])) is None


def test_folders_are_exempt_and_vendored_packs_have_no_times(anyone: hub.Registry, tmp_path: Path) -> None:
    release = the_release(anyone)
    strict = Policy(allowed_owners=["acme"], require_signatures=True, cooldown_days=7)
    assert rejection(None, release, PAST, strict) is None
    vendored = hub.Registry("hub", tmp_path.as_uri())
    assert rejection(vendored, release, PAST, Policy(cooldown_days=7)) is None
    found = rejection(vendored, release, PAST, strict)
    assert found is not None and "is not by acme" in found.reason


def test_a_repository_has_an_id_that_no_other_ever_has(owner: hub.Registry) -> None:
    name = "screened/made-anew"
    hub.create_repository(owner, name)
    first = hub.repository_id(owner, name)
    assert first == hub.repository_id(owner, name.upper())
    HfApi(endpoint=owner.endpoint, token=owner.token).delete_repo(name)
    with pytest.raises(NotFoundError):
        hub.repository_id(owner, name)
    hub.create_repository(owner, name)
    assert hub.repository_id(owner, name) != first
    with pytest.raises(NetworkError):
        hub.repository_id(hub.Registry("hub", "http://127.0.0.1:9"), name)
