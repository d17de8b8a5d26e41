"""The page about formats says what the code does: its tables name every field, its recipe reads a real pack."""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import struct
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
import zstandard

from skillhub import (
    authorfile,
    configuration,
    environments,
    lockfile,
    manifest,
    policy,
    projects,
    releases,
    routingcards,
    sightings,
)
from skillhub.canonical import is_buffer
from skillhub.codecs import (
    CODECS,
    EncodedTensor,
    content_digest,
    decode,
    exact,
    factors,
    lowrank,
    residual,
    rows,
    sign,
    sparse,
    symbols,
    zero,
)
from skillhub.codecs.lowrank import choose_groups
from skillhub.deltafiles import DeltaWriter
from skillhub.documents import canonical_json
from skillhub.files import check_relative_path
from skillhub.hub import folders
from skillhub.packs import file_entry, open_pack, write_manifest
from tests.codec_examples import from_json, read_golden
from tests.support.manifests import BASE, manifest_fields

PAGE = (Path(__file__).parents[1] / "docs" / "formats.md").read_text(encoding="utf-8")
LOWRANK_SHAPE = (40, 30)
PACKINGS = [
    (int(base), int(codes)) for base, codes in re.findall(r"^\| \d+ \| (\d+) \| (\d+) \|$", PAGE, flags=re.MULTILINE)
]


def tables() -> list[set[str]]:
    """Return the names in the first column of each table."""
    found: list[set[str]] = []
    for block in re.findall(r"(?:^\|.*\|\n)+", PAGE, flags=re.MULTILINE):
        cells = [line.split("|")[1] for line in block.splitlines()[2:]]
        found.append({name for cell in cells for name in re.findall(r"`\[*(\w+)\]*`", cell)})
    return found


@pytest.mark.parametrize(
    "kind",
    [
        authorfile.AuthorFile,
        manifest.Manifest,
        manifest.Variant,
        manifest.BaseInfo,
        manifest.TensorEntry,
        releases.Event,
        projects.Project,
        lockfile._LockFile,
        lockfile.LockedPack,
        environments.Receipt,
        configuration.Configuration,
        policy.Policy,
        sightings.Sightings,
    ],
)
def test_a_table_names_exactly_the_fields(kind: type[msgspec.Struct]) -> None:
    assert set(kind.__struct_fields__) in tables()


@pytest.mark.parametrize(
    "kind",
    [
        manifest.FileEntry,
        manifest.Evaluation,
        routingcards.RouterInfo,
        releases.ReleaseVariant,
        sightings.SeenRelease,
        folders.VendoredFolder,
        folders.VendoredRepository,
    ],
)
def test_small_objects_are_spelled_out(kind: type[msgspec.Struct]) -> None:
    assert f"{{{', '.join(kind.__struct_fields__)}}}" in PAGE


def test_the_packings_are_those_of_the_page() -> None:
    assert tuple(PACKINGS) == symbols.PACKINGS


def test_every_codec_has_a_row() -> None:
    assert set(CODECS) in tables()


@pytest.mark.parametrize("schema", [manifest.MANIFEST_SCHEMA, releases.RELEASES_SCHEMA, lockfile.LOCK_VERSION])
def test_the_schema_is_that_of_the_page(schema: int) -> None:
    assert schema == 0 and "It is 0 until" in PAGE


def test_the_listed_buffers_are_left_out() -> None:
    listed = re.search(r"names that end in (.*?), and causal", PAGE, flags=re.DOTALL)
    assert listed
    for name in re.findall(r"`(\w+)`", listed[1]):
        assert is_buffer(f"layers.0.{name}", (4,))


def test_the_paths_of_the_page_are_paths() -> None:
    for path in re.findall(r"variants/<fp12>/[\w.-]+\w", PAGE):
        check_relative_path(path.replace("<fp12>", "0123456789ab").replace("0000N", "00001"))


def planes(frame: np.ndarray, dtype: str) -> np.ndarray:
    """Undo byte planes, by the page."""
    data = zstandard.ZstdDecompressor().decompress(frame.tobytes())
    width = np.dtype(dtype).itemsize
    count = len(data) // width
    values = [bytes(data[plane * count + index] for plane in range(width)) for index in range(count)]
    return np.frombuffer(b"".join(values), dtype)


def decode_by_the_page(encoded: EncodedTensor) -> np.ndarray:
    """Decode a delta with nothing but the page, zstandard and numpy."""
    delta = np.zeros(encoded.shape, np.float32)
    for part in encoded.parts:
        if part.codec == "exact":
            delta = delta + planes(part.arrays["data"], "<f4").reshape(encoded.shape)
        elif part.codec == "rows":
            row = -1
            values = planes(part.arrays["data"], "<f4").reshape(part.config["rows"], -1)
            for gap, value in zip(planes(part.arrays["indices"], "<u4"), values, strict=True):
                row += int(gap) + 1
                delta[row] = value
        elif part.codec == "lowrank":
            delta = delta + lowrank_by_the_page(part.config, part.arrays["codes"].tobytes(), *encoded.shape)
        elif part.codec == "residual":
            delta = delta + residual_by_the_page(part.config, part.arrays["data"].tobytes(), *encoded.shape)
        elif part.codec == "sparse":
            for place, value in sparse_by_the_page(part.config, part.arrays["data"].tobytes()):
                delta.reshape(-1)[place] += value
        elif part.codec == "sign":
            signs = iter(zstandard.ZstdDecompressor().decompress(part.arrays["signs"].tobytes()))
            for row, scale in enumerate(planes(part.arrays["scales"], "<f4")):
                bits = "".join(f"{next(signs):08b}" for _ in range(-(-encoded.shape[1] // 8)))
                delta[row] += [-scale if bit == "1" else scale for bit in bits[: encoded.shape[1]]]
    return delta


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    """Cut frames apart and decompress them."""
    frames, at = [], 0
    for size in sizes:
        frames.append(zstandard.ZstdDecompressor().decompress(data[at : at + size]) if size else b"")
        at += size
    assert at == len(data)
    return frames


def small_numbers(data: bytes) -> list[int]:
    numbers, number = [], 0
    for byte in data:
        number += byte
        if byte != 255:
            numbers.append(number)
            number = 0
    return numbers


def residual_by_the_page(config: dict, data: bytes, height: int, width: int) -> np.ndarray:
    *exponents, packed, overflow = cut(data, config["frames"])
    scales = [
        [
            np.float32(2 ** (e % 4 / 4)) * np.float32(2.0 ** (e // 4))
            for e in np.frombuffer(frame, np.int8).tolist() or [0] * length
        ]
        for frame, length in zip(exponents, (height, width), strict=True)
    ]
    base, count = PACKINGS[config["packing"]]
    digits = [byte // base**place % base - base // 2 for byte in packed for place in range(count)][: height * width]
    far = iter(overflow)
    codes = [digit + (int(np.sign(digit)) * next(far) if abs(digit) == base // 2 else 0) for digit in digits]
    assert next(far, None) is None
    step = np.float32(config["step"][0] * 2.0 ** config["step"][1])
    values = [
        np.float32(code) * (step * scales[0][place // width]) * scales[1][place % width]
        for place, code in enumerate(codes)
    ]
    return np.array(values, np.float32).reshape(height, width)


def sparse_by_the_page(config: dict, data: bytes) -> list[tuple[int, np.float32]]:
    sizes = config["frames"]
    highs, low, _, ranks = cut(data, sizes)
    frame = data[sizes[0] + sizes[1] : sizes[0] + sizes[1] + sizes[2]]
    values = planes(np.frombuffer(frame, np.uint8), "<f4")
    assert (len(highs), len(values), len(ranks)) == (config["highs"], config["values"], config["ranks"])
    bits, shift = "".join(f"{byte:08b}" for byte in low), config["shift"]
    place, changes = -1, []
    for number, high in enumerate(small_numbers(highs)):
        lowest = bits[number * shift : (number + 1) * shift]
        place += (high << shift) + int(lowest or "0", 2) + 1
        changes.append((place, values[small_numbers(ranks)[number] if ranks else number]))
    assert len(changes) == config["count"]
    return changes


def packed_by_the_page(config: dict, codes: bytes, height: int, width: int) -> tuple[list[int], list[list[list[int]]]]:
    """Scales, and the vectors of both sides, of a pack of before skillhub 0.1."""
    rank = config["rank"]
    head = [struct.unpack_from("<HBB", codes, 4 * component) for component in range(rank)]
    frames = cut(codes[4 * rank :], config["frames"])
    overflow = iter(frames[-1])
    vectors: list[dict[int, list[int]]] = [{}, {}]
    for packing, (base, count) in enumerate(PACKINGS):
        digits = [byte // base**place % base - base // 2 for byte in frames[packing] for place in range(count)]
        for side, length in enumerate((height, width)):
            for component in range(rank):
                if head[component][1 + side] == packing:
                    taken, digits = digits[:length], digits[length:]
                    far = [abs(digit) == base // 2 for digit in taken]
                    vectors[side][component] = [
                        digit + (int(np.sign(digit)) * next(overflow) if outermost else 0)
                        for digit, outermost in zip(taken, far, strict=True)
                    ]
    assert next(overflow, None) is None
    return [scale for scale, _, _ in head], [[side[component] for component in range(rank)] for side in vectors]


class Decisions:
    """The range coder of the page."""

    def __init__(self, data: bytes) -> None:
        self.value, self.width, self.rest = int.from_bytes(data[:5], "big"), 2**40, iter(data[5:])
        self.used = 5
        self.chances: dict[tuple[int, int], int] = {}
        self.counts: dict[tuple[int, int], int] = {}

    def take(self, chance: int) -> bool:
        bound = self.width // 2**16 * chance
        yes = self.value < bound
        self.value, self.width = (self.value, bound) if yes else (self.value - bound, self.width - bound)
        while self.width < 2**32:
            self.value, self.width, self.used = 256 * self.value + next(self.rest), 256 * self.width, self.used + 1
        return yes

    def ask(self, level: int, slot: int) -> bool:
        chance, count = self.chances.get((level, slot), 2**15), self.counts.get((level, slot), 0)
        yes, rate = self.take(chance), 2**17 // (2 * count + 3)
        chance += (2**16 - chance) * rate // 2**16 if yes else -(chance * rate // 2**16)
        self.chances[level, slot] = chance
        self.counts[level, slot] = min(count + 1, 80)
        return yes

    def code(self, level: int) -> int:
        if not self.ask(level, 0):
            return 0
        sign = -1 if self.take(2**15) else 1
        if not self.ask(level, 1):
            return sign
        more = 0
        while self.ask(level, 2 + more):
            more += 1
            assert more < 8
        bits = "1"
        for place in range(more):
            bits += str(int(self.ask(level, 9 + more) if place == 0 else self.take(2**15)))
        return sign * (int(bits, 2) + 1)


def stream_by_the_page(data: bytes, rank: int, length: int) -> tuple[list[list[int]], int]:
    """The vectors of a stream, and how many bytes it has."""
    decisions, means, vectors = Decisions(data), [0] * length, []
    for component in range(rank):
        vectors.append([decisions.code((mean // 16).bit_length()) for mean in means])
        means = [
            mean + (256 * abs(code) - mean) // 2 ** min(component, 3)
            for mean, code in zip(means, vectors[-1], strict=True)
        ]
    assert decisions.value == 0
    return vectors, decisions.used


def lowrank_by_the_page(config: dict, codes: bytes, height: int, width: int) -> np.ndarray:
    rank = config["rank"]
    if "frames" in config:
        scales, (left, right) = packed_by_the_page(config, codes, height, width)
    else:
        scales, at = list(struct.unpack_from(f"<{rank}H", codes)), 2 * rank
        left, used = stream_by_the_page(codes[at:], rank, height)
        right, last = stream_by_the_page(codes[at + used :], rank, width)
        assert at + used + last == len(codes)
    result, start = np.zeros((height, width), np.float32), 0
    for size, exponent in config["groups"]:
        total = np.zeros((height, width), np.int64)
        for component in range(start, start + size):
            total += scales[component] * np.outer(left[component], right[component])
        result += (total * 2.0**exponent).astype(np.float32)
        start += size
    return result


def example_tensors() -> dict[str, EncodedTensor]:
    """Encoded tensors of every codec; the low rank one has small and large codes and several groups, the packed one all packings."""
    random = np.random.default_rng(0)
    spread = np.array([0.2, 0.6, 0.8, 1.5, 5, 60])[:, None]
    left, right = (
        np.clip(np.rint(random.standard_normal((6, length)) * spread), -255, 255).astype(np.int16)
        for length in LOWRANK_SHAPE
    )
    components = choose_groups(left, right, np.array([3.0, 1e-3, 0.7, 2e-6, 1e-4, 5e-2]))
    assert components is not None and len(components.groups) > 1
    packed = from_json(next(case["encoded"] for case in read_golden("lowrank") if "all packings" in case["case"]))
    head = packed.parts[0].arrays["codes"][: 4 * 6].reshape(6, 4)[:, 2:]
    assert set(head.flatten().tolist()) == set(range(len(PACKINGS)))
    matrix = torch.from_numpy(random.standard_normal((40, 30)).astype(np.float32))
    return {
        "exact": exact.encode(matrix),
        "lowrank": EncodedTensor(LOWRANK_SHAPE, (lowrank.encode(components),)),
        "lowrank, packed": packed,
        "rows": EncodedTensor(LOWRANK_SHAPE, (lowrank.encode(components), rows.encode(matrix, [0, 1, 7, 39]))),
        "zero": zero.encode((2, 3)),
    }


def further_tensors() -> dict[str, EncodedTensor]:
    """Encoded tensors of the codecs that add to every weight or to few, on top of each other too."""
    random = np.random.default_rng(1)
    matrix = torch.from_numpy(random.standard_normal((40, 30)).astype(np.float32) ** 3)
    rows_and_columns = [random.integers(-9, 10, length).astype(np.int8) for length in (40, 30)]
    scaled = residual.encode(matrix, 0.9, row_exponents=rows_and_columns[0], column_exponents=rows_and_columns[1])
    plain = residual.encode(matrix, 0.9)
    few = matrix.where(torch.from_numpy(random.random((40, 30)) < 0.02), torch.tensor(0.0))
    repeated = sparse.encode((matrix * 3).round().clamp(-4, 4) * 0.1)
    assert (
        scaled.config["frames"][0]
        and not plain.config["frames"][0]
        and repeated.config["ranks"]
        and sparse.encode(few).config["shift"]
    )
    return {
        "residual": EncodedTensor((40, 30), (scaled,)),
        "residual, plain": EncodedTensor((40, 30), (plain,)),
        "sparse": EncodedTensor((40, 30), (sparse.encode(few),)),
        "sparse, ranks": EncodedTensor((40, 30), (repeated,)),
        "sign": EncodedTensor((40, 30), (sign.encode(matrix),)),
        "all": EncodedTensor((40, 30), (scaled, sparse.encode(few), sign.encode(matrix))),
    }


@pytest.mark.parametrize("name", ["exact", "lowrank", "lowrank, packed", "rows", "zero", *sorted(further_tensors())])
def test_a_decoder_written_from_the_page_gives_the_same_bits(name: str) -> None:
    encoded = (example_tensors() | further_tensors())[name]
    assert decode_by_the_page(encoded).tobytes() == decode(encoded).numpy().tobytes()


def test_factors_and_their_digest_are_what_the_page_says() -> None:
    random = np.random.default_rng(2)
    a, b = (torch.from_numpy(random.standard_normal(shape).astype(np.float32)) for shape in ((3, 30), (40, 3)))
    matrix = torch.from_numpy(random.standard_normal((40, 30)).astype(np.float32))
    stored = factors.encode(factors.AdapterFactors(a.to(torch.bfloat16), b, 16 / 3**0.5))
    encoded = EncodedTensor((40, 30), (*exact.encode(matrix).parts, stored))
    words = planes(stored.arrays["a"], "<u2").astype(np.uint32) << 16  # bfloat16 is the upper half of fp32
    right, left = words.view(np.float32).reshape(3, 30), planes(stored.arrays["b"], "<f4").reshape(40, 3)
    expected = matrix.numpy() + stored.config["scale"] * (left.astype(np.float64) @ right)
    np.testing.assert_allclose(decode(encoded).numpy(), expected, rtol=1e-5, atol=1e-5)
    config = b'{"dtypes":["bfloat16","float32"],"rank":3,"scale":9.237604307034013,"transposed":false}\n'
    whole = matrix.numpy().tobytes() + config + planes(stored.arrays["a"], "<u2").tobytes() + left.tobytes()
    assert content_digest(encoded, decode(encoded)) == hashlib.sha256(whole).hexdigest()


def test_the_example_reads_a_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "math-pack"
    variant_folder = folder / "variants" / "0123456789ab"
    variant_folder.mkdir(parents=True)
    writer = DeltaWriter(variant_folder, file_limit=500)
    for name, encoded in example_tensors().items():
        writer.add(name, encoded)
    paths = [path.relative_to(folder).as_posix() for path in writer.close()]
    assert len(paths) > 2
    built = msgspec.convert({**manifest_fields(), "variants": []}, manifest.Manifest)
    variant = msgspec.convert(manifest_fields()["variants"][0], manifest.Variant)
    variant = msgspec.structs.replace(variant, router=None, files=[file_entry(folder, path) for path in paths])
    write_manifest(folder, msgspec.structs.replace(built, variants=[variant]))
    assert open_pack(folder).variant_for(BASE)
    monkeypatch.chdir(tmp_path)
    (recipe,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(recipe, {})
    assert printed.getvalue().splitlines() == [
        "exact [40, 30] ['exact']",
        "lowrank [40, 30] ['lowrank']",
        "lowrank, packed [33, 21] ['lowrank']",
        "rows [40, 30] ['lowrank', 'rows']",
        "zero [2, 3] ['zero']",
    ]


def test_the_canonical_json_of_the_page_is_ours() -> None:
    (expression,) = re.findall(r"`(json\.dumps\(.*?)`", PAGE, flags=re.DOTALL)
    value = manifest_fields()
    text = eval(re.sub(r"\s+", " ", expression), {"json": __import__("json"), "value": value})
    assert text.encode() == canonical_json(value)
    assert hashlib.sha256(text.encode()).hexdigest() == msgspec.convert(value, manifest.Manifest).digest
