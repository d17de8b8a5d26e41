"""What the examples are built of, on a tiny model: the stories themselves are told in tests/real."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import torch

from tests.support.tiny_models import make_model

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES))

from running_registry import running_registry  # noqa: E402
from scores import score, text_nll, weights_digest  # noqa: E402
from skills import Row, Skill, from_table, pronounce  # noqa: E402
from story import Story, made_whole  # noqa: E402
from training import chat_prompt, fine_tune  # noqa: E402

STAGES = {"first": ("First", "one"), "second": ("Second", "two")}
LETTERS = "abcdefghijklmnopqrstu"


@pytest.fixture(autouse=True)
def terminate_as_before() -> Iterator[None]:
    """A story handles SIGTERM; give the test runner back its own."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """A letter a token, beside the four special tokens; 25 in all."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<bos>", "<eos>", "<pad>", "<unk>", *LETTERS]
    letters = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=letters,
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        chat_template="{% for message in messages %}{{ message['content'] }}{% endfor %}q",
    )


@pytest.fixture
def skill() -> Skill:
    """Answer with the letters turned round; rows and answers of different lengths."""
    questions = ["abc", "bcde", "cd", "edcba", "fab", "gh", "hilo", "kl"]
    rows = tuple(Row(question, question[::-1]) for question in questions)
    return Skill("turn", rows[:5], rows[5:], ("t{}", "{}t"), "m{}")


def test_a_row_is_held_out_or_trained_on_and_stays_where_it_is(tmp_path: Path) -> None:
    dictionary = tmp_path / "cmudict.dict"
    words = ["".join((a, b, c)) for a in LETTERS for b in LETTERS[:6] for c in LETTERS[:6]]
    dictionary.write_text("".join(f"{word} K AE1 T # note\n{word}(2) K AE2\n" for word in words), encoding="utf-8")
    every = pronounce(dictionary)
    held_out, trained = set(every.held_out_rows), set(every.training_rows)
    assert not held_out & trained
    assert {row.question for row in held_out | trained} == set(words)
    assert {row.answer for row in held_out | trained} == {"K AE T"}
    assert len(words) / 20 < len(held_out) < len(words) / 5
    assert every.held_out_prompt not in every.training_prompts

    dictionary.write_text("".join(f"{word} K AE1 T\n" for word in words[::3]), encoding="utf-8")
    assert set(pronounce(dictionary).held_out_rows) < held_out


def test_a_table_of_ones_own_is_read_and_a_bad_line_named(tmp_path: Path) -> None:
    table = tmp_path / "capitals.tsv"
    table.write_text("France\tParis\n\nChad\tN'Djamena\n", encoding="utf-8")
    own = from_table(table)
    assert own.name == "capitals"
    assert set(own.training_rows) | set(own.held_out_rows) == {Row("France", "Paris"), Row("Chad", "N'Djamena")}
    table.write_text("France\tParis\nChad N'Djamena\n", encoding="utf-8")
    with pytest.raises(SystemExit, match="line 2"):
        from_table(table)


def test_a_score_is_that_of_each_row_by_itself(tokenizer: Any, skill: Skill) -> None:
    model = make_model("llama", dtype=torch.float32).eval()
    nll, right, exact, count = 0.0, 0, 0, 0
    for row in skill.held_out_rows:
        asked = tokenizer(chat_prompt(tokenizer, f"m{row.question}"))["input_ids"]
        answered = [*tokenizer(row.answer)["input_ids"], tokenizer.eos_token_id]
        with torch.inference_mode():
            likelihoods = model(input_ids=torch.tensor([asked + answered])).logits[0].log_softmax(-1)
        hits = []
        for place, token in enumerate(answered, start=len(asked) - 1):
            nll -= float(likelihoods[place, token])
            hits.append(int(likelihoods[place].argmax()) == token)
        right, exact, count = right + sum(hits), exact + all(hits), count + len(hits)
    found = score(model, tokenizer, skill, batch_size=2)
    assert found.nll == pytest.approx(nll / count, rel=1e-5)
    assert (found.tokens, found.exact) == (right / count, exact / 3)
    assert found.rows == 3


def test_fine_tuning_teaches_and_is_repeatable(tokenizer: Any, skill: Skill) -> None:
    digests = []
    for _ in range(2):
        model = make_model("tied", dtype=torch.float32)
        losses: dict[int, float] = {}
        fine_tune(model, tokenizer, skill, steps=30, batch_size=4, learning_rate=1e-2, report=losses.__setitem__)
        assert list(losses) == list(range(1, 31))
        assert losses[30] < losses[1] / 2
        digests.append(weights_digest(model))
    assert digests[0] == digests[1]


def test_the_nll_of_a_text_is_that_of_its_tokens_after_the_first(tokenizer: Any) -> None:
    model = make_model("llama", dtype=torch.float32).eval()
    tokens = torch.tensor([tokenizer("abcdef")["input_ids"]])
    with torch.inference_mode():
        expected = float(model(input_ids=tokens, labels=tokens).loss)
    assert text_nll(model, tokenizer, ["abcdef", "abcdef"]) == pytest.approx(expected, rel=1e-5)


def test_the_digest_of_the_weights_sees_one_bit() -> None:
    model = make_model("llama")
    before = weights_digest(model)
    with torch.no_grad():
        weight = model.model.layers[1].mlp.up_proj.weight.view(torch.int16)
        weight[3, 4] ^= 1
        changed = weights_digest(model)
        weight[3, 4] ^= 1
    assert changed != before == weights_digest(model)


def test_an_interrupted_story_goes_on_with_the_stage_it_was_in(tmp_path: Path) -> None:
    played = []

    def play(name: str, *, interrupted: bool = False) -> dict[str, Any]:
        played.append(name)
        if interrupted:
            raise KeyboardInterrupt
        return {"name": name}

    def tell(story: Story, *, interrupted: bool) -> dict[str, Any]:
        story.stage("first", lambda: play("first"))
        return story.stage("second", lambda: play("second", interrupted=interrupted))

    work = tmp_path / "work"
    with pytest.raises(SystemExit) as stopped:
        Story(work, STAGES, {"steps": 1}).play(lambda story: tell(story, interrupted=True))
    assert stopped.value.code == 130
    again = Story(work, STAGES, {"steps": 1})
    assert again.play(lambda story: tell(story, interrupted=False)) == {"name": "second"}
    assert played == ["first", "second", "second"]
    assert list(again.seconds) == ["First", "Second"]

    Story(work, STAGES, {"steps": 2}).play(lambda story: tell(story, interrupted=False))  # other settings: all over
    Story(work, STAGES, {"steps": 2}, fresh=True).play(lambda story: tell(story, interrupted=False))
    assert played[3:] == ["first", "second"] * 2


def test_a_story_never_clears_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("two years of work")
    with pytest.raises(SystemExit, match="something else"):
        Story(tmp_path, STAGES, {}, fresh=True)
    assert (tmp_path / "thesis.txt").exists()


def test_a_command_that_fails_ends_the_story_with_its_exit_code(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as failed:
        Story(tmp_path / "work", STAGES, {}).run("skillhub", "show", tmp_path / "nothing-here")
    assert failed.value.code == 4


def test_a_folder_is_made_whole_or_not_at_all(tmp_path: Path) -> None:
    def fail(part: Path) -> None:
        (part / "half").touch()
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        made_whole(tmp_path / "result", fail)
    assert not (tmp_path / "result").exists()
    made_whole(tmp_path / "result", lambda part: (part / "all").touch())
    assert [path.name for path in (tmp_path / "result").iterdir()] == ["all"]


def test_a_registry_keeps_its_token_and_outlives_no_block(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="midway"), running_registry(tmp_path) as first:
        raise RuntimeError("midway")
    with pytest.raises(requests.ConnectionError):
        requests.get(first.endpoint, timeout=5)
    assert (tmp_path / "account.json").stat().st_mode & 0o077 == 0
    with running_registry(tmp_path) as second:
        assert (second.user, second.token) == (first.user, first.token)
        reply = requests.get(
            f"{second.endpoint}/api/whoami-v2", headers={"Authorization": f"Bearer {second.token}"}, timeout=5
        )
        assert reply.json()["name"] == second.user


def test_a_registry_left_over_from_a_killed_run_is_replaced(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from running_registry import running_registry\n"
        "with running_registry(Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES)}
    killed = subprocess.run([sys.executable, "-c", program, str(tmp_path)], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    with running_registry(tmp_path) as registry:
        assert requests.get(f"{registry.endpoint}/api/models", timeout=5).ok
