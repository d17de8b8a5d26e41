"""Products of half-precision matrices on processors that have no instructions for them.

Without those, torch multiplies bf16 and fp16 matrices number by number: on a processor with AVX2 a forward pass of a model of 135 million
weights took seven times as long as in fp32, and a backward pass 25 times. Widened to fp32 first, and rounded to half precision again
afterwards, a product is what the instructions would give, which add up in fp32, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

HALVES = (torch.bfloat16, torch.float16)

_PRODUCTS = frozenset(
    (
        torch.nn.functional.linear,
        torch.addmm,
        torch.baddbmm,
        torch.bmm,
        torch.matmul,
        torch.mm,
        torch.Tensor.__matmul__,
        torch.Tensor.addmm,
        torch.Tensor.bmm,
        torch.Tensor.matmul,
        torch.Tensor.mm,
    )
)


def multiplies(dtype: torch.dtype) -> bool:
    """Say whether this machine's CPU has a quick way to multiply matrices of a dtype."""
    if dtype not in HALVES:
        return True
    backend: Any = torch.backends.mkldnn
    if not backend.is_available():
        return False
    supports: Any = torch.ops.mkldnn
    return bool(
        supports._is_mkldnn_bf16_supported() if dtype == torch.bfloat16 else supports._is_mkldnn_fp16_supported()
    )


@contextmanager
def quick_products() -> Iterator[None]:
    """Let what this thread multiplies on the CPU be widened to fp32 and rounded again, in dtypes that it multiplies slowly."""
    slow = tuple(dtype for dtype in HALVES if not multiplies(dtype))
    if not slow:
        yield
        return
    with _Widening(slow):
        yield


class _Widening(TorchFunctionMode):
    """Widens the matrices of products, where all are of one and the same of some dtypes."""

    def __init__(self, slow: Sequence[torch.dtype]) -> None:
        super().__init__()
        self._slow = slow

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        dtype = self._shared_dtype([*args, *kwargs.values()]) if func in _PRODUCTS else None
        if dtype is None or "out" in kwargs:
            return func(*args, **kwargs)
        wide = {name: _widened(value) for name, value in kwargs.items()}
        # What the backward pass needs is kept as it was: half the memory, and the same numbers.
        with saved_tensors_hooks(lambda tensor: tensor.to(dtype), _widened):
            return func(*map(_widened, args), **wide).to(dtype)

    def _shared_dtype(self, values: Sequence[Any]) -> torch.dtype | None:
        """Return the dtype of all tensors among some values, if it is one of those to widen and they are on the CPU."""
        found = {(one.dtype, one.device.type) for one in values if isinstance(one, torch.Tensor)}
        if len(found) != 1 or torch.is_autocast_enabled("cpu"):
            return None
        dtype, place = found.pop()
        return dtype if place == "cpu" and dtype in self._slow else None


def _widened(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) else value
