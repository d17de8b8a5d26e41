"""Rounding with feedback: the same as one entry after the other by the definition, and nearer in the metric than plain rounding."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skillhub.codecs.feedback import round_half_dead, round_with_feedback

THRESHOLD = 0.57


def case(count: int, size: int, seed: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Vectors, and the root of the metric of as many correlated ones."""
    chance = np.random.default_rng(seed)
    mixing = chance.normal(size=(size, size)) + 0.5
    moments = mixing @ mixing.T + 0.1 * np.eye(size)
    root = np.linalg.cholesky(moments / moments.diagonal().mean()).T
    return chance.normal(scale=2, size=(count, size)).astype(np.float32), np.ascontiguousarray(root, dtype=np.float32)


def by_definition(vector: npt.NDArray[np.float32], root: npt.NDArray[np.float32], most: int) -> list[int]:
    """From the last entry to the first: the code that leaves least of its row of the root, up to the dead zone."""
    codes = [0] * len(vector)
    for entry in range(len(vector) - 1, -1, -1):
        later = sum(
            float(root[entry, other]) * (float(vector[other]) - codes[other]) for other in range(entry + 1, len(vector))
        )
        target = float(vector[entry]) + later / float(root[entry, entry])
        codes[entry] = int(np.copysign(min(np.floor(abs(target) + 1 - THRESHOLD), most), target))
    return codes


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 5), st.sampled_from([1, 2, 7, 63, 64, 65, 130]), st.integers(0, 10**6), st.sampled_from([2, 255]))
def test_entries_are_rounded_as_the_definition_has_it(count: int, size: int, seed: int, most: int) -> None:
    vectors, root = case(count, size, seed)
    codes, errors = round_with_feedback(vectors, root, threshold=THRESHOLD, most=most)
    assert codes.dtype == np.int16 and codes.shape == errors.shape == vectors.shape
    assert np.abs(codes).max(initial=0) <= most
    for vector, row in zip(vectors, codes, strict=True):
        expected = by_definition(vector, root, most)
        # Where fp32 falls on the other side of the threshold the entries after it differ too.
        first = next((place for place in range(size - 1, -1, -1) if row[place] != expected[place]), None)
        assert first is None or abs(row[first] - expected[first]) == 1
    assert np.allclose(
        errors, (vectors - codes) @ root.T.astype(np.float64), rtol=0, atol=1e-3 * np.abs(root).max() * size
    )


def test_most_vectors_are_rounded_exactly_so() -> None:
    vectors, root = case(40, 70, seed=3)
    codes, _ = round_with_feedback(vectors, root, threshold=THRESHOLD, most=255)
    equal = [row.tolist() == by_definition(vector, root, 255) for vector, row in zip(vectors, codes, strict=True)]
    assert sum(equal) >= 38


def test_a_diagonal_metric_rounds_every_entry_by_itself() -> None:
    vectors, _ = case(9, 80, seed=1)
    codes, errors = round_with_feedback(vectors, np.diag(np.full(80, 3, np.float32)), threshold=THRESHOLD, most=255)
    assert np.array_equal(codes, round_half_dead(vectors, threshold=THRESHOLD, most=255))
    assert np.array_equal(errors, 3 * (vectors - codes))


@pytest.mark.parametrize("size", [64, 200])
def test_errors_are_a_fraction_of_those_of_plain_rounding(size: int) -> None:
    vectors, root = case(50, size, seed=5)
    _, errors = round_with_feedback(vectors, root, threshold=0.5, most=255)
    plain = (vectors - np.rint(vectors)) @ root.T
    new = np.square(root.diagonal()).mean() / np.square(root).sum(axis=0).mean()
    assert np.square(errors).sum() < 0.5 * np.square(plain).sum()
    # What theory says of it: an error uniform over a step, of which the diagonal of the root is felt.
    assert np.square(errors).mean() == pytest.approx(np.square(root.diagonal()).mean() / 12, rel=0.1) and new < 0.5


def test_a_code_at_the_threshold_moves_away_from_zero() -> None:
    values = np.array([0.56, 0.58, -0.58, 1.56, 300], np.float32)
    assert round_half_dead(values, threshold=0.57, most=255).tolist() == [0, 1, -1, 1, 255]
