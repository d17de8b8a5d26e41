"""Fitting scales: its first step goes where finite differences of the divergence say that it falls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from skillhub.calibration import distillation
from skillhub.calibration.distillation import fit_scales
from skillhub.calibration.texts import Row
from skillhub.checkpoints import open_checkpoint
from skillhub.codecs.lowrank import Factors
from tests.routing_examples import save_base, tuned

FITTED = ("embed_tokens.weight", "layers.3.self_attn.v_proj.weight", "layers.7.mlp.down_proj.weight")
ROWS = [Row((6, 40, 41, 42, 43), 3), Row((6, 50, 51, 9, 8, 7, 60), 2), Row((6, 70, 71), 1, 0.3)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tuned(save_base(folder / "base"), folder / "tuned", seed=3)
    return folder


@pytest.fixture(scope="module")
def factors(place: Path) -> dict[str, Factors]:
    """Two components of each fitted tensor's delta, as if an encoding had kept those."""
    base, fine_tune = (open_checkpoint(place / name) for name in ("base", "tuned"))
    found = {}
    for name in FITTED:
        left, values, right = torch.linalg.svd(fine_tune.tensor(name).float() - base.tensor(name).float())
        found[name] = Factors((left[:, :2] * values[:2]).T.numpy().copy(), right[:2].numpy().copy(), (2,))
    return found


def packed(place: Path, factors: dict[str, Factors], gains: dict[str, Any]) -> dict[str, torch.Tensor]:
    base = open_checkpoint(place / "base")
    return {
        name: base.tensor(name).float() + torch.from_numpy((one.left * gains[name][:, None]).T @ one.right).float()
        for name, one in factors.items()
    }


def divergence(place: Path, tensors: dict[str, torch.Tensor]) -> float:
    """The mean over what is predicted, row by row and in fp64."""
    import transformers

    models = [transformers.AutoModelForCausalLM.from_pretrained(place / "tuned").double() for _ in range(2)]
    for name, tensor in tensors.items():
        models[1].model.get_parameter(name).data.copy_(tensor)
    total = weights = 0.0
    for row in ROWS:
        with torch.no_grad():
            exact, found = (model(torch.tensor([row.tokens])).logits[0, row.answer - 1 : -1] for model in models)
        exact, found = exact.log_softmax(-1), found.log_softmax(-1)
        total += row.weight**2 * float((exact.exp() * (exact - found)).sum())
        weights += row.weight**2 * len(exact)
    return total / weights


def test_the_first_step_goes_down_the_divergence(
    place: Path, factors: dict[str, Factors], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distillation, "STEPS", 1)
    ones = {name: np.ones(2) for name in FITTED}
    start = packed(place, factors, ones)
    found = fit_scales(place / "tuned", place / "base", ROWS, start.items(), factors, tmp_path)
    assert found.keys() == set(FITTED)
    rate = min(0.3 * divergence(place, start) ** 0.5, 0.1)
    for name in FITTED:
        for component in range(2):
            shifted = {one: values.copy() for one, values in ones.items()}
            shifted[name][component] += 1e-3
            slope = divergence(place, packed(place, factors, shifted)) - divergence(place, start)
            assert np.sign(found[name][component] - 1) == -np.sign(slope), (name, component)
            assert abs(np.log(found[name][component])) == pytest.approx(
                rate, rel=1e-2
            )  # what is predicted is kept in fp16


def test_fitting_brings_the_predictions_nearer(place: Path, factors: dict[str, Factors], tmp_path: Path) -> None:
    ones = {name: np.ones(2) for name in FITTED}
    start = packed(place, factors, {name: 0.9 * one for name, one in ones.items()})
    shrunk = {name: Factors(0.9 * one.left, one.right, one.groups) for name, one in factors.items()}
    told: list[tuple[str, int, int]] = []
    files = place / "tuned", place / "base"
    found = fit_scales(*files, ROWS, start.items(), shrunk, tmp_path, lambda *what: told.append(what))
    assert divergence(place, packed(place, shrunk, found)) < 0.98 * divergence(place, start)
    assert told[-1] == ("fitting scales", distillation.STEPS, distillation.STEPS)
    assert not list(tmp_path.iterdir())
