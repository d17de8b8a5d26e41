"""``skillhub pack`` as a process: what can be asked of a pack, and what it says of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from skillhub.authorfile import AuthorFile
from skillhub.modelcards import model_card
from skillhub.names import PackName
from skillhub.packs import open_pack
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


def test_a_finished_pack_is_not_packed_again(shell: Shell, models: tuple[Path, Path]) -> None:
    """Whoever interrupted its measuring was told to remove it."""
    base, tuned = models
    asked = ("pack", tuned, "--base", base, *NAMED, "-o", "pack")
    shell.succeed(*asked)
    assert "skillhub evaluate pack" in shell.fail(2, *asked)


@pytest.fixture(scope="module")
def skilled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A tiny language model with a chat template, a fine-tune of it, and a file of prompts."""
    from tests.routing_examples import save_base, sums, tuned  # torch: only for tests that need it

    folder = tmp_path_factory.mktemp("skilled")
    prompts = folder / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt": text}) for text in sums(32)), encoding="utf-8")
    base = save_base(folder / "base")
    return base, tuned(base, folder / "tuned", seed=3), prompts


def test_packs_say_whether_they_were_calibrated(shell: Shell, skilled: tuple[Path, Path, Path]) -> None:
    base, tuned, prompts = skilled
    from skillhub.packer import pack

    said = shell.succeed("pack", tuned, "--base", base, *NAMED, "--prompts", prompts, "-o", "one")
    assert "Preset: near, calibrated.\n" in said
    metadata = AuthorFile(name="tiny-pack", version="1.0")
    for folder, preset in {"two": "near", "three": "lossless"}.items():
        pack(tuned, base, shell.home / folder, metadata=metadata, preset=preset)
    for folder, way in {"one": "near, calibrated", "two": "near, not calibrated", "three": "lossless"}.items():
        assert f"preset {way}\n" in shell.succeed("show", f"./{folder}")
        card = model_card(open_pack(shell.home / folder).manifest, PackName("acme", "tiny-pack"))
        assert f"| {way} |" in card


def test_a_pack_is_measured_as_it_is_built(shell: Shell, skilled: tuple[Path, Path, Path]) -> None:
    base, tuned, _ = skilled
    rows = shell.home / "sums held-out.jsonl"
    rows.write_text('{"prompt": "1 + 1 = ?", "answer": "2"}\n' * 3, encoding="utf-8")
    asked = ("pack", tuned, "--base", base, *NAMED, "--preset", "svd-lora", "--recipe-option", "rank=2")
    told = shell.json(*asked, "--evaluate", rows, "-o", "pack")
    scores = {(one["task"], one["metric"]): one for one in told["evaluation"]}
    assert set(scores) == {
        *(("sums held-out", metric) for metric in ("nll", "exact", "kl")),
        ("unrelated text", "kl"),
    }
    assert 0 < scores["sums held-out", "kl"]["pack"] < scores["sums held-out", "kl"]["base"]
    shown = shell.json("show", "./pack")
    assert shown["digest"] == told["digest"]
    assert shown["manifest"]["variants"][0]["evaluation"] == told["evaluation"]
    rows.write_text('{"prompt": "1 + 1 = ?"}\n', encoding="utf-8")
    assert "line 1 is not an object" in shell.fail(2, *asked, "--evaluate", rows, "-o", "other")
    assert not (shell.home / "other").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--preset", "svd-lora", "--recipe-option", "rank"], "'rank' is not of the form NAME=NUMBER"),
        (["--preset", "svd-lora", "--recipe-option", "rank=1", "--recipe-option", "rank=2"], "is given twice"),
        (["--preset", "near", "--budget", "1MB"], "--preset and --budget each say how small"),
        (["--preset", "best"], "'best' is not one of"),
        (["--max-kl", "0.01"], "16 different ones or more, and there are 0"),
        (["--max-kl", "0.01", "--budget", "1MB"], "--budget and --max-kl each say how small"),
        (["--max-kl", "0"], "0.0 is not in the range x>0"),
    ],
)
def test_what_cannot_be_asked_of_a_pack_is_said(shell: Shell, options: list[str], message: str) -> None:
    assert message in shell.fail(2, "pack", "./tuned", "--base", "./base", *NAMED, *options, "-o", "pack")
