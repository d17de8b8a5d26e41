"""Bases as users name them."""

from __future__ import annotations

from pathlib import Path

import pytest

from skillhub.bases import LocatedBase, find_base, split_repository
from skillhub.errors import NetworkError, NotFoundError, OfflineError


def test_a_repository_and_its_revision() -> None:
    assert split_repository("acme/base") == ("acme/base", None)
    assert split_repository("acme/base@refs/pr/3") == ("acme/base", "refs/pr/3")
    assert split_repository("acme/base@") == ("acme/base", None)


@pytest.mark.parametrize("text", ["nothing", "a/b/c", "acme/base@a b", "missing.safetensors", "-a/b", "a/b@x@y"])
def test_what_names_no_base(text: str) -> None:
    with pytest.raises(NotFoundError, match="no base model") as caught:
        find_base(text)
    assert caught.value.exit_code == 4


def test_a_path_that_exists_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "acme" / "base@1").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert find_base("acme/base@1") == LocatedBase(Path("acme/base@1"))


@pytest.mark.parametrize("kind", [NotFoundError, NetworkError, OfflineError])
def test_a_mistyped_folder_is_said_not_to_be_there(kind: type[NotFoundError], monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> Path:
        raise kind("The Hub does not answer.", hint="Try later.", endpoint="x")

    monkeypatch.setattr("skillhub.hub.fetch_base", unreachable)
    with pytest.raises(kind, match=r"There is no folder m/nonexist here, .*: The Hub does not answer") as caught:
        find_base("m/nonexist")
    assert type(caught.value) is kind and caught.value.details == {"endpoint": "x"}
    assert "path" in caught.value.hint and caught.value.hint.endswith("Try later.")
