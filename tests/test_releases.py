"""The index of releases: append-only, tolerant of what is new, and in agreement with the manifests."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from packaging.version import Version

from skillhub.documents import canonical_json
from skillhub.errors import IntegrityError, NewerSchemaError, SkillhubError
from skillhub.manifest import Manifest, parse_manifest
from skillhub.releases import (
    MAX_LINE_BYTES,
    Event,
    Release,
    append_event,
    check_agreement,
    check_is_extension,
    parse_releases,
    release_event,
)
from tests.support.manifests import BASE, MANIFESTS, OTHER_BASE, manifest_fields

GOLDEN = Path(__file__).parent / "golden" / "releases_0.jsonl"


def line(event: str = "release", version: str | None = "1.0", **fields: Any) -> bytes:
    """Return one line; a release gets a manifest's digest."""
    if event == "release":
        fields = {"manifest": hashlib.sha256((version or "").encode()).hexdigest(), **fields}
    return canonical_json({"schema": 0, "event": event, **({"version": version} if version else {}), **fields})


def example_manifest(**changes: object) -> Manifest:
    return msgspec.convert({**manifest_fields(), **changes}, Manifest)


def test_what_the_golden_index_says() -> None:
    index = parse_releases(GOLDEN.read_bytes())
    assert [str(release.version) for release in index.releases] == ["1.0", "1.1", "1.2.0rc1", "1.1.post1"]
    first, second, third, fourth = index.releases
    assert (first.yanked, second.yanked, third.yanked, fourth.yanked) == (None, "wrong licence", None, None)
    assert index.deprecated == "use acme/algebra-pack" and index.moved_to == "acme-labs/math-pack"
    assert index.notes == ("releases.jsonl, line 8 is of a newer schema and was skipped; a newer skillhub reads it.",)
    assert third.manifest_digest == hashlib.sha256((GOLDEN.parent / "manifest_0.json").read_bytes()).hexdigest()
    assert third.folder == "releases/1.2.0rc1" and third.event.requires == ["acme/chat-pack>=1,<2"]
    variant = third.variant_for(BASE)
    assert variant is not None and variant.bytes == 16_042 and variant.base_files == ["9" * 64]
    assert third.variant_for("skb1:" + "0" * 64) is None
    newest = index.newest_final()
    assert newest is fourth


def test_the_golden_index_is_what_the_events_write() -> None:
    lines = GOLDEN.read_bytes().splitlines(keepends=True)
    manifest = parse_manifest((GOLDEN.parent / "manifest_0.json").read_bytes())
    event = release_event(manifest, {BASE: ["9" * 64]}, signature="ed25519:AAAA")
    assert append_event(b"", event) == lines[3]
    data = b""
    for written in lines[:6]:
        data = append_event(data, msgspec.json.decode(written, type=Event))
    assert data == b"".join(lines[:6])


def test_the_golden_manifest_agrees_with_the_golden_index() -> None:
    release = parse_releases(GOLDEN.read_bytes()).find(Version("1.2.0rc1"))
    assert release is not None
    data = (GOLDEN.parent / "manifest_0.json").read_bytes()
    assert check_agreement(release, data, where="acme/math-pack 1.2.0rc1") == parse_manifest(data)


def test_an_empty_index_has_no_releases() -> None:
    index = parse_releases(b"")
    assert index.releases == () and index.newest_final() is None and index.find(Version("1")) is None


def test_yank_and_unyank() -> None:
    data = line(version="1.0") + line(version="2.0")
    assert str(parse_releases(data).newest_final().version) == "2.0"  # type: ignore[union-attr]
    data += line("yank", "2.0", reason="broken")
    index = parse_releases(data)
    assert [release.yanked for release in index.releases] == [None, "broken"]
    assert str(index.newest_final().version) == "1.0"  # type: ignore[union-attr]
    data += line("yank", "2.0")
    assert parse_releases(data).releases[1].yanked == "no reason given"
    data += line("unyank", "2.0")
    assert parse_releases(data).releases[1].yanked is None
    assert parse_releases(data).releases[1].event == parse_releases(line(version="2.0")).releases[0].event


def test_a_yanked_release_keeps_the_spelling_of_its_version() -> None:
    (release,) = parse_releases(line(version="1.0") + line("yank", "1.0.0")).releases
    assert release.yanked and str(release.version) == "1.0" and release.folder == "releases/1.0"


def test_the_newest_final_release_is_neither_early_nor_yanked() -> None:
    versions = ["1.0", "1.10", "1.9", "2.0rc1", "2.0.dev1", "1.10.post1", "3.0"]
    data = b"".join(line(version=version) for version in versions) + line("yank", "3.0")
    assert str(parse_releases(data).newest_final().version) == "1.10.post1"  # type: ignore[union-attr]
    assert parse_releases(line(version="2.0rc1")).newest_final() is None


def test_unknown_keys_are_ignored() -> None:
    plain = parse_releases(line(variants=[{"fingerprint": BASE}]))
    more = parse_releases(line(variants=[{"fingerprint": BASE, "colour": 1}], mood={"x": [1]}))
    assert more == plain


def test_a_line_of_a_newer_schema_is_skipped_with_a_note() -> None:
    newer = b'{"schema": 1, "event": {"anything": "goes"}}\n'
    index = parse_releases(line() + newer + line(version="1.1"), where="acme/a")
    assert [str(release.version) for release in index.releases] == ["1.0", "1.1"]
    assert index.notes == ("acme/a, line 2 is of a newer schema and was skipped; a newer skillhub reads it.",)


def test_nothing_is_appended_after_a_line_that_cannot_be_read() -> None:
    event = msgspec.json.decode(line(version="1.1"), type=Event)
    with pytest.raises(NewerSchemaError, match="line 2") as caught:
        append_event(line() + b'{"schema":1}\n', event)
    assert "--upgrade" in caught.value.hint


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (b"\n", "line 2: $: "),
        (b"[]\n", "line 2: $: Expected `object`, got `array`"),
        (b'{"schema":0}\n', "line 2: $: Object missing required field `event`"),
        (b'{"event":"yank"}\n', "line 2: $: Object missing required field `schema`"),
        (line().replace(b'"schema":0', b'"schema":true'), "line 2: $.schema: Expected `int`, got `bool`"),
        (line().replace(b'"schema":0', b'"schema":-1'), "line 2: $.schema: "),
        (line().replace(b'"schema":0', b'"schema":1.0'), "line 2: $.schema: "),
        (line("delete"), "line 2: $.event: "),
        (line(version=None), "line 2: $.version: '' is not a version"),
        (line(version="1.0-1"), "line 2: $.version: The version '1.0-1' is not in its normalized"),
        (line(version="../1"), "line 2: $.version: "),
        (line(manifest=None), "line 2: $.manifest: a release needs its manifest's digest"),
        (line(manifest="A" * 64), "line 2: $.manifest: "),
        (line(version="1.1", requires=["b>=1"]), "line 2: $.requires[0]: 'b>=1' lacks an owner"),
        (line(version="1.1", conflicts=["acme/../b"]), "line 2: $.conflicts[0]: "),
        (line(version="1.1", variants=[{"fingerprint": "x"}]), "line 2: $.variants[0].fingerprint: "),
        (line(version="1.1", variants=[{"fingerprint": BASE, "bytes": -1}]), "line 2: $.variants[0].bytes: "),
        (line(version="1.1", variants=[{"fingerprint": BASE}] * 2), "line 2: $.variants: two are for the same base"),
        (line("yank", "1.0", reason="\x1b[31m"), "line 2: $.reason: "),
        (line("moved", None), "line 2: $.target: '' is not a pack name"),
        (line("moved", None, target="math-pack"), "line 2: $.target: 'math-pack' lacks an owner"),
        (line("moved", None, target="acme/../x"), "line 2: $.target: "),
        (line(version="1.0"), "line 2 releases 1.0 a second time"),
        (line(version="1.0.0"), "line 2 releases 1.0.0 a second time"),
        (line("yank", "3.0"), "line 2 is about 3.0, which was never released"),
        (line("unyank", "3.0"), "line 2 is about 3.0, which was never released"),
        (line().replace(b"\n", b"\r") + line("yank"), "line 2: $: "),
        (b'{"schema":0,"event":"yank","x":"\xff"}\n', "line 2: $: A text is not UTF-8"),
        (b"[" * 100_000 + b"\n", "line 2: $: It is nested too deeply"),
        (b'{"schema":0,"event":"deprecate","reason":"' + b"x" * MAX_LINE_BYTES + b'"}\n', "line 2 is longer than any"),
    ],
    ids=range(30),
)
def test_a_bad_line_is_named_by_its_number_and_path(bad: bytes, message: str) -> None:
    with pytest.raises(IntegrityError) as caught:
        parse_releases(line() + bad, where="index")
    assert caught.value.message.startswith(f"index, {message}")
    assert caught.value.hint


def test_an_index_cut_within_a_line_is_refused() -> None:
    data = GOLDEN.read_bytes()
    ends = {position for position, byte in enumerate(data, 1) if byte == ord("\n")} | {0}
    for length in range(len(data) + 1):
        if length in ends:
            parse_releases(data[:length])
        else:
            with pytest.raises(IntegrityError, match="ends in the middle of a line"):
                parse_releases(data[:length])


@given(st.binary(max_size=80) | st.lists(st.sampled_from(list(GOLDEN.read_bytes().splitlines(True)))).map(b"".join))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        parse_releases(data)
    except SkillhubError as error:
        assert error.exit_code == 6 and error.hint


def test_appending_never_touches_what_is_there() -> None:
    data = GOLDEN.read_bytes().splitlines(keepends=True)[0]
    event = msgspec.json.decode(line("yank", "1.0", reason="é"), type=Event)
    appended = append_event(data, event)
    assert appended.startswith(data) and appended.count(b"\n") == 2
    added = json.loads(appended[len(data) :])
    assert added == {"schema": 0, "event": "yank", "version": "1.0", "reason": "é"}


@pytest.mark.parametrize("bad", [line(version="1.0.0"), line("yank", "9.9")])
def test_an_event_that_would_break_the_index_is_not_appended(bad: bytes) -> None:
    with pytest.raises(IntegrityError):
        append_event(line(), msgspec.json.decode(bad, type=Event))


@given(MANIFESTS)
def test_a_release_event_survives_the_index(manifest: Manifest) -> None:
    event = release_event(manifest, {})
    (release,) = parse_releases(append_event(b"", event)).releases
    assert release.event == event
    assert check_agreement(release, manifest.to_bytes(), where="it") == manifest


@given(st.binary(max_size=20), st.binary(max_size=20))
@example(b"", b"")
@example(b"a\n", b"a\nb\n")
@example(b"a\n", b"a")
@example(b"a\nb\n", b"b\na\n")
def test_history_may_only_grow(old: bytes, new: bytes) -> None:
    if new[: len(old)] == old:
        check_is_extension(old, new)
    else:
        with pytest.raises(IntegrityError, match="acme/a was rewritten") as caught:
            check_is_extension(old, new, where="acme/a")
        assert caught.value.exit_code == 6 and caught.value.hint


def announced(**changes: Any) -> tuple[Release, bytes]:
    """Return a release whose line was changed after the manifest was digested, and the manifest."""
    manifest = example_manifest()
    event = msgspec.structs.replace(release_event(manifest, {}), **changes)
    return Release(Version(event.version or ""), event), manifest.to_bytes()


def test_another_manifest_than_the_announced_one_is_refused() -> None:
    release, data = announced()
    other = example_manifest(summary="other").to_bytes()
    with pytest.raises(IntegrityError, match=r"The manifest of acme/a 1 has digest .* announced") as caught:
        check_agreement(release, other, where="acme/a 1")
    assert caught.value.details == {
        "expected": hashlib.sha256(data).hexdigest(),
        "found": hashlib.sha256(other).hexdigest(),
    }


@pytest.mark.parametrize("part", ["version", "requires", "conflicts", "variant size", "variant base", "variant count"])
def test_a_line_that_says_something_else_than_its_manifest_is_refused(part: str) -> None:
    first, second = release_event(example_manifest(), {}).variants
    changes: dict[str, dict[str, Any]] = {
        "version": {"version": "1.2.0"},
        "requires": {"requires": []},
        "conflicts": {"conflicts": ["acme/chat-pack"]},
        "variant size": {"variants": [msgspec.structs.replace(first, bytes=1), second]},
        "variant base": {"variants": [first, msgspec.structs.replace(second, fingerprint="skb1:" + "0" * 64)]},
        "variant count": {"variants": [first]},
    }
    release, data = announced(**changes[part])
    with pytest.raises(IntegrityError, match="do not say the same"):
        check_agreement(release, data, where="acme/a 1")


def test_an_announced_manifest_that_cannot_be_read_is_refused() -> None:
    data = b'{"schema":0}\n'
    event = Event(schema=0, event="release", version="1.0", manifest=hashlib.sha256(data).hexdigest())
    with pytest.raises(IntegrityError, match=r"the manifest of acme/a 1 is not a valid manifest: \$: "):
        check_agreement(Release(Version("1.0"), event), data, where="acme/a 1")
    newer = b'{"schema":9}\n'
    event = msgspec.structs.replace(event, manifest=hashlib.sha256(newer).hexdigest())
    with pytest.raises(NewerSchemaError):
        check_agreement(Release(Version("1.0"), event), newer, where="acme/a 1")


def test_the_order_of_variants_in_a_line_does_not_matter() -> None:
    variants = release_event(example_manifest(), {}).variants
    assert [one.fingerprint for one in variants] == [BASE, OTHER_BASE]
    release, data = announced(variants=variants[::-1])
    assert check_agreement(release, data, where="acme/a 1").version == "1.2.0rc1"


def test_an_index_of_a_million_lines_is_not_read() -> None:
    with pytest.raises(IntegrityError, match="more than 50000 lines"):
        parse_releases(b'{"schema":9}\n' * 1_000_000)
