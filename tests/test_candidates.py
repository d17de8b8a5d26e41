"""The candidates for a matrix: honest offers, no bits for nearness that would buy exactness, and what is stored is what was offered."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from skillhub.codecs import EncodedTensor, decode
from skillhub.codecs.allocation import Analysis, analyse, choose_lambda, encode
from skillhub.codecs.candidates import Components, Target, Values, find_candidates
from skillhub.codecs.metrics import Metrics, metric_of
from tests.codec_examples import words

SHAPE = (384, 256)


def seeded(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def fine_tune(kind: str) -> Values:
    """A base and what training makes of it: ``dense`` and ``sparse`` are saved in bf16, whose steps swallow small updates."""
    base = 0.04 * seeded(*SHAPE, seed=1)
    spectrum = torch.arange(1, 257).float().pow(-0.7)
    update = (seeded(SHAPE[0], 256, seed=2) * spectrum) @ seeded(256, SHAPE[1], seed=3) + 2 * seeded(*SHAPE, seed=4)
    if kind == "dense in fp32":
        return Values(base + 1e-5 * update, base)
    base = base.bfloat16()
    size = {"dense": 2e-4, "sparse": 1e-5, "rows": 1e-4}[kind]
    if kind == "rows":  # tokens or experts that were not trained
        update[40:] = 0
    return Values((base.float() + size * update).bfloat16(), base)


def metrics_of(shape: tuple[int, int]) -> Metrics:
    """Metrics in which lines differ a hundredfold, and point the same way."""
    sides = []
    for seed, size in enumerate(shape):
        scales = torch.logspace(-1, 1, size)[torch.randperm(size, generator=torch.Generator().manual_seed(seed))]
        samples = seeded(4 * size, size, seed=seed) * scales + seeded(4 * size, 1, seed=seed + 5)
        sides.append(metric_of(samples / len(samples) ** 0.5))
    return Metrics(*sides)


@cache
def case(kind: str, is_calibrated: bool, has_values: bool) -> tuple[Target, Analysis]:
    values = fine_tune(kind)
    delta = values.tuned.float() - values.base.float()
    metrics = metrics_of(SHAPE) if is_calibrated else None
    given = values if has_values else None
    analysis = analyse("weight", delta, metrics=metrics, values=given)
    assert analysis.factors is not None
    return Target(delta, analysis.factors, metrics, analysis.row_bits, given), analysis


KINDS = ("dense in fp32", "dense", "sparse", "rows")
CASES = [(kind, calibrated, values) for kind in KINDS for calibrated in (False, True) for values in (False, True)]


def decoded_error(target: Target, encoded: EncodedTensor) -> float:
    """The squared error, in the metrics, of what was encoded."""
    decoded = decode(encoded, None if target.values is None else target.values.base)
    if encoded.operation == "restore":
        assert target.values is not None
        decoded = decoded.float() - target.values.base.float()
    error = target.matrix - decoded
    return target.metrics.energy(error) if target.metrics else float(error.square().sum(dtype=torch.float64))


@pytest.mark.parametrize(("kind", "calibrated", "values"), CASES)
def test_no_candidate_beats_the_chosen_one_which_is_what_encoding_takes(
    kind: str, calibrated: bool, values: bool
) -> None:
    target, analysis = case(kind, calibrated, values)
    candidates = find_candidates(target)
    checked = 0
    for place, (price, bits, error) in enumerate(zip(analysis.prices, analysis.bits, analysis.errors, strict=True)):
        offers = {one.kind: offer for one in candidates if (offer := one.offer(price)) is not None}
        chosen = offers.pop(analysis.kinds[place])
        assert (chosen.bits, chosen.error) == pytest.approx((bits, error))
        assert not any(other.bits <= chosen.bits and other.error < chosen.error for other in offers.values())
        if bits < 8 * 1500 or place % 3:
            continue
        encoded = encode(analysis, price, target.matrix, target.values)
        checked += 1
        least = 0.6 if kind == "rows" else 0.85  # of few rows estimates are rough, and never too low
        assert least * bits / 8 <= encoded.nbytes <= 1.15 * bits / 8
        assert decoded_error(target, encoded) == pytest.approx(error, rel=0.1)
    assert checked


def test_few_changes_are_found_and_stored_to_the_bit_where_components_take_as_much() -> None:
    target, analysis = case("sparse", False, True)
    assert target.values is not None
    assert float((target.matrix != 0).float().mean()) < 0.4
    last = encode(analysis, analysis.prices[-1], target.matrix, target.values)
    assert analysis.kinds[-1] == "lossless" and analysis.errors[-1] == 0
    assert words(decode(last, target.values.base)) == words(target.values.tuned)
    assert analysis.bits[-1] == analysis.bits[-2]
    near = [offer for price in analysis.prices if (offer := Components(target).offer(price)).bits < analysis.bits[-1]]
    assert min(offer.error for offer in near) > 0.3 * analysis.energy


def test_a_budget_beyond_what_is_exact_is_left_over() -> None:
    _, analysis = case("sparse", False, True)
    size = analysis.bits[-1] / 8
    for budget in (1.1 * size, 3 * size, 100 * size):
        assert analysis.kind_at(choose_lambda([analysis], int(budget))) == "lossless"
    assert analysis.kind_at(choose_lambda([analysis], int(0.5 * size))) == "lowrank"


def test_added_rows_stay_exact_whatever_stores_the_rest() -> None:
    values = fine_tune("sparse")
    delta = values.tuned.float() - values.base.float()
    delta[-3:] = seeded(3, SHAPE[1], seed=9)
    analysis = analyse("embed", delta, added_rows=3, values=values)
    assert "sparse" in analysis.kinds and "lossless" not in analysis.kinds
    for price in analysis.prices:
        assert words(decode(encode(analysis, price, delta, values)))[-3 * SHAPE[1] * 4 :] == words(delta[-3:])
    assert words(decode(encode(analysis, analysis.prices[-1], delta, values))) == words(delta)


VALUES = st.floats(-1e3, 1e3, width=16) | st.sampled_from([0.0, -0.0, 1e-6])


@settings(max_examples=25)
@given(
    npst.arrays(np.float32, (2, 70, 65), elements=VALUES, fill=st.sampled_from([0.0, 1.0])),
    st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
    st.sampled_from([torch.bfloat16, torch.float32, torch.float64]),
    st.sampled_from([(70, 65), (65, 70), (7, 10, 65), (2, 2275)]),
    st.floats(1e-9, 1e3),
    st.booleans(),
)
def test_any_difference_of_tensors_is_stored_at_any_price(
    arrays: np.ndarray,
    dtype: torch.dtype,
    base_dtype: torch.dtype,
    shape: tuple[int, ...],
    price: float,
    is_transposed: bool,
) -> None:
    base = torch.from_numpy(arrays[0]).reshape(shape).to(base_dtype)
    tuned = (base.float() + torch.from_numpy(arrays[1]).reshape(shape)).to(dtype)
    if is_transposed:
        base, tuned = base.transpose(0, -1), tuned.transpose(0, -1)
    delta = (tuned.double() - base.double()).float()
    values = Values(tuned, base)
    analysis = analyse("weight", delta, values=values)
    for at in (price, 1e-30):
        encoded = encode(analysis, at, delta, values)
        decoded = decode(encoded, base)
        assert decoded.shape == tuned.shape and bool(decoded.isfinite().all())
        if encoded.operation == "restore":
            assert decoded.dtype == dtype
            decoded = (decoded.double() - base.double()).float()
        assert float((decoded - delta).square().sum()) <= 1.1 * float(delta.square().sum()) + 1e-6


@pytest.mark.parametrize("shape", [(8, 640), (640, 8), (2, 5000)])
def test_routers_of_experts_are_stored_by_some_candidate(shape: tuple[int, int]) -> None:
    base = (0.02 * seeded(*shape, seed=1)).bfloat16()
    tuned = (base.float() + 1e-4 * seeded(*shape, seed=2)).bfloat16()
    delta = tuned.float() - base.float()
    analysis = analyse("router", delta, values=Values(tuned, base))
    encoded = encode(analysis, analysis.prices[-1], delta, Values(tuned, base))
    decoded = decode(encoded, base)
    delta_found = decoded.float() - base.float() if encoded.operation == "restore" else decoded
    assert float((delta_found - delta).square().sum()) < 0.02 * float(delta.square().sum())
