"""Published recipes for compressing deltas, as honest baselines: what their papers describe, really packed, in our container.

One file a recipe, each with a ``compress``; :data:`RECIPES` has them by the names of their presets, with the options of their papers. They
compress the matrices that their papers compress; which other codec takes the embeddings is for the caller to decide.
"""

from __future__ import annotations

from skillhub.recipes import bitdelta, deltacome, graftllm, svdlora
from skillhub.recipes.encoding import Compressed, Recipe

__all__ = ["RECIPES", "Compressed", "Recipe"]

RECIPES: dict[str, Recipe] = {
    "bitdelta": bitdelta.compress,
    "delta-come": deltacome.compress,
    "graftllm": graftllm.compress,
    "svd-lora": svdlora.compress,
}
"""Preset name → the recipe with its paper's options."""
