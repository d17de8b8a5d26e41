"""Merge methods give what mergekit gives, in fp32, where both mean the same (``docs/merging.md`` says where they do not)."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors import safe_open

from skillhub.compose.methods import METHODS, merge_tensors
from tests.golden.make_merge_methods import CASES, FILE, make_inputs, merge_with_mergekit

with safe_open(FILE, "pt") as opened:
    RECORDED: dict[str, Any] = json.loads(opened.metadata()["cases"])
    TENSORS = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118

NOT_IN_MERGEKIT = {"pcb"}


def merge_with_ours(ours: dict[str, Any], base: torch.Tensor, deltas: list[torch.Tensor]) -> torch.Tensor:
    merged = merge_tensors(
        ours["method"],
        deltas,
        base=base,
        weights=ours["weights"],
        densities=ours["densities"],
        options=ours["options"],
    )
    return base + merged


def test_every_method_that_mergekit_has_is_compared():
    assert {ours["method"] for ours in RECORDED.values()} | NOT_IN_MERGEKIT == set(METHODS)


@pytest.mark.parametrize("size", ["6x10", "11"])
@pytest.mark.parametrize("label", RECORDED)
def test_recorded_results_of_mergekit_are_met(label: str, size: str):
    ours = RECORDED[label]
    deltas = [TENSORS[f"{size}/delta {index}"] for index in range(len(ours["weights"]))]
    merged = merge_with_ours(ours, TENSORS[f"{size}/base"], deltas)
    torch.testing.assert_close(merged, TENSORS[f"{size}/{label}"], rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("label", CASES)
def test_mergekit_as_it_is_installed_is_met(label: str, seed: int):
    pytest.importorskip("mergekit")
    chosen = CASES[label]
    base, deltas = make_inputs((37, 53), len(chosen["ours"]["weights"]), seed)
    merged = merge_with_ours(chosen["ours"], base, deltas)
    torch.testing.assert_close(merged, merge_with_mergekit(chosen, base, deltas), rtol=1e-5, atol=1e-5)
