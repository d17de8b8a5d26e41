"""The codec benchmark's own arithmetic: divergences against brute force, and what is read off a ladder of sizes."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.tiny_models import make_model

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def benchmarks_importable() -> Any:
    before = list(sys.path)
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path[:] = before


def some_rows(count: int) -> list[Any]:
    from codec_deltas import Row

    chance = np.random.default_rng(0)
    return [
        Row(
            f"question {place // 2}",
            *(tuple(map(int, chance.integers(3, 24, chance.integers(2, 6)))) for _ in range(2)),
        )
        for place in range(count)
    ]


def test_divergence_likelihood_and_exact_answers_are_those_of_whole_forwards(tmp_path: Path) -> None:
    from codec_scores import Reference

    tuned, other = (make_model("llama", dtype=torch.float32, seed=seed) for seed in (0, 1))
    reference = Reference(some_rows(12), tmp_path / "rows.npy")
    reference.remember(tuned)
    scores = reference.measure(other)
    for place, row in enumerate(reference.rows):
        ids = torch.tensor([row.prompt + row.answer])
        with torch.inference_mode():
            wanted, found = (model(ids).logits[0, len(row.prompt) - 1 : -1].double() for model in (tuned, other))
        divergence = torch.nn.functional.kl_div(
            found.log_softmax(-1), wanted.log_softmax(-1), log_target=True, reduction="sum"
        )
        target = torch.tensor(row.answer)
        assert scores["divergence"][place] == pytest.approx(float(divergence), rel=1e-4, abs=1e-6)
        assert scores["nll"][place] == pytest.approx(
            float(torch.nn.functional.cross_entropy(found, target, reduction="sum")), rel=1e-4
        )
        assert scores["exact"][place] == float(bool((found.argmax(-1) == target).all()))
    assert reference.measure(tuned)["divergence"] == pytest.approx(np.zeros(12), abs=1e-5)


def test_encoders_are_compared_by_the_cosine_of_their_means() -> None:
    from codec_deltas import Row
    from codec_scores import Reference

    tuned, other = (make_model("bert", dtype=torch.float32, seed=seed) for seed in (0, 1))
    reference = Reference([Row(row.question, row.prompt) for row in some_rows(6)], None)
    reference.remember(tuned)
    found = reference.measure(other)["divergence"]
    for place, row in enumerate(reference.rows):
        with torch.inference_mode():
            first, second = (model(torch.tensor([row.prompt])).last_hidden_state[0].mean(0) for model in (tuned, other))
        cosine = float(first @ second / first.norm() / second.norm())
        assert found[place] == pytest.approx(1 - cosine, abs=1e-5)


def test_only_every_so_manieth_batch_may_be_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import codec_scores

    monkeypatch.setattr(codec_scores, "BATCH_TOKENS", 10)
    model = make_model("llama", dtype=torch.float32)
    reference = codec_scores.Reference(some_rows(12), tmp_path / "rows.npy")
    reference.remember(model)
    part, whole = (reference.measure(model, every)["nll"] for every in (3, 1))
    measured = ~np.isnan(part)
    assert 0 < measured.sum() < 12
    assert part[measured].tolist() == whole[measured].tolist()


def test_second_moments_are_those_of_the_layers_inputs() -> None:
    from codec_methods import second_moments

    model = make_model("llama", dtype=torch.float32)
    inputs = [torch.tensor([[3, 4, 5, 6]]), torch.tensor([[7, 8, 9]])]
    found = second_moments(model, inputs)
    with torch.no_grad():
        states = torch.cat([model.model.layers[0].input_layernorm(model.model.embed_tokens(ids)[0]) for ids in inputs])
    expected = (states.double().T @ states.double()) / len(states)
    for name in ("q_proj", "k_proj", "v_proj"):
        torch.testing.assert_close(found[f"layers.0.self_attn.{name}.weight"].double(), expected, rtol=1e-4, atol=1e-6)
    assert found["layers.1.mlp.down_proj.weight"].shape == (24, 24)


def test_sizes_and_divergences_are_read_off_straight_lines_in_logarithms() -> None:
    from codec_report import divergence_at, size_at

    ladder = [(size, 8.0 / size**3) for size in (1.0, 2.0, 4.0)] + [(3.0, 5.0)]  # the last is worse than a smaller one
    assert size_at(ladder, 8.0 / 3.0**3) == (pytest.approx(3.0), "")
    assert divergence_at(ladder, 3.0) == (pytest.approx(8.0 / 3.0**3), "")
    assert size_at(ladder, 1e-9) == (4.0, ">")
    assert size_at(ladder, 100.0) == (1.0, "<")
    assert divergence_at(ladder, 0.5) == (8.0, ">")
    assert divergence_at(ladder, 9.0) == (0.125, "<")
    assert size_at([*ladder, (50.0, 0.0)], 1e-9) == (50.0, "<")
    assert math.isnan(size_at([], 1.0)[0])


def test_questions_are_resampled_with_all_of_their_rows() -> None:
    from codec_scores import RESAMPLES, draw_sample

    rows = some_rows(10)
    sample = draw_sample(rows)
    assert sample.draws.shape == (RESAMPLES + 1, 10)
    assert (sample.draws[0] == 1).all()
    assert (sample.draws[:, 0] == sample.draws[:, 1]).all() and (sample.draws[1:].sum(1) == 10).all()
    assert sample.interval(np.arange(RESAMPLES + 1.0)) == (0.0, pytest.approx(25.975), pytest.approx(975.025))


def test_held_out_questions_are_not_in_the_calibration_prompts() -> None:
    from codec_deltas import FineTune, answers, calibration_prompts, sentences
    from routing_texts import WORDINGS, is_held_out

    known = answers("math")
    assert len(known) == 12_000 and known["2 * 3"] == "6" and known.get("3 - 9") is None
    held_out = [question for question in known if is_held_out(question)]
    assert 1000 < len(held_out) < 1400
    prompts = calibration_prompts(FineTune("math", Path(), Path(), "math"))
    asked = {wording.format(question) for wording in WORDINGS["math"] for question in held_out}
    assert len(set(prompts)) > 90 and not asked & set(prompts)
    assert len(set(sentences(300))) == 300
