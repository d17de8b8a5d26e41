"""The codec `residual`: quantized weights with the same bits everywhere, near the rate–distortion bound."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from skillhub.codecs import EncodedTensor, decode, exact, residual
from skillhub.codecs.encoding import EncodedPart
from skillhub.codecs.residual import MAX_EXPONENT, MAX_STEP, MIN_STEP
from skillhub.errors import IntegrityError
from tests.codec_examples import from_json, read_golden, words

SHAPES = npst.array_shapes(min_dims=2, max_dims=4, min_side=0, max_side=9)
VALUES = st.floats(-300, 300, width=32, allow_subnormal=False)


def stored_step(part: EncodedPart) -> float:
    mantissa, exponent = part.config["step"]
    return math.ldexp(mantissa, exponent)


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, float, np.ndarray | None, np.ndarray | None]:
    values = draw(npst.arrays(np.float32, SHAPES, elements=VALUES))
    rows, columns = values.shape[0], math.prod(values.shape[1:])
    exponents = (
        npst.arrays(np.int8, rows, elements=st.integers(-9, 9)),
        npst.arrays(np.int8, columns, elements=st.integers(-9, 9)),
    )
    return (
        values,
        draw(st.sampled_from([0.3, 1.0, 2.0**-30, 77.0])),
        *(draw(st.none() | scales) for scales in exponents),
    )


@given(problems())
def test_weights_decode_to_multiples_of_their_step_in_fp32(
    problem: tuple[np.ndarray, float, np.ndarray | None, np.ndarray | None],
) -> None:
    values, step, row_exponents, column_exponents = problem
    part = residual.encode(
        torch.from_numpy(values), step, row_exponents=row_exponents, column_exponents=column_exponents
    )
    decoded = decode(EncodedTensor(values.shape, (part,)))
    assert decoded.dtype == torch.float32 and decoded.shape == values.shape
    matrix = values.reshape(len(values), math.prod(values.shape[1:]))
    exact_step = stored_step(part)
    assert step / 2 <= exact_step * 1.000001 and exact_step <= step * 2.000001
    for (i, j), value in np.ndenumerate(decoded.reshape(matrix.shape).numpy()):
        row = 2.0 ** ((0 if row_exponents is None else int(row_exponents[i])) / 4)
        column = 2.0 ** ((0 if column_exponents is None else int(column_exponents[j])) / 4)
        scaled = abs(float(matrix[i, j])) / (step * row * column)
        codes = {math.copysign(min(math.floor(scaled * (1 + e) + 0.4), 255), matrix[i, j]) for e in (-1e-5, 0, 1e-5)}
        assert any(float(value) == pytest.approx(code * exact_step * row * column, rel=1e-6) for code in codes)


@given(problems())
def test_any_rows_have_the_bits_of_the_whole(
    problem: tuple[np.ndarray, float, np.ndarray | None, np.ndarray | None],
) -> None:
    values, step, row_exponents, column_exponents = problem
    part = residual.encode(
        torch.from_numpy(values), step, row_exponents=row_exponents, column_exponents=column_exponents
    )
    read = residual.read_residual(part, values.shape)
    whole = read.expand()
    for size in (1, 2, 5):
        pieces = [read.expand(slice(row, row + size)) for row in range(0, len(whole), size)]
        assert not pieces or np.concatenate(pieces).tobytes() == whole.tobytes()


def test_the_order_of_multiplication_is_pinned() -> None:
    """Brute force: each product on its own in Python's doubles, rounded to fp32."""
    random = np.random.default_rng(0)
    values = (random.normal(size=(20, 30)) * 5).astype(np.float32)
    exponents = [random.integers(-127, 128, size).astype(np.int8) for size in (20, 30)]
    part = residual.encode(torch.from_numpy(values), 1.0, row_exponents=exponents[0], column_exponents=exponents[1])
    read = residual.read_residual(part, (20, 30))
    constants = [1.0, 1.189207115002721, 1.4142135623730951, 1.6817928305074292]
    for (i, j), value in np.ndenumerate(read.expand()):
        row, column = (
            np.float32(constants[int(e) % 4]) * 2.0 ** (int(e) // 4) for e in (exponents[0][i], exponents[1][j])
        )
        row_step = np.float32(float(row) * stored_step(part))
        expected = np.float32(float(np.float32(float(row_step) * int(read.codes[i, j]))) * float(column))
        assert value.tobytes() == (expected + np.float32(0)).tobytes()


@pytest.mark.parametrize(("step", "exponent"), [(2 * MIN_STEP, -MAX_EXPONENT), (MAX_STEP / 2, MAX_EXPONENT)])
def test_nothing_is_subnormal_or_infinite_at_the_limits(step: float, exponent: int) -> None:
    exponents = np.full(4, exponent, np.int8)
    smallest = torch.zeros(4, 4)
    part = residual.encode(smallest, step, row_exponents=exponents, column_exponents=exponents)
    codes = residual.read_residual(part, (4, 4))
    edge = replace(
        codes,
        codes=np.array([[1, -1, 255, -255]] * 4, np.int16),
        row_steps=codes.row_steps / 2 if exponent < 0 else codes.row_steps * 2,
    )
    assert (edge.row_steps * (1 if exponent < 0 else 255) > np.finfo(np.float32).tiny).all()
    magnitudes = np.abs(edge.expand())
    assert np.isfinite(magnitudes).all() and (magnitudes >= np.finfo(np.float32).tiny).all()


def laplacian(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).laplace(size=(rows, columns)).astype(np.float32))


@pytest.mark.parametrize("step", [0.7, 1.5, 3.0])
def test_rate_and_distortion_are_near_the_bound(step: float) -> None:
    delta = laplacian(300, 500)
    part = residual.encode(delta, step)
    decoded = decode(EncodedTensor((300, 500), (part,)))
    bits, error = 8 * part.arrays["data"].size / delta.numel(), float((decoded - delta).square().mean())
    # Shannon's lower bound for a Laplacian of scale 1: h = log2(2e); R(D) >= h - log2(2 pi e D) / 2.
    bound = math.log2(2 * math.e) - math.log2(2 * math.pi * math.e * error) / 2
    assert bound < bits < max(bound, 0) + 0.32


def test_the_stored_step_fits_best() -> None:
    delta = laplacian(50, 60, seed=1)
    decoded = decode(EncodedTensor((50, 60), (residual.encode(delta, 2.0),)))
    error = float((decoded - delta).square().sum())
    for factor in (0.95, 0.99, 1.01, 1.05):
        assert float((factor * decoded - delta).square().sum()) > error


def test_scales_put_precision_where_it_is_asked_for() -> None:
    delta = laplacian(80, 90, seed=2)
    rows, columns = np.repeat(np.array([-8, 0], np.int8), 40), np.repeat(np.array([0, 8], np.int8), 45)
    part = residual.encode(delta, 0.5, row_exponents=rows, column_exponents=columns)
    error = (decode(EncodedTensor((80, 90), (part,))) - delta).square()
    fine, middle, coarse = error[:40, :45].mean(), error[40:, :45].mean(), error[40:, 45:].mean()
    assert 9 < float(middle / fine) < 20 and float(coarse) > 3 * float(middle)


def test_it_adds_to_what_was_before_and_takes_any_layout() -> None:
    delta = laplacian(12, 10, seed=3)
    before = exact.encode(delta)
    decoded = decode(EncodedTensor((12, 10), (*before.parts, residual.encode(delta, 0.5))))
    assert torch.equal(decoded, delta + decode(EncodedTensor((12, 10), (residual.encode(delta, 0.5),))))
    for view in (delta.T, delta[::2, 1::3], delta[:1].expand(5, 10)):
        shape = tuple(view.shape)
        parts = [residual.encode(values, 0.5) for values in (view, view.contiguous())]
        assert words(decode(EncodedTensor(shape, parts[:1]))) == words(decode(EncodedTensor(shape, parts[1:])))  # type: ignore[arg-type]


def test_zeros_cost_nothing_and_are_positive() -> None:
    part = residual.encode(torch.full((30, 40), -0.1), 1.0)
    assert part.arrays["data"].size < 40
    assert words(decode(EncodedTensor((30, 40), (part,)))) == bytes(30 * 40 * 4)


@pytest.mark.parametrize("delta", [
    torch.tensor([[1.0, float("nan")]]), torch.tensor([[float("inf")]]), torch.ones(3), torch.ones(2, 2, dtype=torch.bfloat16),
])  # fmt: skip
def test_what_cannot_be_quantized_is_refused(delta: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="finite float32"):
        residual.encode(delta, 1.0)


def test_steps_and_scales_out_of_range_are_refused() -> None:
    delta = torch.ones(2, 3)
    for step in (0.0, -1.0, float("nan"), float("inf"), 2.0**-60, 2.0**40):
        with pytest.raises(ValueError, match="step"):
            residual.encode(delta, step)
    for exponents in (np.zeros(3, np.int8), np.zeros(2, np.int16), np.full(2, -128, np.int8)):
        with pytest.raises(ValueError, match="exponents"):
            residual.encode(delta, 1.0, row_exponents=exponents)


EXPONENTS = np.random.default_rng(4).integers(-8, 9, 64).astype(np.int8)
PART = residual.encode(laplacian(40, 64, seed=4) ** 3, 0.9, row_exponents=EXPONENTS[:40], column_exponents=EXPONENTS)


def test_the_example_has_every_frame() -> None:
    assert all(PART.config["frames"])


@pytest.mark.parametrize("change", [
    {"step": [0, 0]}, {"step": [2**24 + 1, 0]}, {"step": [1, -61]}, {"step": [1, 41]}, {"step": [1, 10**9]}, {"step": [1]}, {"step": 1.0}, {"step": [True, 0]},
    {"packing": 5}, {"packing": -1}, {"packing": PART.config["packing"] - 1}, {"packing": None},
    {"frames": [1, 2, 3]}, {"frames": 4}, {"frames": [0, 0, 0, PART.arrays["data"].size]}, {"frames": [-1, 1, 0, PART.arrays["data"].size]}, {"extra": 1},
])  # fmt: skip
def test_contradicting_configs_are_integrity_errors(change: dict[str, object]) -> None:
    with pytest.raises(IntegrityError):
        decode(EncodedTensor((40, 64), (replace(PART, config=PART.config | change),)))


@pytest.mark.parametrize("shape", [(40, 63), (64, 40), (2560,), (), (40, 0), (0, 64), (2**32, 2)])
def test_other_shapes_are_integrity_errors(shape: tuple[int, ...]) -> None:
    with pytest.raises(IntegrityError):
        decode(EncodedTensor(shape, (PART,)))


def test_golden_files_decode_to_the_same_bits() -> None:
    for case in read_golden("residual"):
        assert words(decode(from_json(case["encoded"]))).hex() == case["decoded"], case["case"]
