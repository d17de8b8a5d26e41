"""How two checkpoints differ: figures against numpy, sizes against packs that are built, the picture and the command."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from skillhub.authorfile import AuthorFile
from skillhub.canonical import canonical_names
from skillhub.cli.packing import module_class
from skillhub.differencemaps import draw_difference
from skillhub.differences import Difference, TensorDifference, add_up, compare_checkpoints
from skillhub.errors import UsageError, WrongBaseError
from skillhub.packer import pack
from tests.support.commands import Shell
from tests.support.tiny_models import rewrite, save_model, tune

WIDE = {"hidden_size": 96, "intermediate_size": 160}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("differences")
    base = save_model("llama", folder / "base", **WIDE)
    tune(base, folder / "tuned", size=0.02, only="layers")
    return folder


@pytest.fixture(scope="module")
def found(place: Path) -> Difference:
    return compare_checkpoints(place / "base", place / "tuned")


def arrays(folder: Path) -> dict[str, np.ndarray]:
    """Return a checkpoint's tensors as fp32 by canonical name."""
    tensors = load_file(folder / "model.safetensors")
    names = canonical_names({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    return {names[name]: tensor.float().numpy() for name, tensor in tensors.items()}


def rank_by_svd(change: np.ndarray) -> int:
    energies = np.square(np.linalg.svd(change.astype(np.float64), compute_uv=False))
    held = 0.0
    for rank, energy in enumerate(energies, 1):
        held += energy
        if held >= 0.9 * energies.sum():
            return rank
    raise AssertionError("no rank holds all of it")


def only(found: Difference, name: str) -> TensorDifference:
    return next(one for one in found.tensors if one.name == name)


def test_every_tensor_is_measured_as_numpy_would(place: Path, found: Difference) -> None:
    base, tuned = arrays(place / "base"), arrays(place / "tuned")
    assert [one.name for one in found.tensors] == sorted(base)
    for one in found.tensors:
        change = tuned[one.name].astype(np.float64) - base[one.name]
        assert one.elements == change.size
        assert one.changed == np.count_nonzero(base[one.name].view(np.uint32) != tuned[one.name].view(np.uint32))
        assert one.change == ("changed" if "layers" in one.name else "unchanged")
        assert one.squared_norm == pytest.approx(np.square(change).sum(), rel=1e-5)
        assert one.base_squared_norm == pytest.approx(np.square(base[one.name].astype(np.float64)).sum(), rel=1e-5)
        is_changed_matrix = change.ndim == 2 and change.any()
        assert one.rank == (rank_by_svd(change) if is_changed_matrix else None)
        assert one.full_rank == (min(change.shape) if is_changed_matrix else None)
    assert not found.is_empty


def test_classes_add_up_to_the_whole(place: Path, found: Difference) -> None:
    base, tuned = arrays(place / "base"), arrays(place / "tuned")
    classes, total = found.by(module_class), found.total()
    names = [name for name in base if ".q_proj" in name]
    assert classes["self_attn.q_proj"].tensors == len(names) == 2
    changes = [tuned[name].astype(np.float64) - base[name] for name in names]
    assert classes["self_attn.q_proj"].norm == pytest.approx(np.sqrt(sum(np.square(one).sum() for one in changes)))
    assert classes["self_attn.q_proj"].rank == min(map(rank_by_svd, changes))
    assert total.elements == sum(one.size for one in base.values()) == sum(one.elements for one in classes.values())
    assert total.changed == sum(one.changed for one in classes.values())
    assert total.norm == pytest.approx(np.sqrt(sum(one.norm**2 for one in classes.values())))
    assert total.size == sum(one.size or 0 for one in classes.values())


def test_the_predicted_sizes_are_those_of_a_pack(place: Path, found: Difference, tmp_path: Path) -> None:
    built = pack(place / "tuned", place / "base", tmp_path / "pack", metadata=AuthorFile(name="one", version="1.0"))
    entries = built.only_variant().codec.tensors
    predicted = {one.name: one.size or 0 for one in found.tensors if one.change != "unchanged"}
    assert set(predicted) == set(entries)
    # The packer encodes again at a higher price where its own estimate was too low; of noise in a model so small that drops half of the components.
    size = sum(entry.bytes for entry in entries.values())
    assert 0.8 * size <= sum(predicted.values()) <= 2.5 * size
    vectors = [name for name in predicted if "layernorm" in name]
    assert vectors and all(predicted[name] == entries[name].bytes for name in vectors)


def test_only_what_has_other_bits_counts_as_changed(place: Path, tmp_path: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        weight = tensors["model.layers.0.mlp.up_proj.weight"]
        weight[3, 5:8] += 1.0
        return tensors

    found = compare_checkpoints(place / "base", rewrite(place / "base", tmp_path / "tuned", change))
    assert found.total().changed == 3
    assert [one.name for one in found.with_change("changed")] == ["layers.0.mlp.up_proj.weight"]
    assert only(found, "layers.0.mlp.up_proj.weight").rank == 1


def test_a_save_in_a_narrower_dtype_changes_nothing(place: Path, tmp_path: Path) -> None:
    def widen(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: tensor.float() for name, tensor in tensors.items()}

    wide = rewrite(place / "base", tmp_path / "wide", widen)
    assert compare_checkpoints(wide, place / "base").is_empty
    with_noise = rewrite(wide, tmp_path / "noisy", lambda tensors: {n: t + 1e-6 for n, t in tensors.items()})
    found = compare_checkpoints(place / "base", with_noise, quick=True)
    assert found.total().changed > 0


def test_added_removed_resized_and_replaced_tensors_are_told(place: Path, tmp_path: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors["model.embed_tokens.weight"] = torch.cat(
            [tensors["model.embed_tokens.weight"], torch.ones(3, 96).bfloat16()]
        )
        tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.nan
        tensors["extra.weight"] = torch.ones(5)
        del tensors["model.norm.weight"]
        return tensors

    found = compare_checkpoints(place / "base", rewrite(place / "tuned", tmp_path / "changed", change))
    changes = {one.change: one.name for one in found.tensors if one.change not in ("changed", "unchanged")}
    assert changes == {
        "added": "extra.weight",
        "removed": "norm.weight",
        "resized": "embed_tokens.weight",
        "replaced": "layers.1.mlp.up_proj.weight",
    }
    resized = only(found, "embed_tokens.weight")
    assert (resized.changed, resized.squared_norm, resized.rank) == (3 * 96, 0.0, None)
    assert resized.size is not None and resized.size > 0
    assert (only(found, "extra.weight").changed, only(found, "norm.weight").changed) == (5, 96)
    assert only(found, "norm.weight").size == 0
    replaced = only(found, "layers.1.mlp.up_proj.weight")
    assert 0 < replaced.changed <= replaced.elements and (replaced.squared_norm, replaced.rank) == (0.0, None)


def test_a_quick_comparison_has_neither_ranks_nor_sizes(place: Path, found: Difference) -> None:
    quick = compare_checkpoints(place / "base", place / "tuned", quick=True)
    assert all(one.rank is None and one.size is None for one in quick.tensors)
    assert (quick.total().changed, quick.total().norm) == (found.total().changed, found.total().norm)


def test_totals_of_nothing_divide_by_nothing() -> None:
    total = add_up([])
    assert (total.changed_share, total.relative_norm, total.rank, total.size) == (0.0, None, None, None)


def test_what_is_no_pair_of_base_and_fine_tune_is_refused(place: Path, tmp_path: Path) -> None:
    wider = save_model("llama", tmp_path / "wider", hidden_size=64)
    with pytest.raises(WrongBaseError, match=r"LlamaForCausalLM.* is \[.*\] in the one and \[.*\] in the other"):
        compare_checkpoints(place / "base", wider)
    other = save_model("bert", tmp_path / "other")
    with pytest.raises(UsageError, match="no tensor in common"):
        compare_checkpoints(place / "base", other)


def test_progress_reaches_the_last_tensor(place: Path) -> None:
    told: list[tuple[str, int, int]] = []
    compare_checkpoints(place / "base", place / "tuned", quick=True, progress=lambda *step: told.append(step))
    count = len(arrays(place / "base"))
    assert told == [("Comparing", done, count) for done in range(1, count + 1)]


def test_the_picture_is_a_png_of_every_kind_of_difference(place: Path, found: Difference, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    quick = compare_checkpoints(place / "base", place / "tuned", quick=True)
    for number, difference in enumerate((found, quick, Difference(1, (TensorDifference("a.weight", "added", 4, 4),)))):
        draw_difference(difference, tmp_path / "maps" / f"{number}.png")
        assert (tmp_path / "maps" / f"{number}.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UsageError, match="PNG"):
        draw_difference(found, tmp_path / "map.pdf")


def test_the_command_prints_a_table_of_80_columns(place: Path, tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    printed = shell.succeed("diff", place / "base", place / "tuned", "--heat-map", tmp_path / "map.png")
    assert max(map(len, printed.splitlines())) <= 80 or str(tmp_path) in printed
    for words in (
        "self_attn.q_proj",
        "Relative",
        "Unchanged: embed_tokens, lm_head, norm.",
        "A pack of it takes about",
    ):
        assert words in printed
    assert (tmp_path / "map.png").is_file()
    quick = shell.succeed("diff", place / "base", place / "tuned", "--quick")
    assert "Rank" not in quick and "Pack" not in quick and "self_attn.q_proj" in quick


def test_the_command_says_as_json_what_the_library_found(place: Path, found: Difference, tmp_path: Path) -> None:
    told = Shell(tmp_path).json("diff", place / "base", place / "tuned")
    assert told["total"]["changed"] == found.total().changed
    assert told["total"]["size"] == found.total().size
    assert told["classes"]["mlp.up_proj"]["relative_norm"] == found.by(module_class)["mlp.up_proj"].relative_norm
    assert (told["same"], told["added"], told["picture"]) == (False, [], None)


def test_the_command_says_that_there_is_no_difference(place: Path, tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    picture = tmp_path / "map.png"
    assert "have the same weights" in shell.succeed("diff", place / "base", place / "base", "--heat-map", picture)
    assert not picture.exists()
    assert shell.json("diff", place / "base", place / "base")["same"]


def test_the_command_refuses_what_it_cannot_compare(place: Path, tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    assert "no tensor in common" in shell.fail(2, "diff", place / "base", save_model("bert", tmp_path / "other"))
    wider = save_model("llama", tmp_path / "wider", hidden_size=64)
    assert "cannot be compared" in shell.fail(5, "diff", place / "base", wider)
    assert "nowhere" in shell.fail(4, "diff", place / "base", tmp_path / "nowhere")
    assert ".png" in shell.fail(2, "diff", place / "base", place / "tuned", "--heat-map", "map.pdf")
