"""Merge methods: how the deltas of several packs become one delta, as pure functions over fp32 tensors.

A method sees one tensor at a time: the deltas of the packs that change it, and the base's tensor. What it returns is added to the
base's tensor in fp32 and rounded once, so no method knows about dtypes or rounding. A new method is a module of functions and a
row of :data:`METHODS`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from skillhub.compose.methods.breadcrumbs import BREADCRUMBS, BREADCRUMBS_TIES
from skillhub.compose.methods.dare import DARE_LINEAR, DARE_TIES
from skillhub.compose.methods.della import DELLA, DELLA_LINEAR
from skillhub.compose.methods.interface import MergeInputs, MergeMethod, Option
from skillhub.compose.methods.linear import LINEAR
from skillhub.compose.methods.nuslerp import NUSLERP
from skillhub.compose.methods.pcb import PCB
from skillhub.compose.methods.ram import RAM, RAM_PLUS
from skillhub.compose.methods.sce import SCE
from skillhub.compose.methods.single import ARCEE_FUSION, NEARSWAP, PASSTHROUGH
from skillhub.compose.methods.spherical import KARCHER, MULTISLERP, SLERP
from skillhub.compose.methods.stock import MODEL_STOCK
from skillhub.compose.methods.ties import TIES
from skillhub.errors import UsageError
from skillhub.rounding import rounding_key
from skillhub.tensorreaders import MemoryReader

__all__ = ["METHODS", "MergeInputs", "MergeMethod", "Option", "find_method", "merge_tensors"]

METHODS: dict[str, MergeMethod] = {
    method.name: method
    for method in (
        LINEAR,
        TIES,
        DARE_LINEAR,
        DARE_TIES,
        DELLA,
        DELLA_LINEAR,
        BREADCRUMBS,
        BREADCRUMBS_TIES,
        SCE,
        PCB,
        RAM,
        RAM_PLUS,
        MODEL_STOCK,
        KARCHER,
        MULTISLERP,
        NUSLERP,
        SLERP,
        NEARSWAP,
        ARCEE_FUSION,
        PASSTHROUGH,
    )
}
"""Name → merge method."""


def find_method(name: str) -> MergeMethod:
    """Return the merge method called ``name``.

    Raises:
        UsageError: there is none.
    """
    if name not in METHODS:
        raise UsageError(f"There is no merge method {name!r}.", hint=f"Use one of: {', '.join(METHODS)}.")
    return METHODS[name]


def merge_tensors(
    method: str,
    deltas: Sequence[torch.Tensor],
    *,
    base: torch.Tensor | None = None,
    weights: Sequence[float] | None = None,
    densities: Sequence[float] | None = None,
    options: Mapping[str, float] | None = None,
    seed: int = 0,
) -> torch.Tensor:
    """Merge the deltas of one tensor that are in memory.

    Args:
        method: name of the method.
        deltas: at least one, fp32, of one shape, on one device; not modified.
        base: the base's tensor, fp32; None counts as zeros.
        weights: one per delta; 1 by default.
        densities: one per delta; 1 by default.
        options: of the method; its defaults where nothing is said.
        seed: of random masks.

    Returns:
        The merged delta, fp32, of the deltas' shape.

    Raises:
        UsageError: there is no such method, or it takes another number of packs.
    """
    found = find_method(method)
    found.check_members(len(deltas))
    defaults = {name: option.default for name, option in found.options.items()}
    inputs = MergeInputs(
        name="",
        base=None if base is None else MemoryReader(base),
        deltas=[MemoryReader(delta) for delta in deltas],
        weights=weights or [1.0] * len(deltas),
        densities=densities or [1.0] * len(deltas),
        options={**defaults, **(options or {})},
        keys=[rounding_key([str(seed), str(index)], "") for index in range(len(deltas))],
        device=None if deltas[0].device.type == "cpu" else deltas[0].device,
    )
    measured = found.begin(inputs)
    merged = [found.merge(inputs, chunk, measured) for chunk in inputs.chunks()]
    return torch.cat(merged).reshape(deltas[0].shape) if merged else deltas[0].clone()
