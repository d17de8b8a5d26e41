"""The candidates of the rate–distortion trade: honest offers, the least cost wins, and what is stored is what was offered."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from skillhub.codecs import EncodedTensor, decode
from skillhub.codecs.allocation import Analysis, analyse, choose_lambda, encode
from skillhub.codecs.candidates import Components, Offer, Remainder, Target, Values, find_candidates
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


def cost(target: Target, offer: Offer, price: float) -> float:
    return offer.error + (target.coherence - 1) * offer.left_out + price * offer.bits


def decoded_error(target: Target, encoded: EncodedTensor) -> float:
    """The squared error, in the metrics, of what was encoded."""
    decoded = decode(encoded, None if target.values is None else target.values.base)
    if encoded.operation == "restore":
        assert target.values is not None
        decoded = decoded.float() - target.values.base.float()
    error = target.matrix - decoded
    return target.metrics.energy(error) if target.metrics else float(error.square().sum(dtype=torch.float64))


@pytest.mark.parametrize(("kind", "calibrated", "values"), CASES)
def test_the_least_cost_wins_and_is_what_encoding_takes(kind: str, calibrated: bool, values: bool) -> None:
    target, analysis = case(kind, calibrated, values)
    candidates = find_candidates(target)
    checked = 0
    for place, (price, bits, error) in enumerate(zip(analysis.prices, analysis.bits, analysis.errors, strict=True)):
        offers = {one.kind: offer for one in candidates if (offer := one.offer(price)) is not None}
        chosen = offers[analysis.kinds[place]]
        assert (chosen.bits, chosen.error) == pytest.approx((bits, error))
        if math.log2(price).is_integer():  # between, where changes win on both sides, nothing else is asked
            assert all(cost(target, chosen, price) <= cost(target, offer, price) for offer in offers.values())
        if bits < 8 * 2000 or place % 3:
            continue
        encoded = encode(analysis, price, target.matrix, target.metrics, target.values)
        checked += 1
        assert bits / 8 == pytest.approx(encoded.nbytes, rel=0.15)
        # What is left out of a calibrated tensor points the same way, which the sum of squares does not see.
        slack = 4 if calibrated and analysis.kinds[place] in ("sparse", "lossless") else 1.1
        assert error / slack <= decoded_error(target, encoded) * (1 + 1e-9) <= error * slack
    assert checked


def test_few_changes_are_found_and_in_the_end_stored_to_the_bit() -> None:
    target, analysis = case("sparse", False, True)
    assert target.values is not None
    assert float((target.matrix != 0).float().mean()) < 0.4
    last = encode(analysis, analysis.prices[-1], target.matrix, None, target.values)
    assert analysis.kinds[-1] == "lossless" and analysis.errors[-1] == 0
    assert words(decode(last, target.values.base)) == words(target.values.tuned)
    assert analysis.bits[-1] == analysis.bits[-2]
    low_rank = [
        offer for price in analysis.prices if (offer := Components(target).offer(price)).bits < analysis.bits[-1]
    ]
    assert min(offer.error for offer in low_rank) > 0.3 * analysis.energy


def test_cheaper_bits_than_all_changes_take_buy_no_more() -> None:
    _, analysis = case("sparse", False, True)
    size = analysis.bits[-1] / 8
    for budget in (1.1 * size, 3 * size, 100 * size):
        price = choose_lambda([analysis], int(budget))
        assert analysis.kind_at(price) == "lossless" and price < analysis.prices[-2]


@pytest.mark.parametrize("calibrated", [False, True])
def test_only_changes_that_are_worth_little_are_left_out(calibrated: bool) -> None:
    target, analysis = case("sparse", calibrated, True)
    assert target.values is not None
    tuned, base = target.values
    partial = [p for p, kind, error in zip(analysis.prices, analysis.kinds, analysis.errors, strict=True)
               if kind == "lossless" and error]  # fmt: skip
    for price in (partial[0], partial[len(partial) // 2]):
        decoded = decode(encode(analysis, price, target.matrix, target.metrics, target.values), base)
        is_kept = decoded == tuned
        assert bool((is_kept | (decoded == base)).all())
        sizes = np.abs(target.weigh(target.matrix))
        assert sizes[~is_kept.numpy()].max() <= sizes[(is_kept & (tuned != base)).numpy()].min()


def codes_below_level(target: Target, factor: float) -> EncodedTensor:
    """Components down to their level, and codes for every weight at a price so many times below it."""
    remainder, price = Remainder(Components(target)), float(target.factors.values[0] ** 2)
    while remainder.level is None:
        assert remainder.offer(price) is None
        price /= 2
    assert remainder.offer(remainder.level / 2) is None and remainder.offer(remainder.level / 4) is not None
    return EncodedTensor(SHAPE, remainder.encode(remainder.level / factor))


@pytest.mark.parametrize("calibrated", [False, True])
def test_codes_for_every_weight_leave_less_than_components_do_at_equal_bytes(calibrated: bool) -> None:
    target, _ = case("dense in fp32", calibrated, False)
    mixed = codes_below_level(target, 64)
    assert [part.codec for part in mixed.parts] == ["lowrank", "residual"]
    components = Components(target)
    price = float(target.factors.values[0] ** 2) / 2**8
    while (alone := EncodedTensor(SHAPE, components.encode(price))).nbytes <= mixed.nbytes:
        price /= 1.2
    # In metrics of which a few directions are nearly all, components are hard to beat.
    assert decoded_error(target, mixed) < (1.0 if calibrated else 0.6) * decoded_error(target, alone)


def test_scales_of_rows_and_columns_put_codes_where_errors_cost() -> None:
    target, _ = case("dense in fp32", True, False)
    weighed, plain = codes_below_level(target, 16), case("dense in fp32", False, False)[0]
    factor = 1.0
    while (even := codes_below_level(plain, factor)).nbytes <= weighed.nbytes:
        factor *= 1.5
    assert decoded_error(target, weighed) < 0.8 * decoded_error(
        Target(target.matrix, plain.source, target.metrics), even
    )


def test_added_rows_stay_exact_whatever_stores_the_rest() -> None:
    values = fine_tune("sparse")
    delta = values.tuned.float() - values.base.float()
    delta[-3:] = seeded(3, SHAPE[1], seed=9)
    analysis = analyse("embed", delta, added_rows=3, values=values)
    assert "sparse" in analysis.kinds and "lossless" not in analysis.kinds
    for price in analysis.prices:
        assert words(decode(encode(analysis, price, delta, None, values)))[-3 * SHAPE[1] * 4 :] == words(delta[-3:])
    assert words(decode(encode(analysis, analysis.prices[-1], delta, None, values))) == words(delta)


def test_weights_far_beyond_the_codes_are_not_lost() -> None:
    delta = 1e-3 * seeded(300, 200)
    delta[7] *= 5000
    delta[8, 3] = 40.0
    analysis = analyse("weight", delta)
    for price in (analysis.prices[-1], analysis.prices[-1] / 64):
        record = decode(encode(analysis, price, delta)) - delta
        assert float(record.abs().max()) < 0.05


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
        encoded = encode(analysis, at, delta, None, values)
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
    encoded = encode(analysis, analysis.prices[-1], delta, None, Values(tuned, base))
    decoded = decode(encoded, base)
    delta_found = decoded.float() - base.float() if encoded.operation == "restore" else decoded
    assert float((delta_found - delta).square().sum()) < 0.02 * float(delta.square().sum())
