"""Entropy coding of matrices of small integers whose rows resemble each other: binary decisions with probabilities that adapt.

Codes of singular vectors are mostly zero, and large where those of the rows before were large: some inputs and outputs of a layer
matter more to every component than others. So a code is taken apart into decisions (is it zero? is it larger than one? …), and the
chance of each is learned from the decisions of codes whose column had about the same mean magnitude in the rows above. On real
fine-tunes that is 11 to 17 % shorter than Huffman codes of several codes a byte, and no longer than the entropy of every row by itself.

Context-adaptive binary arithmetic coding is from video (Marpe, Schwarz, Wiegand 2003, doi 10.1109/TCSVT.2003.815173), with range coding (Martin 1979);
Wiedemann et al. 2020 (arXiv 1907.11900) use it for weights. All of it is in integers, so that it decodes alike on every machine.

The decisions of a code of magnitude *m*, until one settles it: is *m* > 0? its sign; is *m* > 1? Then ``m - 1`` in Elias-gamma form: how many
bits follow its highest one (a decision for each, and one that says no more), and these bits, from the highest on. The sign and all
but the first of these bits take one bit each; the others have chances of their own for each level of the column's mean.
``docs/formats.md`` says it step by step.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from skillhub.codecs.encoding import damaged
from skillhub.codecs.streams import Bytes
from skillhub.compiled import compiled

Codes = npt.NDArray[np.int16]
Integers = npt.NDArray[np.int64]

MAX_CODE = 255
"""Largest magnitude of a code."""

WIDTH = 40
"""Bits of the range: its width is from :data:`LEAST` to :data:`WHOLE`."""

WHOLE, LEAST = 1 << WIDTH, 1 << (WIDTH - 8)

CHANCE_BITS = 16
CERTAIN, EVEN = 1 << CHANCE_BITS, 1 << (CHANCE_BITS - 1)
PATIENCE = 80
RATES = np.array([2 * CERTAIN // (2 * seen + 3) for seen in range(PATIENCE + 1)], dtype=np.int64)
"""By how much a decision moves its chance, by how many were seen before: at first to their mean, then as of the last eighty. Rounding down
keeps every chance from 81 to 65455, so that nothing is ever certain."""

LEVELS = 13
"""Means of a column are told apart by powers of two of sixteenths: none, one, two or three, … up to 255 whole ones."""

MEAN_BITS = 8
MEMORY = 3
"""A column's mean forgets an eighth with every row, after the first rows."""

GAMMA, HIGHEST, SLOTS = 2, 9, 17
"""Where a level's chances of the Elias-gamma decisions lie, after those of zero and one; and how many it has."""

MAX_SUFFIX = 7
"""Bits that follow the highest one of a magnitude less one, of at most :data:`MAX_CODE`."""

MAX_CODES_A_BYTE = 4_500
"""At the smallest chance a zero takes 1/560 of a bit."""

_SPARE = 64
"""Bytes that neither a single code nor the end of a stream exceeds."""

_FINENESS = 11
_BITS = -np.log2((np.arange(1 << _FINENESS) + 0.5) / (1 << _FINENESS))
"""The bits of a decision, by the highest bits of the chance of how it turned out."""


def encode(codes: Codes) -> Bytes:
    """Return (count, length) ``codes`` as a stream, whose end :func:`decode` finds by itself.

    Raises:
        ValueError: a code's magnitude is above :data:`MAX_CODE`.
    """
    rows = _checked(codes)
    room = rows.size // 2 + 2 * _SPARE
    while True:
        out = np.empty(room, dtype=np.uint8)
        size = _encode(rows, out)
        if size >= 0:
            return out[:size]
        room *= 2


def decode(data: Bytes, count: int, length: int) -> tuple[Codes, int]:
    """Return the (count, length) codes that ``data`` begins with, and how many bytes they took.

    Raises:
        IntegrityError: there are too few bytes for so many codes (told before anything is allocated), or they do not end where they should,
            as is almost certain for damaged ones and for those of another shape.
    """
    if count * length > MAX_CODES_A_BYTE * data.size:
        raise damaged(f"has {data.size} bytes of codes where its config implies {count * length} codes")
    codes = np.empty((count, length), dtype=np.int16)
    used = _decode(np.array(data), codes)
    if not 0 <= used <= data.size:
        raise damaged("has codes that do not end as they should")
    return codes, used


def measure(codes: Codes) -> npt.NDArray[np.float64]:
    """Return (count,) how many bits each row of ``codes`` takes after those before it; in sum to a thousandth, and a stream takes 40 more.

    Raises:
        ValueError: as :func:`encode`.
    """
    bits = np.zeros(len(codes))
    _measure(_checked(codes), bits)
    return bits


def _checked(codes: Codes) -> Codes:
    """Return codes as compiled functions take them; larger ones would lead these out of their tables."""
    if codes.size and not -MAX_CODE <= int(codes.min()) <= int(codes.max()) <= MAX_CODE:
        raise ValueError(f"expected codes of magnitudes up to {MAX_CODE}")
    return np.ascontiguousarray(codes, dtype=np.int16)


@compiled
def _level_of(mean: int) -> int:
    """Return the level of a mean magnitude."""
    level, rest = 0, mean >> (MEAN_BITS - 4)
    while rest > 0:
        rest >>= 1
        level += 1
    return level


@compiled
def _learn(chances: Integers, seen: Integers, slot: int, outcome: bool) -> None:
    """Move the chance of a decision towards how it turned out."""
    chance, rate = chances[slot], RATES[seen[slot]]
    if outcome:
        chance += ((CERTAIN - chance) * rate) >> CHANCE_BITS
    else:
        chance -= (chance * rate) >> CHANCE_BITS
    chances[slot] = chance
    seen[slot] = min(seen[slot] + 1, PATIENCE)


@compiled
def _put(outcome: bool, chance: int, low: int, width: int, out: Bytes, position: int) -> tuple[int, int, int]:
    """Narrow the range to what a decision leaves of it, and write the bytes that are settled."""
    bound = (width >> CHANCE_BITS) * chance
    if outcome:
        width = bound
    else:
        low += bound
        width -= bound
    if low >= WHOLE:  # carry; the first byte never overflows, as no number of the range reaches one
        low -= WHOLE
        last = position - 1
        while out[last] == 255:
            out[last] = 0
            last -= 1
        out[last] += 1
    while width < LEAST:
        out[position] = low >> (WIDTH - 8)
        position += 1
        low = (low & (LEAST - 1)) << 8
        width <<= 8
    return low, width, position


@compiled
def _tell(
    chances: Integers, seen: Integers, slot: int, outcome: bool, low: int, width: int, out: Bytes, position: int
) -> tuple[int, int, int]:
    """Write a decision whose chance is learned, as :func:`_put` does."""
    low, width, position = _put(outcome, chances[slot], low, width, out, position)
    _learn(chances, seen, slot, outcome)
    return low, width, position


@compiled
def _take(chance: int, value: int, width: int, data: Bytes, position: int) -> tuple[bool, int, int, int]:
    """Return how a decision turned out, and what is left of the range; bytes beyond the data count as 0."""
    bound = (width >> CHANCE_BITS) * chance
    outcome = value < bound
    if outcome:
        width = bound
    else:
        value -= bound
        width -= bound
    while width < LEAST:
        value <<= 8
        width <<= 8
        if position < data.size:
            value |= int(data[position])
        position += 1
    return outcome, value, width, position


@compiled
def _ask(
    chances: Integers, seen: Integers, slot: int, value: int, width: int, data: Bytes, position: int
) -> tuple[bool, int, int, int]:
    """Read a decision whose chance is learned, as :func:`_take` does."""
    outcome, value, width, position = _take(chances[slot], value, width, data, position)
    _learn(chances, seen, slot, outcome)
    return outcome, value, width, position


@compiled
def _count(chances: Integers, seen: Integers, slot: int, outcome: bool) -> float:
    """Return the bits of a decision, and learn from it."""
    chance = chances[slot] if outcome else CERTAIN - chances[slot]
    _learn(chances, seen, slot, outcome)
    return float(_BITS[chance >> (CHANCE_BITS - _FINENESS)])


@compiled
def _measure(codes: Codes, bits: npt.NDArray[np.float64]) -> None:
    """Write what each row takes to ``bits``; the same decisions as those of :func:`_encode`."""
    count, length = codes.shape
    chances, seen = np.full(LEVELS * SLOTS, EVEN, np.int64), np.zeros(LEVELS * SLOTS, np.int64)
    means = np.zeros(length, np.int64)
    for row in range(count):
        memory, total = min(row, MEMORY), 0.0
        for column in range(length):
            size, first = abs(int(codes[row, column])), _level_of(means[column]) * SLOTS
            means[column] += ((size << MEAN_BITS) - means[column]) >> memory
            total += _count(chances, seen, first, size > 0)
            if size == 0:
                continue
            total += 1 + _count(chances, seen, first + 1, size > 1)
            if size == 1:
                continue
            suffix = 0
            while (size - 1) >> (suffix + 1) > 0:
                total += _count(chances, seen, first + GAMMA + suffix, True)
                suffix += 1
            total += _count(chances, seen, first + GAMMA + suffix, False)
            if suffix > 0:
                one = ((size - 1) >> (suffix - 1)) & 1 == 1
                total += suffix - 1 + _count(chances, seen, first + HIGHEST + suffix, one)
        bits[row] = total


@compiled
def _encode(codes: Codes, out: Bytes) -> int:
    """Write codes to ``out``; return how many bytes they take, or -1 where they are more."""
    count, length = codes.shape
    chances, seen = np.full(LEVELS * SLOTS, EVEN, np.int64), np.zeros(LEVELS * SLOTS, np.int64)
    means = np.zeros(length, np.int64)
    low, width, position = 0, WHOLE, 0
    for row in range(count):
        memory = min(row, MEMORY)
        for column in range(length):
            if position + _SPARE > out.size:
                return -1
            code = int(codes[row, column])
            size, first = abs(code), _level_of(means[column]) * SLOTS
            means[column] += ((size << MEAN_BITS) - means[column]) >> memory
            low, width, position = _tell(chances, seen, first, size > 0, low, width, out, position)
            if size == 0:
                continue
            low, width, position = _put(code < 0, EVEN, low, width, out, position)
            low, width, position = _tell(chances, seen, first + 1, size > 1, low, width, out, position)
            if size == 1:
                continue
            suffix = 0
            while True:
                slot, more = first + GAMMA + suffix, (size - 1) >> (suffix + 1) > 0
                low, width, position = _tell(chances, seen, slot, more, low, width, out, position)
                if not more:
                    break
                suffix += 1
            for place in range(suffix - 1, -1, -1):
                one, slot = ((size - 1) >> place) & 1 == 1, first + HIGHEST + suffix
                if place == suffix - 1:
                    low, width, position = _tell(chances, seen, slot, one, low, width, out, position)
                else:
                    low, width, position = _put(one, EVEN, low, width, out, position)
    for _ in range(WIDTH // 8):
        out[position] = low >> (WIDTH - 8)
        position += 1
        low = (low & (LEAST - 1)) << 8
    return position


@compiled
def _decode(data: Bytes, codes: Codes) -> int:
    """Read ``codes``; return how many bytes they took, or -1 where one is too large or nothing ended with the last."""
    count, length = codes.shape
    chances, seen = np.full(LEVELS * SLOTS, EVEN, np.int64), np.zeros(LEVELS * SLOTS, np.int64)
    means = np.zeros(length, np.int64)
    value, width, position = 0, WHOLE, WIDTH // 8
    for place in range(WIDTH // 8):
        value <<= 8
        if place < data.size:
            value |= int(data[place])
    for row in range(count):
        memory = min(row, MEMORY)
        for column in range(length):
            first, size, negative = _level_of(means[column]) * SLOTS, 0, False
            more, value, width, position = _ask(chances, seen, first, value, width, data, position)
            if more:
                size = 1
                negative, value, width, position = _take(EVEN, value, width, data, position)
                more, value, width, position = _ask(chances, seen, first + 1, value, width, data, position)
            suffix = 0
            while more:
                slot = first + GAMMA + suffix
                more, value, width, position = _ask(chances, seen, slot, value, width, data, position)
                if more:
                    suffix += 1
                    if suffix > MAX_SUFFIX:
                        return -1
                    continue
                rest = 1
                for place in range(suffix - 1, -1, -1):
                    slot = first + HIGHEST + suffix
                    if place == suffix - 1:
                        one, value, width, position = _ask(chances, seen, slot, value, width, data, position)
                    else:
                        one, value, width, position = _take(EVEN, value, width, data, position)
                    rest = 2 * rest + one
                size = rest + 1
            if size > MAX_CODE:
                return -1
            means[column] += ((size << MEAN_BITS) - means[column]) >> memory
            codes[row, column] = -size if negative else size
    return position if value == 0 else -1  # the encoder ends with the lowest number of the range
