"""Indexes as a user saw them, with several processes that share one state folder."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor

import pytest
from packaging.version import Version

from skillhub import hub
from skillhub.documents import canonical_json
from skillhub.errors import IntegrityError, TrustError
from skillhub.indexes import remember_index, remembered_index
from skillhub.names import PackName

pytestmark = pytest.mark.usefixtures("homes")

REGISTRY = hub.Registry("hub", "https://registry.example")
NAME = PackName("acme", "math-pack")


def index(*versions: str, digest: str = "ab") -> bytes:
    lines = [
        {"schema": 0, "event": "release", "version": version, "manifest": digest * 32, "variants": []}
        for version in versions
    ]
    return b"".join(canonical_json(line) for line in lines)


def test_an_index_that_another_process_read_later_does_no_harm() -> None:
    older, newer = index("1.0"), index("1.0", "1.1")
    remember_index(REGISTRY, NAME, older, known=None)
    known = remembered_index(REGISTRY, NAME)  # this process asks now, and is answered with `older` …
    remember_index(REGISTRY, NAME, newer, known=known)  # … while another one reads on
    assert remember_index(REGISTRY, NAME, older, known=known).find(Version("1.0")) is not None
    assert remember_index(REGISTRY, NAME, older, known=None).find(Version("1.1")) is None
    assert remembered_index(REGISTRY, NAME) == newer


def test_what_was_remembered_before_must_still_be_the_beginning() -> None:
    both = index("1.0", "1.1")
    remember_index(REGISTRY, NAME, both, known=None)
    with pytest.raises(IntegrityError, match="rewritten"):
        remember_index(REGISTRY, NAME, index("1.1", "1.0"), known=None)
    with pytest.raises(TrustError):
        remember_index(REGISTRY, NAME, index("1.0", "1.1", "1.2", digest="cd"), known=None)
    assert remembered_index(REGISTRY, NAME) == both


@pytest.mark.parametrize(
    ("left", "what"), [(1, "1 release is missing"), (0, "2 releases are missing"), (2, "a yank or a note is missing")]
)
def test_an_index_that_was_rolled_back_is_refused(left: int, what: str) -> None:
    yank = canonical_json({"schema": 0, "event": "yank", "version": "1.1", "reason": "harmful"})
    full = index("1.0", "1.1") + yank
    remember_index(REGISTRY, NAME, full, known=None)
    with pytest.raises(IntegrityError, match=what) as caught:
        remember_index(REGISTRY, NAME, index(*["1.0", "1.1"][:left]), known=full)
    assert "skillhub trust forget acme/math-pack" in caught.value.hint
    assert remembered_index(REGISTRY, NAME) == full


def test_what_is_remembered_is_logged_for_those_who_listen(caplog: pytest.LogCaptureFixture) -> None:
    registry = hub.Registry("hub", "https://ann:secret@registry.example")
    with caplog.at_level(logging.DEBUG, "skillhub"):
        remember_index(registry, NAME, index("1.0", "1.1"), known=None)
    assert caplog.messages == ["remembering 2 releases of acme/math-pack at https://registry.example"]


def test_of_many_at_once_the_longest_is_remembered() -> None:
    versions = [f"1.{number}" for number in range(12)]
    grown = [index(*versions[: count + 1]) for count in range(12)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda data: remember_index(REGISTRY, NAME, data, known=None), [*grown[::2], *grown[::-1]]))
    assert remembered_index(REGISTRY, NAME) == grown[-1]
