"""Products in half precision: quick where the machine has no instructions for them, and what those would give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from skillhub import halves
from skillhub.halves import HALVES, multiplies, quick_products


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Act as a machine that has quick products of fp32 alone."""
    monkeypatch.setattr(halves, "multiplies", lambda dtype: dtype not in HALVES)


def test_every_machine_multiplies_fp32_and_fp64() -> None:
    assert multiplies(torch.float32) and multiplies(torch.float64)


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    "product",
    [
        lambda a, b, c: nn.functional.linear(a, b.T, c),
        lambda a, b, c: nn.functional.linear(input=a, weight=b.T, bias=c),
        lambda a, b, c: torch.addmm(c, a, b),
        lambda a, b, c: a @ b + c,
        lambda a, b, c: a.matmul(b) + c,
        lambda a, b, c: torch.bmm(a[None], b[None])[0] + c,
    ],
)
def test_a_product_is_that_of_exact_sums_rounded_once(dtype: torch.dtype, product: Callable[..., Any]) -> None:
    draw = torch.Generator().manual_seed(3)
    a, b = (torch.randint(-8, 9, shape, generator=draw).to(dtype) / 4 for shape in ((7, 33), (33, 5)))
    c = torch.zeros(5, dtype=dtype)
    exact = a.double().numpy() @ b.double().numpy()
    with quick_products():
        found = product(a, b, c)
    assert found.dtype == dtype
    assert np.array_equal(found.double().numpy(), torch.from_numpy(exact).to(dtype).double().numpy())


@pytest.mark.usefixtures("slow")
def test_gradients_go_through_and_keep_their_dtype() -> None:
    layer = nn.Linear(6, 4).bfloat16()
    given = torch.randn(3, 6).bfloat16().requires_grad_()
    with quick_products():
        layer(given).sum().backward()
    assert given.grad is not None and given.grad.dtype == torch.bfloat16
    expected = layer.weight.detach().double().sum(0).expand(3, 6)
    torch.testing.assert_close(given.grad.double(), expected, rtol=2**-7, atol=2**-7)
    assert layer.weight.grad is not None and layer.weight.grad.dtype == torch.bfloat16


@pytest.mark.usefixtures("slow")
def test_what_is_mixed_or_wide_is_left_to_torch() -> None:
    wide, narrow = torch.ones(2, 2), torch.ones(2, 2).bfloat16()
    with quick_products():
        assert (wide @ wide).dtype == torch.float32
        with pytest.raises(RuntimeError, match="dtype"):
            narrow @ wide
        with torch.autocast("cpu", torch.bfloat16):
            assert nn.functional.linear(wide, wide).dtype == torch.bfloat16


@pytest.mark.usefixtures("slow")
def test_a_model_says_the_same_but_for_the_order_of_sums() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True).bfloat16().eval()
    given = torch.randn(2, 5, 16).bfloat16()
    with torch.no_grad():
        plain = model(given)
        with quick_products():
            torch.testing.assert_close(model(given).float(), plain.float(), rtol=2**-5, atol=2**-5)
