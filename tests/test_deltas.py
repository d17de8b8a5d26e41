"""Deltas between checkpoints, and the files in which a pack keeps them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from skillhub.checkpoints import open_checkpoint
from skillhub.codecs import EncodedTensor, exact
from skillhub.deltafiles import DeltaWriter
from skillhub.deltas import Delta
from skillhub.errors import IntegrityError, NewerSchemaError, WrongBaseError
from skillhub.packdeltas import open_delta
from skillhub.packs import Pack
from skillhub.tensorfiles import read_header, write_tensors
from tests.support.tiny_models import build_pack, save_model, tune, with_entry


def save(folder: Path, **tensors: torch.Tensor) -> Path:
    folder.mkdir(parents=True)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


def delta_of(tmp_path: Path, base: dict[str, torch.Tensor], tuned: dict[str, torch.Tensor]) -> Delta:
    return Delta(open_checkpoint(save(tmp_path / "base", **base)), open_checkpoint(save(tmp_path / "tuned", **tuned)))


@pytest.fixture
def pack(tmp_path: Path) -> Pack:
    base = save_model("llama", tmp_path / "base")
    return build_pack(tune(base, tmp_path / "tuned"), base, tmp_path / "pack")


def test_differences_are_taken_in_fp32(tmp_path: Path) -> None:
    base, tuned = torch.tensor([1.0, 3.0]), torch.tensor([1.0 + 2**-20, 3.0])
    delta = delta_of(tmp_path, {"w": base}, {"w": tuned})
    assert delta.tensor("w").tolist() == [2**-20, 0.0]  # bf16 would have made both 0


def test_added_removed_and_unchanged_tensors_are_told_apart(tmp_path: Path) -> None:
    one = torch.ones(2, 2)
    delta = delta_of(tmp_path, {"same": one, "gone": one, "moved": one}, {"same": one, "new": one, "moved": 2 * one})
    assert {name: delta.change(name) for name in delta.names} == {
        "gone": "removed",
        "moved": "delta",
        "new": "added",
        "same": "delta",
    }
    assert [name for name in delta.names if delta.is_unchanged(name)] == ["same"]
    assert not delta.is_additive("new")


def test_the_same_values_in_another_dtype_are_unchanged(tmp_path: Path) -> None:
    values = torch.tensor([1.5, -2.0])
    assert delta_of(tmp_path, {"w": values.bfloat16()}, {"w": values}).is_unchanged("w")


def test_another_sign_of_zero_is_a_change(tmp_path: Path) -> None:
    delta = delta_of(tmp_path, {"w": torch.tensor([0.0, 1.0])}, {"w": torch.tensor([-0.0, 1.0])})
    assert not delta.is_unchanged("w") and delta.tensor("w").tolist() == [0.0, 0.0]


def test_a_finer_value_in_a_wider_dtype_is_a_change(tmp_path: Path) -> None:
    delta = delta_of(tmp_path, {"w": torch.tensor([1.0]).bfloat16()}, {"w": torch.tensor([1.0 + 2**-20])})
    assert not delta.is_unchanged("w")
    assert delta.tensor("w").tolist() == [2**-20]


def test_added_rows_count_against_zero_and_removed_rows_not_at_all(tmp_path: Path) -> None:
    base = {"embed_tokens.weight": torch.ones(2, 3), "lm_head.weight": torch.ones(3, 2)}
    tuned = {"embed_tokens.weight": torch.full((4, 3), 3.0), "lm_head.weight": torch.full((2, 2), 2.0)}
    delta = delta_of(tmp_path, base, tuned)
    assert delta.tensor("embed_tokens.weight")[:, 0].tolist() == [2.0, 2.0, 3.0, 3.0]
    assert delta.added_rows("embed_tokens.weight") == 2
    assert delta.tensor("lm_head.weight").tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_another_width_is_another_base(tmp_path: Path) -> None:
    delta = delta_of(tmp_path, {"w": torch.ones(2, 3)}, {"w": torch.ones(2, 4)})
    with pytest.raises(WrongBaseError, match=r"w is \[2, 3\] in the base and \[2, 4\]"):
        delta.tensor("w")


def test_a_pack_decodes_to_the_delta(tmp_path: Path) -> None:
    base = save_model("tied", tmp_path / "base")
    tuned = tune(base, tmp_path / "tuned")
    stored = open_delta(build_pack(tuned, base, tmp_path / "pack"))
    before, after = load_file(base / "model.safetensors"), load_file(tuned / "model.safetensors")
    assert len(stored.names) == len(before)
    for name, tensor in after.items():
        assert torch.equal(stored.decode(name.removeprefix("model.")), tensor.float() - before[name].float())


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(0, 200), min_size=1, max_size=6), limit=st.integers(16, 256))
def test_arrays_of_any_size_fit_files_of_any_limit(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], limit: int
) -> None:
    folder = tmp_path_factory.mktemp("split")
    chance = np.random.default_rng(0)
    tensors = {
        f"t{number}": torch.from_numpy(chance.standard_normal(size)).float() for number, size in enumerate(sizes)
    }
    writer = DeltaWriter(folder, file_limit=limit)
    for name, tensor in tensors.items():
        writer.add(name, exact.encode(tensor))
    files = writer.close()
    held = [read_header(path) for path in files]
    assert all(sum(info.nbytes for info in header.tensors.values()) <= limit for header in held)
    described = {name for header in held for name in json.loads(header.metadata["parts"])}
    assert described == set(tensors)


def test_a_pack_of_many_files_decodes_like_one_file(pack: Pack, tmp_path: Path) -> None:
    stored = open_delta(pack)
    whole = {name: stored.decode(name) for name in stored.names}
    writer = DeltaWriter(pack.folder / stored.variant.folder, file_limit=100)
    encoded = {name: _in_memory(stored.encoded(name)) for name in stored.names}
    for name in stored.names:
        writer.add(name, encoded[name])
    files = writer.close()
    assert len(files) > len(stored.names)
    many = open_delta(_listing(pack, files))
    assert all(torch.equal(many.decode(name), whole[name]) for name in stored.names)


def _in_memory(encoded: EncodedTensor) -> EncodedTensor:
    from dataclasses import replace

    parts = [
        replace(part, arrays={key: np.array(array) for key, array in part.arrays.items()}) for part in encoded.parts
    ]
    return EncodedTensor(encoded.shape, tuple(parts))


def _listing(pack: Pack, files: list[Path]) -> Pack:
    """Return the pack with these delta files in its manifest."""
    from dataclasses import replace

    from msgspec import structs

    from skillhub.packs import file_entry

    variant = pack.manifest.variants[0]
    entries = [file_entry(pack.folder, path.relative_to(pack.folder).as_posix()) for path in files]
    return replace(pack, manifest=structs.replace(pack.manifest, variants=[structs.replace(variant, files=entries)]))


def test_another_digest_than_promised_is_refused(pack: Pack) -> None:
    name = open_delta(pack).names[0]
    with pytest.raises(IntegrityError, match=f"{name} does not decode"):
        open_delta(with_entry(pack, name, digest="0" * 64)).decode(name)


def test_a_damaged_tensor_is_named_with_its_pack(pack: Pack) -> None:
    stored = open_delta(pack)
    name = stored.names[0]
    path = next(pack.folder.rglob("delta-00001.safetensors"))
    info = next(info for key, info in read_header(path).tensors.items() if key.startswith(f"{name}/"))
    data = bytearray(path.read_bytes())
    data[info.begin] ^= 0xFF  # the frame's magic number
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match=f"tiny-pack 1.0.0, {name}: "):
        open_delta(pack).decode(name)


def test_another_shape_than_promised_is_refused(pack: Pack) -> None:
    name = open_delta(pack).names[0]
    with pytest.raises(IntegrityError, match="the manifest says"):
        open_delta(with_entry(pack, name, shape=[1])).decode(name)


def test_a_file_of_a_newer_schema_is_refused(pack: Pack) -> None:
    path = next(pack.folder.rglob("delta-00001.safetensors"))
    write_tensors(path, {}, [], {"schema": "7", "parts": "{}"})
    with pytest.raises(NewerSchemaError, match="schema 7"):
        open_delta(pack)


@pytest.mark.parametrize("parts", ["[]", "{", "{}"])
def test_a_file_that_does_not_describe_its_tensors_is_refused(pack: Pack, parts: str) -> None:
    path = next(pack.folder.rglob("delta-00001.safetensors"))
    write_tensors(path, {}, [], {"schema": "0", "parts": parts})
    with pytest.raises(IntegrityError):
        open_delta(pack)


def test_a_pack_that_is_installed_for_another_base_says_so(pack: Pack) -> None:
    from dataclasses import replace

    from msgspec import structs

    present = pack.manifest.variants[0]
    print_ = "skb1:" + "7" * 64
    files = [structs.replace(entry, path=f"variants/{'7' * 12}/{Path(entry.path).name}") for entry in present.files]
    absent = structs.replace(present, base=structs.replace(present.base, fingerprint=print_, repo=None), files=files)
    both = replace(pack, manifest=structs.replace(pack.manifest, variants=[present, absent]))
    assert open_delta(both, present.base.fingerprint).names
    with pytest.raises(WrongBaseError, match=r"is installed for acme/tiny .*, not for skb1:777777777777") as caught:
        open_delta(both, print_)
    assert f"--base {print_}" in caught.value.hint


def test_a_missing_file_or_array_is_refused(pack: Pack) -> None:
    path = next(pack.folder.rglob("delta-00001.safetensors"))
    header = read_header(path)
    write_tensors(path, {}, [], dict(header.metadata))
    with pytest.raises(IntegrityError, match="damaged"):
        stored = open_delta(pack)
        stored.decode(stored.names[0])
    path.unlink()
    with pytest.raises(IntegrityError, match="missing"):
        open_delta(pack)
