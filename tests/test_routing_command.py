"""``skillhub route``, and ``skillhub pack --prompts``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from skillhub.authorfile import AuthorFile
from skillhub.packer import pack
from skillhub.packs import open_pack, verify_pack
from tests.routing_examples import save_base, shouts, sums, tuned
from tests.support.commands import Shell
from tests.support.tiny_models import build_pack


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A shell in whose folder lie a base, two packs with cards and one without."""
    shell = Shell(tmp_path_factory.mktemp("route"))
    base = save_base(shell.home / "base")
    for number, (name, prompts) in enumerate((("sums", sums(24)), ("shouts", shouts(24)), ("plain", []))):
        fine_tune = tuned(base, shell.home / f"{name}-tuned", number + 1)
        lines = [json.dumps({"prompt": prompt, "answer": "?"}) for prompt in prompts]
        (shell.home / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
        if prompts:
            pack(fine_tune, base, shell.home / name, metadata=AuthorFile(name=name, version="1"), prompts=prompts)
        else:
            build_pack(fine_tune, base, shell.home / name, name=name)
    return shell


CARDED = ("--base", "base", "--pack", "./sums", "--pack", "./shouts")


def test_one_text_is_shown_with_scores_thresholds_and_the_choice(offline: Shell) -> None:
    rows = offline.succeed("route", *CARDED, "12 + 30 = ?").splitlines()
    assert max(map(len, rows)) <= 80
    (chosen,) = (row for row in rows if "✓" in row)
    assert chosen.split()[0] == "sums" and len(chosen.split()) == 4
    assert [row.split()[0] for row in rows if row.strip() and "─" not in row] == ["Pack", "sums", "shouts", "(base)"]


def test_many_texts_are_shown_and_the_json_has_all(offline: Shell) -> None:
    texts = ["3 + 4 = ?", "QXZJKVWQ!", "It rains in the north,\nand nobody who lives there ever seems to mind."]
    path = offline.home / "texts.jsonl"
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts), encoding="utf-8")
    rows = offline.succeed("route", *CARDED, "--file", "texts.jsonl").splitlines()
    assert "It rains in the north, and nobody who l…" in "\n".join(rows) and max(map(len, rows)) <= 80
    result = offline.json("route", *CARDED, "--file", "texts.jsonl")
    assert [one["choice"] for one in result["prompts"]] == ["sums", "shouts", None]
    assert [one["prompt"] for one in result["prompts"]] == texts
    assert (result["router"], result["template"]) == ("cards", "chat")
    for one in result["prompts"]:
        passing = [name for name, score in one["scores"].items() if score > result["thresholds"][name]]
        assert (one["choice"] in passing) if passing else one["choice"] is None
    bare = offline.json("route", *CARDED, "--file", "texts.jsonl", "--template", "none")
    assert bare["template"] == "none" and bare["prompts"][0]["scores"] != result["prompts"][0]["scores"]


def test_a_pack_without_card_is_routed_by_weights_and_that_is_said(offline: Shell) -> None:
    done = offline.run("route", *CARDED, "--pack", "./plain", "--json", "12 + 30 = ?")
    assert done.returncode == 0 and "plain has none" in done.stderr
    assert json.loads(done.stdout)["router"] == "weights"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "Give either a text or --file."),
        (("text", "--file", "sums.jsonl"), 2, "Give either a text or --file."),
        (("  ",), 2, "The text is empty."),
        (("--file", "nowhere.jsonl"), 4, "There is no file nowhere.jsonl."),
        (("--file", "plain.jsonl"), 2, "plain.jsonl has no prompts."),
        (("--pack", "./sums", "text"), 2, "twice"),
        (("--pack", "./nowhere", "text"), 4, "nowhere"),
    ],
)
def test_mistakes_are_told_in_a_sentence(offline: Shell, arguments: tuple[str, ...], code: int, message: str) -> None:
    done = offline.run("route", *CARDED, *arguments)
    assert done.returncode == code and message in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_another_base_is_refused(offline: Shell) -> None:
    save_base(offline.home / "other", seed=5)
    done = offline.run("route", "--base", "other", "--pack", "./sums", "text")
    assert done.returncode == 5 and "does not fit the base" in done.stderr


def test_a_bad_line_of_prompts_is_named(offline: Shell) -> None:
    for line, message in (
        ("[1]", "line 2 has no prompt."),
        ("{", "line 2 is not JSON."),
        ('{"prompt": " "}', "line 2 has"),
        ('{"prompt": "\\ud800"}', "line 2 has half of a character."),
    ):
        (offline.home / "bad.jsonl").write_text('{"prompt": "a"}\n' + line, encoding="utf-8")
        done = offline.run("route", *CARDED, "--file", "bad.jsonl")
        assert done.returncode == 2 and message in done.stderr


def test_help_has_an_example(offline: Shell) -> None:
    assert "Example:" in offline.succeed("route", "--help")


def test_few_prompts_for_a_card_are_refused_before_anything_is_made(offline: Shell) -> None:
    few = Path(offline.home / "few.jsonl")
    few.write_text('{"prompt": "a"}\n', encoding="utf-8")
    words = ["--base", "base", "-o", "few", "--name", "few", "--version", "1", "--prompts", "few.jsonl"]
    done = offline.run("pack", "sums-tuned", *words)
    assert done.returncode == 2 and "at least 16 different prompts; there are 1" in done.stderr
    assert not (offline.home / "few").exists()


def test_pack_makes_a_card_from_a_file_of_prompts(offline: Shell) -> None:
    words = ["--base", "base", "-o", "made", "--name", "made", "--version", "1", "--prompts", "sums.jsonl"]
    done = offline.run("pack", "sums-tuned", *words, "--json")
    assert done.returncode == 0 and "Routing card: " in done.stderr
    assert json.loads(done.stdout)["routing_card"] is True
    made = open_pack(offline.home / "made")
    assert (
        made.only_variant().router == open_pack(offline.home / "sums").only_variant().router and verify_pack(made) == []
    )
