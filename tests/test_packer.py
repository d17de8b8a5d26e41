"""Building packs from checkpoints: what is stored how, and what comes back out of fuse and graft."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from skillhub.authorfile import AuthorFile
from skillhub.compose.fusion import fuse
from skillhub.compose.grafts import graft
from skillhub.deltas import open_delta
from skillhub.packer import pack
from tests.support.tiny_models import load_model, raw, rewrite, save_model, tune

METADATA = AuthorFile(name="tiny-pack", version="1.0.0")
INFINITY, NAN = float("inf"), float("nan")

Tensors = dict[str, torch.Tensor]


def save(folder: Path, tensors: Tensors) -> Path:
    folder.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


def stored(folder: Path) -> dict[str, bytes]:
    return {name: raw(tensor) for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def fused(tmp_path: Path, base: Tensors, tuned: Tensors) -> dict[str, bytes]:
    """Pack the difference of two checkpoints and fuse it into the first."""
    folders = save(tmp_path / "base", base), save(tmp_path / "tuned", tuned)
    built = pack(folders[1], folders[0], tmp_path / "pack", metadata=METADATA)
    return stored(fuse(folders[0], [built], tmp_path / "fused"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("before", [0.5, INFINITY, -INFINITY, NAN])
@pytest.mark.parametrize("after", [1.5, INFINITY, -INFINITY, NAN])
def test_values_that_are_not_finite_come_back_as_they_were(
    tmp_path: Path, dtype: torch.dtype, before: float, after: float
) -> None:
    base = {"w": torch.tensor([1.0, before, 2.0], dtype=dtype), "other": torch.ones(2, dtype=dtype)}
    tuned = {"w": torch.tensor([1.5, after, 2.0], dtype=dtype), "other": torch.ones(2, dtype=dtype)}
    assert fused(tmp_path, base, tuned) == {name: raw(tensor) for name, tensor in tuned.items()}


def test_a_difference_that_fp32_cannot_hold_is_stored_as_the_tuned_values(tmp_path: Path) -> None:
    base, tuned = {"w": torch.tensor([3e38, 1.0])}, {"w": torch.tensor([-3e38, 1.0])}
    assert fused(tmp_path, base, tuned) == {"w": raw(tuned["w"])}


def test_a_model_with_values_that_are_not_finite_is_grafted_to_the_bit(tmp_path: Path) -> None:
    norm = "model.layers.0.input_layernorm.weight"

    def broken(tensors: Tensors) -> Tensors:
        values = tensors[norm].clone()
        values[:3] = torch.tensor([INFINITY, -INFINITY, NAN])
        return {**tensors, norm: values}

    base = rewrite(save_model("llama", tmp_path / "plain"), tmp_path / "base", broken)
    tuned = tune(base, tmp_path / "tuned", only="norm", size=0.05)
    built = pack(tuned, base, tmp_path / "pack", metadata=METADATA)
    assert open_delta(built).sets_values(norm.removeprefix("model."))
    model = load_model(base)
    graft(model, [built])
    assert raw(model.get_parameter(norm)) == stored(tuned)[norm] != stored(base)[norm]
    assert stored(fuse(base, [built], tmp_path / "fused")) == stored(tuned)
