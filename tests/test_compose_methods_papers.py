"""Merge methods are what their papers say: each against a slow reading of it, element by element, in plain Python and fp64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from skillhub.compose.methods import merge_tensors
from skillhub.compose.methods.della import relative_ranks
from skillhub.compose.methods.masks import uniforms
from skillhub.rounding import rounding_key

Array = np.ndarray[Any, np.dtype[np.float64]]

SHAPES = [(7, 9), (3, 4, 5), (13,)]
WEIGHTS = [1.0, 0.5, 2.0]


def make(shape: tuple[int, ...], packs: int, seed: int = 0) -> tuple[torch.Tensor, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator) * 0.3
    shared = torch.randn(shape, generator=generator)
    return base, [0.3 * shared + 0.5 * torch.randn(shape, generator=generator) for _ in range(packs)]


def arrays(tensors: Sequence[torch.Tensor]) -> list[Array]:
    return [np.array(tensor.double().tolist()) for tensor in tensors]


def drawn(index: int, shape: tuple[int, ...]) -> Array:
    key = rounding_key(["0", str(index)], "")
    return np.array(uniforms(0, math.prod(shape), key).double().tolist()).reshape(shape)


def elected(deltas: Sequence[Array], weights: Sequence[float], divide_by: str) -> Array:
    """Elect a sign for each element, and add up the weighted deltas that have it."""
    result = np.zeros_like(deltas[0])
    for place in np.ndindex(result.shape):
        values = [weight * delta[place] for delta, weight in zip(deltas, weights, strict=True)]
        sign = np.sign(sum(values))
        agreeing = [index for index, value in enumerate(values) if value * sign > 0]
        if agreeing:
            divisors = {"count": len(agreeing), "weights": sum(weights[index] for index in agreeing), "nothing": 1}
            result[place] = sum(values[index] for index in agreeing) / divisors[divide_by]
    return result


def added(deltas: Sequence[Array], weights: Sequence[float], _: str) -> Array:
    total: Array = sum(
        (weight * delta for delta, weight in zip(deltas, weights, strict=True)), np.zeros_like(deltas[0])
    )
    return total


def check(merged: torch.Tensor, expected: Array, tolerance: float = 2e-6) -> None:
    assert merged.dtype == torch.float32
    assert merged.shape == expected.shape
    assert np.array(merged.double().tolist()) == pytest.approx(expected, rel=tolerance, abs=tolerance)


CONSENSUS: dict[str, dict[str, float]] = {
    "count": {},
    "weights": {"normalize": 1},
    "nothing": {"mean": 0},
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("divide_by", CONSENSUS)
@pytest.mark.parametrize("ending", ["linear", "ties"])
def test_dare_drops_by_chance_and_divides_by_the_density(ending: str, divide_by: str, shape: tuple[int, ...]):
    if ending == "linear" and divide_by != "count":
        return
    _, deltas = make(shape, 3)
    densities = [0.3, 0.6, 1.0]
    kept = [
        delta * (drawn(index, shape) < density) / density
        for index, (delta, density) in enumerate(zip(arrays(deltas), densities, strict=True))
    ]
    expected = (added if ending == "linear" else elected)(kept, WEIGHTS, divide_by)
    options = CONSENSUS[divide_by]
    check(merge_tensors(f"dare_{ending}", deltas, weights=WEIGHTS, densities=densities, options=options), expected)


def ranks_within_rows(delta: Array) -> Array:
    rows = delta.reshape(len(delta), -1) if delta.ndim > 1 else delta.reshape(1, -1)
    ranks = np.zeros_like(rows)
    for row, values in enumerate(rows):
        order = sorted(range(len(values)), key=lambda index: (abs(values[index]), index))
        for rank, index in enumerate(order):
            ranks[row, index] = rank / (len(values) - 1)
    return ranks.reshape(delta.shape)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("epsilon", [0.0, 0.15, 0.4])
def test_della_keeps_larger_elements_of_a_row_more_often(epsilon: float, shape: tuple[int, ...]):
    _, deltas = make(shape, 3)
    densities = [0.3, 0.6, 1.0]
    kept = []
    for index, (delta, density) in enumerate(zip(arrays(deltas), densities, strict=True)):
        reach = min(epsilon, density, 1 - density)
        chances = density - reach + 2 * reach * ranks_within_rows(delta)
        stays = drawn(index, shape) < chances
        kept.append(np.where(stays, delta / np.maximum(chances, 1e-12), 0))
    options = {"epsilon": epsilon}
    merged = merge_tensors("della", deltas, weights=WEIGHTS, densities=densities, options=options)
    check(merged, elected(kept, WEIGHTS, "count"))
    merged = merge_tensors("della_linear", deltas, weights=WEIGHTS, densities=densities, options=options)
    check(merged, added(kept, WEIGHTS, ""))


def test_equal_magnitudes_are_ranked_in_their_order_and_a_single_element_in_the_middle():
    assert relative_ranks(torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.0, 0.0]])).tolist() == [[0.5, 1, 0], [0, 0.5, 1]]
    assert relative_ranks(torch.tensor([[3.0], [0.0]])).tolist() == [[0.5], [0.5]]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("method", ["breadcrumbs", "breadcrumbs_ties"])
def test_breadcrumbs_drops_both_tails_of_magnitudes(method: str, gamma: float, shape: tuple[int, ...]):
    _, deltas = make(shape, 3)
    densities = [0.2, 0.5, 1.0]
    kept = []
    for delta, density in zip(arrays(deltas), densities, strict=True):
        order = np.argsort(-np.abs(delta).flatten())
        stay = max(1, int(density * delta.size))
        first = min(int(gamma * delta.size), delta.size - stay)
        mask = np.zeros(delta.size)
        mask[order[first : first + stay]] = 1
        kept.append(delta * mask.reshape(shape))
    expected = (elected if method.endswith("ties") else added)(kept, WEIGHTS, "count")
    check(merge_tensors(method, deltas, weights=WEIGHTS, densities=densities, options={"gamma": gamma}), expected)


@pytest.mark.parametrize("method", ["ties", "dare_linear", "della", "breadcrumbs"])
def test_keeping_the_norm_keeps_the_sum_of_magnitudes_of_each_delta(method: str):
    _, deltas = make((40, 50), 1)
    merged = merge_tensors(method, deltas, densities=[0.4], options={"keep_norm": 1})
    assert merged.count_nonzero() < 0.5 * merged.numel()
    assert float(merged.abs().sum()) == pytest.approx(float(deltas[0].abs().sum()), rel=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_sce_selects_calculates_and_erases(scale: float, share: float, shape: tuple[int, ...]):
    _, deltas = make(shape, 3)
    deltas = [delta * scale * (index + 1) for index, delta in enumerate(deltas)]
    exact = arrays(deltas)
    variance = np.var(np.stack(exact), axis=0)
    count = max(1, int(share * np.count_nonzero(variance))) if share > 0 else 0
    least = sorted(variance.flatten(), reverse=True)[count - 1] if count else math.inf
    selected = [np.where(variance >= least, delta, 0) for delta in exact]
    squares = [float((delta**2).sum()) for delta in selected]
    weights = [square / sum(squares) if sum(squares) else 1 / 3 for square in squares]
    expected = np.zeros(shape)
    for place in np.ndindex(shape):
        values = [delta[place] for delta in selected]
        sign = np.sign(sum(values))
        agreeing = [index for index, value in enumerate(values) if value * sign > 0]
        if agreeing:
            mass = sum(weights[index] for index in agreeing)
            expected[place] = sum(weights[index] * values[index] for index in agreeing) / mass
    merged = merge_tensors("sce", deltas, options={"select_topk": share})
    check(merged / scale, expected / scale)


def softmax(values: Array) -> Array:
    powers: Array = np.exp(values - values.max())
    return powers / powers.sum()


def min_max(values: Array) -> Array:
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("density", [0.1, 0.4, 1.0])
def test_pcb_balances_within_and_between_packs(density: float, shape: tuple[int, ...]):
    _, deltas = make(shape, 3)
    exact = arrays(deltas)
    total, divisor = np.zeros(shape), np.zeros(shape)
    for delta, weight in zip(exact, WEIGHTS, strict=True):
        within = softmax(len(exact) * min_max(delta * delta))
        among = sum((softmax(min_max(delta * other)) for other in exact), np.zeros(shape))
        score = within * among
        kept = max(1, int(density * delta.size))
        score = np.where(score >= sorted(score.flatten(), reverse=True)[kept - 1], score, 0)
        total += score * weight * delta
        divisor += score
    expected = total / np.where(divisor == 0, 1, divisor)
    merged = merge_tensors("pcb", deltas, weights=WEIGHTS, densities=[density] * 3, options={"lambda": 0.5})
    check(merged, expected * 0.5, tolerance=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_ram_averages_what_is_shared_and_keeps_what_is_unique(shape: tuple[int, ...]):
    _, deltas = make(shape, 3)
    exact = arrays(deltas)
    epsilon, rate, limit = 0.4, 0.3, 0.8
    changed = [np.abs(delta) > epsilon for delta in exact]
    count = sum((mask.astype(float) for mask in changed), np.zeros(shape))
    plain, plus = np.zeros(shape), np.zeros(shape)
    for delta, mask in zip(exact, changed, strict=True):
        shared, unique = (mask & (count > 1)).sum(), (mask & (count == 1)).sum()
        factor = 1 + rate * min(shared / unique, limit)
        for place in np.ndindex(shape):
            if mask[place]:
                plain[place] += delta[place] / count[place]
                plus[place] += delta[place] * factor if count[place] == 1 else delta[place] / count[place]
    check(merge_tensors("ram", deltas, options={"epsilon": epsilon}), plain)
    check(merge_tensors("ram_plus", deltas, options={"epsilon": epsilon, "r": rate, "alpha": limit}), plus)


def cosine(one: Array, other: Array) -> float:
    return float((one * other).sum() / math.sqrt((one**2).sum() * (other**2).sum()))


def stock(deltas: Sequence[Array]) -> Array:
    pairs = [(a, b) for index, a in enumerate(deltas) for b in deltas[index + 1 :]]
    angle = sum(cosine(a, b) for a, b in pairs) / len(pairs)
    angle = max(0.0, angle)
    mean: Array = sum(deltas, np.zeros_like(deltas[0])) / len(deltas)
    return mean * len(deltas) * angle / (1 + (len(deltas) - 1) * angle)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_model_stock_goes_as_far_as_the_angle_says(scale: float, shape: tuple[int, ...]):
    _, deltas = make(shape, 3)
    deltas = [delta * scale for delta in deltas]
    check(merge_tensors("model_stock", deltas) / scale, stock(arrays(deltas)) / scale)
    vectors = [delta.reshape(-1, shape[-1]) for delta in arrays(deltas)]
    expected = np.stack([stock(rows) for rows in zip(*vectors, strict=True)]).reshape(shape)
    check(merge_tensors("model_stock", deltas, options={"filter_wise": 1}) / scale, expected / scale)


def length(vector: Array) -> float:
    return math.sqrt(float((vector**2).sum()))


def arc(one: Array, other: Array, t: float) -> Array:
    angle = math.acos(cosine(one, other))
    return (math.sin((1 - t) * angle) * one + math.sin(t * angle) * other) / math.sin(angle)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_slerp_follows_the_arc_between_base_and_tuned_model(t: float, shape: tuple[int, ...]):
    base, deltas = make(shape, 1)
    start, change = arrays([base, deltas[0]])
    merged = merge_tensors("slerp", deltas, base=base, options={"t": t})
    check(base + merged, arc(start, start + change, t))


NUSLERP: dict[str, dict[str, float]] = {"whole": {}, "row": {"per_row": 1}, "column": {"per_column": 1}}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("vectors", NUSLERP)
@pytest.mark.parametrize("models", [0, 1])
def test_nuslerp_follows_the_arc_between_two_packs(models: int, vectors: str, shape: tuple[int, ...]):
    base, deltas = make(shape, 2)
    start, one, other = arrays([base, *deltas])
    if models:
        one, other = one + start, other + start
    axis = {"whole": None, "row": -1, "column": 0}[vectors]
    if axis is None:
        expected = arc(one, other, 0.25)
    else:
        pairs = [np.moveaxis(array, axis, -1).reshape(-1, shape[axis]) for array in (one, other)]
        rows = np.stack([arc(a, b, 0.25) for a, b in zip(*pairs, strict=True)])
        expected = np.moveaxis(rows.reshape(np.moveaxis(one, axis, -1).shape), -1, axis)
    options = {**NUSLERP[vectors], "models": float(models)}
    merged = merge_tensors("nuslerp", deltas, base=base, weights=[1.5, 0.5], options=options)
    check(merged, expected - start if models else expected, tolerance=1e-5)


@pytest.mark.parametrize("models", [0, 1])
def test_multislerp_averages_in_the_tangent_space_at_the_mean(models: int):
    base, deltas = make((7, 9), 3)
    start, *vectors = arrays([base, *deltas])
    vectors = [vector + start if models else vector for vector in vectors]
    weights = [weight / sum(WEIGHTS) for weight in WEIGHTS]
    units = [vector / length(vector) for vector in vectors]
    mean = sum((weight * unit for weight, unit in zip(weights, units, strict=True)), np.zeros((7, 9)))
    mean /= length(mean)
    tangent = sum(
        (weight * (unit - (unit * mean).sum() * mean) for weight, unit in zip(weights, units, strict=True)),
        np.zeros((7, 9)),
    )
    angle = length(tangent)
    expected = mean * math.cos(angle) + tangent * math.sin(angle) / angle
    expected *= sum(weight * length(vector) for weight, vector in zip(weights, vectors, strict=True))
    merged = merge_tensors("multislerp", deltas, base=base, weights=WEIGHTS, options={"models": float(models)})
    check(merged, expected - start if models else expected)


def test_the_karcher_mean_is_the_point_where_the_logarithms_of_all_directions_cancel():
    base, deltas = make((7, 9), 3)
    start, *changes = arrays([base, *deltas])
    options = {"tol": 1e-12, "max_iter": 200}
    merged = merge_tensors("karcher", deltas, base=base, weights=WEIGHTS, options=options)
    result = start + arrays([merged])[0]
    models = [start + change for change in changes]
    expected_length = sum(w * length(model) for w, model in zip(WEIGHTS, models, strict=True)) / sum(WEIGHTS)
    assert length(result) == pytest.approx(expected_length, rel=1e-6)
    point = result / length(result)
    total = np.zeros((7, 9))
    for weight, model in zip(WEIGHTS, models, strict=True):
        unit = model / length(model)
        angle = math.acos((unit * point).sum())
        total += weight * angle / math.sin(angle) * (unit - math.cos(angle) * point)
    assert length(total) < 1e-6


def test_the_karcher_mean_of_near_models_keeps_its_digits():
    base, deltas = make((30, 40), 2)
    near = [delta * 1e-5 for delta in deltas]
    merged = merge_tensors("karcher", near, base=base)
    mean = (near[0] + near[1]) / 2
    assert float((merged - mean).norm() / mean.norm()) < 1e-3  # they differ by the square of the angle


@pytest.mark.parametrize("shape", SHAPES)
def test_nearswap_is_the_published_interpolation(shape: tuple[int, ...]):
    base, deltas = make(shape, 1)
    start, change = arrays([base, deltas[0]])
    weight = np.minimum(1, 0.2 / np.abs(change))
    merged = merge_tensors("nearswap", deltas, base=base, options={"t": 0.2})
    check(base + merged, weight * (start + change) + (1 - weight) * start)


@pytest.mark.parametrize("shape", SHAPES)
def test_arcee_fusion_keeps_changes_of_unusual_importance(shape: tuple[int, ...]):
    base, deltas = make(shape, 1)
    start, change = arrays([base, deltas[0]])
    columns = shape[-1]
    before = np.stack([softmax(row) for row in start.reshape(-1, columns)]).reshape(shape) + 1e-8
    after = np.stack([softmax(row) for row in (start + change).reshape(-1, columns)]).reshape(shape) + 1e-8
    divergence = (after * np.log(after / before)).sum(-1, keepdims=True)
    importance = np.abs(change) * divergence
    ordered = sorted(importance.flatten())
    low, median, high = (ordered[int(share * (len(ordered) - 1))] for share in (0.25, 0.5, 0.75))
    expected = np.where(importance >= median + 1.5 * (high - low), change, 0)
    check(merge_tensors("arcee_fusion", deltas, base=base), expected)


@pytest.mark.parametrize("scale", [1.0, 0.0, -0.5, 2.0])
def test_passthrough_scales_the_tuned_tensor(scale: float):
    base, deltas = make((7, 9), 1)
    merged = merge_tensors("passthrough", deltas, base=base, options={"scale": scale})
    assert torch.allclose(base + merged, scale * (base + deltas[0]), atol=1e-6)


@pytest.mark.parametrize("method", ["linear", "dare_linear"])
def test_normalized_sums_are_averages(method: str):
    _, deltas = make((7, 9), 3)
    expected = added(arrays(deltas), WEIGHTS, "") / sum(WEIGHTS)
    check(merge_tensors(method, deltas, weights=WEIGHTS, options={"normalize": 1}), expected)
