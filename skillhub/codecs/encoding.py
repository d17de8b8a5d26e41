"""What a codec writes and reads: an encoded tensor is a shape and a few parts, each of one codec.

A part is a codec's id, a JSON-compatible config and named arrays of bytes. That is all a pack stores, so a new codec needs no new
format around it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from skillhub.errors import IntegrityError

Arrays = dict[str, npt.NDArray[np.uint8]]
"""Named one-dimensional uint8 arrays: the payload of a part."""

MAX_DIMENSIONS = 16
MAX_ELEMENTS = 2**33
"""More elements than any tensor of a published model; a larger shape is damage, not data."""

DAMAGED_HINT = "The pack is damaged: install or build it again."


@dataclass(frozen=True, eq=False)
class EncodedPart:
    """One codec's contribution to a tensor.

    Attributes:
        codec: the codec's id, a key of :data:`skillhub.codecs.CODECS`.
        config: JSON-compatible and deterministic; sizes in it are checked against the shape before anything is allocated.
        arrays: the payload, one-dimensional uint8 arrays.
    """

    codec: str
    config: dict[str, Any]
    arrays: Arrays


@dataclass(frozen=True, eq=False)
class EncodedTensor:
    """A compressed delta (or replaced value) of one tensor: parts that are applied in their order."""

    shape: tuple[int, ...]
    parts: tuple[EncodedPart, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of payload, without configs and names."""
        return sum(array.nbytes for part in self.parts for array in part.arrays.values())

    @property
    def operation(self) -> str:
        """What the decoded tensor is: ``"add"``: an fp32 delta; else the tuned tensor itself, in its own dtype.

        ``"set"`` stands for itself; to decode ``"restore"`` takes the base's tensor.
        """
        operations = [part.config.get("operation") for part in self.parts]  # unchecked, so of any type
        return next((operation for operation in ("set", "restore") if operation in operations), "add")


def damaged(what: str) -> IntegrityError:
    """Return the error for encoded data that contradicts itself; ``what`` completes "The encoded tensor …"."""
    return IntegrityError(f"The encoded tensor {what}.", hint=DAMAGED_HINT)


def count_elements(shape: tuple[int, ...]) -> int:
    """Return the number of elements of ``shape``, after checking that it is one.

    Raises:
        IntegrityError: not a tuple of non-negative integers, or larger than :data:`MAX_ELEMENTS`.
    """
    if not isinstance(shape, tuple) or len(shape) > MAX_DIMENSIONS:
        raise damaged(f"has no usable shape: {shape!r}")
    if any(type(size) is not int or not 0 <= size <= MAX_ELEMENTS for size in shape):
        raise damaged(f"has no usable shape: {shape!r}")
    if math.prod(shape) > MAX_ELEMENTS:
        raise damaged(f"claims {math.prod(shape)} elements, more than the {MAX_ELEMENTS} that a tensor may have")
    return math.prod(shape)


def check_keys(part: EncodedPart, config_keys: set[str], array_keys: set[str]) -> None:
    """Refuse a part whose config or arrays are not exactly the codec's.

    Raises:
        IntegrityError: keys are missing or foreign, or an array is not one-dimensional uint8.
    """
    if not isinstance(part.config, dict) or set(part.config) != config_keys:
        raise damaged(f"has a {part.codec} part whose config lacks or adds keys")
    if set(part.arrays) != array_keys:
        raise damaged(f"has a {part.codec} part whose arrays lack or add names")
    if any(array.dtype != np.uint8 or array.ndim != 1 for array in part.arrays.values()):
        raise damaged(f"has a {part.codec} part whose arrays are not plain bytes")


def read_integer(value: object, what: str, low: int, high: int) -> int:
    """Return ``value`` if it is an integer with ``low <= value <= high``.

    Raises:
        IntegrityError: it is something else; ``what`` names it in the message.
    """
    if type(value) is not int or not low <= value <= high:
        raise damaged(f"has {what} = {value!r}, expected an integer from {low} to {high}")
    return value
