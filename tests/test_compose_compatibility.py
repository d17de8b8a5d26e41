"""What is checked of packs before any of their tensors is decoded."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from msgspec.structs import replace as replace_struct

from skillhub.compose.compatibility import check_packs, open_contributions
from skillhub.compose.fusion import fuse
from skillhub.compose.merging import Contribution
from skillhub.compose.packsources import find_pack
from skillhub.compose.recipes import make_recipe
from skillhub.deltafiles import DeltaFiles
from skillhub.errors import NotFoundError, UnsafeContentError
from skillhub.packdeltas import PackDelta
from skillhub.packs import Pack
from tests.support.tiny_models import build_pack, save_model, tune, with_entry


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_model("llama", tmp_path / "base")


@pytest.fixture
def pack(base: Path, tmp_path: Path) -> Pack:
    return build_pack(tune(base, tmp_path / "tuned"), base, tmp_path / "pack")


@pytest.mark.parametrize("shape", [[1 << 33], [1 << 20, 1 << 12]])
def test_a_pack_that_would_fill_memory_is_refused_before_it_is_decoded(pack: Pack, shape: list[int]) -> None:
    entries = pack.manifest.variants[0].codec.tensors
    shapes = {name: tuple(entry.shape) for name, entry in entries.items() if name != "norm.weight"}
    huge = with_entry(pack, "norm.weight", shape=shape, change="added")
    contributions = open_contributions(make_recipe([huge]), pack.manifest.variants[0].base.fingerprint, shapes)
    with pytest.raises(UnsafeContentError, match=r"adds (8589934592|4294967296) values, far more"):
        check_packs(contributions, shapes, in_memory=False)


def test_rows_without_end_are_refused_before_they_are_decoded(base: Path, pack: Pack, tmp_path: Path) -> None:
    huge = with_entry(pack, "embed_tokens.weight", shape=[1 << 28, 16])
    with pytest.raises(UnsafeContentError, match=r"resizes embed_tokens\.weight to 268435456 rows"):
        fuse(base, [huge], tmp_path / "fused")
    assert not (tmp_path / "fused").exists()


def test_checking_packs_takes_time_in_proportion_to_their_tensors(pack: Pack) -> None:
    variant = pack.manifest.variants[0]
    entry = variant.codec.tensors["norm.weight"]
    entries = {f"layers.{number}.norm.weight": entry for number in range(20_000)}
    many = replace_struct(variant, codec=replace_struct(variant.codec, tensors=entries))
    (one,) = make_recipe([pack]).packs
    delta = PackDelta(pack, many, DeltaFiles({}, {}))
    begin = time.process_time()
    check_packs([Contribution(one, delta)], dict.fromkeys(entries, (16,)), in_memory=True)
    assert time.process_time() - begin < 5  # a minute, when every tensor sorts all names


def test_a_folder_named_like_a_pack_is_hinted_at(pack: Pack, homes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pack.folder.parent)
    with pytest.raises(NotFoundError, match="pack is not installed in any of your environments") as caught:
        find_pack("pack")
    assert "write ./pack." in caught.value.hint and find_pack("./pack").digest == pack.digest
