"""What tests on a GPU share; they are skipped where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@contextmanager
def full_gpu(left: int) -> Iterator[None]:
    """Take the memory of the GPU for the length of a block, but for about so many bytes."""
    torch.cuda.empty_cache()
    held: list[torch.Tensor] = []
    size = 1 << 36
    while size >= 1 << 20:
        try:
            if torch.cuda.mem_get_info()[0] - size >= left:
                held.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
                continue
        except torch.cuda.OutOfMemoryError:  # what is free is in pieces
            pass
        size //= 2
    try:
        yield
    finally:
        held.clear()
        torch.cuda.empty_cache()
