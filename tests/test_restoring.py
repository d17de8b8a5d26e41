"""Packs that restore a fine-tune bit for bit: fused, grafted, routed, composed with others, and refused where the base is not exactly theirs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

import skillhub
from skillhub.checkpoints import Checkpoint, open_checkpoint
from skillhub.cli import commands
from skillhub.codecs import restoration
from skillhub.compose.fusion import fuse
from skillhub.compose.grafts import graft, ungraft
from skillhub.compose.routed import choose
from skillhub.deltas import Delta
from skillhub.errors import IntegrityError, UsageError, WrongBaseError
from skillhub.fingerprint import fingerprint_checkpoint
from skillhub.packdeltas import open_delta
from skillhub.packs import Pack, open_pack
from skillhub.promises import check_restored
from tests.support.handmade_packs import Handmade, write_pack
from tests.support.tiny_models import bits, build_pack, load_model, raw, rewrite, save_model, tune, with_entry


def build_lossless_pack(tuned: Path, base: Path, folder: Path) -> Pack:
    """Build a pack that restores every changed float tensor."""
    delta, tensors = Delta(open_checkpoint(base), open_checkpoint(tuned)), []
    for name in (one for one in delta.names if not delta.is_unchanged(one)):
        before = delta.base.tensor(name)
        encoded = restoration.encode(name, delta.values(name), before)
        tensors.append(Handmade(name, encoded.shape, encoded, before))
    return write_pack(folder, base, tensors, preset="lossless")


def disturb(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Set values that a sum in fp32 would not give back: much smaller than the base's, negative zero, no number."""
    for tensor in tensors.values():
        if tensor.is_floating_point() and tensor.numel() > 40:
            tensor.view(-1)[:4] = torch.tensor([1e-20, -0.0, -3e-30, 0.0]).to(tensor.dtype)
    return tensors


@pytest.fixture(scope="module", params=[torch.bfloat16, torch.float32], ids=str)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``base``, ``tuned``, the pack ``one`` of it and another exact pack ``two``."""
    root = tmp_path_factory.mktemp("restoring")
    base = save_model("llama", root / "base", dtype=request.param)
    tuned = rewrite(tune(base, root / "noisy"), root / "tuned", disturb)
    build_lossless_pack(tuned, base, root / "one")
    build_pack(tune(base, root / "tuned2", seed=2, size=0.02), base, root / "two", name="two")
    return root


def stored(folder: Path) -> dict[str, bytes]:
    return {name: raw(tensor) for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def test_fused_alone_every_tensor_is_the_fine_tunes(place: Path, tmp_path: Path) -> None:
    pack = open_pack(place / "one")
    codecs = [one for entry in pack.manifest.variants[0].codec.tensors.values() for one in entry.codecs]
    assert "lossless" in codecs
    fused = fuse(place / "base", [pack], tmp_path / "out")
    assert stored(fused) == stored(place / "tuned")


def test_grafted_alone_the_model_is_the_fine_tune_and_ungrafted_the_base(place: Path) -> None:
    model, tuned = load_model(place / "base"), load_model(place / "tuned")
    before = bits(model)
    graft(model, [place / "one"])
    assert bits(model) == bits(tuned)
    graft(model, [place / "two"])
    assert bits(model) != bits(tuned)
    ungraft(model, place / "two")
    assert bits(model) == bits(tuned)
    ungraft(model)
    assert bits(model) == before


def test_with_another_pack_it_adds_what_the_fine_tune_differs_by(place: Path, tmp_path: Path) -> None:
    with_pack = fuse(place / "base", [place / "one", place / "two"], tmp_path / "a", rounding="nearest")
    with_checkpoint = fuse(place / "base", [place / "tuned", place / "two"], tmp_path / "b", rounding="nearest")
    assert stored(with_pack) == stored(with_checkpoint)


def test_half_of_it_is_half_of_the_difference(place: Path, tmp_path: Path) -> None:
    half = fuse(place / "base", [place / "one"], tmp_path / "a", weights=[0.5], rounding="nearest")
    expected = fuse(place / "base", [place / "tuned"], tmp_path / "b", weights=[0.5], rounding="nearest")
    assert stored(half) == stored(expected)


def test_a_model_in_float32_gets_the_fine_tunes_values(tmp_path: Path) -> None:
    base = save_model("llama", tmp_path / "base")
    tuned = tune(base, tmp_path / "tuned")
    pack = build_lossless_pack(tuned, base, tmp_path / "one")
    model = load_model(base).float()
    graft(model, [pack])
    assert bits(model) == bits(load_model(tuned).float())


def test_routed_rows_see_the_fine_tune(place: Path) -> None:
    model, tuned = load_model(place / "base"), load_model(place / "tuned")
    graft(model, [place / "one", place / "two"], mode="routed")
    ids = torch.arange(5, 13)[None]
    with torch.no_grad(), choose(model, "one"):
        found = model(ids).logits.float()
    with torch.no_grad():
        expected = tuned(ids).logits.float()
    assert torch.allclose(found, expected, atol=0.05 * float(expected.abs().max()))


def move_below_bfloat16(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Move one value by less than a fingerprint sees."""
    name = next(name for name in sorted(tensors) if tensors[name].dim() == 2)
    flat = tensors[name].view(-1).view(torch.int32)
    at = int(((flat & 0xFFFF) == 0x4000).int().argmax()) if bool(((flat & 0xFFFF) == 0x4000).any()) else 50
    flat[at] ^= 1
    return tensors


def test_a_base_that_differs_by_less_than_the_fingerprint_sees_is_refused(tmp_path: Path) -> None:
    base = save_model("llama", tmp_path / "base", dtype=torch.float32)
    near = rewrite(base, tmp_path / "near", move_below_bfloat16)
    assert fingerprint_checkpoint(near).fingerprint == fingerprint_checkpoint(base).fingerprint
    pack = build_lossless_pack(tune(base, tmp_path / "tuned"), base, tmp_path / "one")
    with pytest.raises(WrongBaseError, match="bit for bit"):
        fuse(near, [pack], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    model = load_model(near)
    before = bits(model)
    with pytest.raises(WrongBaseError, match="bit for bit") as caught:
        graft(model, [pack])
    assert bits(model) == before and caught.value.exit_code == 5


def test_without_its_base_a_pack_says_what_it_needs(place: Path) -> None:
    pack = open_pack(place / "one")
    delta = open_delta(pack)
    name = next(name for name in delta.names if delta.restores(name))
    with pytest.raises(UsageError, match="takes the base"):
        delta.decode(name)
    with pytest.raises(UsageError, match="takes the base"):
        delta.reader(name)


def test_a_base_at_hand_gives_the_tensor_and_its_difference(place: Path) -> None:
    base, tuned = open_checkpoint(place / "base"), open_checkpoint(place / "tuned")
    delta = open_delta(open_pack(place / "one"), base=base)
    name = next(name for name in delta.names if delta.restores(name))
    assert raw(delta.restored(name)) == raw(tuned.tensor(name))
    assert torch.equal(delta.decode(name), tuned.tensor(name).float() - base.tensor(name).float())
    assert not delta.sets_values(name)


def test_a_tensor_that_decodes_to_something_else_than_promised_is_refused(place: Path, tmp_path: Path) -> None:
    pack = build_lossless_pack(place / "tuned", place / "base", tmp_path / "one")
    base: Checkpoint = open_checkpoint(place / "base")
    delta = open_delta(pack, base=base)
    name = next(name for name in delta.names if delta.restores(name))
    changed = with_entry(pack, name, digest="0" * 64)
    with pytest.raises(IntegrityError, match="promises"):
        open_delta(changed, base=base).restored(name)


def verify(folder: Path, *arguments: str) -> tuple[int, dict[str, Any], str]:
    """Return exit code, JSON and text of ``skillhub verify`` in an environment."""
    runner = CliRunner()
    told = runner.invoke(commands, ["verify", "--environment", str(folder), *arguments])
    as_json = runner.invoke(commands, ["verify", "--environment", str(folder), *arguments, "--json"])
    assert told.exit_code == as_json.exit_code
    return told.exit_code, json.loads(as_json.stdout), " ".join(told.stdout.split())


def test_verify_decodes_what_is_restored_where_the_base_is_at_hand_and_else_says_so(
    place: Path, tmp_path: Path, homes: Path
) -> None:
    pack = build_lossless_pack(place / "tuned", place / "base", tmp_path / "one")
    (tmp_path / "place").mkdir()
    (tmp_path / "place" / "skillhub.toml").touch()
    skillhub.install([str(pack.folder)], base=str(place / "base"), environment=tmp_path / "place", progress=False)
    restored = sum("lossless" in entry.codecs for entry in pack.manifest.variants[0].codec.tensors.values())

    code, told, text = verify(tmp_path / "place")
    assert code == 0 and told["ok"] and "was not checked" in text and "--base" in text
    assert told["restored"][0]["tensors"] == restored and not told["restored"][0]["checked"]
    assert "not in the Hub's cache" in told["restored"][0]["reason"]

    code, told, text = verify(tmp_path / "place", "--base", str(place / "base"))
    assert code == 0 and told["restored"][0]["checked"] and "they are what its manifest says" in text

    code, told, text = verify(tmp_path / "place", "--base", str(place / "tuned"))
    assert code == 0 and not told["restored"][0]["checked"] and "is another base" in text


def test_verify_finds_a_restored_tensor_that_is_not_what_the_manifest_promises(place: Path, tmp_path: Path) -> None:
    pack = build_lossless_pack(place / "tuned", place / "base", tmp_path / "one")
    variant = pack.manifest.variants[0]
    name = next(name for name, entry in variant.codec.tensors.items() if "lossless" in entry.codecs)
    found = check_restored(with_entry(pack, name, digest="0" * 64), variant.base.fingerprint, place / "base")
    assert found is not None and [one.details["tensor"] for one in found.findings] == [name]
    build_pack(place / "tuned", place / "base", tmp_path / "two")
    assert check_restored(open_pack(tmp_path / "two"), variant.base.fingerprint, place / "base") is None
