"""``skillhub pack`` as a process: what can be asked of a pack, and what it says of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.commands import Shell

NAMED = ("--name", "tiny-pack", "--version", "1.0")


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def test_a_recipe_is_named_with_its_options(shell: Shell, models: tuple[Path, Path]) -> None:
    base, tuned = models
    asked = ("pack", tuned, "--base", base, *NAMED, "--preset", "svd-lora")
    shell.succeed(*asked, "--recipe-option", "rank=3", "-o", "pack")
    manifest = shell.json("show", "./pack")["manifest"]
    assert manifest["variants"][0]["codec"]["preset"] == "svd-lora"
    assert manifest["provenance"]["recipe_options"] == "rank=3"
    assert "no option 'alpha'" in shell.fail(2, *asked, "--recipe-option", "alpha=0.1", "-o", "other")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--preset", "svd-lora", "--recipe-option", "rank"], "'rank' is not of the form NAME=NUMBER"),
        (["--preset", "svd-lora", "--recipe-option", "rank=1", "--recipe-option", "rank=2"], "is given twice"),
        (["--preset", "near", "--budget", "1MB"], "--preset and --budget both say how small"),
        (["--preset", "best"], "'best' is not one of"),
    ],
)
def test_what_cannot_be_asked_of_a_pack_is_said(shell: Shell, options: list[str], message: str) -> None:
    assert message in shell.fail(2, "pack", "./tuned", "--base", "./base", *NAMED, *options, "-o", "pack")
