"""The codec ``sign``: one bit a weight and one scale a row, as BitDelta stores deltas (Liu et al. 2024, arXiv 2402.10193, §3.1).

Every weight becomes plus or minus the mean magnitude of its row, which of all scales leaves the least squared error. The paper has one
scale a matrix; one a row costs 0.02 bits a weight and errs less. There is no zero: an unchanged weight counts as positive, as in the
authors' code, unless its whole row is unchanged; the scale is then 0, and so are its weights.

Layout: ``signs`` holds for each row its bits, the first weight's in the highest place of the first byte (1 is negative), padded to whole
bytes with zeros; ``scales`` each row's fp32 scale as byte planes. Both are compressed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from skillhub.codecs.encoding import EncodedPart, check_keys, damaged
from skillhub.codecs.lowrank import matrix_shape
from skillhub.codecs.streams import Bytes, compress, compress_planes, decompress, decompress_planes, tensor_bytes

ID = "sign"


@dataclass(frozen=True, eq=False)
class Signs:
    """A matrix of signs.

    Attributes:
        packed: (rows, bytes of a row) uint8; a bit of 1 is negative.
        scales: (rows,) fp32, finite and not negative.
        columns: how many bits of a row are weights.
    """

    packed: Bytes
    scales: npt.NDArray[np.float32]
    columns: int

    def expand(self, rows: slice = slice(None)) -> npt.NDArray[np.float32]:
        """Return some rows as fp32 of (rows, columns): each weight is its row's scale or the negative of it, so nothing rounds."""
        negative = np.unpackbits(self.packed[rows], axis=1, count=self.columns)
        scales = self.scales[rows, None]
        values: npt.NDArray[np.float32] = np.where(negative, -scales, scales)
        # -0.0 would be another zero than the one that decoders of unchanged weights give.
        return np.add(values, np.float32(0), out=values)


def encode(delta: torch.Tensor) -> EncodedPart:
    """Return the part that stores the signs of ``delta`` and the mean magnitude of each of its rows.

    Args:
        delta: fp32 with at least two dimensions, finite, any layout; what follows the first dimension is a row.

    Raises:
        ValueError: it is something else.
    """
    if delta.dtype != torch.float32 or delta.dim() < 2 or not bool(delta.isfinite().all()):
        raise ValueError("expected a finite float32 delta of at least two dimensions")
    matrix = delta.detach().cpu().reshape(matrix_shape(tuple(delta.shape)))
    sums = matrix.abs().sum(dim=1, dtype=torch.float64)
    scales = (sums / max(matrix.shape[1], 1)).to(torch.float32)
    packed = np.packbits((matrix < 0).numpy(), axis=1)
    arrays = {"signs": compress(packed.reshape(-1)), "scales": compress_planes(tensor_bytes(scales).view("u4"))}
    return EncodedPart(ID, {}, arrays)


def decode(part: EncodedPart, shape: tuple[int, ...], delta: torch.Tensor | None) -> torch.Tensor:
    """Return the fp32 signs times scales, of ``shape``, added to ``delta`` if there is one.

    Raises:
        IntegrityError: streams and shape contradict each other, or a scale is no magnitude.
    """
    values = torch.from_numpy(read_signs(part, shape).expand()).reshape(shape)
    return values if delta is None else delta.add_(values)


def read_signs(part: EncodedPart, shape: tuple[int, ...]) -> Signs:
    """Unpack the signs of a part for a tensor of ``shape``.

    Raises:
        IntegrityError: as :func:`decode`.
    """
    check_keys(part, set(), {"signs", "scales"})
    if len(shape) < 2:
        raise damaged("has signs of rows but is no matrix")
    rows, columns = matrix_shape(shape)
    width = -(-columns // 8)
    packed = decompress(part.arrays["signs"], rows * width).reshape(rows, width)
    scales = decompress_planes(part.arrays["scales"], rows, 4).view("<f4").astype(np.float32, copy=False)
    if not bool(np.all((scales >= 0) & np.isfinite(scales))):
        raise damaged("has a scale that is not a finite magnitude")
    return Signs(packed, scales, columns)
