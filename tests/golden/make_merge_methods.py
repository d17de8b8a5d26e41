"""Makes ``merge_methods.safetensors``: what mergekit 0.1.5 computes of a few small tensors, for ``test_compose_methods_parity.py``.

Run where mergekit is installed: ``python -m tests.golden.make_merge_methods``. Random masks are skillhub's, so that both drop the same elements.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from skillhub.compose.methods.masks import uniforms
from skillhub.rounding import rounding_key

FILE = Path(__file__).parent / "merge_methods.safetensors"

Case = dict[str, Any]
"""ours: method, options, weights, densities; theirs: method, parameters, base (whether it is among the inputs)."""

WEIGHTS, DENSITIES = [1.0, 0.5, 1.5], [0.3, 0.5, 0.8]
ALL_OF_THEM = {"normalize": 0, "mean": 0}


def case(
    ours: str,
    theirs: str,
    options: dict[str, float],
    parameters: dict[str, Any],
    *,
    packs: int = 3,
    weighted: bool = True,
    dense: bool = True,
    base: bool = True,
) -> Case:
    weights = WEIGHTS[:packs] if weighted else [1.0] * packs
    densities = [1.0] * packs if dense else DENSITIES[:packs]
    return {
        "ours": {"method": ours, "options": options, "weights": weights, "densities": densities},
        "theirs": {"method": theirs, "parameters": parameters, "base": base},
    }


CASES: dict[str, Case] = {
    "task arithmetic": case("linear", "task_arithmetic", {}, {}),
    "task arithmetic, normalized": case("linear", "task_arithmetic", {"normalize": 1}, {"normalize": True}),
    "task arithmetic, scaled": case("linear", "task_arithmetic", {"lambda": 0.7}, {"lambda": 0.7}),
    "models, averaged": case("linear", "linear", {"normalize": 1}, {}, base=False),
    "ties": case("ties", "ties", {"normalize": 1}, {}, dense=False),
    "ties, summed": case("ties", "ties", ALL_OF_THEM, {"normalize": False}, dense=False),
    "ties, rescaled": case("ties", "ties", {"normalize": 1, "keep_norm": 1}, {"rescale": True}, dense=False),
    "dare": case("dare_linear", "dare_linear", {"keep_norm": 1}, {}, dense=False),
    "dare, as it is": case("dare_linear", "dare_linear", {"rescale": 0}, {"rescale": False}, dense=False),
    "dare and ties": case("dare_ties", "dare_ties", {**ALL_OF_THEM, "keep_norm": 1}, {}, dense=False),
    "della": case("della", "della", {"normalize": 1, "keep_norm": 1}, {}, dense=False),
    "della, wide": case(
        "della_linear", "della_linear", {"keep_norm": 1, "epsilon": 0.19}, {"epsilon": 0.19}, dense=False
    ),
    "breadcrumbs": case("breadcrumbs", "breadcrumbs", {"gamma": 0.1}, {"gamma": 0.1}, dense=False),
    "breadcrumbs and ties": case(
        "breadcrumbs_ties", "breadcrumbs_ties", {**ALL_OF_THEM, "gamma": 0.3}, {"gamma": 0.3}, dense=False
    ),
    "sce": case("sce", "sce", {"select_topk": 0.4}, {"select_topk": 0.4}, weighted=False),
    "sce, all": case("sce", "sce", {}, {}, weighted=False),
    "ram": case("ram", "ram", {"epsilon": 0.2}, {"epsilon": 0.2}, weighted=False),
    "ram plus": case(
        "ram_plus",
        "ramplus_tl",
        {"epsilon": 0.5, "r": 0.3, "alpha": 2},
        {"epsilon": 0.5, "r": 0.3, "alpha": 2.0},
        weighted=False,
    ),
    "model stock": case("model_stock", "model_stock", {}, {}, weighted=False),
    "model stock by filter": case(
        "model_stock", "model_stock", {"filter_wise": 1}, {"filter_wise": True}, weighted=False
    ),
    "slerp": case("slerp", "slerp", {"t": 0.3}, {"t": 0.3}, packs=1, weighted=False),
    "nuslerp": case("nuslerp", "nuslerp", {}, {}, packs=2),
    "nuslerp of models": case("nuslerp", "nuslerp", {"models": 1}, {}, packs=2, base=False),
    "nuslerp by row": case("nuslerp", "nuslerp", {"per_row": 1}, {"nuslerp_flatten": False}, packs=2),
    "nuslerp by column": case(
        "nuslerp",
        "nuslerp",
        {"per_column": 1},
        {"nuslerp_flatten": False, "nuslerp_row_wise": True},
        packs=2,
    ),
    "multislerp": case("multislerp", "multislerp", {}, {}),
    "multislerp, not normalized": case("multislerp", "multislerp", {"normalize": 0}, {"normalize_weights": False}),
    "multislerp of models": case("multislerp", "multislerp", {"models": 1}, {}, base=False),
    "karcher": case("karcher", "karcher", {}, {}, weighted=False, base=False),
    "nearswap": case("nearswap", "nearswap", {"t": 0.2}, {"t": 0.2}, packs=1, weighted=False),
    "arcee fusion": case("arcee_fusion", "arcee_fusion", {}, {}, packs=1, weighted=False),
    "passthrough": case(
        "passthrough", "passthrough", {"scale": 0.6}, {"scale": 0.6}, packs=1, weighted=False, base=False
    ),
}

WEIGHTLESS = ("karcher", "passthrough", "slerp", "nearswap", "arcee_fusion", "model_stock", "sce", "ram", "ramplus_tl")


def make_inputs(shape: tuple[int, ...], packs: int, seed: int = 0) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return a base and some deltas that partly agree."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator)
    shared = torch.randn(shape, generator=generator)
    return base, [0.5 * shared + torch.randn(shape, generator=generator) * 0.7 for _ in range(packs)]


def merge_with_mergekit(chosen: Case, base: torch.Tensor, deltas: list[torch.Tensor]) -> torch.Tensor:
    """Return the merged tensor as mergekit computes it, with skillhub's masks."""
    from mergekit.merge_methods.api import merge_tensors

    ours, theirs = chosen["ours"], chosen["theirs"]
    models = [base + delta for delta in deltas]
    parameters = dict(theirs["parameters"])
    if theirs["method"] not in WEIGHTLESS:
        parameters["weight"] = ours["weights"]
    if any(density < 1 for density in ours["densities"]):
        parameters["density"] = ours["densities"]
    inputs = [base, *models] if theirs["base"] else models
    with skillhub_masks(base.numel()):
        result: torch.Tensor = merge_tensors(
            inputs, theirs["method"], parameters=parameters, base_index=0 if theirs["base"] else None
        )
    return result


@contextmanager
def skillhub_masks(elements: int) -> Iterator[None]:
    """Let ``torch.bernoulli`` draw what skillhub draws for one pack after the other, with the seed 0."""
    original, drawn = torch.bernoulli, iter(range(100))

    def bernoulli(probabilities: torch.Tensor) -> torch.Tensor:
        key = rounding_key(["0", str(next(drawn))], "")
        random = uniforms(0, elements, key).reshape(probabilities.shape)
        return (random < probabilities).to(probabilities.dtype)

    torch.bernoulli = bernoulli
    try:
        yield
    finally:
        torch.bernoulli = original


def main() -> None:
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {}
    for shape in ((6, 10), (11,)):
        base, deltas = make_inputs(shape, 3)
        size = "x".join(map(str, shape))
        tensors[f"{size}/base"] = base
        tensors.update({f"{size}/delta {index}": delta for index, delta in enumerate(deltas)})
        for label, chosen in CASES.items():
            packs = len(chosen["ours"]["weights"])
            tensors[f"{size}/{label}"] = merge_with_mergekit(chosen, base, deltas[:packs]).contiguous()
    ours = {label: chosen["ours"] for label, chosen in CASES.items()}
    save_file(tensors, FILE, metadata={"mergekit": "0.1.5", "cases": json.dumps(ours)})


if __name__ == "__main__":
    main()
