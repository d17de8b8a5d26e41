"""Fitting scales: its first step goes where finite differences of the divergence say that it falls."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
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
    monkeypatch.setattr(distillation, "LARGEST_RATE", 1.0)
    ones = {name: np.ones(2) for name in FITTED}
    start = packed(place, factors, ones)
    found = fit_scales(place / "tuned", place / "base", ROWS, start.items(), factors, tmp_path)
    assert found.keys() == set(FITTED)
    without = packed(place, factors, {name: np.zeros(2) for name in FITTED})
    rate = 0.53 * (divergence(place, start) / divergence(place, without)) ** 0.5
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


class Ruling(torch.nn.Module):
    """A model that rules half of its vocabulary out, by infinity or by a number that half precision does not have."""

    device = torch.device("cpu")

    def __init__(self, least: float, shift: float) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(torch.tensor([0.0, shift, least, least]))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.logits.expand(*input_ids.shape, 4))


@pytest.mark.parametrize("least", [-math.inf, -1e9])
def test_tokens_that_are_ruled_out_do_not_count(least: float) -> None:
    group = distillation._groups([Row((0, 1, 1), 1)], 0)[0]
    with torch.no_grad():
        expected = distillation._Lesson(Ruling(least, 1.0), True).predict(group).clamp_min(distillation.LEAST).half()
    model = Ruling(least, 0.5)
    loss = distillation._Lesson(model, True).loss(group, expected)
    loss.backward()
    exact, found = (np.array([1.0, math.exp(shift)]) / (1 + math.exp(shift)) for shift in (1.0, 0.5))
    assert float(loss.detach()) == pytest.approx(float((exact * np.log(exact / found)).sum()), rel=1e-2)
    assert model.logits.grad is not None
    assert model.logits.grad[:2].tolist() == pytest.approx((found - exact).tolist(), rel=1e-2)


@pytest.mark.parametrize(
    ("step", "share", "rate"),
    [
        (0, 0.01, 0.053),
        (0, 1.0, 0.1),
        (0, -1e-9, 0.0),
        (32, 0.01, 0.0265),
        (63, 1.0, 0.1 * (1 - math.cos(math.pi / 64)) / 2),
    ],
)
def test_the_rate_follows_the_divergence_and_the_steps(step: int, share: float, rate: float) -> None:
    fit = distillation._Fit(torch.zeros(2, 2), torch.eye(2), torch.eye(2))
    fit.gradient += torch.tensor([3.0, -0.5])
    fit.improve(step, share)
    # One gradient is a tenth of its own mean and a twentieth of that of squares, before they are put right for so many steps.
    ratio = 0.1 / (1 - 0.9 ** (step + 1)) / math.sqrt(0.05 / (1 - 0.95 ** (step + 1)))
    assert fit.gains.log().tolist() == pytest.approx([-rate * ratio, rate * ratio], rel=1e-4, abs=1e-7)
    assert torch.allclose(fit.weight, torch.diag(fit.gains - 1))


@pytest.mark.parametrize("gradient", [0.0, 1e-30, -1e-25, 1e-18, 1e15])
def test_gains_stay_positive_numbers(gradient: float) -> None:
    fit = distillation._Fit(torch.zeros(1, 1), torch.ones(1, 1), torch.ones(1, 1))
    for step in range(distillation.STEPS):
        fit.gradient += gradient
        fit.improve(step, 100.0)
    assert 1 / 40 < float(fit.gains) < 40
