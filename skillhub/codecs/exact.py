"""The codec ``exact``: every value bit for bit, NaN payloads and infinities too, as byte planes in one zstandard frame.

For vectors, small tensors, added tensors and whatever holds no finite delta. With ``operation: add`` the values are the fp32 delta.
With ``operation: set`` they are the tuned tensor itself in its own dtype (integers, packed formats, added tensors).
"""

from __future__ import annotations

import torch

from skillhub.codecs.encoding import EncodedPart, EncodedTensor, check_keys, count_elements, damaged
from skillhub.codecs.streams import compress_planes, decompress_planes, tensor_bytes

ID = "exact"

DTYPES: dict[str, torch.dtype] = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
        *(torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8),
        *(torch.complex64, torch.bool),
    )
}
"""Dtypes that can be stored, by the name that the config carries."""


def encode(values: torch.Tensor, *, operation: str = "add") -> EncodedTensor:
    """Store ``values`` bit for bit.

    Args:
        values: any shape and layout; fp32 for ``"add"``, any dtype of :data:`DTYPES` for ``"set"``.
        operation: ``"add"`` for a delta, ``"set"`` for the tuned tensor itself.

    Raises:
        ValueError: the dtype does not go with the operation.
    """
    name = str(values.dtype).removeprefix("torch.")
    if operation not in ("add", "set") or name not in DTYPES or (operation == "add" and name != "float32"):
        raise ValueError(f"a tensor of {name} cannot be stored exactly with operation {operation!r}")
    words = tensor_bytes(values).view(f"u{values.dtype.itemsize}")
    part = EncodedPart(ID, {"operation": operation, "dtype": name}, {"data": compress_planes(words)})
    return EncodedTensor(tuple(values.shape), (part,))


def decode(part: EncodedPart, shape: tuple[int, ...], delta: torch.Tensor | None) -> torch.Tensor:
    """Return the stored values (``set``), or their fp32 sum with ``delta`` (``add``).

    Raises:
        IntegrityError: config, stream and shape contradict each other.
    """
    check_keys(part, {"operation", "dtype"}, {"data"})
    operation, name = part.config["operation"], part.config["dtype"]
    if operation not in ("add", "set") or not isinstance(name, str) or name not in DTYPES:
        raise damaged(f"is stored exactly with unknown operation {operation!r} or dtype {name!r}")
    if operation == "add" and name != "float32":
        raise damaged(f"has a delta of {name}, expected float32")
    data = decompress_planes(part.arrays["data"], count_elements(shape), DTYPES[name].itemsize)
    if name == "bool" and data.size and data.max() > 1:
        raise damaged("has a boolean that is neither 0 nor 1")
    values = torch.from_numpy(data).view(DTYPES[name]).reshape(shape)
    return values if delta is None else delta.add_(values)
