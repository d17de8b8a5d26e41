"""The codec ``lowrank``: a matrix as a sum of few rank-one components, in integers.

The delta is the sum over groups of ``2**exponent · Σ_k scale_k · left_k ⊗ right_k`` with integer codes ``left_k``, ``right_k`` and integer
scales. Within a group ``Σ_k scale_k · max|left_k| · max|right_k| < 2**24``: every partial sum of the matrix product is an integer
that fp32 holds exactly, so the product has the same bits in any order of summation, with or without fused multiply-add, on every
library and number of threads. The groups are scaled by powers of two and added in their order.

Rows and columns may each have a power of two of their own, by which the matrix is multiplied: where a calibrated metric says that
some weigh more than others, their codes stand for finer steps. As powers of two round nothing, all of the above still holds.

Layout of the array ``codes``: every component's scale (uint16, little endian), then the left codes of all components, then the right ones, each
entropy-coded (:mod:`skillhub.codecs.arithmetic`). The array ``exponents``, where there is one, is a frame of signed bytes: the exponent of
every row, then of every column. Earlier packs hold their codes otherwise (:mod:`skillhub.codecs.packedcodes`); they are read as ever.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from skillhub.codecs import arithmetic, packedcodes
from skillhub.codecs.arithmetic import Codes
from skillhub.codecs.encoding import EncodedPart, check_keys, count_elements, damaged, read_integer
from skillhub.codecs.streams import Bytes, compress, decompress

ID = "lowrank"

EXACT_LIMIT = 2**24
"""fp32 holds every integer of a smaller magnitude."""

MIN_EXPONENT, MAX_EXPONENT = -126, 103
"""No sum of multiples of ``2**-126`` is subnormal (flush-to-zero cannot touch it); ``2**24 · 2**103`` is the largest finite power."""

MAX_LINE_EXPONENT = 24
"""Largest magnitude of a row's or column's exponent; three times what any calibrated metric asked for."""

MAX_RANK = 4096
MIN_SCALE = 64
"""A scale of at least 64 keeps its rounding error under 0.8 %."""


@dataclass(frozen=True, eq=False)
class LineExponents:
    """A power of two for each row and column of a matrix.

    Attributes:
        rows: (rows,) int8, of magnitude up to :data:`MAX_LINE_EXPONENT`.
        columns: (columns,) int8 likewise.
    """

    rows: npt.NDArray[np.int8]
    columns: npt.NDArray[np.int8]


@dataclass(frozen=True, eq=False)
class Components:
    """Rank-one components in integers.

    Attributes:
        left: (rank, rows) int16 codes of magnitude up to ``arithmetic.MAX_CODE``.
        right: (rank, columns) int16 codes likewise.
        scales: (rank,) positive integers below 65536.
        groups: (components, exponent) of each run of components that is summed exactly.
        lines: exponents of the powers of two that rows, and columns, are multiplied by; None where all are 0.
    """

    left: Codes
    right: Codes
    scales: npt.NDArray[np.int64]
    groups: tuple[tuple[int, int], ...]
    lines: LineExponents | None = None


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return ``shape`` as rows × columns: the first dimension by the product of the others."""
    return shape[0], count_elements(shape[1:])


def choose_groups(
    left: Codes, right: Codes, scales: npt.NDArray[np.float64], lines: LineExponents | None = None
) -> Components | None:
    """Round real component scales to integers and form groups whose sums are proven exact.

    Args:
        left: (rank, rows) codes.
        right: (rank, columns) codes.
        scales: (rank,) positive reals.
        lines: powers of two of rows and columns, which ``left`` and ``right`` are to be multiplied by.

    Returns:
        The components in their order, or None when the scales lie outside what fp32 can hold.
    """
    lowest, highest = _exponent_range(lines)
    peaks = np.abs(left).max(axis=1).astype(np.float64) * np.abs(right).max(axis=1)
    integers = np.zeros(len(scales), dtype=np.int64)
    groups: list[tuple[int, int]] = []
    start = 0
    while start < len(scales):
        stop, exponent = start, 0
        while stop < len(scales):
            candidate = _fit_exponent(peaks[start : stop + 1], scales[start : stop + 1], lowest, highest)
            if candidate is None:
                break
            stop, exponent = stop + 1, candidate
        if stop == start:
            return None
        integers[start:stop] = np.rint(scales[start:stop] * 2.0**-exponent)
        groups.append((stop - start, exponent))
        start = stop
    return Components(left, right, integers, tuple(groups), lines)


def _exponent_range(lines: LineExponents | None) -> tuple[int, int]:
    """Return the exponents that a group may have, so that with those of its lines it stays within what fp32 holds exactly."""
    if lines is None:
        return MIN_EXPONENT, MAX_EXPONENT
    lowest = min(0, int(lines.rows.min())) + min(0, int(lines.columns.min()))
    highest = max(0, int(lines.rows.max())) + max(0, int(lines.columns.max()))
    return MIN_EXPONENT - lowest, MAX_EXPONENT - highest


def _fit_exponent(
    peaks: npt.NDArray[np.float64], scales: npt.NDArray[np.float64], lowest: int, highest: int
) -> int | None:
    """Return the smallest exponent whose rounded scales keep the sum exact, if all scales then are at least MIN_SCALE."""
    lowest = max(int(np.floor(np.log2(scales.max()))) - 15, lowest)
    for exponent in range(lowest, highest + 1):
        integers = np.rint(scales * 2.0**-exponent)
        if integers.min() < MIN_SCALE:
            return None
        if integers.max() < 2**16 and float(integers @ peaks) < EXACT_LIMIT:
            return exponent
    return None


def encode(components: Components) -> EncodedPart:
    """Return the part that stores ``components``."""
    scales = components.scales.astype("<u2").view(np.uint8)
    streams = [arithmetic.encode(codes) for codes in (components.left, components.right)]
    arrays = {"codes": np.concatenate([scales, *streams])}
    if components.lines is not None:
        exponents = np.concatenate([components.lines.rows, components.lines.columns])
        arrays["exponents"] = compress(exponents.view(np.uint8))
    return EncodedPart(ID, {"rank": len(scales) // 2, "groups": [list(group) for group in components.groups]}, arrays)


def rescale(part: EncodedPart, shape: tuple[int, ...], gains: npt.NDArray[np.float64]) -> EncodedPart:
    """Return a part whose components count for more or less; the same part where fp32 could not hold the scales.

    Args:
        part: as :func:`encode` returned it.
        shape: of the tensor.
        gains: (rank,) positive reals that the scales are multiplied by.
    """
    old = read_components(part, *matrix_shape(shape))
    powers = np.concatenate([np.full(count, 2.0**exponent) for count, exponent in old.groups])
    new = choose_groups(old.left, old.right, old.scales * powers * gains, old.lines)
    return part if new is None else encode(new)


def decode(part: EncodedPart, shape: tuple[int, ...], delta: torch.Tensor | None) -> torch.Tensor:
    """Return the fp32 matrix that the components sum to, reshaped to ``shape``, added to ``delta`` if there is one.

    Raises:
        IntegrityError: config, codes and shape contradict each other, or the sums would not be exact.
    """
    if len(shape) < 2:
        raise damaged("has low-rank components but is no matrix")
    values = torch.from_numpy(reconstruct(read_components(part, *matrix_shape(shape)))).reshape(shape)
    return values if delta is None else delta.add_(values)


def read_components(part: EncodedPart, rows: int, columns: int) -> Components:
    """Unpack the components of a part for a matrix of ``rows`` × ``columns``.

    Raises:
        IntegrityError: as :func:`decode`.
    """
    is_packed = isinstance(part.config, dict) and "frames" in part.config
    check_keys(
        part, {"rank", "groups", *(["frames"] if is_packed else [])}, {"codes", *(part.arrays.keys() & {"exponents"})}
    )
    rank = read_integer(part.config["rank"], "rank", 1, min(rows, columns, MAX_RANK))
    groups = _read_groups(part.config["groups"], rank)
    if is_packed:
        scales, left, right = packedcodes.read(part.arrays["codes"], part.config["frames"], rank, rows, columns)
    else:
        scales, left, right = _read_codes(part.arrays["codes"], rank, rows, columns)
    if int(scales.min()) < 1:
        raise damaged("has components without a scale")
    components = Components(left, right, scales, groups, _read_lines(part, rows, columns))
    _check_exactness(components)
    return components


def _read_codes(data: Bytes, rank: int, rows: int, columns: int) -> tuple[npt.NDArray[np.int64], Codes, Codes]:
    """Return the scales, the left and the right codes of the array ``codes``."""
    if data.size < 2 * rank:
        raise damaged("has fewer bytes than its components have scales")
    scales = np.ascontiguousarray(data[: 2 * rank]).view("<u2").astype(np.int64)
    left, after_left = arithmetic.decode(data[2 * rank :], rank, rows)
    right, after_right = arithmetic.decode(data[2 * rank + after_left :], rank, columns)
    if 2 * rank + after_left + after_right != data.size:
        raise damaged("has bytes after its codes")
    return scales, left, right


def _read_lines(part: EncodedPart, rows: int, columns: int) -> LineExponents | None:
    """Return the exponents of rows and columns, if the part has any."""
    if "exponents" not in part.arrays:
        return None
    exponents = decompress(part.arrays["exponents"], rows + columns).view(np.int8)
    if exponents.min() < -MAX_LINE_EXPONENT or exponents.max() > MAX_LINE_EXPONENT:
        raise damaged("has rows or columns with exponents beyond what they may be")
    return LineExponents(exponents[:rows], exponents[rows:])


def _read_groups(value: object, rank: int) -> tuple[tuple[int, int], ...]:
    """Return the groups of a config, checked to cover ``rank`` components."""
    if not isinstance(value, list) or not all(isinstance(group, list) and len(group) == 2 for group in value):
        raise damaged("has no usable groups of components")
    groups = tuple(
        (read_integer(count, "group size", 1, rank), read_integer(exponent, "exponent", MIN_EXPONENT, MAX_EXPONENT))
        for count, exponent in value
    )
    if sum(count for count, _ in groups) != rank:
        raise damaged("has groups that do not cover its components")
    return groups


def _check_exactness(components: Components) -> None:
    """Refuse components whose sums could exceed what fp32 holds exactly: their bits would depend on the machine."""
    peaks = np.abs(components.left).max(axis=1).astype(np.int64) * np.abs(components.right).max(axis=1)
    start = 0
    for count, _ in components.groups:
        stop = start + count
        if int(components.scales[start:stop] @ peaks[start:stop]) >= EXACT_LIMIT:
            raise damaged("has components whose sum is not exact")
        start = stop
    lowest, highest = _exponent_range(components.lines)
    if any(not lowest <= exponent <= highest for _, exponent in components.groups):
        raise damaged("has components that fp32 cannot hold")


@dataclass(frozen=True, eq=False)
class Factors:
    """Components as what is multiplied, in fp32; scales and their power of two are in ``left``.

    Within a group every element's products and sums are integers below 2**24 times one power of two, never subnormal, hence exact.

    Attributes:
        left: (rank, rows): integers times the powers of two of the group and of the row.
        right: (rank, columns): integers times the column's power of two.
        groups: sizes of the groups.
    """

    left: npt.NDArray[np.float32]
    right: npt.NDArray[np.float32]
    groups: tuple[int, ...]

    def multiply(self, rows: slice = slice(None)) -> npt.NDArray[np.float32]:
        """Multiply out: fp32 of (rows, columns), the same bits for every choice of ``rows`` and machine.

        In numpy, because torch's matrix product also depends on autocast and on the process's matmul precision.
        """
        result: npt.NDArray[np.float32] | None = None
        start = 0
        for count in self.groups:
            left, right = self.left[start : start + count, rows], self.right[start : start + count]
            product: npt.NDArray[np.float32] = left.T @ right
            result = product if result is None else np.add(result, product, out=result)
            start += count
        assert result is not None  # a part has at least one group
        return result


def factors_of(components: Components) -> Factors:
    """Return components as factors."""
    powers = np.concatenate([np.full(count, 2.0**exponent, np.float32) for count, exponent in components.groups])
    left = np.multiply(components.left, components.scales[:, None], dtype=np.float32)  # below 2**24: exact
    right = components.right.astype(np.float32)
    left *= powers[:, None]
    if components.lines is not None:
        left *= np.exp2(components.lines.rows, dtype=np.float32)
        right *= np.exp2(components.lines.columns, dtype=np.float32)
    return Factors(left, right, tuple(count for count, _ in components.groups))


def reconstruct(components: Components, rows: slice = slice(None)) -> npt.NDArray[np.float32]:
    """Multiply components out, as :meth:`Factors.multiply` does."""
    return factors_of(components).multiply(rows)
