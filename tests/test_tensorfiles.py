from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from skillhub.errors import IntegrityError, SkillhubError, UnsafeContentError
from skillhub.tensorfiles import BITS, HEADER_LIMIT, raw_bytes, read_header, write_tensors

TORCH_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "U16": torch.uint16, "U32": torch.uint32,
    "U64": torch.uint64, "C64": torch.complex64,
}  # fmt: skip
SPECS = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(lambda name: name != "__metadata__"),
    st.tuples(st.sampled_from(sorted(TORCH_DTYPES)), st.lists(st.integers(0, 4), max_size=3)),
    max_size=6,
)  # fmt: skip


def write_raw(path: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def payloads(specs: dict[str, tuple[str, list[int]]]) -> list[bytes]:
    sizes = [math.prod(shape) * BITS[dtype] // 8 for dtype, shape in specs.values()]
    return [bytes((7 * index + position) % 2 for position in range(size)) for index, size in enumerate(sizes)]


@settings(max_examples=60, deadline=None)
@given(specs=SPECS, order=st.randoms())
def test_what_is_written_is_read_by_us_and_by_the_library(
    tmp_path_factory: pytest.TempPathFactory, specs: dict[str, tuple[str, list[int]]], order: Any
) -> None:
    folder = tmp_path_factory.mktemp("files")
    data = dict(zip(specs, payloads(specs), strict=True))
    write_tensors(folder / "a.safetensors", specs, data.values(), {"format": "pt"})
    shuffled = list(specs)
    order.shuffle(shuffled)
    write_tensors(
        folder / "b.safetensors", {n: specs[n] for n in shuffled}, (data[n] for n in shuffled), {"format": "pt"}
    )
    assert (folder / "a.safetensors").read_bytes() == (folder / "b.safetensors").read_bytes()

    ours = read_header(folder / "a.safetensors")
    assert ours.metadata == {"format": "pt"}
    with safe_open(folder / "a.safetensors", "pt") as theirs:
        assert theirs.metadata() == {"format": "pt"}
        assert set(theirs.keys()) == set(specs) == set(ours.tensors)
        for name, (dtype, shape) in specs.items():
            info = ours.tensors[name]
            assert (info.dtype, list(info.shape), info.elements) == (dtype, shape, math.prod(shape))
            assert raw_bytes(info).tobytes() == data[name]
            tensor = theirs.get_tensor(name)
            assert tensor.dtype == TORCH_DTYPES[dtype] and list(tensor.shape) == shape
            assert tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes() == data[name]
            assert info.begin % (BITS[dtype] // 8) == 0


def test_reads_what_the_library_writes(tmp_path: Path) -> None:
    tensors = {
        "b": torch.arange(12, dtype=torch.float32).reshape(3, 4),
        "a.bf16": torch.linspace(-3, 3, 5).to(torch.bfloat16),
        "scalar": torch.tensor(7, dtype=torch.int64),
        "empty": torch.zeros(0, 4),
    }
    save_file(tensors, tmp_path / "x.safetensors", metadata={"made": "elsewhere"})
    file = read_header(tmp_path / "x.safetensors")
    assert file.metadata == {"made": "elsewhere"}
    for name, tensor in tensors.items():
        info = file.tensors[name]
        assert info.shape == tuple(tensor.shape)
        assert raw_bytes(info).tobytes() == tensor.flatten().view(torch.uint8).numpy().tobytes()
    assert file.tensors["a.bf16"].dtype == "BF16" and file.tensors["scalar"].dtype == "I64"


def test_arrays_of_any_layout_can_be_written(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    write_tensors(tmp_path / "x.safetensors", {"t": ("F32", (3, 2)), "e": ("F32", (0, 2))}, [array, array[:0]])
    assert load_file(tmp_path / "x.safetensors")["t"].tolist() == array.tolist()


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape) if isinstance(shape, tuple) else shape, "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("header", "size", "words"),
    [
        ({"t": entry()}, 7, ["truncated"]),
        ({"t": entry()}, 9, ["1 bytes after the last tensor"]),
        ({"t": entry(offsets=(4, 12))}, 12, ["'t'", "gap"]),
        ({"t": entry(), "u": entry(offsets=(4, 12))}, 12, ["'u'", "overlap"]),
        ({"t": entry(offsets=(0, 4))}, 4, ["'t'", "takes 8 bytes", "span 4"]),
        ({"t": entry(offsets=(8, 0))}, 0, ["'t'"]),
        ({"t": entry(dtype="F3")}, 8, ["'F3'", "not known"]),
        ({"t": entry(dtype=["F32"])}, 8, ["not known"]),
        ({"t": entry(dtype="F4", shape=(3,), offsets=(0, 1))}, 1, ["whole bytes"]),
        ({"t": entry(shape=(-2,))}, 8, ["whole numbers"]),
        ({"t": entry(shape=(2.0,))}, 8, ["whole numbers"]),
        ({"t": entry(shape=(True, 2))}, 8, ["whole numbers"]),
        ({"t": entry(shape=(0, 2**63), offsets=(0, 0))}, 0, ["whole numbers"]),
        ({"t": entry(shape="2")}, 8, ["whole numbers"]),
        ({"t": entry(offsets=(0, 4, 8))}, 8, ["data_offsets"]),
        ({"t": {"dtype": "F32"}}, 8, ["data_offsets"]),
        ({"t": 3}, 8, ["data_offsets"]),
        ({"\ud800": entry()}, 8, ["data_offsets"]),
        ({"__metadata__": {"a": 1}}, 0, ["metadata"]),
        ({"__metadata__": []}, 0, ["metadata"]),
        ([], 0, ["not a JSON object"]),
        (b"{", 0, ["not JSON"]),
        (b"\xff", 0, ["not JSON"]),
        (b"[" * 100_000, 0, ["not JSON"]),
        (b'{"t":%s,"t":%s}' % (b"1", b"2"), 0, ["twice"]),
    ],
)  # fmt: skip
def test_a_broken_file_is_refused_by_name(tmp_path: Path, header: Any, size: int, words: list[str]) -> None:
    path = write_raw(tmp_path / "bad.safetensors", header, bytes(size))
    with pytest.raises(IntegrityError) as caught:
        read_header(path)
    for word in ["bad.safetensors", *words]:
        assert word in caught.value.message
    assert caught.value.hint


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"t": ("F32", (3,))}, [bytes(12)])
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(IntegrityError):
            read_header(path)


def test_a_huge_header_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "bomb.safetensors"
    path.write_bytes((HEADER_LIMIT + 1).to_bytes(8, "little"))
    with pytest.raises(UnsafeContentError, match=r"bomb\.safetensors"):
        read_header(path)


@settings(max_examples=200, deadline=None)
@given(position=st.integers(0, 200), value=st.integers(0, 255))
def test_a_changed_byte_of_the_header_never_escapes_the_error_tree(
    tmp_path_factory: pytest.TempPathFactory, position: int, value: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "changed.safetensors"
    write_tensors(path, {"a": ("F32", (3,)), "b": ("BF16", (2, 2))}, [bytes(12), bytes(8)], {"k": "v"})
    data = bytearray(path.read_bytes())
    data[position % len(data)] = value
    path.write_bytes(data)
    try:
        read_header(path)
    except SkillhubError as error:
        assert error.exit_code in (6, 12)


@pytest.mark.parametrize("data", [[bytes(8)], [bytes(8), bytes(3)], [bytes(8), bytes(4), b""]])
def test_data_that_does_not_fit_leaves_nothing_behind(tmp_path: Path, data: list[bytes]) -> None:
    with pytest.raises(IntegrityError):
        write_tensors(tmp_path / "x.safetensors", {"a": ("F32", (2,)), "b": ("F32", (1,))}, data)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_dtype_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="F3"):
        write_tensors(tmp_path / "x.safetensors", {"a": ("F3", (2,))}, [b""])
    assert list(tmp_path.iterdir()) == []
