"""How much packs get into each other's way: figures against brute force, advice, picture and the command."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from skillhub.compose.heatmaps import draw_interference
from skillhub.compose.interference import Interference, Overlap, advise, measure_interference, module_of
from skillhub.compose.plans import plan_fusion
from skillhub.errors import UsageError
from tests.support.commands import Shell
from tests.support.tiny_models import build_pack, save_model, tune


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("interference")
    base = save_model("llama", folder / "base")
    tune(base, folder / "tuned1", seed=1, size=0.02)
    tune(base, folder / "tuned2", seed=2, size=0.02, only="layers")
    build_pack(tune(base, folder / "tuned3", seed=3, size=0.05, only="mlp"), base, folder / "pack3", name="pack3")
    return folder


def deltas(place: Path, number: int) -> dict[str, torch.Tensor]:
    tuned, base = (load_file(place / name / "model.safetensors") for name in (f"tuned{number}", "base"))
    return {name: tuned[name].double() - base[name].double() for name in base}


def measured(place: Path, weights: list[float]) -> tuple[Interference, list[int]]:
    sources = [place / "tuned1", place / "tuned2", place / "pack3"]
    plan = plan_fusion(place / "base", sources, weights=weights, reads_base=True)
    found = measure_interference(plan.recipe, plan.contributions, plan.base)
    return found, [int(name[-1]) for name in found.packs]


def test_cosines_and_conflicts_are_those_of_whole_tensors(place: Path):
    weights = {1: 1.0, 2: -0.5, 3: 2.0}
    found, numbers = measured(place, list(weights.values()))
    own = {number: {name: d * weights[number] for name, d in deltas(place, number).items()} for number in numbers}
    for pair in combinations(range(3), 2):
        one, other = (own[numbers[index]] for index in pair)
        flat = [torch.cat([delta.flatten() for delta in side.values()]) for side in (one, other)]
        total = found.total(pair)
        assert total.cosine == pytest.approx(float(torch.cosine_similarity(*flat, dim=0)), abs=1e-6)
        both = (flat[0] != 0) & (flat[1] != 0)
        assert total.shared == int(both.sum())
        assert total.conflicts == int((both & (flat[0].sign() != flat[1].sign())).sum())
        for name in ("model.layers.1.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight"):
            module = found.modules[module_of(name.removeprefix("model."))][pair]
            sides = (one[name].flatten(), other[name].flatten())
            assert module.cosine == pytest.approx(float(torch.cosine_similarity(*sides, dim=0)), abs=1e-6)
    for index, number in enumerate(numbers):
        length = torch.cat([delta.flatten() for delta in own[number].values()]).norm()
        assert found.norms[index] == pytest.approx(float(length), rel=1e-5)


def test_modules_are_told_by_layer_and_name():
    assert module_of("layers.12.self_attn.q_proj.weight") == (12, "self_attn.q_proj")
    assert module_of("h.3.attn.c_attn.bias") == (3, "attn.c_attn")
    assert module_of("encoder.layer.0.output.dense.weight") == (0, "output.dense")
    assert module_of("embed_tokens.weight") == (None, "embed_tokens")


def interference(cosine: float, norms: tuple[float, float] = (1.0, 1.0)) -> Interference:
    product = cosine * norms[0] * norms[1]
    overlap = Overlap(product, (norms[0] ** 2, norms[1] ** 2), 10, 5)
    return Interference(("math", "code"), norms, {(0, "mlp"): {(0, 1): overlap}})


def test_advice_follows_the_figures():
    assert "nearly at right angles" in advise(interference(0.01))
    assert "math and code pull in opposite directions" in advise(interference(-0.3))
    assert "learned much the same" in advise(interference(0.6))
    assert "code changes the weights 5.0 times as much as math" in advise(interference(0.0, (1.0, 5.0)))
    assert "one pack" in advise(Interference(("math",), (1.0,), {}))


def test_the_picture_is_a_png(place: Path, tmp_path: Path):
    pytest.importorskip("matplotlib")
    found, _ = measured(place, [1.0, 1.0, 1.0])
    draw_interference(found, tmp_path / "new" / "map.png")
    assert (tmp_path / "new" / "map.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UsageError, match="PNG"):
        draw_interference(found, tmp_path / "map.jpg")
    with pytest.raises(UsageError, match="No two packs"):
        draw_interference(Interference(("a", "b"), (1.0, 1.0), {}), tmp_path / "map.png")


def test_the_command_plans_measures_and_fuses(place: Path, tmp_path: Path):
    pytest.importorskip("matplotlib")
    shell = Shell(tmp_path)
    amounts = tmp_path / "amounts.toml"
    amounts.write_text(f'["{place / "pack3"}"]\nweight = {{ mlp = [0.0, 1.0], "" = 0.5 }}\n')
    arguments = ["fuse", "--base", place / "base", "--pack", f"{place / 'tuned1'}@0.5", "--pack", place / "pack3"]
    plan = shell.json(*arguments, "--plan", "--weights", amounts, "--method", "ties", "--density", "0.5")
    assert plan["problems"] == [] and plan["base_verified"] is False and plan["passes"] > 1
    told = shell.succeed(*arguments, "--plan")
    lines = [line for line in told.splitlines() if not line.startswith("base ")]  # a path is as long as it is
    assert "not hashed yet" in told and max(map(len, lines)) <= 80
    found = shell.json(*arguments, "--interference", tmp_path / "map.png", "-o", tmp_path / "out", "--dtype", "float32")
    (pair,) = found["interference"]["pairs"]
    assert abs(pair["cosine"]) < 0.2 and found["advice"] and (tmp_path / "map.png").is_file()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"
    assert "Name a new folder with -o" in shell.fail(2, *arguments)
    assert "no option" in shell.fail(2, *arguments, "--option", "x=1", "--plan")
    assert "which no --pack names" in shell.fail(2, *arguments[:-2], "--plan", "--weights", amounts)
    refused = shell.run("fuse", "--base", place / "base", "--pack", tmp_path / "map.png", "--plan")
    assert refused.returncode == 4
