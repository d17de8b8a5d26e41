"""Rounding fp32 weights to a narrower dtype, once, so that small deltas survive on average.

A bf16 base sits on the bf16 grid, so a delta below half a step disappears when the sum is rounded to nearest. Stochastic rounding
goes to the upper neighbour with a probability equal to the distance from the lower one, so the expectation is the unrounded value.

The random bits are a function of (key, element index) alone, so chunking, threads and devices do not change them. With 32-bit words,
``low`` and ``high`` the halves of the 64-bit key (plus ``0x9e3779b97f4a7c15`` for every 2**32 words before this one) and ``>>``
shifting in zeros, the random word ``w`` is::

    x  = (w mod 2**32) ^ low
    x ^= x >> 16;  x *= 0x21f0aaad;  x ^= high
    x ^= x >> 15;  x *= 0xd35a2d97;  x ^= x >> 15

which is the ``lowbias32`` mixing function (C. Wellons, "Hash Function Prospector", 2018–2022) with the key's second half added midway.
Two elements share a word: element ``i`` takes the low half of word ``i // 2`` when ``i`` is even, else the high half. The low bits of
that half, as many as the target's mantissa lacks, are added to the magnitude's bits before those are cut off.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from skillhub.compiled import compiled
from skillhub.errors import UsageError

CHUNK = 1 << 16
"""Elements that a processor rounds to fp16 at a time: the working set stays in its cache. To bf16 it rounds in one pass."""

ACCELERATOR_CHUNK = 1 << 24

MODES = ("stochastic", "nearest")
TARGETS = (torch.bfloat16, torch.float16, torch.float32)

_WORD = 1 << 32
_BLOCK_STEP = 0x9E3779B97F4A7C15
_SMALLEST_NORMAL_HALF = 2.0**-14
_LARGEST_BFLOAT16 = 0x7F7F0000
"""The bits, as fp32, of the largest finite number of bf16."""

Words = TypeVar("Words", npt.NDArray[np.int32], torch.Tensor)


def rounding_key(digests: Sequence[str], name: str) -> int:
    """Return the 64-bit key of a tensor's random bits.

    It is the first 8 bytes (little endian) of the sha256 over the UTF-8 strings, each preceded by its length in bytes (8 bytes, little
    endian): the digests in their order, then the name.

    Args:
        digests: the manifest digests of the grafted packs.
        name: the tensor's canonical name.
    """
    digest = hashlib.sha256()
    for text in (*digests, name):
        data = text.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return int.from_bytes(digest.digest()[:8], "little")


def round_to(
    dtype: torch.dtype, values: torch.Tensor, *, key: int | bytes, offset: int = 0, mode: str = "stochastic"
) -> torch.Tensor:
    """Round ``values`` to ``dtype``, the same bits for every chunking, number of threads and device.

    Representable values stay as they are. Infinities and NaN pass, and a finite value becomes infinite only where rounding to nearest
    would make it so. In fp16's subnormal range the expectation is exact up to 2**-38.

    Args:
        dtype: bfloat16 or float16; float32 returns ``values`` themselves.
        values: fp32, any shape.
        key: 64 bits, from :func:`rounding_key` (bytes: little endian).
        offset: index of the first element within the whole tensor (row-major), for callers that go chunk by chunk.
        mode: ``"stochastic"`` or ``"nearest"`` (ties to even, as torch converts).

    Returns:
        A contiguous tensor of the same shape.

    Raises:
        UsageError: ``dtype`` or ``mode`` is none of these.
    """
    if mode not in MODES or dtype not in TARGETS:
        raise UsageError(
            f"Weights cannot be rounded to {dtype} with mode {mode!r}.",
            hint="Use bfloat16, float16 or float32, and stochastic or nearest.",
        )
    if values.dtype != torch.float32:
        raise ValueError(f"expected float32, got {values.dtype}")
    if dtype == torch.float32:
        return values
    if mode == "nearest":
        return values.contiguous().to(dtype)
    number = int.from_bytes(key, "little") if isinstance(key, bytes) else key
    flat = values.contiguous().view(-1)
    result = torch.empty(flat.shape, dtype=dtype, device=flat.device)
    on_cpu = flat.device.type == "cpu"
    in_one_pass = on_cpu and dtype == torch.bfloat16
    chunk = 2 * _WORD if in_one_pass else CHUNK if on_cpu else ACCELERATOR_CHUNK
    start = 0
    while start < flat.numel():
        index = offset + start
        stop = min(start + chunk - index % chunk, flat.numel())  # never across a multiple of 2**33
        piece, out = flat[start:stop], result[start:stop]
        if in_one_pass:
            _round_in_one_pass(piece, out, index, number)
        else:
            _round_chunk(piece, _random_halves(index, stop - start, number, flat.device), out)
        start = stop
    return result.view(values.shape)


def random_words(first: int, count: int, key: int, device: torch.device | None = None) -> torch.Tensor:
    """Return the random words of some elements of a tensor: what rounding uses, for masks too.

    Args:
        first: index of the first element within the whole tensor (row-major).
        count: how many elements.
        key: 64 bits, from :func:`rounding_key`. Bits for another use need another key.
        device: where the result lies; the CPU by default.

    Returns:
        int32 ``[count]``, all 32 bits of each random.
    """
    before = min(count, _WORD - first % _WORD)
    words = _mix(torch.arange(before, dtype=torch.int32, device=device), first, key)
    if before == count:
        return words
    return torch.cat([words, random_words(first + before, count - before, key, device)])


def _random_halves(first: int, count: int, key: int, device: torch.device) -> torch.Tensor:
    """Return the uint16 halves of words that some elements take; they do not cross a multiple of 2**33."""
    begin, end = first // 2, (first + count + 1) // 2
    if device.type == "cpu":  # the same integers; numpy goes through a small chunk in half the time
        words = torch.from_numpy(_mix(np.arange(end - begin, dtype=np.int32), begin, key))
    else:
        words = _mix(torch.arange(end - begin, dtype=torch.int32, device=device), begin, key)
    return words.view(torch.uint16)[first % 2 :][:count]


def _mix(words: Words, first: int, key: int) -> Words:
    """Turn the numbers 0, 1 and so on (int32) into the random words ``first``, ``first`` + 1 and so on, in place."""
    key += (first // _WORD) * _BLOCK_STEP
    words += _signed(first)
    words ^= _signed(key)
    words ^= (words >> 16) & 0xFFFF
    words *= 0x21F0AAAD
    words ^= _signed(key // _WORD)
    words ^= (words >> 15) & 0x1FFFF
    words *= _signed(0xD35A2D97)
    words ^= (words >> 15) & 0x1FFFF
    return words


def _signed(value: int) -> int:
    """Return the low 32 bits of ``value`` as the int32 of the same bits."""
    return ((value + (1 << 31)) % _WORD) - (1 << 31)


def _round_chunk(values: torch.Tensor, halves: torch.Tensor, out: torch.Tensor) -> None:
    """Round one-dimensional fp32 ``values`` stochastically into ``out``, with a uint16 half of a random word for each."""
    if out.dtype == torch.float16:
        magnitude = values.abs()
        # In the subnormal range all steps are 2**-24; one binade up they are the same and the mantissa holds them.
        lift = (magnitude < _SMALLEST_NORMAL_HALF).to(torch.float32).mul_(_SMALLEST_NORMAL_HALF)
        missing = halves.to(torch.int32).bitwise_and_(0x1FFF)
        bits = missing.add_((magnitude + lift).view(torch.int32)).bitwise_and_(~0x1FFF)
        out.copy_(bits.view(torch.float32).sub_(lift).copysign_(values))
    else:  # on an accelerator, or of a processor the element that shares its word with one that comes before
        bits = halves.to(torch.int32).add_(values.view(torch.int32)).bitwise_right_shift_(16)
        out.view(torch.int16).copy_(bits)
    largest = torch.finfo(out.dtype).max
    low, high = torch.aminmax(values)
    if not (-largest <= low.item() and high.item() <= largest):  # NaN compares false
        _keep_large(values, out)


def _keep_large(values: torch.Tensor, out: torch.Tensor) -> None:
    """Round to nearest what is infinite, no number, or larger than ``out`` can hold."""
    largest = torch.finfo(out.dtype).max
    for piece, there in zip(torch.split(values, CHUNK), torch.split(out, CHUNK), strict=True):
        there.copy_(torch.where(piece.abs() <= largest, there, piece.to(out.dtype)))


def _round_in_one_pass(values: torch.Tensor, out: torch.Tensor, first: int, key: int) -> None:
    """Do for bf16 on a processor what :func:`_round_chunk` does, with the random words computed on the way."""
    if first % 2:  # a half of a word is left over
        _round_chunk(values[:1], _random_halves(first, 1, key, values.device), out[:1])
        values, out, first = values[1:], out[1:], first + 1
    key += (first // (2 * _WORD)) * _BLOCK_STEP
    numbers = (np.uint32(number % _WORD) for number in (first // 2, key, key // _WORD))
    bits, cut = values.detach().view(torch.int32).numpy(), out.view(torch.int16).numpy()
    if _add_and_cut(bits.view(np.uint32), cut.view(np.uint16), *numbers) > _LARGEST_BFLOAT16:
        _keep_large(values, out)


@compiled
def _mix_word(word: np.uint32, low: np.uint32, high: np.uint32) -> np.uint32:
    """Return one random word. Every result is cut to 32 bits, so that eight or more are computed at once."""
    x = np.uint32(word ^ low)
    x = np.uint32(np.uint32(x ^ (x >> np.uint32(16))) * np.uint32(0x21F0AAAD))
    x = np.uint32(x ^ high)
    x = np.uint32(np.uint32(x ^ (x >> np.uint32(15))) * np.uint32(0xD35A2D97))
    return np.uint32(x ^ (x >> np.uint32(15)))


@compiled
def _add_and_cut(
    values: npt.NDArray[np.uint32], out: npt.NDArray[np.uint16], word: np.uint32, low: np.uint32, high: np.uint32
) -> int:
    """Round the bits of fp32 values to those of bf16, two with each word from ``word`` on; return the bits of the largest magnitude."""
    largest = np.uint32(0)
    for pair in range(values.size // 2):
        noise, even, odd = (
            _mix_word(np.uint32(word + np.uint32(pair)), low, high),
            values[2 * pair],
            values[2 * pair + 1],
        )
        out[2 * pair] = np.uint32(even + (noise & np.uint32(0xFFFF))) >> np.uint32(16)
        out[2 * pair + 1] = np.uint32(odd + (noise >> np.uint32(16))) >> np.uint32(16)
        largest = max(largest, np.uint32(even & np.uint32(0x7FFFFFFF)), np.uint32(odd & np.uint32(0x7FFFFFFF)))
    if values.size % 2:
        last = values[values.size - 1]
        noise = _mix_word(np.uint32(word + np.uint32(values.size // 2)), low, high)
        out[values.size - 1] = np.uint32(last + (noise & np.uint32(0xFFFF))) >> np.uint32(16)
        largest = max(largest, np.uint32(last & np.uint32(0x7FFFFFFF)))
    return int(largest)
