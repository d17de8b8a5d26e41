"""``skillhub trust`` as a user runs it."""

from __future__ import annotations

from pathlib import Path

import pytest

from skillhub import hub
from skillhub.indexes import remember_index, remembered_index
from skillhub.names import PackName
from skillhub.sightings import check_repository_id, first_seen
from tests.support.commands import Shell
from tests.test_indexes import index

REGISTRY = hub.Registry("hub", "https://user:secret@registry.example/hub")
NAME = PackName("acme", "math-pack")


@pytest.fixture
def user(tmp_path: Path, homes: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """A user who has met one pack."""
    user = Shell(tmp_path)
    monkeypatch.setenv("SKILLHUB_STATE", user.variables["SKILLHUB_STATE"])
    remember_index(REGISTRY, NAME, index("1.0", "1.1"), known=None)
    check_repository_id(REGISTRY, NAME, "66f0", locked=None)
    return user


def test_what_is_remembered_is_shown(user: Shell) -> None:
    shown = user.succeed("trust", "show", "Acme/Math-Pack")
    when = f"{first_seen(REGISTRY, NAME)['1.1']:%Y-%m-%d %H:%M} UTC"
    for text in ("https://registry.example/hub", "66f0", "not signed so far", "1.0", "1.1", when):
        assert text in shown
    assert "secret" not in shown
    assert max(map(len, shown.splitlines())) <= 80
    told = user.json("trust", "show", "acme/math-pack")
    assert (told["schema"], told["name"]) == (0, "acme/math-pack")
    (place,) = told["seen"]
    assert place["endpoint"] == "https://registry.example/hub" and place["repository"] == "66f0"
    assert [(one["version"], one["signed"]) for one in place["releases"]] == [("1.0", False), ("1.1", False)]


def test_what_is_forgotten_is_met_anew(user: Shell) -> None:
    assert "Forgot what was seen of acme/math-pack" in user.succeed("trust", "forget", "acme/math-pack")
    assert remembered_index(REGISTRY, NAME) is None
    check_repository_id(REGISTRY, NAME, "77f0", locked="66f0")
    assert "Forgotten once" in user.succeed("trust", "show", "acme/math-pack")
    assert user.json("trust", "forget", "acme/math-pack")["endpoints"] == ["https://registry.example/hub"]


def test_mistakes_are_told(user: Shell) -> None:
    for verb in ("show", "forget"):
        assert "Nothing is remembered of acme/other" in user.fail(4, "trust", verb, "acme/other")
        assert "lacks an owner" in user.fail(2, "trust", verb, "math-pack")
    state = next(Path(user.variables["SKILLHUB_STATE"]).rglob("math-pack.json"))
    state.write_text("{", encoding="utf-8")
    assert "is damaged" in user.fail(6, "trust", "show", "acme/math-pack")
    user.succeed("trust", "forget", "acme/math-pack")
    user.succeed("trust", "show", "acme/math-pack")
