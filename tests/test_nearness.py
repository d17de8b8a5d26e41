"""Packs of a largest divergence: what is tried, what is written, and what cannot be had."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skillhub.authorfile import AuthorFile
from skillhub.compose.grafts import graft
from skillhub.errors import UsageError
from skillhub.goals import choose_goal
from skillhub.nearness import MARGIN, MOST_TRIALS, NEAR_ENOUGH, Trial, open_gauge, propose_budget
from skillhub.packer import pack
from skillhub.packs import Pack
from tests.routing_examples import add_byte_tokenizer, sums
from tests.support.tiny_models import load_model, rewrite, save_model, tune

METADATA = AuthorFile(name="near-pack", version="1.0")
PROMPTS = sums(32)
FLOOR, CEILING = 10_000, 100_000_000


@given(
    st.floats(0.3, 3.5),
    st.floats(-9, 1),
    st.floats(-9, 0),
    st.floats(0, 0.05),
    st.integers(FLOOR, CEILING),
    st.randoms(),
)
def test_few_trials_find_a_size_near_the_smallest(
    slope: float, offset: float, log_bound: float, noise: float, first: int, chance: random.Random
) -> None:
    """Divergences that fall like a power of the size, measured with noise, down to what rounding leaves."""
    bound = math.exp(log_bound)

    def measured(size: int) -> float:
        return math.exp(offset - slope * math.log(size / 1e6)) * (1 + chance.uniform(-noise, noise))

    trials: list[Trial] = []
    budget: int | None = first
    while budget is not None:
        assert FLOOR <= budget <= CEILING and len(trials) < MOST_TRIALS
        trials.append(Trial(budget, measured(budget)))
        budget = propose_budget(trials, bound, FLOOR, CEILING)
    within = [one.size for one in trials if one.divergence <= MARGIN * bound]
    smallest = 1e6 * math.exp((offset - math.log(MARGIN * bound)) / slope)
    if smallest < 0.7 * CEILING:
        assert within
    if noise < 0.01 and 0.3 < smallest / first < 3 and 2 * FLOOR < smallest < 0.7 * CEILING:
        assert min(within) < 1.3 * smallest or measured(min(within)) > 0.95 * NEAR_ENOUGH * bound


@given(st.floats(0.5, 8), st.floats(0.001, 0.5), st.integers(FLOOR, CEILING))
def test_curves_that_bend_are_followed(fall: float, share: float, first: int) -> None:
    """A pack of few bytes brings little, one of many brings more and more: the line through two far trials misses the bound."""

    def measured(size: int) -> float:
        return math.exp(-fall * math.sqrt(size / 1e6))

    trials: list[Trial] = []
    budget: int | None = first
    while budget is not None:
        trials.append(Trial(budget, measured(budget)))
        budget = propose_budget(trials, share, FLOOR, CEILING)
    smallest = 1e6 * (math.log(MARGIN * share) / fall) ** 2
    within = min((one for one in trials if one.divergence <= MARGIN * share), key=lambda one: one.size, default=None)
    if 0.1 < smallest / first < 10 and 2 * FLOOR < smallest < 0.5 * CEILING:
        assert within is not None and within.size < 1.5 * smallest


def test_what_is_kept_for_measuring_does_not_calibrate() -> None:
    goal = choose_goal("near", max_kl=0.01)
    read, held_out = goal.split([*PROMPTS, *PROMPTS[:4]])
    assert len(held_out) == 8 and len(read) == 24 and sorted([*read, *held_out]) == sorted(PROMPTS)
    assert choose_goal("near").split(PROMPTS) == (PROMPTS, ())


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"vocab_size": 261, "hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 2}
    folder = tmp_path_factory.mktemp("base") / "model"
    save_model("tied", folder, initializer_range=0.1, max_position_embeddings=1024, **sizes)
    add_byte_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def fine_tune(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tune(base, tmp_path_factory.mktemp("tuned") / "model", size=0.02)


def build(fine_tune: Path, base: Path, out: Path, bound: float) -> Pack:
    return pack(fine_tune, base, out, metadata=METADATA, max_kl=bound, prompts=PROMPTS)


def test_the_smallest_pack_within_a_divergence_is_written(base: Path, fine_tune: Path, tmp_path: Path) -> None:
    gauge = open_gauge(fine_tune, base, choose_goal("near", max_kl=1.0).split(PROMPTS)[1], tmp_path)
    sizes = []
    for share in (0.3, 0.1):
        bound = share * gauge.base
        built = build(fine_tune, base, tmp_path / str(share), bound)
        variant = built.only_variant()
        (said,) = variant.evaluation
        assert variant.codec.way == "max-kl, calibrated"
        assert (said.task, said.metric, said.tuned) == ("held-out prompts", "kl", 0.0)
        assert 0.7 * bound <= said.pack <= MARGIN * bound and said.base == pytest.approx(gauge.base, rel=1e-6)
        models = load_model(fine_tune).float(), load_model(base)
        graft(models[1], [built])
        total, count = 0.0, 0
        for row in gauge.rows:
            with torch.no_grad():
                tuned, found = (
                    model(input_ids=torch.tensor([row.tokens])).logits[0, row.answer - 1 : -1].double().log_softmax(-1)
                    for model in (models[0], models[1].float())
                )
            total += float((tuned.exp() * (tuned - found)).sum())
            count += len(tuned)
        assert total / count <= bound and total / count == pytest.approx(said.pack, rel=0.1)
        sizes.append(sum(entry.bytes for entry in variant.codec.tensors.values()))
        assert [path.name for path in tmp_path.glob(".*")] == []
    assert sizes[0] < 0.6 * sizes[1]


def test_what_no_pack_reaches_is_an_error_that_says_what_one_does(base: Path, fine_tune: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No pack stays within a divergence of 1e-09 nats") as caught:
        build(fine_tune, base, tmp_path / "pack", 1e-9)
    reached = caught.value.details["smallest"]
    assert 1e-9 < reached < 1e-2 and f"reaches {reached:.2g}" in caught.value.message
    assert "lossless" in caught.value.hint and not (tmp_path / "pack").exists()


def test_a_base_that_says_no_numbers_is_named(base: Path, fine_tune: Path, tmp_path: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors["model.norm.weight"][0] = math.nan
        return tensors

    broken = rewrite(base, tmp_path / "broken", spoil)
    with pytest.raises(UsageError, match="The base model's kl on these rows is nan"):
        build(fine_tune, broken, tmp_path / "pack", 0.1)
    assert not (tmp_path / "pack").exists()


def test_encoders_are_refused(tmp_path: Path) -> None:
    base = save_model("bert", tmp_path / "base")
    add_byte_tokenizer(base)
    with pytest.raises(UsageError, match="is an encoder, which predicts none") as caught:
        build(tune(base, tmp_path / "tuned"), base, tmp_path / "pack", 0.1)
    assert "preset" in caught.value.hint and not (tmp_path / "pack").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_kl": 0.1}, "16 different ones or more, and there are 0"),
        ({"max_kl": 0.1, "prompts": ["one", "two"] * 20}, "16 different ones or more, and there are 2"),
        ({"max_kl": 0.1, "budget_bytes": 10}, "both say how small"),
        ({"max_kl": 0.1, "preset": "lossless"}, "lossless has no size to choose"),
        ({"max_kl": 0.0}, "cannot be 0"),
        ({"max_kl": math.nan}, "cannot be nan"),
    ],
)
def test_what_does_not_go_with_a_divergence_is_refused_before_anything_is_read(
    tmp_path: Path, given: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        pack("no-such-model", "no-such-base", tmp_path / "pack", metadata=METADATA, **given)  # type: ignore[arg-type]
    assert caught.value.hint and not (tmp_path / "pack").exists()
