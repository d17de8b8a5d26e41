"""Which of the packs on a model a caller means, and which weights they are to have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from skillhub.adapters import Adapter
from skillhub.compose.graftstates import check_recipe
from skillhub.compose.packsources import ADAPTER_PREFIX, PackSource, open_folder
from skillhub.compose.recipes import Recipe, WeightedPack
from skillhub.compose.schedules import Amount, read_amount
from skillhub.compose.tunedcheckpoints import CHECKPOINT_PREFIX, TunedCheckpoint, open_tuned
from skillhub.errors import NotFoundError, UsageError
from skillhub.files import expanded
from skillhub.names import is_folder, parse_pack_name
from skillhub.packs import Pack


def grafted_digest(recipe: Recipe, pack: PackSource) -> str:
    """Return the digest of the grafted pack that the caller means: by its name, its folder, or the opened pack.

    Raises:
        UsageError: it is no pack, or a name means several.
        NotFoundError: the pack is not in the recipe.
    """
    if not isinstance(pack, (str, Path, Pack, Adapter, TunedCheckpoint)):
        raise UsageError(f"{pack!r} is not a pack.", hint="Give its name, its folder, or the opened pack.")
    if isinstance(pack, (Pack, Adapter, TunedCheckpoint)):
        matches = [pack.digest]
    elif isinstance(pack, str) and pack.startswith(CHECKPOINT_PREFIX):
        matches = [open_tuned(pack).digest]
    elif isinstance(pack, Path) or is_folder(pack):
        matches = [open_folder(expanded(pack)).digest]
    else:
        wanted = parse_pack_name(pack.removeprefix(ADAPTER_PREFIX))
        found = [item.pack for item in recipe.packs if wanted.matches(item.pack.name)]
        exact = [one for one in found if one.name == wanted]  # as installed packs are looked up
        matches = [one.digest for one in exact or found]
    if len(matches) > 1:
        raise UsageError(
            f"Several grafted packs are called {pack}.", hint="Give the pack's folder, or the opened pack."
        )
    present = [digest for digest in matches if digest in recipe.digests]
    if not present:
        names = ", ".join(str(item.pack) for item in recipe.packs)
        raise NotFoundError(f"{pack} is not grafted onto this model.", hint=f"These packs are: {names}.")
    return present[0]


def reweighed(recipe: Recipe, weights: Mapping[PackSource, Amount]) -> Recipe:
    """Return a recipe in which some packs have other weights.

    Raises:
        UsageError: a name means several packs, a weight is none, or the method does not use weights.
        NotFoundError: a pack is not in the recipe.
    """
    if not isinstance(weights, Mapping):
        raise UsageError("weights must say which pack has which.", hint='Write {"math-pack": 0.5}.')
    changes = {grafted_digest(recipe, pack): read_amount("weights", value) for pack, value in weights.items()}

    def weighed(item: WeightedPack) -> WeightedPack:
        return replace(item, weight=changes.get(item.pack.digest, item.weight))

    return check_recipe(replace(recipe, packs=tuple(map(weighed, recipe.packs))))
