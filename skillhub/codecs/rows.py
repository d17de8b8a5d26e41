"""The codec ``rows``: some rows of a matrix exactly, in place of what other parts said of them.

For rows that the base does not have (added tokens) and rows that low rank describes badly. Layout: ``indices`` holds the gaps between
increasing row numbers (uint32 byte planes), ``data`` the rows' fp32 values as byte planes.
"""

from __future__ import annotations

import numpy as np
import torch

from skillhub.codecs.encoding import EncodedPart, check_keys, count_elements, damaged, read_integer
from skillhub.codecs.streams import compress_planes, decompress_planes, tensor_bytes

ID = "rows"


def encode(matrix: torch.Tensor, indices: list[int]) -> EncodedPart:
    """Return the part that sets the rows ``indices`` (increasing) of the fp32 ``matrix``, whose first dimension has under 2**32."""
    gaps = np.diff(np.array(indices, dtype=np.int64), prepend=-1) - 1
    values = tensor_bytes(matrix[indices]).view("u4")
    arrays = {"indices": compress_planes(gaps.astype("<u4")), "data": compress_planes(values)}
    return EncodedPart(ID, {"rows": len(indices)}, arrays)


def decode(part: EncodedPart, shape: tuple[int, ...], delta: torch.Tensor | None) -> torch.Tensor:
    """Return ``delta`` (or zeros of ``shape``) with the stored rows in place of its own.

    Raises:
        IntegrityError: config, indices, values and shape contradict each other.
    """
    indices, values = read_rows(part, shape)
    result = torch.zeros(shape, dtype=torch.float32, device="cpu") if delta is None else delta
    result[indices] = values
    return result


def read_rows(part: EncodedPart, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the numbers of the stored rows (I64, increasing) and their fp32 values, for a tensor of ``shape``.

    Raises:
        IntegrityError: as :func:`decode`.
    """
    check_keys(part, {"rows"}, {"indices", "data"})
    if not shape:
        raise damaged("has rows but is a scalar")
    count = read_integer(part.config["rows"], "rows", 1, shape[0])
    gaps = decompress_planes(part.arrays["indices"], count, 4).view("<u4").astype(np.int64)
    indices = np.cumsum(gaps + 1) - 1
    if int(indices[-1]) >= shape[0]:
        raise damaged("sets rows beyond its last")
    data = decompress_planes(part.arrays["data"], count * count_elements(shape[1:]), 4)
    return torch.from_numpy(indices), torch.from_numpy(data).view(torch.float32).reshape(count, *shape[1:])
