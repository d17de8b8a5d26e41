"""Which of the packs on a model a caller means."""

from __future__ import annotations

from pathlib import Path

from skillhub.adapters import Adapter
from skillhub.compose.recipes import ADAPTER_PREFIX, PackSource, Recipe, open_folder
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
    if not isinstance(pack, (str, Path, Pack, Adapter)):
        raise UsageError(f"{pack!r} is not a pack.", hint="Give its name, its folder, or the opened pack.")
    if isinstance(pack, (Pack, Adapter)):
        matches = [pack.digest]
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
