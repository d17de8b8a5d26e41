"""The codec ``factors``: the two factors of an imported LoRA (Hu et al. 2021, arXiv 2106.09685), exactly as its file holds them.

The delta is ``scale · B @ A``, or the transpose of that for weights that are stored as inputs × outputs (embeddings, GPT-2's ``Conv1D``).
Each factor keeps its dtype and every bit; the scale (``alpha / rank``, or ``alpha / sqrt(rank)`` for rsLoRA) is an fp64 number in the
config, which JSON gives back exactly.

The product is of real numbers, so its last bits depend on library, threads and how many rows are multiplied together. This is the one
codec that promises a tolerance and not bits: :func:`rounding_bound`. What a manifest pins of such a tensor is therefore the digest of
the factors (:meth:`AdapterFactors.update`), not that of what they multiply to.

Layout: ``a`` and ``b`` hold the values of A (rank × inputs) and B (outputs × rank), row by row, as byte planes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from skillhub.codecs.encoding import EncodedPart, check_keys, count_elements, damaged, read_integer
from skillhub.codecs.lowrank import matrix_shape
from skillhub.codecs.streams import compress_planes, decompress_planes, tensor_bytes
from skillhub.documents import canonical_json

ID = "factors"

DTYPES: dict[str, torch.dtype] = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
"""Dtypes that a factor may have, by the name that the config carries."""

MAX_RANK = 4096

HALF_STEP = 2.0**-24
"""Largest relative error of rounding to fp32 once."""


class Digest(Protocol):
    """What :mod:`hashlib` gives."""

    def update(self, data: bytes, /) -> None:
        """Take in some bytes."""


@dataclass(frozen=True, eq=False)
class AdapterFactors:
    """A pair of factors as an adapter's file holds it.

    Attributes:
        a: (rank, inputs), of one of :data:`DTYPES`.
        b: (outputs, rank), likewise.
        scale: finite; what their product is multiplied with.
        transposed: the weight is stored as inputs × outputs.
    """

    a: torch.Tensor
    b: torch.Tensor
    scale: float
    transposed: bool = False

    @property
    def rank(self) -> int:
        """How many rows ``a`` has."""
        return len(self.a)

    def widened(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (rank, rows) and (rank, columns) fp32, the scale multiplied in, whose product ``leftᵀ @ right`` is the delta."""
        outputs, inputs = self.b.to(torch.float32).T * self.scale, self.a.to(torch.float32)
        return (inputs, outputs) if self.transposed else (outputs, inputs)

    def multiply(self) -> torch.Tensor:
        """Return the delta, fp32 of (rows, columns). In numpy, because torch's product depends on autocast and the process's settings."""
        left, right = self.widened()
        with np.errstate(all="ignore"):  # what is too large is told by whoever adds it up
            return torch.from_numpy(left.numpy().T @ right.numpy())

    def update(self, digest: Digest) -> None:
        """Take all that the delta depends on into a digest: the config as canonical JSON, then the little-endian bytes of A and of B."""
        digest.update(canonical_json(_config(self)))
        for factor in (self.a, self.b):
            digest.update(tensor_bytes(factor).tobytes())


def rounding_bound(factors: AdapterFactors) -> float:
    """Return how far an element of the decoded delta can be from the true product, by any order of summation.

    Each of ``rank`` products, as many sums and the scale round once, by at most 2⁻²⁴ of Σ|b·a|, which Cauchy and Schwarz bound by the
    norms of a row of B and a column of A (Higham, *Accuracy and Stability of Numerical Algorithms*, §3.1).
    """
    longest = [
        float(torch.linalg.vector_norm(factor.to(torch.float64), dim=dim).max()) if factor.numel() else 0.0
        for factor, dim in ((factors.b, 1), (factors.a, 0))
    ]
    return (factors.rank + 2) * HALF_STEP * abs(factors.scale) * longest[0] * longest[1]


def encode(factors: AdapterFactors) -> EncodedPart:
    """Return the part that stores ``factors``, in any layout.

    Raises:
        ValueError: they do not go together, have no rank or one above :data:`MAX_RANK`, are of another dtype, or not finite.
    """
    a, b = factors.a, factors.b
    if a.dim() != 2 or b.dim() != 2 or len(a) != b.shape[1] or not 1 <= len(a) <= MAX_RANK:
        raise ValueError(
            f"factors of shapes {list(a.shape)} and {list(b.shape)} have no rank from 1 to {MAX_RANK} in common"
        )
    if not {a.dtype, b.dtype} <= set(DTYPES.values()):
        raise ValueError(f"factors of {a.dtype} and {b.dtype} are not floats")
    if not (math.isfinite(factors.scale) and bool(a.isfinite().all()) and bool(b.isfinite().all())):
        raise ValueError("factors and their scale must be finite")
    arrays = {
        key: compress_planes(tensor_bytes(factor).view(f"u{factor.dtype.itemsize}"))
        for key, factor in (("a", a), ("b", b))
    }
    return EncodedPart(ID, _config(factors), arrays)


def _config(factors: AdapterFactors) -> dict[str, object]:
    return {
        "rank": factors.rank,
        "dtypes": [_name(factors.a), _name(factors.b)],
        "scale": float(factors.scale),
        "transposed": factors.transposed,
    }


def _name(factor: torch.Tensor) -> str:
    return str(factor.dtype).removeprefix("torch.")


def decode(part: EncodedPart, shape: tuple[int, ...], delta: torch.Tensor | None) -> torch.Tensor:
    """Return the fp32 product, of ``shape``, added to ``delta`` if there is one; within :func:`rounding_bound` of the true one.

    Raises:
        IntegrityError: as :func:`read_factors`.
    """
    values = read_factors(part, shape).multiply().reshape(shape)
    return values if delta is None else delta.add_(values)


def read_factors(part: EncodedPart, shape: tuple[int, ...]) -> AdapterFactors:
    """Return the factors of a tensor of ``shape`` as they are stored.

    Raises:
        IntegrityError: config, streams and shape contradict each other, or a value is not finite.
    """
    check_keys(part, {"rank", "dtypes", "scale", "transposed"}, {"a", "b"})
    config = part.config
    transposed, scale = config["transposed"], config["scale"]
    if type(transposed) is not bool or len(shape) < 2 or (transposed and len(shape) > 2):
        raise damaged("has factors but is no matrix that they could be of")
    if type(scale) is not float or not math.isfinite(scale):
        raise damaged(f"has factors with the scale {scale!r}")
    rank = read_integer(config["rank"], "rank", 1, MAX_RANK)
    rows, columns = matrix_shape(shape)
    outputs, inputs = (columns, rows) if transposed else (rows, columns)
    dtypes = config["dtypes"]
    if not isinstance(dtypes, list) or len(dtypes) != 2 or not all(isinstance(one, str) for one in dtypes):
        raise damaged("does not list the dtypes of its factors")
    a = _read(part, "a", (rank, inputs), dtypes[0])
    b = _read(part, "b", (outputs, rank), dtypes[1])
    return AdapterFactors(a, b, scale, transposed)


def _read(part: EncodedPart, key: str, shape: tuple[int, int], name: str) -> torch.Tensor:
    dtype = DTYPES.get(name)
    if dtype is None:
        raise damaged(f"has a factor of the unknown dtype {name!r}")
    data = decompress_planes(part.arrays[key], count_elements(shape), dtype.itemsize)
    values = torch.from_numpy(data).view(dtype).reshape(shape)
    if not bool(values.isfinite().all()):
        raise damaged("has factors that are not finite")
    return values
