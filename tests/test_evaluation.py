from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from skillhub import scoring
from skillhub.calibration.texts import CONTROL_TEXTS, Row, control_texts, general_texts
from skillhub.compose.generation import load_model as load_language_model
from skillhub.errors import NotFoundError, UsageError, WrongBaseError
from skillhub.evaluation import evaluate_pack, gain_kept, read_rows
from skillhub.manifest import Evaluation
from skillhub.measures import CONTROL
from skillhub.packs import RECEIPT_FILE, open_pack
from skillhub.scoring import Reference, answer_scores, pair_cosines
from tests.support.tiny_models import bits, build_pack, load_model, rewrite, save_model, tune

SPECIAL = ["<s>", "</s>", "<pad>", "<unk>", "<user>", "<assistant>"]
WORDS = [*SPECIAL, "one", "two", "three", "four", "five", "six", "seven", *map(str, range(8, 21))]
TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}> {{ message['content'] }} </s> {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
ROWS = [
    {"prompt": "one two", "answer": "three"},
    {"prompt": "four", "answer": "five six seven"},
    {"prompt": "one four seven two", "answer": "one"},
]
PAIRS = [{"a": "one two", "b": "two one three"}, {"a": "four", "b": "five six seven one"}, {"a": "six", "b": "six"}]


def make_tokenizer(template: str | None = TEMPLATE) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    fast.chat_template = template
    return fast


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("causal")
    base = save_model("llama", folder / "base", initializer_range=0.5)
    make_tokenizer().save_pretrained(base)
    tune(base, folder / "tuned", size=0.05)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    base = save_model("bert", folder / "base", initializer_range=0.5)
    make_tokenizer(None).save_pretrained(base)
    tune(base, folder / "tuned", size=0.05)
    return folder


def ids_of(row: dict[str, str], template: bool) -> tuple[list[int], list[int]]:
    """Token ids by the template above, written out by hand."""
    prompt = f"<user> {row['prompt']} </s> <assistant>" if template else row["prompt"]
    return [WORDS.index(word) for word in prompt.split()], [
        WORDS.index(word) for word in f"{row['answer']} </s>".split()
    ]


@pytest.mark.parametrize("template", [True, False])
@pytest.mark.parametrize("batch", [1, 2, 8])
def test_answers_are_scored_token_by_token_in_fp32(causal: Path, template: bool, batch: int):
    model = load_model(causal / "base").train()
    before = bits(model)
    scores = answer_scores(model, make_tokenizer(TEMPLATE if template else None), ROWS, batch=batch)
    reference = load_model(causal / "base").float()
    losses: list[float] = []
    for row in ROWS:
        prompt, answer = ids_of(row, template)
        with torch.no_grad():
            logits = reference(input_ids=torch.tensor([prompt + answer])).logits[0].double()
        for position, token in enumerate(answer, start=len(prompt)):
            losses.append(-float(torch.log_softmax(logits[position - 1], -1)[token]))
    assert scores["nll"] == pytest.approx(math.fsum(losses) / len(losses), abs=2e-5)
    assert scores["rows"] == 3 and scores["exact"] == 0
    assert bits(model) == before and model.training and model.dtype == torch.bfloat16


def test_exact_means_that_greedy_decoding_gives_the_answer(causal: Path):
    model, tokenizer = load_model(causal / "base"), make_tokenizer()
    reference = load_model(causal / "base").float()
    rows = []
    for row in ROWS:
        prompt, _ = ids_of(row, True)
        with torch.no_grad():
            made = reference.generate(torch.tensor([prompt]), max_new_tokens=4, do_sample=False, eos_token_id=None)
        rows.append({"prompt": row["prompt"], "answer": tokenizer.decode(made[0, len(prompt) :])})
    tokenizer.chat_template = (
        "{% for message in messages %}{% if message['role'] == 'user' %}<user> {{ message['content'] }} </s> <assistant> "
        "{% else %}{{ message['content'] }}{% endif %}{% endfor %}"
    )
    assert answer_scores(model, tokenizer, rows)["exact"] == 1
    rows[1] = {**rows[1], "answer": rows[1]["answer"].rsplit(" ", 1)[0] + " <unk>"}
    assert answer_scores(model, tokenizer, rows)["exact"] == pytest.approx(2 / 3)


def test_a_row_longer_than_the_model_is_refused_by_number(causal: Path):
    rows = [*ROWS, {"prompt": "one " * 40, "answer": "two"}]
    with pytest.raises(UsageError, match="Row 4 has 45 tokens; the model takes 32"):
        answer_scores(load_model(causal / "base"), make_tokenizer(), rows)


@pytest.mark.parametrize("row", [{"prompt": "one", "answer": ""}, {"prompt": "", "answer": "two"}])
def test_a_row_without_a_token_to_score_is_refused_by_number(causal: Path, row: dict[str, str]):
    tokenizer = make_tokenizer(None)
    tokenizer.eos_token = None
    model = load_model(causal / "base")
    model.forward = None  # no model runs before the rows have been looked at
    for rows in ([row], [*ROWS, row]):
        with pytest.raises(UsageError, match=f"The answer of row {len(rows)} has no token to score"):
            answer_scores(model, tokenizer, rows)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers_are_refused_and_not_written(causal: Path, tmp_path: Path, value: float):
    def broken(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {**tensors, "model.norm.weight": torch.full_like(tensors["model.norm.weight"], value)}

    tuned = rewrite(causal / "base", tmp_path / "tuned", broken)
    pack = build_pack(tuned, causal / "base", tmp_path / "pack")
    with pytest.raises(UsageError, match="The pack model's nll on these rows is nan") as caught:
        evaluate_pack(pack, causal / "base", ROWS)
    assert caught.value.hint and open_pack(pack.folder).digest == pack.digest


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_cosines_are_of_mean_pooled_states(encoder: Path, batch: int):
    model, tokenizer = load_model(encoder / "base"), make_tokenizer(None)
    cosines = pair_cosines(model, tokenizer, PAIRS, batch=batch)
    reference = load_model(encoder / "base").float()

    def embedding(text: str) -> torch.Tensor:
        with torch.no_grad():
            return reference(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].double().mean(0)

    expected = [float(torch.cosine_similarity(embedding(p["a"]), embedding(p["b"]), dim=0)) for p in PAIRS]
    assert cosines == pytest.approx(expected, abs=1e-5) and cosines[2] == pytest.approx(1)


def test_evaluating_fills_the_manifest_and_keeps_other_tasks(causal: Path, tmp_path: Path):
    pack = build_pack(causal / "tuned", causal / "base", tmp_path / "pack")
    seen: list[tuple[str, int, int]] = []
    scores = evaluate_pack(
        pack,
        causal / "base",
        ROWS,
        tuned=causal / "tuned",
        task="words",
        progress=lambda *step: seen.append(step),
    )
    several = sum(
        len(text.split()) > 1 for text in control_texts()
    )  # of more words, each of which is a token, than one
    assert [(one.task, one.metric, one.rows) for one in scores] == [
        *(("words", metric, 3) for metric in ("nll", "exact", "kl")),
        (CONTROL, "kl", several),
    ]
    assert all(one.pack == one.tuned for one in scores)  # the pack is exact
    assert scores[0].base != scores[0].pack and gain_kept(scores) in (1, None)
    assert all(one.base > 0 and one.tuned == 0 for one in scores[2:])
    assert [what for what, done, _ in seen if done == 3] == ["tuned rows", "base rows", "pack rows"]
    assert not list(tmp_path.glob(".evaluation-*"))
    evaluated = open_pack(tmp_path / "pack")
    assert evaluated.manifest.variants[0].evaluation == scores and evaluated.digest != pack.digest
    evaluate_pack(evaluated, causal / "base", ROWS[:2], task="fewer")
    again = evaluate_pack(open_pack(tmp_path / "pack"), causal / "base", ROWS[:1], task="words")
    kept = open_pack(tmp_path / "pack").manifest.variants[0].evaluation
    assert [(one.task, one.metric, one.rows) for one in kept] == [
        ("words", "kl", 3),
        (CONTROL, "kl", several),
        *((task, metric, rows) for task, rows in (("fewer", 2), ("words", 1)) for metric in ("nll", "exact")),
    ]
    assert again[0].tuned is None


def test_an_encoder_is_evaluated_on_pairs(encoder: Path, tmp_path: Path):
    pack = build_pack(encoder / "tuned", encoder / "base", tmp_path / "pack")
    scores = evaluate_pack(pack, str(encoder / "base"), PAIRS, tuned=encoder / "tuned", task="pairs")
    assert [(one.task, one.metric, one.rows) for one in scores] == [
        ("pairs", "cosine", 3),
        ("pairs", "distance", 3),
        (CONTROL, "distance", CONTROL_TEXTS),
    ]
    assert scores[0].pack == scores[0].tuned != scores[0].base
    assert all(one.pack == pytest.approx(one.tuned, abs=1e-12) and one.base > 1e-6 for one in scores[1:])


def test_the_divergence_is_that_of_the_fine_tunes_predictions_to_the_others(causal: Path, tmp_path: Path):
    pack = build_pack(causal / "tuned", causal / "base", tmp_path / "pack")
    found = {(one.task, one.metric): one for one in evaluate_pack(pack, causal / "base", ROWS, tuned=causal / "tuned")}
    models = [load_model(causal / name).float() for name in ("tuned", "base")]
    total, count = 0.0, 0
    for row in ROWS:
        prompt, answer = ids_of(row, True)
        with torch.no_grad():
            tuned, base = (
                model(input_ids=torch.tensor([prompt + answer]))
                .logits[0, len(prompt) - 1 : -1]
                .double()
                .log_softmax(-1)
                for model in models
            )
        total += float((tuned.exp() * (tuned - base)).sum())
        count += len(answer)
    assert found["held-out", "kl"].base == pytest.approx(total / count, rel=1e-3)


def test_no_more_predictions_are_remembered_than_there_is_room_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows = [Row((1, 2, 3), 1) for _ in range(6)]
    monkeypatch.setattr(scoring, "MOST_REMEMBERED", 4 * 7 * 2 * 6 // 3)
    reference = Reference(tmp_path / "kept", rows)
    logits = [torch.randn(2, 7, generator=torch.Generator().manual_seed(number)) for number in range(6)]
    for number in (3, 0, 5, 1, 2, 4):
        reference.remember(number, logits[number])
    assert [number for number in range(6) if number in reference] == [0, 3]
    assert reference.divergence(3, logits[3]) == pytest.approx(0, abs=1e-6)
    wider = torch.cat([logits[3], torch.full((2, 5), 9.0)], 1)  # tokens that the fine-tune does not have
    assert reference.divergence(3, wider) == pytest.approx(0, abs=1e-6)
    first, second = (one.double().log_softmax(-1) for one in (logits[0], logits[4]))
    expected = float((first.exp() * (first - second)).sum())
    assert reference.divergence(0, logits[4]) == pytest.approx(expected, rel=1e-5)


def test_the_control_is_text_that_nothing_is_calibrated_on():
    for prompts in range(1, 129):
        assert not set(general_texts(prompts)) & set(control_texts())
    assert len(set(control_texts())) == CONTROL_TEXTS


def test_all_read_by_the_fine_tunes_tokenizer_if_the_base_knows_its_tokens(causal: Path, tmp_path: Path):
    tuned = tune(causal / "base", tmp_path / "tuned", size=0.05)
    pack = build_pack(tuned, causal / "base", tmp_path / "pack")

    def base_nll() -> float:
        return next(one.base for one in evaluate_pack(pack, causal / "base", ROWS, tuned=tuned) if one.metric == "nll")

    def expected(template: str | None) -> float:
        return answer_scores(load_model(causal / "base"), make_tokenizer(template), ROWS)["nll"]

    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tuned / name).unlink(missing_ok=True)
    assert base_nll() == pytest.approx(expected(TEMPLATE), abs=1e-5)
    make_tokenizer(None).save_pretrained(tuned)
    assert base_nll() == pytest.approx(expected(None), abs=1e-5) != pytest.approx(expected(TEMPLATE), abs=1e-3)
    larger = make_tokenizer(None)
    larger.add_tokens([f"new{number}" for number in range(200)])
    larger.save_pretrained(tuned)
    assert base_nll() == pytest.approx(expected(TEMPLATE), abs=1e-5)


@pytest.mark.parametrize(
    ("metric", "scores", "kept"),
    [
        ("nll", (3.0, 1.0, 1.5), 0.75),
        ("cosine", (0.2, 0.7, 0.6), 0.8),
        ("nll", (1.0, 1.0, 1.0), None),
        ("nll", (1.0, 2.0, 1.5), None),
        ("nll", (1.0, None, 1.5), None),
        ("exact", (0.0, 1.0, 0.5), None),
    ],
)
def test_the_gain_that_is_kept(metric: str, scores: tuple[float, float | None, float], kept: float | None):
    base, tuned, packed = scores
    one = Evaluation(task="t", metric=metric, base=base, tuned=tuned, pack=packed, rows=1)
    assert gain_kept([one]) == (None if kept is None else pytest.approx(kept))


def test_what_cannot_be_evaluated_is_refused_and_the_pack_stays(causal: Path, tmp_path: Path):
    pack = build_pack(causal / "tuned", causal / "base", tmp_path / "pack")
    with pytest.raises(WrongBaseError, match="does not fit"):
        evaluate_pack(pack, causal / "tuned", ROWS)
    with pytest.raises(UsageError, match="no rows"):
        evaluate_pack(pack, causal / "base", [])
    for rows, message in (
        ([*ROWS, {"a": "one", "b": "two"}], rf"Row {len(ROWS) + 1} lacks the texts answer and prompt"),
        ([{"a": "one", "b": "two"}, *ROWS], "Row 2 lacks the texts a and b"),
        ([{"prompt": "one"}], "Row 1 lacks the texts answer and prompt"),
        ([{"prompt": "one", "answer": "\ud83d"}], "Row 1 has half of a character"),
    ):
        with pytest.raises(UsageError, match=message):
            evaluate_pack(pack, causal / "base", rows)
    (pack.folder / RECEIPT_FILE).write_text("{}")
    with pytest.raises(UsageError, match="was published") as caught:
        evaluate_pack(pack, causal / "base", ROWS)
    assert caught.value.hint and open_pack(pack.folder).digest == pack.digest


def test_rows_are_read_and_other_keys_left_out(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({**row, "source": 1}) for row in ROWS) + "\n\n")
    assert read_rows(path) == ROWS
    path.write_text("\n".join(json.dumps(row) for row in PAIRS))
    assert read_rows(path) == PAIRS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "a", "answer": "b"}\n{"prompt": "a"\n', "line 2 is not JSON"),
        (
            '{"prompt": "a", "answer": "b"}\n\n{"a": "x", "b": "y"}\n',
            r"line 3 is not an object with \['answer', 'prompt'\]",
        ),
        ('{"prompt": "a", "answer": 3}\n', "line 1: answer and prompt must be texts"),
        ("[1]\n", "line 1 is not an object"),
        ('{"prompt": "a"}\n', "line 1 is not an object"),
        ('{"prompt": "a", "answer": "\\ud800"}\n', "line 1 has half of a character"),
        ("\n\n", "has no rows"),
        ("\xff", "line 1 is not JSON"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path: Path, text: str, message: str):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=message) as caught:
        read_rows(path)
    assert caught.value.hint


def test_a_missing_file_of_rows_is_not_found(tmp_path: Path):
    with pytest.raises(NotFoundError, match="no file"):
        read_rows(tmp_path / "none.jsonl")


def test_pairs_without_a_padding_token_are_refused(causal: Path):
    tokenizer = make_tokenizer(None)
    tokenizer.pad_token = None
    with pytest.raises(UsageError, match="rows of a and b are for encoders") as caught:
        pair_cosines(load_model(causal / "base"), tokenizer, PAIRS)
    assert "prompt and answer" in caught.value.hint


def test_an_encoder_is_not_given_a_head_that_it_lacks(encoder: Path, causal: Path, tmp_path: Path):
    pack = build_pack(encoder / "tuned", encoder / "base", tmp_path / "pack")
    with pytest.raises(UsageError, match=r"is an encoder \(BertModel\)") as caught:
        evaluate_pack(pack, encoder / "base", ROWS)
    assert "skillhub.graft" in caught.value.hint
    assert load_language_model(causal / "base")[0].config.architectures == ["LlamaForCausalLM"]


@pytest.mark.parametrize("task", ["", "  ", "a\nb", "\x1b[31m"])
def test_a_task_that_a_manifest_cannot_hold_is_refused_before_anything_is_measured(
    causal: Path, tmp_path: Path, task: str
):
    pack = build_pack(causal / "tuned", causal / "base", tmp_path / "pack")
    with pytest.raises(UsageError, match="The task ") as caught:
        evaluate_pack(pack, tmp_path / "nowhere", ROWS, task=task)
    assert "--task" in caught.value.hint and "regex" not in caught.value.message
