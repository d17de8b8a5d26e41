"""The codec lossless: the tuned tensor bit for bit from its base's, or a clear error."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skillhub.codecs import EncodedPart, EncodedTensor, ans, decode, exact, lossless, restoration
from skillhub.errors import IntegrityError, UsageError
from tests.codec_examples import from_json, read_golden, words, write_golden
from tests.lossless_reader import read_words

FLOATS = [torch.bfloat16, torch.float16, torch.float32]
SHAPES = [(), (0,), (1,), (7,), (3, 0), (5, 9), (70, 40), (4, 3, 5, 2), (2, 300, 20)]


def draw(shape: tuple[int, ...], dtype: torch.dtype, seed: int, special: bool) -> torch.Tensor:
    """Return values of many sizes; with some that are no numbers, infinite, negative zero or subnormal, if asked for."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator) * 2.0 ** torch.randint(-9, 3, shape, generator=generator)
    values = values.to(dtype)
    if special and values.numel():
        kind = torch.int16 if dtype.itemsize == 2 else torch.int32
        odd = torch.tensor([0.0, -0.0, float("inf"), float("-inf"), float("nan"), 1e-40, -3e38]).to(dtype).view(kind)
        odd = torch.cat([odd, odd[4:5] + 1, ~odd[4:5]])  # other bits of NaN
        flat = values.reshape(-1).view(kind)
        flat[torch.randint(0, flat.numel(), (9,), generator=generator)] = odd
        values = flat.view(dtype).reshape(shape)
    return values


@settings(max_examples=60, deadline=None)
@given(
    shape=st.sampled_from(SHAPES),
    dtype=st.sampled_from(FLOATS),
    base_dtype=st.sampled_from([*FLOATS, torch.float64]),
    size=st.sampled_from([0.0, 1e-4, 0.01, 3.0]),
    seed=st.integers(0, 2**31),
    special=st.booleans(),
    transposed=st.booleans(),
)
def test_every_bit_comes_back(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    base_dtype: torch.dtype,
    size: float,
    seed: int,
    special: bool,
    transposed: bool,
) -> None:
    base = draw(shape, torch.float32, seed, special).to(base_dtype)
    tuned = (base.float() + size * draw(shape, torch.float32, seed + 1, False)).to(dtype)
    if special and tuned.numel():
        tuned = torch.where(torch.rand(shape) < 0.1, draw(shape, dtype, seed + 2, True), tuned)
    if transposed:
        base, tuned = base.mT if len(shape) > 1 else base, tuned.mT if len(shape) > 1 else tuned
    encoded = lossless.encode(tuned, base)
    assert encoded.operation == "restore"
    assert words(decode(encoded, base)) == words(tuned)
    assert decode(encoded, base).dtype == dtype and decode(encoded, base).shape == tuned.shape


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_rows_that_only_one_of_base_and_tuned_has_come_back_too(dtype: torch.dtype) -> None:
    base, tuned = draw((60, 30), dtype, 1, True), draw((66, 30), dtype, 2, True)
    for one, other in ((base, tuned), (tuned, base)):
        assert words(decode(restoration.encode("x", one, other), other)) == words(one)


def fine_tune(rows: int, columns: int, dtype: torch.dtype, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a base and a tuned tensor whose difference is of low rank and noise."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(rows, columns, generator=generator) * 0.05
    left, right = torch.randn(rows, 4, generator=generator), torch.randn(4, columns, generator=generator)
    delta = left @ right * 4e-4 + torch.randn(rows, columns, generator=generator) * 1e-4
    base = base.to(dtype)
    return base, (base.float() + delta).to(dtype)


def test_low_rank_components_predict_and_change_no_bit() -> None:
    base, tuned = fine_tune(700, 600, torch.bfloat16)
    alone, best = lossless.encode(tuned, base), restoration.encode("x", tuned, base)
    assert [part.codec for part in best.parts] == ["lowrank", "lossless"]
    assert best.nbytes < 0.85 * alone.nbytes
    assert words(decode(best, base)) == words(tuned)


@pytest.mark.parametrize(("dtype", "share"), [(torch.bfloat16, 0.8), (torch.float16, 0.8), (torch.float32, 0.95)])
def test_it_is_smaller_than_the_plain_difference_by_a_general_compressor(dtype: torch.dtype, share: float) -> None:
    import lzma

    base, tuned = fine_tune(500, 400, dtype)
    kind = torch.int16 if dtype.itemsize == 2 else torch.int32
    planes = []
    for other in (tuned.view(kind) - base.view(kind), tuned.view(kind) ^ base.view(kind)):
        plain = other.numpy().view(np.uint8).reshape(-1, dtype.itemsize)
        planes += [plain.tobytes(), np.ascontiguousarray(plain.T).tobytes()]
    best = min(len(lzma.compress(plane, preset=9)) for plane in planes)
    assert restoration.encode("x", tuned, base).nbytes < share * best


def test_what_is_no_float_or_all_new_is_stored_as_it_is() -> None:
    base = torch.arange(12).reshape(3, 4)
    encoded = restoration.encode("x", base + 1, base)
    assert [part.codec for part in encoded.parts] == [exact.ID] and encoded.operation == "set"
    with pytest.raises(ValueError, match="cannot be stored"):
        lossless.encode(base, base)
    with pytest.raises(ValueError, match="does not predict"):
        lossless.encode(torch.zeros(2, 3), torch.zeros(2, 4))


def test_without_the_base_the_error_says_what_is_needed() -> None:
    base, tuned = fine_tune(20, 30, torch.bfloat16)
    with pytest.raises(UsageError, match="takes that base"):
        decode(lossless.encode(tuned, base))


@pytest.mark.parametrize("other", [torch.zeros(20, 31), torch.zeros(20, 30), torch.zeros(600, dtype=torch.bfloat16)])
def test_a_base_of_another_shape_or_dtype_is_refused(other: torch.Tensor) -> None:
    base, tuned = fine_tune(20, 30, torch.bfloat16)
    with pytest.raises(IntegrityError, match="another base"):
        decode(lossless.encode(tuned, base), other)


def test_chunks_cut_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    import skillhub.codecs.predictions as predictions

    monkeypatch.setattr(ans, "CHUNK", 1000)
    monkeypatch.setattr(predictions, "CHUNK", 1000)
    for dtype in FLOATS:
        base, tuned = fine_tune(90, 77, dtype)
        assert words(decode(lossless.encode(tuned, base), base)) == words(tuned)


def replaced(encoded: EncodedTensor, **changes: object) -> EncodedTensor:
    part = encoded.parts[-1]
    config = {**part.config, **changes}
    return EncodedTensor(encoded.shape, (*encoded.parts[:-1], EncodedPart(part.codec, config, part.arrays)))


@pytest.mark.parametrize(
    "changes",
    [
        {"operation": "set"},
        {"operation": "add"},
        {"dtype": "int8"},
        {"dtype": ["bfloat16"]},
        {"dtype": "float32"},
        {"base_dtype": "float32"},
        {"base_dtype": None},
        {"model": "none"},
        {"model": {}},
        {"offset": 2**40},
        {"offset": 0.5},
        {"exponent": -1},
        {"frames": []},
        {"frames": [1, 2, 2**60]},
        {"frames": "1234"},
        {"surplus": 1},
    ],
    ids=str,
)
def test_hostile_configs_are_refused(changes: dict[str, object]) -> None:
    base, tuned = fine_tune(40, 30, torch.bfloat16)
    with pytest.raises(IntegrityError):
        decode(replaced(lossless.encode(tuned, base), **changes), base)


def test_nothing_may_follow_the_part_that_restores() -> None:
    base, tuned = fine_tune(40, 30, torch.bfloat16)
    encoded = lossless.encode(tuned, base)
    twice = EncodedTensor(encoded.shape, (*encoded.parts, *encoded.parts))
    with pytest.raises(IntegrityError, match="do not go with that"):
        decode(twice, base)


def golden_base(dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a base of integers over a power of two, the same on every machine."""
    count = int(np.prod(shape))
    return torch.from_numpy((np.arange(count) * 7919 % 4093 - 2000) / 4096.0).to(dtype).reshape(shape)


def make_golden() -> None:
    """Write the golden file; it exists, so this raises."""
    cases = {}
    for dtype in FLOATS:
        base = golden_base(dtype, (40, 30))
        tuned = base + torch.from_numpy(np.arange(1200) * 31 % 17 / 4096.0).to(dtype).reshape(40, 30)
        tuned[3, 5], tuned[4, 6] = float("nan"), float("-inf")
        name = str(dtype).removeprefix("torch.")
        cases[f"{name} (40, 30)"] = (lossless.encode(tuned, base), tuned)
    base = golden_base(torch.bfloat16, (150, 120))
    tuned = (base.float() + torch.outer(torch.arange(150) / 1e5, torch.arange(120) / 120)).bfloat16()
    cases["bfloat16 (150, 120)"] = (restoration.encode("x", tuned, base), tuned)
    write_golden("lossless", cases)


@pytest.mark.parametrize("case", read_golden("lossless"), ids=lambda case: case["case"])
def test_the_golden_file_decodes_to_its_bits(case: dict[str, object]) -> None:
    encoded = from_json(case["encoded"])  # type: ignore[arg-type]
    dtype = lossless.stored_dtype(encoded.parts[-1])
    decoded = decode(encoded, golden_base(dtype, encoded.shape))
    assert str(decoded.dtype) == case["dtype"]
    assert hashlib.sha256(words(decoded)).hexdigest() == hashlib.sha256(bytes.fromhex(str(case["decoded"]))).hexdigest()


@pytest.mark.parametrize("case", read_golden("lossless"), ids=lambda case: case["case"])
def test_a_decoder_written_from_the_formats_page_gives_the_same_bits(case: dict[str, object]) -> None:
    encoded = from_json(case["encoded"])  # type: ignore[arg-type]
    part, before = encoded.parts[-1], EncodedTensor(encoded.shape, encoded.parts[:-1])
    base = golden_base(lossless.stored_dtype(part), encoded.shape)
    beyond = None
    if before.parts:
        wide = base.float() + decode(before)
        base, beyond = wide.bfloat16(), wide.view(torch.int32).to(torch.int16).reshape(-1).tolist()
    size = base.dtype.itemsize
    expected = base.view(torch.int16 if size == 2 else torch.int32).reshape(-1).tolist()
    found = read_words(part.config, part.arrays["data"].tobytes(), encoded.shape, expected, beyond)
    assert np.array(found, dtype=f"<i{size}").tobytes().hex() == case["decoded"]
