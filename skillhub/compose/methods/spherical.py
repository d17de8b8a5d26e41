"""Interpolation along great circles: SLERP between a base and one pack, multi-SLERP and the Karcher mean of several."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from skillhub.compose.methods.combination import (
    Products,
    Vector,
    applied,
    combined,
    inner,
    measure_products,
    member,
    norm,
)
from skillhub.compose.methods.interface import Chunk, MergeInputs, MergeMethod, Option

PLACE = Option(0.5, 0, 1, "where between the base (0) and the tuned model (1)")
OF_MODELS = Option(0, 0, 1, "interpolate the tuned models, not their differences to the base")
NORMALIZE = Option(1, 0, 1, "divide the weights by their sum")
STEPS = Option(10, 0, 1000, "largest number of steps")
TOLERANCE = Option(1e-5, 0, 1, "step below which it ends")

_PARALLEL = 0.9995
_TINY = 1e-7
"""Lengths of combinations of unit vectors below this are rounding noise of the inner products."""


def slerp(start: Vector, end: Vector, t: float, products: Products) -> Vector:
    """Return the point at ``t`` of the way along the arc between two vectors (Shoemake, SIGGRAPH 1985, section 3.3).

    As is usual for weights, the two keep their lengths: ``(sin((1 − t) θ) · a + sin(t θ) · b) / sin θ``. Where the cosine is over 0.9995 in magnitude
    (as in mergekit) or a vector is zero, the point on the straight line.

    Args:
        start: where ``t`` is 0.
        end: where it is 1.
        t: from 0 to 1.
        products: inner products of what the vectors are made of.
    """
    lengths = norm(start, products) * norm(end, products)
    cosine = inner(start, end, products) / lengths if lengths > 0 else 1.0
    if abs(cosine) > _PARALLEL:
        return combined([start, end], [1 - t, t])
    angle = math.acos(cosine)
    return combined([start, end], [math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)])


def multislerp(vectors: Sequence[Vector], weights: Sequence[float], products: Products) -> Vector:
    """Return a weighted mean of directions, with the weighted mean of the lengths (C. Goddard, "Multi-SLERP", goddard.blog).

    Directions are projected onto the tangent space at their normalized mean, averaged there, and brought back by the exponential map. Where the mean of
    the directions is zero there is no such space: the weighted sum of the vectors is returned, as mergekit does for two (for more it
    ends with an error).

    Args:
        vectors: at least one; zero vectors have no direction and only shorten the result.
        weights: one per vector.
        products: inner products of what the vectors are made of.
    """
    lengths = [norm(vector, products) for vector in vectors]
    units = [
        _scaled(vector, 1 / length if length > 0 else 0.0) for vector, length in zip(vectors, lengths, strict=True)
    ]
    mean = combined(units, weights)
    size = norm(mean, products)
    if size < _TINY:
        return combined(vectors, weights)
    mean = _scaled(mean, 1 / size)
    tangents = [combined([unit, mean], [1.0, -inner(unit, mean, products)]) for unit in units]
    result = _exponential(mean, combined(tangents, weights), products)
    return _scaled(result, math.fsum(weight * length for weight, length in zip(weights, lengths, strict=True)))


def karcher_mean(
    vectors: Sequence[Vector], weights: Sequence[float], products: Products, *, steps: int, tolerance: float
) -> Vector:
    """Return the Riemannian centre of mass of directions, with the weighted mean of the lengths (Karcher 1977; arXiv 2603.04972).

    Gradient descent on the sphere from the normalized mean: the mean of the directions' logarithms is followed until it is shorter than the
    tolerance. Directions opposite to the present point have no logarithm and are left out of a step.

    Args:
        vectors: at least one; zero vectors have no direction and only shorten the result.
        weights: one per vector, divided by their sum here.
        products: inner products of what the vectors are made of.
        steps: largest number of steps.
        tolerance: in radians.
    """
    total = math.fsum(weights)
    weights = [weight / total if abs(total) > _TINY else 1 / len(weights) for weight in weights]
    lengths = [norm(vector, products) for vector in vectors]
    length = math.fsum(weight * each for weight, each in zip(weights, lengths, strict=True))
    there = [index for index, each in enumerate(lengths) if each > 0]
    share = math.fsum(weights[index] for index in there)
    if not there or abs(share) < _TINY:
        return combined(vectors, weights)
    units = [_scaled(vectors[index], 1 / lengths[index]) for index in there]
    shares = [weights[index] / share for index in there]
    point = combined(units, shares)
    size = norm(point, products)
    point = units[0] if size < _TINY else _scaled(point, 1 / size)
    for _ in range(steps):
        step = combined([_logarithm(point, unit, products) for unit in units], shares)
        if norm(step, products) < tolerance:
            break
        further = _exponential(point, step, products)
        size = norm(further, products)
        if size < _TINY:
            break
        point = _scaled(further, 1 / size)
    return _scaled(point, length)


def _logarithm(point: Vector, unit: Vector, products: Products) -> Vector:
    """Return the tangent vector at a point of the unit sphere that leads to another."""
    cosine = inner(point, unit, products)
    tangent = combined([unit, point], [1.0, -cosine])
    sine = norm(tangent, products)
    return _scaled(tangent, math.atan2(sine, cosine) / sine if sine > _TINY else 0.0)


def _exponential(point: Vector, tangent: Vector, products: Products) -> Vector:
    """Return where a tangent vector leads to."""
    angle = norm(tangent, products)
    return combined([point, tangent], [math.cos(angle), math.sin(angle) / angle if angle > 0 else 1.0])


def _scaled(vector: Vector, factor: float) -> Vector:
    return [value * factor for value in vector]


def _measure_slerp(inputs: MergeInputs) -> Vector:
    products = measure_products(inputs)
    return slerp([1.0, 0.0], [1.0, 1.0], inputs.options["t"], products)


def _merge_models(inputs: MergeInputs, chunk: Chunk, result: Vector) -> torch.Tensor:
    return applied(chunk, result, model=True)


def _measure_multislerp(inputs: MergeInputs) -> Vector:
    count, weights = len(inputs.deltas), list(inputs.weights)
    total = math.fsum(weights)
    if inputs.options["normalize"] and abs(total) > _TINY:
        weights = [weight / total for weight in weights]
    vectors = [member(index, count, model=bool(inputs.options["models"])) for index in range(count)]
    return vectors[0] if count == 1 else multislerp(vectors, weights, measure_products(inputs))


def _merge_multislerp(inputs: MergeInputs, chunk: Chunk, result: Vector) -> torch.Tensor:
    return applied(chunk, result, model=bool(inputs.options["models"]))


def _measure_karcher(inputs: MergeInputs) -> Vector:
    count, options = len(inputs.deltas), inputs.options
    vectors = [member(index, count, model=True) for index in range(count)]
    if count == 1:
        return vectors[0]
    products = measure_products(inputs)
    steps, tolerance = round(options["max_iter"]), options["tol"]
    return karcher_mean(vectors, inputs.weights, products, steps=steps, tolerance=tolerance)


SLERP = MergeMethod(
    "slerp",
    "Shoemake, SIGGRAPH 1985, section 3.3",
    _merge_models,
    _measure_slerp,
    uses_weights=False,
    options={"t": PLACE},
    members=(1, 1),
)
MULTISLERP = MergeMethod(
    "multislerp",
    "goddard.blog/posts/multislerp-wow-what-a-cool-idea",
    _merge_multislerp,
    _measure_multislerp,
    counts_every_pack=True,
    options={"normalize": NORMALIZE, "models": OF_MODELS},
)
KARCHER = MergeMethod(
    "karcher",
    "arXiv 2603.04972; Karcher 1977",
    _merge_models,
    _measure_karcher,
    counts_every_pack=True,
    options={"max_iter": STEPS, "tol": TOLERANCE},
)
