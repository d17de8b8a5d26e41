from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from skillhub import fingerprint
from skillhub.errors import IntegrityError, NewerSchemaError, UnsafeContentError
from skillhub.fingerprint import (
    BaseRecord,
    base_files_digest,
    fingerprint_checkpoint,
    fingerprint_of,
    packaging_digests,
    record_array,
)
from skillhub.tensorfiles import raw_bytes, read_header
from tests.checkpoint_examples import (
    TAGS,
    Tensors,
    bytes_of,
    counting,
    defined_bytes,
    defined_fingerprint,
    llama,
    read_golden,
    save,
)

GOLDEN = sorted((Path(__file__).parent / "golden").glob("fingerprint_*.json"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKILLHUB_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("saved")


def of(tensors: Tensors, folder: Path, shards: int = 1) -> str:
    """Save a checkpoint in its own folder and fingerprint it."""
    target = save(folder / str(len(list(folder.iterdir()))), tensors, shards)
    return fingerprint_checkpoint(target).fingerprint


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_vectors(path: Path, saved: Path) -> None:
    tensors, expected = read_golden(path)
    record = fingerprint_checkpoint(save(saved, tensors))
    assert record.fingerprint == expected["fingerprint"]
    assert [tensor.name for tensor in record.tensors] == sorted(expected["tensors"])
    for tensor in record.tensors:
        wanted = expected["tensors"][tensor.name]
        original = tensors[wanted["name"]]
        assert tensor.kind == wanted["kind"] and tensor.dtype == TAGS[original.dtype]
        assert tensor.digest == hashlib.sha256(bytes.fromhex(wanted["canonical"])).hexdigest()
        assert tensor.exact_digest == hashlib.sha256(bytes_of(original)).hexdigest()
        assert (defined_bytes(original)[0], defined_bytes(original)[1].hex()) == (wanted["kind"], wanted["canonical"])
    names = {entry["name"]: name for name, entry in expected["tensors"].items()}
    assert record.fingerprint == defined_fingerprint({name: tensors[full] for full, name in names.items()})


@settings(max_examples=40, deadline=None)
@given(
    shards=st.integers(1, 4),
    wide=st.booleans(),
    tied=st.sampled_from(["tied", "repeated"]),
    wrapped=st.booleans(),
    buffers=st.booleans(),
    seed=st.integers(0, 3),
)
def test_the_same_under_every_way_of_saving(
    tmp_path_factory: pytest.TempPathFactory,
    shards: int,
    wide: bool,
    tied: str,
    wrapped: bool,
    buffers: bool,
    seed: int,
) -> None:
    plain = {**llama(), "model.norm.weight": counting((4,), seed)}
    del plain["lm_head.weight"]
    variant = dict(plain)
    if tied == "repeated":
        variant["lm_head.weight"] = plain["model.embed_tokens.weight"].clone()
    if wide:
        variant = {name: tensor.float() for name, tensor in variant.items()}
    if buffers:
        variant["model.rotary_emb.inv_freq"] = torch.ones(2)
    if not wrapped:
        variant = {name.removeprefix("model."): tensor for name, tensor in variant.items()}
    folder = tmp_path_factory.mktemp("saves")
    assert of(variant, folder, shards) == of(plain, folder)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_different_after_one_weight_moves_by_one_step(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    tensors = llama(dtype=data.draw(st.sampled_from([torch.bfloat16, torch.float32])))
    name = data.draw(st.sampled_from(sorted(tensors)))
    moved = tensors[name].to(torch.bfloat16).flatten().view(torch.int16).clone()
    moved[data.draw(st.integers(0, moved.numel() - 1))] += 1
    changed = {**tensors, name: moved.view(torch.bfloat16).to(tensors[name].dtype).reshape(tensors[name].shape)}
    folder = tmp_path_factory.mktemp("saves")
    assert of(changed, folder) != of(tensors, folder)


def layer_names(tensors: Tensors, layer: int) -> list[str]:
    return [name for name in tensors if f".layers.{layer}." in name]


def test_different_after_layers_swap_or_repeat_and_names_change(saved: Path) -> None:
    tensors = llama()
    swapped, repeated = dict(tensors), dict(tensors)
    for name in layer_names(tensors, 0):
        other = name.replace(".layers.0.", ".layers.1.")
        swapped[name], swapped[other] = tensors[other], tensors[name]
        repeated[name.replace(".layers.0.", ".layers.3.")] = tensors[name].clone()
    renamed = {name.replace("up_proj", "gate_proj"): tensor for name, tensor in tensors.items()}
    reshaped = {**tensors, "model.embed_tokens.weight": tensors["model.embed_tokens.weight"].reshape(4, 6)}
    variants = [tensors, swapped, repeated, renamed, reshaped]
    assert len({of(variant, saved) for variant in variants}) == len(variants)


def test_changes_below_bfloat16_show_in_the_exact_digest_only(saved: Path) -> None:
    tensors = llama(dtype=torch.float32)
    changed = {**tensors, "model.norm.weight": tensors["model.norm.weight"] * (1 + 2**-20)}
    before, after = (fingerprint_checkpoint(save(saved / str(i), t)) for i, t in enumerate((tensors, changed)))
    assert before.fingerprint == after.fingerprint
    differing = [b.name for b, a in zip(before.tensors, after.tensors, strict=True) if b.exact_digest != a.exact_digest]
    assert differing == ["norm.weight"]


def test_an_untied_head_counts(saved: Path) -> None:
    tensors = llama()
    without = {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}
    assert of(tensors, saved) != of(without, saved)


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.arange(1000, dtype=np.float32) - 500.5
    array[700] = -0.0
    whole = record_array("t", array, "F32")
    monkeypatch.setattr(fingerprint, "_CHUNK", 64)
    seen: list[int] = []
    assert record_array("t", array, "F32", progress=seen.append) == whole
    assert sum(seen) == array.nbytes
    assert record_array("t", array.view(np.uint8), "F32", shape=(1000,)) == whole
    assert whole.exact_digest == hashlib.sha256(array.tobytes()).hexdigest()


def test_the_sketch_is_evenly_strided() -> None:
    array = np.arange(1, 321, dtype=np.float32)
    sketch = np.frombuffer(base64.b64decode(record_array("t", array, "F32").sketch), np.uint16)
    expected = torch.arange(1, 321, 10).to(torch.bfloat16).view(torch.uint16)
    assert sketch.tolist() == expected.tolist()
    assert len(base64.b64decode(record_array("t", array[:3], "F32").sketch)) == 6


def test_views_of_any_layout_are_recorded_as_their_values() -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert record_array("t", array.T, "F32") == record_array("t", array.T.copy(), "F32")


def test_progress_counts_every_byte_once_with_or_without_a_memo(saved: Path) -> None:
    save(saved, llama(), shards=2)
    total = sum(tensor.nbytes for tensor in llama().values())
    for _ in range(2):
        seen: list[int] = []
        fingerprint_checkpoint(saved, progress=seen.append, threads=2)
        assert sum(seen) == total


def test_a_record_survives_its_bytes(saved: Path) -> None:
    record = fingerprint_checkpoint(save(saved, llama()))
    assert BaseRecord.from_bytes(record.to_bytes()) == record
    assert record.to_bytes() == record.to_bytes()


def pack(value: object) -> bytes:
    return zstandard.compress(json.dumps(value).encode())


def test_damaged_records_are_refused(saved: Path) -> None:
    record = fingerprint_checkpoint(save(saved, llama()))
    other = BaseRecord(record.fingerprint, (replace(record.tensors[0], digest="0" * 64), *record.tensors[1:]))
    good = json.loads(zstandard.decompress(record.to_bytes()))
    bad_entries = [[], "x", {}, [1] * 7, ["a", [1.5], "float", "F32", "0" * 64, "0" * 64, ""], ["a", 3, *"abcde"]]
    damaged = [b"", b"rubbish", record.to_bytes()[:-9], other.to_bytes(), pack([]), pack({}), pack({"schema": 0})]
    damaged += [pack({**good, "tensors": [entry]}) for entry in bad_entries]
    for data in damaged:
        with pytest.raises(IntegrityError):
            BaseRecord.from_bytes(data)
    with pytest.raises(NewerSchemaError):
        BaseRecord.from_bytes(pack({"schema": 1}))


def test_a_decompression_bomb_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "SIZE_LIMIT", 1 << 20)
    for threads in (0, 1):  # with one, the frame does not tell its size
        bomb = zstandard.ZstdCompressor(write_content_size=not threads).compress(bytes(2 << 20))
        with pytest.raises(UnsafeContentError):
            BaseRecord.from_bytes(bomb)


def test_records_are_framed() -> None:
    record = record_array("a", np.zeros(2, np.float32), "F32")
    assert fingerprint_of([replace(record, name="a2", shape=(1,))]) != fingerprint_of([replace(record, shape=(21,))])
    both = [record, replace(record, name="b")]
    assert fingerprint_of(both) == fingerprint_of(both[::-1])


def test_packaging_digests_are_the_files_digests(saved: Path) -> None:
    save(saved, llama(), shards=2)
    files = sorted(saved.glob("*.safetensors"))
    expected = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    assert packaging_digests(saved) == expected
    lines = "".join(f"{digest}\n" for digest in sorted(expected.values()))
    assert base_files_digest(expected.values()) == hashlib.sha256(lines.encode()).hexdigest()


def test_records_of_mapped_and_loaded_tensors_agree(saved: Path) -> None:
    tensors = llama(dtype=torch.float32)
    file = read_header(save(saved, tensors) / "model.safetensors")
    for name, info in file.tensors.items():
        loaded = record_array(name, tensors[name].numpy(), "F32")
        assert record_array(name, raw_bytes(info), info.dtype, shape=info.shape) == loaded
