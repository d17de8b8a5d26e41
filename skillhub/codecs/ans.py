"""Entropy coding of small symbols whose probabilities depend on a context: asymmetric numeral systems in integers only.

The range variant (rANS; Duda 2013, arXiv:1311.2540, section 3.3) with 32-bit states that shed and take 16-bit words, and many states, the
*lanes*, that share one sequence of words (Giesen 2014, arXiv:1402.3392). Symbol ``i`` belongs to lane ``i mod lanes``: a processor steps
those of a few lanes at the same time. No floating point takes part in decoding: the symbols are the same on every machine.

Every context has a table of 12-bit frequencies that the encoder counted. A table is stored as one *level* a symbol, eight levels to a
factor of two, rounded further where few symbols were counted: that costs under 0.01 bits a symbol, and a table then takes few bytes.

Layout of a stream: the exponent of two of the number of lanes (a byte), the size of the tables' frame and the number of words
of each chunk (uint32, little endian), the frame, and the chunks: the states of all lanes (uint32), then the words (uint16). A chunk holds
:data:`CHUNK` symbols, the last one the rest; each can be decoded without the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from skillhub.codecs.encoding import damaged, read_integer
from skillhub.codecs.streams import Bytes, compress, decompress
from skillhub.compiled import compiled

Words = npt.NDArray[np.uint16]
Integers = npt.NDArray[np.int64]

CHUNK = 1 << 22
"""Symbols that are coded together."""

MAX_SYMBOLS = 256
MAX_CONTEXTS = 256

PRECISION = 12
"""Bits of a frequency; frequencies of a context add up to ``2**PRECISION``."""

TOTAL = 1 << PRECISION
LEAST_STATE = 1 << 16
"""Every state is at least this much between steps, and exactly this much in the end: a decoded stream that ends otherwise is damaged."""

LANES_EXPONENT, MAX_LANES_EXPONENT = 2, 13
"""Lanes that are written, of all but the shortest streams, and that are read: each costs four bytes a chunk, half of which hold symbols. Streams that
were written for numpy have hundreds."""

LEVELS = np.array([0, *(round(16 * 2 ** (level / 8)) for level in range(97))], dtype=np.int64)
"""Weight of a symbol by its level; 0 is a symbol that does not occur."""


@dataclass(frozen=True, eq=False)
class Stream:
    """A stream that was read and checked, whose chunks are not decoded yet.

    Attributes:
        count: number of symbols.
        lanes: states that are stepped together.
        symbols: (contexts · 4096,) uint8: the symbol of every slot of every context.
        steps: (contexts · 4096,) int32: the slot's place among those of its symbol, and from bit 16 on the symbol's frequency.
        chunks: states and words of each chunk.
    """

    count: int
    lanes: int
    symbols: Bytes
    steps: npt.NDArray[np.int32]
    chunks: tuple[Bytes, ...]

    def decode_chunk(self, number: int, contexts: Bytes | None = None) -> Bytes:
        """Return the symbols of a chunk.

        Args:
            number: of the chunk.
            contexts: uint8, the context of each of its symbols; not needed where there is only one.

        Raises:
            IntegrityError: the chunk is damaged.
        """
        count = min(CHUNK, self.count - number * CHUNK)
        if contexts is None:
            contexts = np.zeros(count, dtype=np.uint8)
        if contexts.size != count or (int(contexts.max()) + 1) << PRECISION > self.symbols.size:
            raise ValueError(f"expected {count} contexts below {self.symbols.size >> PRECISION}")
        states = self.chunks[number][: 4 * self.lanes].view("<u4").astype(np.int64)
        words = self.chunks[number][4 * self.lanes :].view("<u2").astype(np.uint16)
        symbols = np.empty(count, dtype=np.uint8)
        used = _decode_symbols(states, words, np.ascontiguousarray(contexts), self.symbols, self.steps, symbols)
        if used != words.size or (states != LEAST_STATE).any():
            raise damaged("has entropy-coded symbols that do not end as they should")
        return symbols


@compiled
def _decode_symbols(
    states: Integers, words: Words, contexts: Bytes, table: Bytes, steps: npt.NDArray[np.int32], symbols: Bytes
) -> int:
    """Fill ``symbols``, stepping ``states`` in turn; return how many words it took, or -1 where there are too few.

    Every context must have its slots in ``table`` and ``steps``.
    """
    used = 0
    for begin in range(0, symbols.size, states.size):
        for lane in range(min(states.size, symbols.size - begin)):
            state = states[lane]
            slot = (np.int64(contexts[begin + lane]) << PRECISION) + (state & (TOTAL - 1))
            entry = steps[slot]
            symbols[begin + lane] = table[slot]
            state = (state >> PRECISION) * (entry >> 16) + (entry & (TOTAL - 1))
            if state < LEAST_STATE:
                if used == words.size:
                    return -1
                state = (state << 16) | words[used]
                used += 1
            states[lane] = state
    return used


def encode(symbols: Bytes, contexts: Bytes | None = None, *, alphabet: int, context_count: int = 1) -> Bytes:
    """Return ``symbols`` as a stream.

    Args:
        symbols: one-dimensional uint8 below ``alphabet``.
        contexts: uint8 below ``context_count``, one a symbol, which the decoder knows beforehand; None: all are 0.
        alphabet: number of different symbols, 2 to :data:`MAX_SYMBOLS`.
        context_count: number of contexts, up to :data:`MAX_CONTEXTS`.
    """
    if not symbols.size:
        return np.empty(0, dtype=np.uint8)
    counts = np.zeros(context_count * alphabet, dtype=np.int64)
    for begin in range(0, symbols.size, CHUNK):
        counts += np.bincount(_pairs(symbols, contexts, begin, alphabet), minlength=counts.size)
    levels = _choose_levels(counts.reshape(context_count, alphabet))
    frequencies = spread(levels)
    exponent = min(LANES_EXPONENT, (symbols.size - 1).bit_length())
    starts = np.cumsum(frequencies, axis=1) - frequencies
    tables = frequencies.reshape(-1), starts.reshape(-1)
    chunks = [
        _encode_chunk(_pairs(symbols, contexts, begin, alphabet), *tables, 1 << exponent)
        for begin in range(0, symbols.size, CHUNK)
    ]
    frame = compress(levels.reshape(-1))
    numbers = np.array([frame.size, *(words.size for _, words in chunks)], dtype="<u4")
    payload = [array.view(np.uint8) for states, words in chunks for array in (states, words)]
    return np.concatenate([np.array([exponent], dtype=np.uint8), numbers.view(np.uint8), frame, *payload])


def decode(data: Bytes, count: int, contexts: Bytes | None = None, *, alphabet: int, context_count: int = 1) -> Bytes:
    """Return the ``count`` symbols of a stream, for what :func:`encode` was told.

    Raises:
        IntegrityError: the stream is damaged, or has another number of symbols. Sizes are checked before anything is allocated.
    """
    stream = read_stream(data, count, alphabet=alphabet, context_count=context_count)
    symbols = np.empty(count, dtype=np.uint8)
    for number, begin in enumerate(range(0, count, CHUNK)):
        chunk = None if contexts is None else contexts[begin : begin + CHUNK]
        symbols[begin : begin + CHUNK] = stream.decode_chunk(number, chunk)
    return symbols


def read_stream(data: Bytes, count: int, *, alphabet: int, context_count: int = 1) -> Stream:
    """Read and check everything of a stream but its chunks, which can then be decoded in any order.

    Raises:
        IntegrityError: sizes or tables contradict each other.
    """
    chunk_count = -(-count // CHUNK)
    head = 1 + 4 * (1 + chunk_count)
    if not count:
        if data.size:
            raise damaged("has entropy-coded symbols where there are none")
        return Stream(0, 0, np.empty(0, dtype=np.uint8), np.empty(0, dtype=np.int32), ())
    if data.size < head:
        raise damaged("has entropy-coded symbols that end early")
    lanes = 1 << read_integer(int(data[0]), "lanes", 0, MAX_LANES_EXPONENT)
    frame, *words = data[1:head].view("<u4").tolist()
    sizes = [4 * lanes + 2 * number for number in words]
    if head + frame + sum(sizes) != data.size or max(words) > CHUNK:
        raise damaged("has entropy-coded symbols whose sizes do not add up")
    levels = decompress(data[head : head + frame], context_count * alphabet).reshape(context_count, alphabet)
    if int(levels.max()) >= LEVELS.size:
        raise damaged("has symbols of an unknown frequency")
    tables = _tabulate(spread(levels))
    ends = np.cumsum([head + frame, *sizes])
    return Stream(count, lanes, *tables, tuple(data[begin:end] for begin, end in pairwise(ends)))


def spread(levels: Bytes) -> Integers:
    """Return (contexts, alphabet) the frequencies that levels of that shape stand for.

    Those of a context add up to ``2**PRECISION``; each is below that, so that 12 bits hold it, and at least 1 where the level is not 0.
    All are 0 where the context never occurs.
    """
    weights = LEVELS[levels]
    totals = weights.sum(axis=1, keepdims=True)
    frequencies, remainders = np.divmod(weights * TOTAL, np.maximum(totals, 1))
    frequencies += (frequencies == 0) & (weights > 0)
    missing = np.where(totals > 0, TOTAL - frequencies.sum(axis=1, keepdims=True), 0)
    order = np.argsort(-remainders, axis=1, kind="stable")
    given = np.zeros_like(frequencies)
    np.put_along_axis(given, order, np.arange(levels.shape[1]) < missing, axis=1)
    frequencies += given
    for row in np.flatnonzero(missing < 0):
        _take(frequencies[row], -int(missing[row, 0]))
    for row, only in np.argwhere(frequencies == TOTAL):  # the only symbol: one that does not occur gets a slot
        frequencies[row, only] -= 1
        frequencies[row, only - 1] += 1
    return frequencies


def _take(frequencies: Integers, surplus: int) -> None:
    """Take so many slots from the most frequent symbols of a context."""
    while surplus > 0:
        most = int(frequencies.argmax())
        taken = min(surplus, max(1, int(frequencies[most]) // 8))
        frequencies[most] -= taken
        surplus -= taken


def _tabulate(frequencies: Integers) -> tuple[Bytes, npt.NDArray[np.int32]]:
    """Return what :attr:`Stream.symbols` and :attr:`Stream.steps` have for (contexts, alphabet) frequencies.

    Both are 0 for contexts that never occur: a frequency of 0 leads to a state that no stream ends with.
    """
    contexts, alphabet = frequencies.shape
    present = frequencies.any(axis=1)
    counts = frequencies[present]
    starts = np.cumsum(counts, axis=1) - counts
    symbols, steps = np.zeros((contexts, TOTAL), dtype=np.uint8), np.zeros((contexts, TOTAL), dtype=np.int32)
    names = np.broadcast_to(np.arange(alphabet, dtype=np.uint8), counts.shape)
    symbols[present] = np.repeat(names.reshape(-1), counts.reshape(-1)).reshape(-1, TOTAL)
    firsts = ((counts << 16) - starts).astype(np.int32).reshape(-1)
    steps[present] = np.repeat(firsts, counts.reshape(-1)).reshape(-1, TOTAL) + np.arange(TOTAL, dtype=np.int32)
    return symbols.reshape(-1), steps.reshape(-1)


def _choose_levels(counts: npt.NDArray[np.int64]) -> Bytes:
    """Return (contexts, alphabet) the levels near to the counts.

    Levels that are off by up to half of ``step`` cost about ``count · step² / 2200`` bits, and each takes log2(step) fewer to store.
    """
    top = LEVELS.size - 1
    peaks = np.maximum(counts.max(axis=1, keepdims=True), 1)
    nearest = np.searchsorted((LEVELS[1:-1] + LEVELS[2:]) / 2, counts / peaks * int(LEVELS[-1])) + 1
    steps = np.exp2(np.clip(np.rint(np.log2(40 / np.sqrt(np.maximum(counts, 1)))), 0, 4)).astype(np.int64)
    levels = np.maximum(top - (top - nearest + steps // 2) // steps * steps, 1)
    return np.where(counts > 0, levels, 0).astype(np.uint8)


def _pairs(symbols: Bytes, contexts: Bytes | None, begin: int, alphabet: int) -> npt.NDArray[np.intp]:
    """Return ``context · alphabet + symbol`` of the symbols of the chunk that starts at ``begin``."""
    pairs = symbols[begin : begin + CHUNK].astype(np.intp)
    if contexts is not None:
        pairs += contexts[begin : begin + CHUNK].astype(np.intp) * alphabet
    return pairs


def _encode_chunk(
    pairs: npt.NDArray[np.intp], frequencies: Integers, starts: Integers, lanes: int
) -> tuple[npt.NDArray[np.uint32], Words]:
    """Return the states that decoding starts with, and the words."""
    states, words = np.full(lanes, LEAST_STATE, dtype=np.int64), np.empty(pairs.size, dtype=np.uint16)
    first = _encode_symbols(pairs, frequencies, starts, states, words)
    return states.astype("<u4"), words[first:].astype("<u2")


@compiled
def _encode_symbols(
    pairs: npt.NDArray[np.intp], frequencies: Integers, starts: Integers, states: Integers, words: Words
) -> int:
    """Step ``states`` through all symbols, the last one first, and fill ``words`` from their end on; return where they begin."""
    first = words.size
    for place in range(pairs.size - 1, -1, -1):
        lane, pair = place % states.size, pairs[place]
        state, frequency = states[lane], frequencies[pair]
        if state >> 20 >= frequency:
            first -= 1
            words[first] = state & 0xFFFF
            state >>= 16
        quotient = state // frequency
        states[lane] = (quotient << PRECISION) + (state - quotient * frequency) + starts[pair]
    return first
