"""What an author asks of a pack: a preset, a size, a nearness to the fine-tune, or a published recipe."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from skillhub.budgets import write_within
from skillhub.checkpoints import Checkpoint
from skillhub.deltaencoding import DeltaEncoder
from skillhub.deltafiles import DeltaWriter
from skillhub.errors import UsageError
from skillhub.manifest import TensorEntry
from skillhub.recipes import RECIPES, ChosenRecipe, choose_recipe

SIZES = {"near": 45, "small": 75, "tiny": 176}
"""Preset → how many times smaller than the base's stored weights the payload is to be."""

LOSSLESS = "lossless"
"""The preset whose packs restore the fine-tune bit for bit."""

FEWEST_PROMPTS = 16
"""Prompts that calibration and a bound on the divergence need; fewer say little about a skill."""

HELD_OUT = 4
"""Every fourth prompt is kept from calibration where packs are measured on prompts."""

PRESETS = (LOSSLESS, *SIZES, *sorted(RECIPES))
"""All presets that a pack can be built by."""


@dataclass(frozen=True)
class Goal:
    """What a pack is to be.

    Attributes:
        preset: what the manifest is to call it: one of :data:`PRESETS`, ``budget`` or ``max-kl``.
        budget: bytes of payload at most; None where the preset decides.
        recipe: the published recipe that the preset is.
        max_kl: largest divergence from the fine-tune, in nats a predicted token.
    """

    preset: str
    budget: int | None = None
    recipe: ChosenRecipe | None = None
    max_kl: float | None = None

    @property
    def is_calibrated(self) -> bool:
        """Whether it matters what the fine-tune's layers see of prompts."""
        return self.preset != LOSSLESS and (self.recipe is None or self.recipe.is_calibrated)

    def split(self, prompts: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
        """Return the prompts to calibrate on, and those to measure on.

        Raises:
            UsageError: a divergence is to be measured, and there are too few prompts.
        """
        if self.max_kl is None:
            return prompts, ()
        distinct = list(dict.fromkeys(prompts))
        if len(distinct) < FEWEST_PROMPTS:
            raise UsageError(
                "A bound on the divergence is measured on what the fine-tune answers to prompts: it takes "
                f"{FEWEST_PROMPTS} different ones or more, and there are {len(distinct)}.",
                hint="Give them with --prompts, or in the author's file.",
            )
        kept = [prompt for number, prompt in enumerate(distinct) if (number + 1) % HELD_OUT]
        return kept, distinct[HELD_OUT - 1 :: HELD_OUT]

    @property
    def facts(self) -> dict[str, str]:
        """What a manifest's provenance says of it: options that are not those of a recipe's paper."""
        told = self.recipe.told if self.recipe else {}
        return {"recipe_options": ", ".join(f"{name}={value:g}" for name, value in told.items())} if told else {}


def choose_goal(
    preset: str,
    budget: int | None = None,
    recipe_options: Mapping[str, object] | None = None,
    max_kl: float | None = None,
) -> Goal:
    """Return what a pack is to be.

    Args:
        preset: one of :data:`PRESETS`.
        budget: bytes of payload, instead of a preset's.
        recipe_options: of a recipe, as for :func:`skillhub.recipes.choose_recipe`.
        max_kl: largest divergence, instead of a preset's size.

    Raises:
        UsageError: there is no such preset or option of it, or what was given does not go together.
    """
    if preset not in PRESETS:
        raise UsageError(f"There is no preset {preset!r}.", hint=f"Choose one of {', '.join(PRESETS)}.")
    if (budget is not None or max_kl is not None) and preset not in SIZES:
        raise UsageError(
            f"The preset {preset} has no size to choose.", hint="Give a preset, or a budget, or a largest divergence."
        )
    if budget is not None and max_kl is not None:
        raise UsageError("A budget and a largest divergence both say how small the pack is to be.", hint="Give one.")
    if max_kl is not None and not 0 < max_kl < math.inf:
        raise UsageError(
            f"The largest divergence cannot be {max_kl}.", hint="It is a number above 0, in nats a predicted token."
        )
    if preset in RECIPES:
        return Goal(preset, recipe=choose_recipe(preset, recipe_options))
    if recipe_options:
        raise UsageError(
            "Recipe options say how a published recipe compresses, and none was chosen.",
            hint=f"Leave them out, or choose one of the presets {', '.join(sorted(RECIPES))}.",
        )
    if max_kl is not None:
        return Goal("max-kl", max_kl=max_kl)
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
