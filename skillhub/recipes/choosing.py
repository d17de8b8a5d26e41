"""Recipes as presets of packing: which there are, the options that each takes, and what it leaves as it is."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from skillhub.canonical import is_vocabulary_tensor
from skillhub.codecs.lowrank import MAX_RANK
from skillhub.errors import UsageError
from skillhub.recipes import bitdelta, deltacome, graftllm, svdlora
from skillhub.recipes.encoding import Compressed, Recipe, keep_exactly

_EMBEDDING = re.compile(r"embed|\bwpe\b")
"""Tables of tokens, positions or segments, by their names."""


@dataclass(frozen=True)
class Option:
    """A number that a recipe may be told.

    Attributes:
        least: the smallest it may be, which only a whole number may also equal, unless ``zero_too``.
        most: the largest.
        is_whole: whether it is a count.
        zero_too: whether it may be 0.
    """

    least: float
    most: float
    is_whole: bool = False
    zero_too: bool = False

    def read(self, value: object) -> float | None:
        """Return the number that a value or its text is, or None where that is none which will do."""
        try:
            number = float(str(value))
        except ValueError:
            return None
        if self.is_whole:
            return int(number) if number.is_integer() and self.least <= number <= self.most else None
        fits = self.least < number <= self.most or (self.zero_too and number == 0)
        return number if fits and math.isfinite(number) else None


RANK = Option(1, MAX_RANK, is_whole=True)


@dataclass(frozen=True)
class _Preset:
    """A recipe and what may be chosen about it.

    Attributes:
        compress: takes name, delta, second moment and the options.
        paper: the options of its paper, a dataclass; None where there are none.
        options: its fields that may be given.
        is_calibrated: whether second moments of inputs are used.
        keeps_embeddings: whether the paper leaves embeddings and output head as they are.
    """

    compress: Callable[..., Compressed]
    paper: Any = None
    options: tuple[tuple[str, Option], ...] = ()
    is_calibrated: bool = False
    keeps_embeddings: bool = False


_PRESETS = {
    "bitdelta": _Preset(bitdelta.compress, keeps_embeddings=True),
    "delta-come": _Preset(
        deltacome.compress,
        deltacome.PAPER,
        (("bits_per_weight", Option(0, 16)), ("rank", RANK)),
        is_calibrated=True,
        keeps_embeddings=True,
    ),
    "graftllm": _Preset(
        graftllm.compress,
        graftllm.PAPER,
        (
            ("embedding_share", Option(0, 1, zero_too=True)),
            ("mlp_energy", Option(0, 1)),
            ("attention_rank", Option(0, 1)),
        ),
        is_calibrated=True,
    ),
    "svd-lora": _Preset(svdlora.compress, svdlora.COMMON, (("rank", RANK),)),
}

NAMES = tuple(_PRESETS)
"""Names of the presets."""


@dataclass(frozen=True)
class ChosenRecipe:
    """A recipe with its options.

    Attributes:
        name: of the preset.
        compress: the recipe, for every tensor of a model.
        is_calibrated: whether it uses second moments of inputs where they are known.
        told: option → number, of those that are not the paper's.
    """

    name: str
    compress: Recipe
    is_calibrated: bool
    told: Mapping[str, float]


def choose_recipe(name: str, options: Mapping[str, object] | None = None) -> ChosenRecipe:
    """Return a recipe as it is to be used.

    Delta-CoMe and BitDelta leave embeddings (of tokens, positions and segments) and the output head as they are: their
    differences are then kept exactly. GraftLLM prunes them, and ``svd-lora`` gives them the rank of every other matrix.

    Args:
        name: one of :data:`NAMES`.
        options: number, or its text, by the option's name, with underscores or hyphens. ``graftllm``: ``embedding_share`` (α),
            ``mlp_energy`` (β), ``attention_rank`` (over a matrix's shorter side). ``delta-come``: ``bits_per_weight``, or ``rank``
            instead. ``svd-lora``: ``rank``.

    Raises:
        UsageError: the recipe has no such option, or it may not be that number.
    """
    preset, known, told = _PRESETS[name], dict(_PRESETS[name].options), {}
    for option, value in (options or {}).items():
        field = option.replace("-", "_")
        if field not in known:
            offered = ", ".join(map(_spelled, known)) or "no options"
            raise UsageError(f"The recipe {name} has no option {option!r}.", hint=f"It has {offered}.")
        number = known[field].read(value)
        if number is None:
            raise UsageError(
                f"{_spelled(field)} of the recipe {name} cannot be {value}.", hint=_range_text(field, known[field])
            )
        told[field] = number
    compress = preset.compress
    if told:
        compress = partial(compress, options=type(preset.paper)(**told))
    if preset.keeps_embeddings:
        compress = partial(_compress_layers, compress)
    return ChosenRecipe(name, compress, preset.is_calibrated, told)


def is_embedding(name: str) -> bool:
    """Say whether a canonical name is that of an embedding, of tokens, positions or segments, or of an output head."""
    return is_vocabulary_tensor(name) or (name.endswith(".weight") and bool(_EMBEDDING.search(name)))


def _compress_layers(
    compress: Recipe, name: str, delta: torch.Tensor, second_moment: torch.Tensor | None = None
) -> Compressed:
    """Compress what is not an embedding."""
    return keep_exactly(delta) if is_embedding(name) else compress(name, delta, second_moment)


def _spelled(field: str) -> str:
    return field.replace("_", "-")


def _range_text(field: str, option: Option) -> str:
    kind = "a whole number" if option.is_whole else "a number"
    above = "from 0" if option.zero_too else f"from {option.least:g}" if option.is_whole else f"above {option.least:g}"
    return f"{_spelled(field)} is {kind} {above} to {option.most:g}."
