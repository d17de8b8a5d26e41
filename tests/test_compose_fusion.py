from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from msgspec import structs
from safetensors.torch import load_file, save_file

from skillhub.compose.fusion import fuse
from skillhub.compose.grafts import graft
from skillhub.compose.sharding import FusedTensor, split_shards
from skillhub.errors import IntegrityError, UsageError, WrongBaseError
from skillhub.fingerprint import fingerprint_checkpoint
from skillhub.packs import write_manifest
from tests.support.tiny_models import (
    bits,
    build_pack,
    build_place,
    load_model,
    raw,
    rewrite,
    tune,
    with_entry,
)

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Kind → folder of :func:`build_place`."""
    root = tmp_path_factory.mktemp("fusion")
    return functools.cache(lambda kind: build_place(kind, root / kind))


@pytest.fixture(params=["llama", "tied", "gpt2", "bert", "mixtral"])
def place(request: pytest.FixtureRequest, places: Callable[[str], Path]) -> Path:
    return places(request.param)


@pytest.fixture
def llama(places: Callable[[str], Path]) -> Path:
    return places("llama")


def files_below(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stored(folder: Path) -> dict[str, bytes]:
    return {name: raw(tensor) for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def test_fused_and_grafted_are_the_same_bits(place: Path, tmp_path: Path):
    for number, packs in enumerate(([place / "two"], [place / "two", place / "one"])):
        model = load_model(place / "base")
        graft(model, packs)
        fused = fuse(place / "base", packs[::-1], tmp_path / str(number))
        assert bits(load_model(fused)) == bits(model)
        model.save_pretrained(tmp_path / f"saved{number}")
        assert stored(fused) == stored(tmp_path / f"saved{number}")


def test_an_exact_pack_fuses_to_the_fine_tune(place: Path, tmp_path: Path):
    fused = fuse(place / "base", [place / "one"], tmp_path / "fused")
    assert stored(fused) == stored(place / "tuned")
    assert fingerprint_checkpoint(fused).fingerprint == fingerprint_checkpoint(place / "tuned").fingerprint
    assert (fused / "config.json").read_bytes() == (place / "base" / "config.json").read_bytes()


def test_ties_with_densities_and_weights_is_what_graft_gives(llama: Path, tmp_path: Path):
    options = {"method": "ties", "densities": [0.3, 0.6], "weights": [1.5, -0.5]}
    model = load_model(llama / "base")
    graft(model, [llama / "one", llama / "two"], **options)
    fused = fuse(llama / "base", [llama / "one", llama / "two"], tmp_path / "fused", **options)
    assert bits(load_model(fused)) == bits(model)


def test_a_base_in_shards_and_an_output_in_shards(llama: Path, tmp_path: Path):
    load_model(llama / "base").save_pretrained(tmp_path / "base", max_shard_size="4KB")
    assert (tmp_path / "base" / "model.safetensors.index.json").is_file()
    seen: list[tuple[str, int, int]] = []
    report = lambda *step: seen.append(step)  # noqa: E731
    fused = fuse(tmp_path / "base", [llama / "one"], tmp_path / "fused", shard_bytes=4000, progress=report)
    shards = sorted(fused.glob("*.safetensors"))
    assert len(shards) > 2 and all(load_file(path) for path in shards)
    assert stored(fused) == stored(llama / "tuned")
    index = json.loads((fused / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(len(data) for data in stored(fused).values())
    assert bits(load_model(fused)) == bits(load_model(llama / "tuned"))
    assert seen[-1] == ("tensors", len(index["weight_map"]), len(index["weight_map"]))


def test_shards_are_cut_in_order_below_the_limit():
    sizes = [3, 3, 3, 10, 1, 1]
    tensors = [FusedTensor(str(number), "U8", (size,), None) for number, size in enumerate(sizes)]
    shards = split_shards(tensors, 6)
    assert [[tensor.shape[0] for tensor in shard.tensors] for shard in shards] == [[3, 3], [3], [10], [1, 1]]
    assert [shard.file for shard in shards][-1] == "model-00004-of-00004.safetensors"
    assert [shard.file for shard in split_shards(tensors, 100)] == ["model.safetensors"]


def test_a_head_that_the_base_stores_beside_its_equal_embedding_moves_with_it(
    places: Callable[[str], Path], tmp_path: Path
):
    folder = places("tied")

    def untied(tensors: Tensors) -> Tensors:
        return {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}

    base = rewrite(folder / "base", tmp_path / "base", untied)
    fused = stored(fuse(base, [folder / "two"], tmp_path / "fused"))
    assert fused["lm_head.weight"] == fused["model.embed_tokens.weight"]
    assert fused["lm_head.weight"] != stored(base)["lm_head.weight"]
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    model = load_model(base)
    graft(model, [folder / "two"])
    assert raw(model.lm_head.weight) == raw(model.model.embed_tokens.weight) == fused["lm_head.weight"]


def test_a_head_that_the_fine_tune_untied_is_added_and_the_config_says_so(
    places: Callable[[str], Path], tmp_path: Path
):
    folder = places("tied")

    def untied(tensors: Tensors) -> Tensors:
        return {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"] * 2}

    tuned = rewrite(folder / "base", tmp_path / "tuned", untied)
    fused = fuse(folder / "base", [build_pack(tuned, folder / "base", tmp_path / "pack")], tmp_path / "fused")
    assert stored(fused) == stored(tuned)
    model = load_model(fused)
    assert raw(model.lm_head.weight) == stored(tuned)["lm_head.weight"]
    assert model.lm_head.weight is not model.model.embed_tokens.weight


def test_a_head_that_the_fine_tune_tied_is_left_out_and_the_config_says_so(llama: Path, tmp_path: Path):
    def tied(tensors: Tensors) -> Tensors:
        return {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}

    tuned = rewrite(llama / "tuned", tmp_path / "tuned", tied)
    fused = fuse(llama / "base", [build_pack(tuned, llama / "base", tmp_path / "pack")], tmp_path / "fused")
    assert stored(fused) == stored(tuned)
    assert json.loads((llama / "base" / "config.json").read_text())["tie_word_embeddings"] is False
    assert json.loads((fused / "config.json").read_text())["tie_word_embeddings"] is True
    model = load_model(fused)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_added_tokens_resize_the_checkpoint_and_its_config(place: Path, tmp_path: Path):
    vocabulary = json.loads((place / "base" / "config.json").read_text())["vocab_size"]

    def longer(tensors: Tensors) -> Tensors:
        rows = {
            name: torch.cat([t, t[:3] + 1]) if len(t) == vocabulary and t.dim() == 2 else t
            for name, t in tensors.items()
        }
        return {name: tensor.contiguous() for name, tensor in rows.items()}

    tuned = rewrite(tune(place / "base", tmp_path / "noise"), tmp_path / "tuned", longer)
    pack = build_pack(tuned, place / "base", tmp_path / "pack")
    fused = fuse(place / "base", [pack, place / "two"], tmp_path / "fused", weights=[1, 0])
    assert stored(fused) == stored(tuned)
    model = load_model(fused)
    assert model.config.vocab_size == vocabulary + 3 == model.get_input_embeddings().weight.shape[0]
    both = fuse(place / "base", [pack, place / "two"], tmp_path / "both")
    assert load_model(both).config.vocab_size == vocabulary + 3
    other = build_pack(
        rewrite(tuned, tmp_path / "other", longer), place / "base", tmp_path / "other-pack", name="other"
    )
    with pytest.raises(UsageError, match="several of them resize it"):
        fuse(place / "base", [pack, other], tmp_path / "never")


def test_added_tensors_are_written_under_the_bases_names_and_removed_ones_left_out(llama: Path, tmp_path: Path):
    def changed(tensors: Tensors) -> Tensors:
        kept = {name: tensor for name, tensor in tensors.items() if name != "model.layers.1.mlp.up_proj.weight"}
        return {**kept, "model.norm.bias": torch.ones(16), "extra.steps": torch.tensor([7])}

    tuned = rewrite(tune(llama / "base", tmp_path / "noise"), tmp_path / "tuned", changed)
    pack = build_pack(tuned, llama / "base", tmp_path / "pack")
    fused = fuse(llama / "base", [pack], tmp_path / "fused")
    assert stored(fused) == stored(tuned)
    with pytest.raises(UsageError, match="one removes it and another does not"):
        fuse(llama / "base", [pack, llama / "two"], tmp_path / "never")


def test_buffers_and_untouched_tensors_keep_their_bytes(llama: Path, tmp_path: Path):
    def with_buffers(tensors: Tensors) -> Tensors:
        buffers = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.rand(2), "model.steps": torch.tensor([3])}
        return {**tensors, **buffers, "model.weird": torch.tensor([float("nan"), -0.0, float("inf")])}

    base = rewrite(llama / "base", tmp_path / "base", with_buffers)
    pack = build_pack(tune(base, tmp_path / "tuned", only="mlp"), base, tmp_path / "pack", lossy=True)
    fused, before = stored(fuse(base, [pack], tmp_path / "fused")), stored(base)
    assert fused.keys() == before.keys()
    assert {name for name in fused if fused[name] != before[name]} == {name for name in before if "mlp" in name}


def test_companions_are_copied_and_the_card_tells_the_lineage(llama: Path, tmp_path: Path):
    base = rewrite(llama / "base", tmp_path / "base", dict)
    (base / "tokenizer.json").write_text("{}")
    (base / "generation_config.json").write_text('{"do_sample": true}')
    (base / "README.md").write_text("the base's own card")
    fused = fuse(base, [llama / "two", llama / "one"], tmp_path / "fused", weights=[0.5, 1])
    assert (fused / "tokenizer.json").read_text() == "{}"
    assert (fused / "generation_config.json").read_text() == '{"do_sample": true}'
    card = (fused / "README.md").read_text()
    digests = [build.digest for build in map(open_, ("one", "two"), [llama] * 2)]
    assert card.startswith("---\nlibrary_name: transformers\n") and 'base_model: "acme/tiny"' in card
    assert all(digest in card for digest in digests)
    assert "| two | pack | 1.0.0 | 0.5 | 1 |" in card and "arXiv 2212.04089" in card
    assert str(tmp_path) not in card and "the base's own card" not in card


def test_the_card_names_a_folder_and_never_its_path(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    base = rewrite(llama / "base", tmp_path / "my-base", dict)
    pack = build_pack(llama / "tuned", base, tmp_path / "pack")
    variant = structs.replace(
        pack.manifest.variants[0], base=structs.replace(pack.manifest.variants[0].base, repo=None)
    )
    write_manifest(pack.folder, structs.replace(pack.manifest, variants=[variant]))
    monkeypatch.chdir(base)
    for number, named in enumerate([".", "./model.safetensors", "../my-base", str(base / "model.safetensors")]):
        card = (fuse(named, [pack.folder], tmp_path / str(number)) / "README.md").read_text()
        assert "\n# my-base with tiny-pack\n" in card and "- base: my-base, fingerprint" in card
        assert "base_model" not in card and "safetensors" not in card and str(tmp_path) not in card


def open_(name: str, folder: Path) -> object:
    from skillhub.packs import open_pack

    return open_pack(folder / name)


def test_the_same_inputs_give_the_same_bytes(llama: Path, tmp_path: Path):
    first = fuse(llama / "base", [llama / "one", llama / "two"], tmp_path / "first")
    again = fuse(llama / "base", [llama / "two", llama / "one"], tmp_path / "again")
    assert files_below(first) == files_below(again)


def test_the_wrong_base_is_explained_and_nothing_is_written(llama: Path, tmp_path: Path):
    with pytest.raises(WrongBaseError, match=r"does not fit.*a fine-tune of it"):
        fuse(llama / "tuned", [llama / "one"], tmp_path / "fused")
    assert not (tmp_path / "fused").exists()


def test_a_damaged_pack_leaves_nothing_half_written(llama: Path, tmp_path: Path):
    pack = build_pack(llama / "tuned2", llama / "base", tmp_path / "bad")
    bad = with_entry(pack, sorted(pack.manifest.variants[0].codec.tensors)[-1], digest="0" * 64)
    with pytest.raises(IntegrityError, match="does not decode"):
        fuse(llama / "base", [bad], tmp_path / "out" / "fused", verify="full")
    assert list((tmp_path / "out").iterdir()) == []


def test_an_altered_file_of_a_pack_is_refused_before_anything_appears(llama: Path, tmp_path: Path):
    pack = build_pack(llama / "tuned2", llama / "base", tmp_path / "bad")
    file = next(pack.folder.rglob("delta-*.safetensors"))
    fuse(llama / "base", [pack], tmp_path / "before")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(IntegrityError, match="was altered"):
        fuse(llama / "base", [pack], tmp_path / "out" / "fused")
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_in_it_is_refused(llama: Path, tmp_path: Path):
    out = tmp_path / "fused"
    out.mkdir()
    fuse(llama / "base", [llama / "one"], out)
    before = files_below(out)
    with pytest.raises(UsageError, match="not an empty folder") as caught:
        fuse(llama / "base", [llama / "two"], out)
    assert caught.value.hint and files_below(out) == before


def test_memory_is_bounded_by_the_largest_tensor_and_not_by_the_model(tmp_path: Path):
    shape, count = (1 << 18, 8), 32
    base, tuned = tmp_path / "base", tmp_path / "tuned"
    for folder in (base, tuned):
        folder.mkdir()
        values = torch.rand(shape, generator=torch.Generator().manual_seed(1)).bfloat16()
        values[:8] += folder == tuned
        tensors = {f"layers.{number}.weight": values + number for number in range(count)}
        save_file(tensors, folder / "model.safetensors")
    build_pack(tuned, base, tmp_path / "pack")
    script = """
import sys, torch
torch.set_num_threads(1)
from skillhub.compose.fusion import fuse
from tests.support.memory import peak_bytes
before = peak_bytes()
fuse(*sys.argv[1:2], sys.argv[2:3], sys.argv[3], device="cpu")  # CUDA itself takes some memory
print(peak_bytes() - before)
"""
    command = [sys.executable, "-c", script, str(base), str(tmp_path / "pack"), str(tmp_path / "fused")]
    grown = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    largest = 4 * shape[0] * shape[1]
    assert grown < 12 * largest < count * largest / 2
    assert stored(tmp_path / "fused") == stored(tuned)
