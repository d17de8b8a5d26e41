"""A decoder of lossless tensors written from the format's page alone, in plain Python and slow, to prove that the page says enough."""

from __future__ import annotations

import math
import struct
from typing import Any

import zstandard

CONTEXTS = {"coarse": 32, "fraction": 128, "fine": 256, "exponent": 256}
WEIGHTS = [0, *(round(16 * 2 ** ((level - 1) / 8)) for level in range(1, 98))]


def read_words(
    config: dict[str, Any], data: bytes, shape: tuple[int, ...], expected: list[int], beyond: list[int] | None
) -> list[int]:
    """Return the tuned tensor's words.

    Args:
        config: of the part.
        data: its array.
        shape: of the tensor.
        expected: the expected words, signed.
        beyond: *b* of each element, where there is one.
    """
    bits, mantissa = {"bfloat16": (16, 7), "float16": (16, 10), "float32": (32, 23)}[config["dtype"]]
    first, second, _ = config["frames"]
    levels, stream, opened = data[:first], data[first : first + second], zstandard.decompress(data[first + second :])
    contexts = [
        _context(config, level, (word >> mantissa) & (2 ** (bits - 1 - mantissa) - 1), beyond[at] if beyond else None)
        for at, (level, word) in enumerate(zip(_levels(zstandard.decompress(levels), shape), expected, strict=True))
    ]
    symbols = _read_stream(stream, contexts, 16 + 8 * (bits - 3), CONTEXTS[config["model"]]) if contexts else []
    widths = [max(0, (symbol // 2 - 8) // 4 + 1 if symbol >= 16 else 0) for symbol in symbols]
    result = []
    for at, (symbol, left) in enumerate(zip(symbols, _read_open_bits(opened, widths), strict=True)):
        kind = symbol // 2
        magnitude = kind if kind < 8 else (4 + kind % 4 << (kind - 8) // 4 + 1) + left
        difference = -magnitude if symbol % 2 else magnitude
        if beyond and (beyond[at] < 0) != (expected[at] < 0):
            difference = -difference
        result.append(_order(_signed(_order(expected[at], bits) + difference, bits), bits))
    return result


def _signed(number: int, bits: int) -> int:
    return (number + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1)


def _order(word: int, bits: int) -> int:
    return word ^ ((word >> (bits - 1)) & (2 ** (bits - 1) - 1))


def _levels(levels: bytes, shape: tuple[int, ...]) -> list[int]:
    cuts = [(math.prod(shape[:cut]), math.prod(shape[cut:])) for cut in range(len(shape) + 1)]
    rows, columns = min(cuts, key=sum)
    if not rows * columns or 16 * (rows + columns) > rows * columns:
        return [levels[0]] * math.prod(shape)
    return [levels[row] + levels[rows + column] - 128 for row in range(rows) for column in range(columns)]


def _context(config: dict[str, Any], level: int, exponent: int, beyond: int | None) -> int:
    exponent = max(exponent, 1)
    level = min(max(level + config["offset"] - 4 * exponent, 0), 63)

    def fraction(count: int) -> int:
        return 0 if beyond is None else min(abs(beyond >> 2) // (8192 // count), count - 1)

    return {
        "coarse": level // 4 * 2 + fraction(2),
        "fraction": level // 2 * 4 + fraction(4),
        "fine": level * 4 + fraction(4),
        "exponent": level // 4 * 16 + min(max(exponent - config["exponent"], 0), 15),
    }[config["model"]]


def _spread(levels: bytes) -> list[int]:
    weights = [WEIGHTS[level] for level in levels]
    total = sum(weights)
    if not total:
        return weights
    frequencies = [weight * 4096 // total or (weight > 0) * 1 for weight in weights]
    missing = 4096 - sum(frequencies)
    by_remainder = sorted(range(len(weights)), key=lambda symbol: -(weights[symbol] * 4096 % total))
    for symbol in by_remainder[: max(missing, 0)]:
        frequencies[symbol] += 1
    while (surplus := sum(frequencies) - 4096) > 0:
        most = frequencies.index(max(frequencies))
        frequencies[most] -= min(surplus, max(1, frequencies[most] // 8))
    if 4096 in frequencies:
        only = frequencies.index(4096)
        frequencies[only] -= 1
        frequencies[only - 1] += 1
    return frequencies


def _read_stream(data: bytes, contexts: list[int], alphabet: int, count: int) -> list[int]:
    """Return the symbols of a stream of one chunk."""
    assert len(contexts) <= 1 << 22
    lanes, (frame, words) = 1 << data[0], struct.unpack_from("<II", data, 1)
    tables = zstandard.decompress(data[9 : 9 + frame])
    slots = []
    for context in range(count):
        frequencies = _spread(tables[context * alphabet : (context + 1) * alphabet])
        slots.append(
            [(symbol, frequency, place) for symbol, frequency in enumerate(frequencies) for place in range(frequency)]
        )
    states = list(struct.unpack_from(f"<{lanes}I", data, 9 + frame))
    left = iter(struct.unpack_from(f"<{words}H", data, 9 + frame + 4 * lanes))
    symbols = []
    for at, context in enumerate(contexts):
        lane = at % lanes
        symbol, frequency, place = slots[context][states[lane] % 4096]
        states[lane] = frequency * (states[lane] // 4096) + place
        if states[lane] < 1 << 16:
            states[lane] = (states[lane] << 16) + next(left)
        symbols.append(symbol)
    assert set(states) == {1 << 16} and next(left, None) is None
    return symbols


def _read_open_bits(data: bytes, widths: list[int]) -> list[int]:
    total = sum(width % 8 for width in widths)
    text = "".join(f"{byte:08b}" for byte in data[: -(-total // 8)])
    values, at = [], 0
    for width in widths:
        values.append(int(text[at : at + width % 8] or "0", 2) << (width & ~7))
        at += width % 8
    rest = iter(data[-(-total // 8) :])
    for place in (0, 8, 16):
        for number, width in enumerate(widths):
            if width >= place + 8:
                values[number] |= next(rest) << place
    return values
