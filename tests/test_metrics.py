"""Metrics of calibrated matrices: whitening against brute force, and what quantizing in them keeps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skillhub.codecs import decode
from skillhub.codecs.allocation import analyse, encode
from skillhub.codecs.factorization import factorize_in_metrics, load_factors, save_factors
from skillhub.codecs.metrics import RIDGE, Metrics, metric_of, uniform_metric
from skillhub.codecs.quantization import quantize


def correlated(size: int, seed: int, spread: float) -> torch.Tensor:
    """Correlated vectors whose entries differ in size by powers of two."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(size, size, generator=generator) + 2 * torch.eye(size)
    vectors = torch.randn(4 * size, size, generator=generator) @ mixing
    scaled = vectors * torch.exp2(torch.linspace(-spread, spread, size))
    return scaled / len(scaled) ** 0.5


@settings(max_examples=40)
@given(st.integers(2, 12), st.integers(2, 12), st.integers(0, 10**6), st.floats(0, 6))
def test_the_energy_is_the_trace_that_defines_it(rows: int, columns: int, seed: int, spread: float) -> None:
    seen = correlated(rows, seed, spread), correlated(columns, seed + 1, spread)
    metrics = Metrics(*map(metric_of, seen))
    error = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed + 2))
    whole = [
        one.double() + torch.diag(torch.diagonal(ridged(one)) - one.diagonal()).double()
        for one in (vectors.T @ vectors for vectors in seen)
    ]
    expected = torch.trace(whole[0] @ error.double() @ whole[1] @ error.double().T)
    assert metrics.energy(error) == pytest.approx(float(expected), rel=1e-3)
    vectors = torch.randn(3, rows, generator=torch.Generator().manual_seed(seed))
    there = metrics.rows.whiten(vectors)
    torch.testing.assert_close(metrics.rows.unwhiten(there), vectors, rtol=2e-3, atol=2e-3)
    squares = pytest.approx(
        torch.einsum("ki,ij,kj->k", vectors.double(), whole[0], vectors.double()).tolist(), rel=1e-3
    )
    assert there.square().sum(1).tolist() == squares


def ridged(moments: torch.Tensor) -> torch.Tensor:
    diagonal = moments.diagonal()
    return torch.diag(diagonal * (1 + RIDGE) + max(0.01 * float(diagonal.median()), 1e-6 * float(diagonal.mean())))


def test_vectors_are_of_unit_length_in_the_metric_of_their_root() -> None:
    matrix = torch.randn(30, 20, generator=torch.Generator().manual_seed(1))
    metrics = Metrics(metric_of(correlated(30, 2, 3)), metric_of(correlated(20, 3, 2)))
    found = factorize_in_metrics("a", matrix, 8, metrics)
    for vectors, root in ((found.left, found.left_root), (found.right, found.right_root)):
        assert root is not None and np.array_equal(root, np.triu(root))
        unit = vectors @ root.T
        assert np.allclose(unit @ unit.T, np.eye(8), rtol=0, atol=1e-3)


def test_all_components_unquantized_give_the_matrix_back() -> None:
    matrix = torch.randn(12, 9, generator=torch.Generator().manual_seed(1))
    metrics = Metrics(metric_of(correlated(12, 2, 4)), metric_of(correlated(9, 3, 1)))
    found = factorize_in_metrics("a", matrix, 9, metrics)
    assert found.lines is not None
    left = found.left * np.exp2(found.lines.rows, dtype=np.float64)
    right = found.right * np.exp2(found.lines.columns, dtype=np.float64)
    product = found.scale * np.einsum("k,ki,kj->ij", found.values, left, right)
    assert np.allclose(product, matrix.numpy(), rtol=0, atol=1e-3)


def calibrated_case() -> tuple[torch.Tensor, Metrics]:
    generator = torch.Generator().manual_seed(7)
    low = torch.randn(160, 12, generator=generator) @ torch.randn(12, 96, generator=generator)
    delta = (low + 0.3 * torch.randn(160, 96, generator=generator)) * 1e-3
    return delta, Metrics(metric_of(correlated(160, 8, 3)), metric_of(correlated(96, 9, 2)))


def test_what_is_said_to_be_removed_is_removed() -> None:
    delta, metrics = calibrated_case()
    analysis = analyse("a", delta, metrics=metrics)
    for price, error in list(zip(analysis.prices, analysis.errors, strict=True))[2:-1:3]:
        decoded = decode(encode(analysis, price, delta))
        # Components that were quantized are orthogonal only about.
        assert metrics.energy(delta - decoded) == pytest.approx(error, rel=0.3, abs=0.01 * analysis.energy)


def test_at_equal_bytes_errors_lie_where_they_cost_less() -> None:
    delta, metrics = calibrated_case()
    calibrated, plain = analyse("a", delta, metrics=metrics), analyse("a", delta)
    compared = 0
    for price in calibrated.prices[1:-1]:
        weighed = encode(calibrated, price, delta)
        for other in (one / part for one in plain.prices for part in (1, 2)):
            alike = encode(plain, other, delta)
            if 0.9 * weighed.nbytes <= alike.nbytes <= 1.05 * weighed.nbytes:
                compared += 1
                assert metrics.energy(delta - decode(weighed)) < 0.7 * metrics.energy(delta - decode(alike))
    assert compared >= 2


def test_a_uniform_metric_quantizes_as_none_does() -> None:
    delta, _ = calibrated_case()
    metrics = Metrics(uniform_metric(160, 4.0), uniform_metric(96, 1.0))
    found, plain = factorize_in_metrics("a", delta, 12, metrics), factorize_in_metrics("a", delta, 12, identity())
    some, other = quantize(found, 4e-9), quantize(plain, 1e-9)
    assert np.array_equal(np.abs(some.left), np.abs(other.left)) and np.array_equal(some.kept, other.kept)
    assert some.scales == pytest.approx(other.scales, rel=1e-5)


def identity() -> Metrics:
    return Metrics(uniform_metric(160, 1.0), uniform_metric(96, 1.0))


def test_factors_wait_in_a_file(tmp_path) -> None:  # type: ignore[no-untyped-def]
    delta, metrics = calibrated_case()
    found = factorize_in_metrics("a", delta, 12, metrics)
    again = load_factors(save_factors(tmp_path, "a", found))
    assert again.scale == found.scale and again.lines is not None and found.lines is not None
    for name in ("left", "right", "values", "left_root", "right_root"):
        assert np.array_equal(getattr(again, name), getattr(found, name))
    assert np.array_equal(again.lines.rows, found.lines.rows)


@pytest.mark.parametrize("vectors", [torch.zeros(3, 3), torch.full((1, 3), torch.nan), torch.full((2, 2), torch.inf)])
def test_moments_that_say_nothing_are_refused(vectors: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="second moments"):
        metric_of(vectors)
