"""Trust on first use: repositories and signers that change, releases that stop being signed, and when they appeared."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from packaging.version import Version

from skillhub import hub
from skillhub.documents import canonical_json
from skillhub.errors import IntegrityError, NewerSchemaError, TrustError
from skillhub.indexes import remember_index, remembered_index
from skillhub.manifest import Manifest, Signer
from skillhub.names import PackName
from skillhub.releases import Event, Release, release_event
from skillhub.sightings import (
    all_sightings,
    check_repository_id,
    check_signature,
    first_seen,
    forget,
    read_sightings,
    state_path,
)
from tests.test_indexes import index

pytestmark = pytest.mark.usefixtures("homes")

REGISTRY = hub.Registry("hub", "https://registry.example")
OTHER = hub.Registry("hub", "https://mirror.example")
NAME = PackName("acme", "math-pack")
ANN, BOB = (Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in (1, 2))


def text_of(key: Ed25519PrivateKey) -> str:
    return "ed25519:" + base64.b64encode(key.public_key().public_bytes_raw()).decode()


def release(version: str, key: Ed25519PrivateKey | None = None) -> tuple[Release, Manifest]:
    """Return a release, signed as docs/formats.md says, by the library that the key is of."""
    manifest = Manifest(schema=0, name="math-pack", version=version)
    signature = None
    if key is not None:
        public = text_of(key).removeprefix("ed25519:")
        manifest = msgspec.structs.replace(manifest, signer=Signer(algorithm="ed25519", public_key=public))
        signed = key.sign(b"skillhub release 0\n" + manifest.digest.encode())
        signature = base64.b64encode(signed).decode()
    return Release(Version(version), release_event(manifest, {}, signature=signature)), manifest


def publish(*releases: tuple[Release, Manifest]) -> None:
    """Let the user read an index with these releases."""
    events = [msgspec.to_builtins(one.event) for one, _ in releases]
    remember_index(REGISTRY, NAME, b"".join(map(canonical_json, events)), known=remembered_index(REGISTRY, NAME))


def check(one: tuple[Release, Manifest], *, locked: str | None = None) -> str | None:
    return check_signature(REGISTRY, NAME, *one, locked=locked)


def test_releases_are_noted_when_they_are_first_seen_and_no_later() -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    remember_index(REGISTRY, NAME, index("1.0", "1.1"), known=None)
    first = first_seen(REGISTRY, NAME)
    assert set(first) == {"1.0", "1.1"}
    assert all(before <= seen <= datetime.now(UTC) for seen in first.values())
    old = msgspec.structs.replace(read_sightings(REGISTRY, NAME).releases[0], seen=before - timedelta(days=400))
    path = state_path(REGISTRY, NAME, ".json")
    path.write_bytes(canonical_json({"schema": 0, "releases": [msgspec.to_builtins(old)]}))
    remember_index(REGISTRY, NAME, index("1.0", "1.1", "1.2"), known=index("1.0", "1.1"))
    again = first_seen(REGISTRY, NAME)
    assert again["1.0"] == before - timedelta(days=400)
    assert again["1.2"] >= before
    assert first_seen(OTHER, NAME) == {}


def test_what_was_seen_survives_many_at_once() -> None:
    grown = [index(*(f"1.{number}" for number in range(count + 1))) for count in range(10)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda data: remember_index(REGISTRY, NAME, data, known=None), grown))
        list(pool.map(lambda _: check_repository_id(REGISTRY, NAME, "f00", locked=None), range(8)))
    assert len(first_seen(REGISTRY, NAME)) == 10
    assert read_sightings(REGISTRY, NAME).repository == "f00"


def test_a_repository_that_was_made_anew_is_told() -> None:
    check_repository_id(REGISTRY, NAME, "aaaa", locked=None)
    check_repository_id(REGISTRY, NAME, "aaaa", locked="aaaa")
    with pytest.raises(TrustError, match=r"another repository than before.*id aaaa, now bbbb") as caught:
        check_repository_id(REGISTRY, NAME, "bbbb", locked=None)
    assert "skillhub trust forget acme/math-pack" in caught.value.hint
    assert read_sightings(REGISTRY, NAME).repository == "aaaa"
    with pytest.raises(TrustError):
        check_repository_id(REGISTRY, NAME, "aaaa", locked="cccc")
    check_repository_id(OTHER, NAME, "bbbb", locked=None)  # another registry has repositories of its own


def test_the_id_in_a_lock_counts_as_seen_until_the_pack_is_forgotten() -> None:
    with pytest.raises(TrustError):
        check_repository_id(REGISTRY, NAME, "bbbb", locked="aaaa")
    assert read_sightings(REGISTRY, NAME).repository is None
    check_repository_id(OTHER, NAME, "dddd", locked=None)
    assert forget(NAME) == ["https://mirror.example"]
    publish(release("1.0"))
    assert forget(NAME) == ["https://mirror.example", "https://registry.example"]
    check_repository_id(REGISTRY, NAME, "bbbb", locked="aaaa")
    with pytest.raises(TrustError):
        check_repository_id(REGISTRY, NAME, "cccc", locked="aaaa")


def test_forgetting_leaves_nothing_to_compare_with() -> None:
    publish(release("1.0", ANN))
    check(release("1.0", ANN))
    assert forget(NAME) == ["https://registry.example"]
    assert remembered_index(REGISTRY, NAME) is None and first_seen(REGISTRY, NAME) == {}
    remember_index(REGISTRY, NAME, index("1.0", digest="cd"), known=None)
    assert check(release("2.0", BOB), locked=text_of(ANN)) == text_of(BOB)
    assert forget(PackName("acme", "never-met")) == all_sightings(PackName("acme", "never-met")) == []


def test_the_first_signer_is_remembered_and_nobody_else_signs() -> None:
    first, second, swapped = release("1.0", ANN), release("1.1", ANN), release("1.2", BOB)
    publish(first, second, swapped)
    assert check(first) == check(second) == text_of(ANN)
    with pytest.raises(TrustError, match="signed by another key") as caught:
        check(swapped)
    assert text_of(ANN) in caught.value.message and text_of(BOB) in caught.value.message
    assert "skillhub trust forget acme/math-pack" in caught.value.hint
    assert read_sightings(REGISTRY, NAME).signer == text_of(ANN)


def test_a_locked_signer_counts_as_seen() -> None:
    publish(release("1.0", BOB))
    with pytest.raises(TrustError, match="signed by another key"):
        check(release("1.0", BOB), locked=text_of(ANN))
    with pytest.raises(TrustError, match="is not signed, and earlier ones were"):
        check_signature(OTHER, NAME, *release("1.1"), locked=text_of(ANN))


def test_a_pack_that_was_never_signed_needs_no_signature() -> None:
    publish(release("1.0"), release("1.1"))
    assert check(release("1.0")) is None and check(release("1.1")) is None
    assert check_signature(OTHER, NAME, *release("1.0"), locked=None) is None


def test_once_signed_what_is_published_later_must_be() -> None:
    unsigned, signed, later = release("1.0"), release("2.0", ANN), release("1.9")  # a late release with a small number
    publish(unsigned, signed, later)
    for _ in range(2):  # at first sight, and when the signer is known
        assert check(unsigned) is None
        with pytest.raises(TrustError, match=r"1\.9 is not signed, and releases since 2\.0 were"):
            check(later)
        with pytest.raises(TrustError, match="not signed"):  # one that the index does not have: a proposal
            check(release("3.0"))
        assert check(signed) == text_of(ANN)


def without_signer(one: tuple[Release, Manifest]) -> tuple[Release, Manifest]:
    found, manifest = one
    return found, msgspec.structs.replace(manifest, signer=None)


def with_signature(signature: str | None) -> Callable[[tuple[Release, Manifest]], tuple[Release, Manifest]]:
    def change(one: tuple[Release, Manifest]) -> tuple[Release, Manifest]:
        event: Event = msgspec.structs.replace(one[0].event, signature=signature)
        return Release(one[0].version, event), one[1]

    return change


def with_algorithm(one: tuple[Release, Manifest]) -> tuple[Release, Manifest]:
    assert one[1].signer is not None
    signer = msgspec.structs.replace(one[1].signer, algorithm="rot13")
    return one[0], msgspec.structs.replace(one[1], signer=signer)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without_signer, "names no signer"),
        (with_signature(None), "its signature is missing"),
        (with_signature("AAAA"), "is wrong"),
        (with_signature("no base64"), "is wrong"),
        (with_signature(release("1.1", ANN)[0].event.signature), "is wrong"),
        (with_signature(release("1.0", BOB)[0].event.signature), "is wrong"),
        (with_algorithm, "'rot13', which this version of skillhub cannot verify"),
    ],
)
def test_a_wrong_signature_is_an_error_whoever_asked_for_one(
    change: Callable[[tuple[Release, Manifest]], tuple[Release, Manifest]], words: str
) -> None:
    with pytest.raises(TrustError, match=words):
        check(change(release("1.0", ANN)))
    assert read_sightings(REGISTRY, NAME).signer is None


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b'{"schema":0,"releases":[{"version":"1.0","seen":"2026-11-01T00:00:00"}]}', b"\xff"]
)
def test_a_damaged_file_says_what_to_remove_and_what_is_lost(data: bytes) -> None:
    path: Path = state_path(REGISTRY, NAME, ".json")
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    actions: Sequence[Callable[[], object]] = (
        lambda: first_seen(REGISTRY, NAME),
        lambda: check_repository_id(REGISTRY, NAME, "aaaa", locked=None),
        lambda: remember_index(REGISTRY, NAME, index("1.0"), known=None),
    )
    for action in actions:
        with pytest.raises(IntegrityError, match="is damaged") as caught:
            action()
        assert caught.value.hint.startswith("Remove it: ") and "forgotten" in caught.value.hint
    path.write_bytes(b'{"schema":1}')
    with pytest.raises(NewerSchemaError):
        first_seen(REGISTRY, NAME)
    assert len(forget(NAME)) == 1  # damaged or not
    assert first_seen(REGISTRY, NAME) == {}
