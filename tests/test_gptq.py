"""GPTQ and its midrise codes, against brute force and published figures."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from skillhub.recipes import gptq


def random_problem(seed: int, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """A matrix and the second moment of correlated inputs of very unequal size."""
    random = np.random.default_rng(seed)
    inputs = random.normal(size=(4 * columns, columns)) @ random.normal(size=(columns, columns))
    inputs *= np.geomspace(3, 0.3, columns)
    return random.normal(size=(rows, columns)), inputs.T @ inputs / len(inputs)


def damped(moment: np.ndarray) -> np.ndarray:
    return moment + gptq.DAMPING * np.diag(moment).mean() * np.eye(len(moment))


def weighted_error(error: np.ndarray, moment: np.ndarray) -> float:
    return float(np.einsum("ij,jk,ik->", error, moment, error))


@given(
    npst.arrays(np.float64, (3, 5), elements=st.floats(-9, 9)),
    st.floats(0.1, 3),
    st.integers(1, 8),
)
def test_values_become_the_nearest_level(values: np.ndarray, step: float, bits: int) -> None:
    codes = gptq.round_codes(values, np.array(step), bits)
    levels = np.arange(-(2**bits) + 1, 2**bits, 2)
    assert set(codes.reshape(-1)) <= set(levels.tolist()) and len(levels) == 2**bits
    least = np.abs(values[..., None] - levels * step).min(axis=-1)
    assert np.abs(codes * step - values) == pytest.approx(least, abs=1e-9)


@pytest.mark.parametrize(("bits", "distortion"), [(1, 0.3634), (2, 0.1188), (3, 0.03744), (4, 0.01154)])
def test_steps_reach_the_distortion_of_the_best_uniform_quantizer(bits: int, distortion: float) -> None:
    """Max, "Quantizing for minimum distortion" (1960), table II: normal values, 2**bits levels."""
    values = np.random.default_rng(0).normal(size=(4, 100_000))
    steps = gptq.fit_steps(values, bits)
    error = np.square(gptq.round_codes(values, steps, bits) * steps - values).mean()
    assert error == pytest.approx(distortion, rel=0.02)


def test_zeros_and_single_values_have_usable_steps() -> None:
    steps = gptq.fit_steps(np.array([[0.0, 0.0], [0.0, -4.0]]), 2)
    assert steps.shape == (2, 1) and steps[0, 0] == 1 and 0 < steps[1, 0] <= 4


def reference(matrix: np.ndarray, steps: np.ndarray, bits: int, moment: np.ndarray) -> np.ndarray:
    """Round column after column; before each, solve for the values of all later columns that make up best for what was rounded."""
    matrix, steps = matrix.copy(), np.broadcast_to(steps, matrix.shape)
    order = np.argsort(-np.diag(moment), kind="stable")
    moment = damped(moment)
    codes = np.zeros(matrix.shape, np.int64)
    done: list[int] = []
    for column in order:
        rest = [at for at in order if at not in done]
        wanted = matrix.copy()
        if done:
            error = codes[:, done] * steps[:, done] - matrix[:, done]
            # Setting the gradient to zero over the remaining columns x: H_rr (x - w_r) = -H_rd error.
            shift = np.linalg.solve(moment[np.ix_(rest, rest)], -moment[np.ix_(rest, done)] @ error.T).T
            wanted[:, rest] = matrix[:, rest] + shift
        codes[:, column] = gptq.round_codes(wanted[:, column], steps[:, column], bits)
        done.append(int(column))
    return codes


@pytest.mark.parametrize("bits", [1, 2, 3, 8])
@pytest.mark.parametrize("per_row", [True, False])
def test_errors_are_made_up_for_as_solving_for_the_rest_does(bits: int, per_row: bool) -> None:
    matrix, moment = random_problem(bits, 5, 9)
    steps = gptq.fit_steps(matrix, bits) if per_row else gptq.fit_steps(matrix.T, bits).T
    assert np.array_equal(gptq.quantize(matrix, steps, bits, moment), reference(matrix, steps, bits, moment))


def test_blocks_of_columns_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, moment = random_problem(3, 4, 40)
    steps = gptq.fit_steps(matrix, 2)
    whole = gptq.quantize(matrix, steps, 2, moment)
    for block in (1, 7, 39):
        monkeypatch.setattr(gptq, "BLOCK", block)
        assert np.array_equal(gptq.quantize(matrix, steps, 2, moment), whole)


def test_the_error_lies_between_the_best_of_all_codes_and_rounding() -> None:
    best, calibrated, rounded = 0.0, 0.0, 0.0
    for seed in range(20):
        matrix, moment = random_problem(seed, 1, 4)
        steps = gptq.fit_steps(matrix, 2)
        every = np.array(list(itertools.product((-3, -1, 1, 3), repeat=4))) * steps
        best += min(weighted_error((codes - matrix[0])[None], moment) for codes in every)
        calibrated += weighted_error(gptq.quantize(matrix, steps, 2, moment) * steps - matrix, moment)
        rounded += weighted_error(gptq.quantize(matrix, steps, 2) * steps - matrix, moment)
    assert best <= calibrated < 0.7 * rounded


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_the_weighted_error_is_below_that_of_rounding(bits: int) -> None:
    matrix, moment = random_problem(7, 30, 200)
    steps = gptq.fit_steps(matrix, bits)
    calibrated = weighted_error(gptq.quantize(matrix, steps, bits, moment) * steps - matrix, moment)
    assert calibrated < 0.6 * weighted_error(gptq.quantize(matrix, steps, bits) * steps - matrix, moment)


def test_inputs_that_never_occur_do_no_harm() -> None:
    matrix, moment = random_problem(8, 3, 6)
    moment[2], moment[:, 2] = 0, 0
    steps = gptq.fit_steps(matrix, 3)
    codes = gptq.quantize(matrix, steps, 3, moment)
    assert np.array_equal(codes[:, 2], gptq.round_codes(matrix, steps, 3)[:, 2])
    nothing = gptq.quantize(matrix, steps, 3, np.zeros_like(moment))
    assert np.array_equal(nothing, gptq.round_codes(matrix, steps, 3))
