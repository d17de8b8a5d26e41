"""Analysis, the choice of a price, and encoding: bounded error, met budgets, exact where it must be."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from skillhub.codecs import EncodedPart, EncodedTensor, decode, rows
from skillhub.codecs.allocation import analyse, choose_lambda, encode, measure_error
from skillhub.codecs.factorization import EXACT_SIDE, factorize
from skillhub.codecs.quantization import quantize
from skillhub.errors import IntegrityError, UsageError
from tests.codec_examples import from_json, read_golden, words


def seeded(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def decaying(number_of_rows: int, columns: int, seed: int = 0, size: float = 1e-3) -> torch.Tensor:
    """A matrix with the falling spectrum of a fine-tune's delta."""
    rank = min(number_of_rows, columns)
    spectrum = torch.arange(1, rank + 1).float().pow(-0.8)
    return size * (seeded(number_of_rows, rank, seed=seed) * spectrum) @ seeded(rank, columns, seed=seed + 1)


def codecs_of(encoded: EncodedTensor) -> list[str]:
    return [part.codec for part in encoded.parts]


@settings(max_examples=60)
@given(
    npst.arrays(
        np.float32,
        npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=90),
        elements=st.floats(width=32, allow_nan=True, allow_infinity=True),
        fill=st.sampled_from([0.0, 1.0, 1e-42, 3e38]),
    ),
    st.floats(1e-12, 1e6),
)
def test_any_delta_encodes_and_decodes(values: np.ndarray, price: float) -> None:
    delta = torch.from_numpy(values)
    for view in (delta, delta.transpose(0, -1)) if delta.dim() > 1 else (delta,):
        encoded = encode(analyse("weight", view), price, view)
        decoded = decode(encoded)
        assert decoded.shape == view.shape and decoded.dtype == torch.float32
        if codecs_of(encoded) == ["exact"]:
            assert words(decoded) == words(view)
        else:
            assert bool(decoded.isfinite().all())


@pytest.mark.parametrize("delta", [
    seeded(6000), seeded(64, 64), seeded(6000, 1), seeded(1, 6000), seeded(100, 100) * 1e-20, seeded(100, 100) * 1e20,
    seeded(100, 100).index_put((torch.tensor(3), torch.tensor(4)), torch.tensor(float("nan"))),
    seeded(100, 100).index_put((torch.tensor(3), torch.tensor(4)), torch.tensor(float("inf"))),
])  # fmt: skip
def test_what_low_rank_cannot_hold_is_exact(delta: torch.Tensor) -> None:
    encoded = encode(analyse("weight", delta), 1.0, delta)
    assert codecs_of(encoded) == ["exact"] and words(decode(encoded)) == words(delta)
    assert measure_error(delta, decode(encoded)).max_absolute_error == 0


def test_an_unchanged_tensor_costs_nothing() -> None:
    encoded = encode(analyse("weight", torch.zeros(50, 100)), 1.0, torch.zeros(50, 100))
    assert codecs_of(encoded) == ["zero"] and encoded.nbytes == 0


def test_an_unaffordable_matrix_is_zero() -> None:
    delta = decaying(200, 150)
    encoded = encode(analyse("weight", delta), 1e3, delta)
    assert codecs_of(encoded) == ["zero"]
    assert measure_error(delta, decode(encoded)).relative_squared_error == 1.0


def test_a_lower_price_costs_more_and_errs_less() -> None:
    delta = decaying(300, 200)
    analysis = analyse("weight", delta)
    sizes, errors = [], []
    for price, error in zip(analysis.prices, analysis.errors, strict=True):
        encoded = encode(analysis, price, delta)
        record = measure_error(delta, decode(encoded))
        sizes.append(encoded.nbytes)
        errors.append(record.relative_squared_error)
        # The ladder's estimate is what choose_lambda relies on.
        assert record.relative_squared_error == pytest.approx(error / analysis.energy, rel=0.03, abs=1e-4)
    assert sizes == sorted(sizes) and errors == sorted(errors, reverse=True)
    assert errors[0] > 0.3 and errors[-1] < 0.01


def test_budgets_are_met_across_tensors_of_different_size() -> None:
    deltas = {f"{i}": decaying(96 * (i + 2), 256, seed=i, size=10.0**-i) for i in range(4)} | {"norm": seeded(500)}
    analyses = [analyse(name, delta) for name, delta in deltas.items()]
    for budget in (6_000, 15_000, 40_000):
        price = choose_lambda(analyses, budget)
        size = sum(encode(one, price, deltas[one.name]).nbytes for one in analyses)
        assert 0.93 * budget < size < 1.08 * budget


def test_a_budget_below_what_is_exact_is_refused() -> None:
    with pytest.raises(UsageError, match="budget"):
        choose_lambda([analyse("norm", seeded(3000))], 100)
    assert choose_lambda([], 0) > 0


def test_a_true_low_rank_delta_is_nearly_exact() -> None:
    delta = seeded(400, 8) @ seeded(8, 300, seed=1) * 1e-3
    analysis = analyse("weight", delta)
    encoded = encode(analysis, analysis.prices[-1], delta)
    assert measure_error(delta, decode(encoded)).relative_squared_error < 1e-3
    assert encoded.nbytes < 400 * 300 * 4 / 50


def test_added_rows_are_exact() -> None:
    delta = decaying(300, 200)
    delta[-3:] = seeded(3, 200, seed=9) * 100
    original = delta.clone()
    analysis = analyse("embed", delta, added_rows=3)
    assert torch.equal(delta, original)
    decoded = decode(encode(analysis, analysis.prices[4], delta))
    assert words(decoded[-3:]) == words(delta[-3:])
    assert measure_error(delta[:-3], decoded[:-3]).relative_squared_error < 0.9
    only_added = torch.cat([torch.zeros(300, 200), delta[-3:]])
    assert codecs_of(encode(analyse("embed", only_added, added_rows=3), 1.0, only_added)) == ["rows"]


def test_outlier_rows_are_exact_where_that_pays() -> None:
    delta = decaying(1000, 200)
    outliers = list(range(7, 1000, 125))
    delta[outliers] += seeded(len(outliers), 200, seed=3) * 0.03
    analysis = analyse("embed", delta, max_rank=4)
    encoded = encode(analysis, analysis.prices[4], delta)
    assert codecs_of(encoded) == ["lowrank", "rows"] and encoded.parts[1].config["rows"] <= 10
    decoded = decode(encoded)
    assert sum(torch.equal(decoded[i], delta[i]) for i in outliers) == len(outliers)


def test_spooled_factors_encode_to_the_same_bytes(tmp_path: Path) -> None:
    delta = decaying(300, 200)
    in_memory, spooled = analyse("a/weight", delta), analyse("a/weight", delta, spool=tmp_path)
    assert isinstance(spooled.factors, Path) and spooled.factors.parent == tmp_path
    one, other = (encode(analysis, in_memory.prices[4], delta) for analysis in (in_memory, spooled))
    assert one.parts[0].config == other.parts[0].config
    assert np.array_equal(one.parts[0].arrays["codes"], other.parts[0].arrays["codes"])


def test_more_dimensions_are_taken_as_rows() -> None:
    delta = decaying(60, 90).reshape(60, 3, 30)
    analysis = analyse("conv", delta)
    encoded = encode(analysis, analysis.prices[-1], delta)
    assert "lowrank" in codecs_of(encoded) and decode(encoded).shape == (60, 3, 30)
    assert measure_error(delta, decode(encoded)).relative_squared_error < 0.05


@pytest.mark.parametrize(
    "shape", [(300, 120), (120, 300), (EXACT_SIDE + 80, EXACT_SIDE + 10), (EXACT_SIDE + 10, EXACT_SIDE + 80)]
)
def test_factors_are_the_singular_components(shape: tuple[int, int]) -> None:
    matrix = decaying(*shape)
    factors = factorize("weight", matrix, 20)
    exact = torch.linalg.svdvals(matrix)[:20].double().numpy()
    assert np.allclose(factors.values, exact, rtol=0.01)
    assert np.all(np.diff(factors.values) <= 0)
    product = (factors.left.T * factors.values) @ factors.right
    best = float(matrix.square().sum()) - float((exact**2).sum())
    assert float((matrix - torch.from_numpy(product)).square().sum()) == pytest.approx(best, rel=0.01)


def test_encoding_is_deterministic_and_leaves_the_random_state_alone() -> None:
    program = (
        "import hashlib, torch; torch.set_num_threads(1); before = torch.get_rng_state();"
        "from skillhub.codecs.allocation import analyse, encode;"
        "delta = torch.randn(1100, 40, generator=torch.Generator().manual_seed(1))"
        " @ torch.randn(40, 1050, generator=torch.Generator().manual_seed(2));"
        "analysis = analyse('weight', delta, max_rank=24); encoded = encode(analysis, analysis.prices[3], delta);"
        "assert torch.equal(before, torch.get_rng_state());"
        "print(hashlib.sha256(b''.join(a.tobytes() for p in encoded.parts for a in p.arrays.values())).hexdigest())"
    )
    runs = [
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout for _ in "ab"
    ]
    assert runs[0] == runs[1] and len(runs[0]) == 2 * hashlib.sha256().digest_size + 1


@given(st.integers(-20, 0))
def test_quantized_components_remove_what_they_say(exponent: int) -> None:
    matrix = decaying(80, 60, size=1.0)
    bought = quantize(factorize("weight", matrix, 60), 2.0**exponent)
    approximation = (bought.left.T * bought.scales) @ bought.right
    energy = float(matrix.square().sum())
    error = float(np.square(matrix.numpy() - approximation).sum())
    assert error == pytest.approx(energy - bought.removed, rel=0.1, abs=0.003 * energy)


def test_errors_ignore_equal_infinities_and_nan() -> None:
    delta = torch.tensor([1.0, float("inf"), float("nan")])
    assert measure_error(delta, delta.clone()).max_absolute_error == 0
    record = measure_error(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 3.0]))
    assert record.relative_squared_error == pytest.approx(1 / 25) and record.max_absolute_error == 1
    assert measure_error(torch.zeros(0, 3), torch.zeros(0, 3)).relative_squared_error == 0


MATRIX = seeded(9, 5)
ROWS = rows.encode(MATRIX, [0, 3, 8])


def test_rows_replace_what_was_there() -> None:
    encoded = EncodedTensor((9, 5), (ROWS,))
    expected = torch.zeros(9, 5)
    expected[[0, 3, 8]] = MATRIX[[0, 3, 8]]
    assert torch.equal(decode(encoded), expected)


@pytest.mark.parametrize("shape", [(8, 5), (9, 4), (9,), (), (9, 5, 2), (0, 5)])
def test_rows_of_another_shape_are_integrity_errors(shape: tuple[int, ...]) -> None:
    with pytest.raises(IntegrityError):
        decode(EncodedTensor(shape, (ROWS,)))


@given(st.sampled_from(["indices", "data"]), st.integers(0, 10**6), st.integers(0, 10**6), st.integers(-1, 10))
def test_damaged_rows_never_crash(name: str, bit: int, length: int, count: int) -> None:
    flipped = ROWS.arrays[name].copy()
    flipped[bit // 8 % flipped.size] ^= 1 << bit % 8
    for data in (flipped, ROWS.arrays[name][: length % (flipped.size + 1)]):
        try:
            decoded = decode(EncodedTensor((9, 5), (EncodedPart("rows", {"rows": count}, ROWS.arrays | {name: data}),)))
        except IntegrityError:
            continue
        assert decoded.shape == (9, 5)


def test_golden_files_decode_to_the_same_bits() -> None:
    for case in read_golden("rows"):
        assert words(decode(from_json(case["encoded"]))).hex() == case["decoded"], case["case"]
