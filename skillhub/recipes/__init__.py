"""Published recipes for compressing deltas, as honest baselines: what their papers describe, really packed, in our container.

One file a recipe, each with a ``compress`` of one tensor; :data:`RECIPES` has them by the names of their presets, with the options of their
papers. :mod:`.choosing` makes of them presets for whole models: with other options, and with what each paper leaves as it is.
"""

from __future__ import annotations

from skillhub.recipes import bitdelta, deltacome, graftllm, svdlora
from skillhub.recipes.choosing import ChosenRecipe, choose_recipe
from skillhub.recipes.encoding import Compressed, Recipe

__all__ = ["RECIPES", "ChosenRecipe", "Compressed", "Recipe", "choose_recipe"]

RECIPES: dict[str, Recipe] = {
    "bitdelta": bitdelta.compress,
    "delta-come": deltacome.compress,
    "graftllm": graftllm.compress,
    "svd-lora": svdlora.compress,
}
"""Preset name → the recipe with its paper's options."""
