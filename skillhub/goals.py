"""What an author asks of a pack: a preset, a size, or a published recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from skillhub.checkpoints import Checkpoint
from skillhub.deltaencoding import DeltaEncoder, write_within
from skillhub.deltafiles import DeltaWriter
from skillhub.errors import UsageError
from skillhub.manifest import TensorEntry
from skillhub.recipes import RECIPES, ChosenRecipe, choose_recipe

SIZES = {"near": 45, "small": 75, "tiny": 170}
"""Preset → how many times smaller than the base's stored weights the payload is to be."""

LOSSLESS = "lossless"
"""The preset whose packs restore the fine-tune bit for bit."""

PRESETS = (LOSSLESS, *SIZES, *sorted(RECIPES))
"""All presets that a pack can be built by."""


@dataclass(frozen=True)
class Goal:
    """What a pack is to be.

    Attributes:
        preset: what the manifest is to call it: one of :data:`PRESETS`, or ``budget``.
        budget: bytes of payload at most; None where the preset decides.
        recipe: the published recipe that the preset is.
    """

    preset: str
    budget: int | None = None
    recipe: ChosenRecipe | None = None

    @property
    def is_calibrated(self) -> bool:
        """Whether it matters what the fine-tune's layers see of prompts."""
        return self.preset != LOSSLESS and (self.recipe is None or self.recipe.is_calibrated)

    @property
    def facts(self) -> dict[str, str]:
        """What a manifest's provenance says of it: options that are not those of a recipe's paper."""
        told = self.recipe.told if self.recipe else {}
        return {"recipe_options": ", ".join(f"{name}={value:g}" for name, value in told.items())} if told else {}


def choose_goal(preset: str, budget: int | None = None, recipe_options: Mapping[str, object] | None = None) -> Goal:
    """Return what a pack is to be.

    Args:
        preset: one of :data:`PRESETS`.
        budget: bytes of payload, instead of a preset's.
        recipe_options: of a recipe, as for :func:`skillhub.recipes.choose_recipe`.

    Raises:
        UsageError: there is no such preset or option of it, or what was given does not go together.
    """
    if preset not in PRESETS:
        raise UsageError(f"There is no preset {preset!r}.", hint=f"Choose one of {', '.join(PRESETS)}.")
    if budget is not None and preset not in SIZES:
        raise UsageError(f"The preset {preset} has no size to choose.", hint="Give a preset or a budget, not both.")
    if preset in RECIPES:
        return Goal(preset, recipe=choose_recipe(preset, recipe_options))
    if recipe_options:
        raise UsageError(
            "Recipe options say how a published recipe compresses, and none was chosen.",
            hint=f"Leave them out, or choose one of the presets {', '.join(sorted(RECIPES))}.",
        )
    return Goal(preset) if budget is None else Goal("budget", budget)


def write_tensors(goal: Goal, encoder: DeltaEncoder, folder: Path) -> dict[str, TensorEntry]:
    """Encode every changed tensor into a variant's folder as a goal asks; return what the manifest says of each.

    Raises:
        UsageError: what must be stored exactly is larger than the budget.
    """
    if goal.recipe:
        return encoder.encode_by(goal.recipe.compress, DeltaWriter(folder))
    if goal.preset == LOSSLESS:
        return encoder.encode_losslessly(DeltaWriter(folder))
    if goal.budget is not None:
        return write_within(encoder, folder, goal.budget, may_grow=False)
    return write_within(encoder, folder, stored_bytes(encoder.delta.base) // SIZES[goal.preset], may_grow=True)


def stored_bytes(base: Checkpoint) -> int:
    """Return the bytes of a checkpoint's tensors, as they are stored."""
    return sum(info.nbytes for info in base.tensors.values())
