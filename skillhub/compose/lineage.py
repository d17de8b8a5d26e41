"""The model card of a fused checkpoint: what it was made of, so that anyone can make it again."""

from __future__ import annotations

import json

from skillhub.bases import LocatedBase
from skillhub.compose.methods import METHODS
from skillhub.compose.recipes import Recipe, WeightedPack
from skillhub.packs import Pack

CARD_FILE = "README.md"


def model_card(base: LocatedBase, recipe: Recipe, fingerprint: str) -> str:
    """Return the card (Markdown with the Hub's metadata) of a checkpoint.

    Args:
        base: where the base was found; of a folder only its name is shown.
        recipe: what was composed.
        fingerprint: of the base.
    """
    repository, revision = _base_repository(base, recipe, fingerprint)
    metadata = ["library_name: transformers", "tags:", "- skillhub", "- merge"]
    if repository:
        metadata += [f"base_model: {json.dumps(repository)}", "base_model_relation: merge"]
    folder = (base.folder.parent if base.folder.is_file() else base.folder).resolve()
    name = repository or folder.name or "A base model"
    method = METHODS[recipe.method]
    rows = "\n".join(_row(item) for item in recipe.packs)
    return "\n".join(
        [
            "---",
            *metadata,
            "---",
            "",
            f"# {name} with {', '.join(str(item.pack.name) for item in recipe.packs)}",
            "",
            "A base model with SkillPacks fused into its weights by [skillhub](https://pypi.org/project/skillhub-packs/).",
            "",
            f"- base: {name}{f' at {revision}' if revision else ''}, fingerprint `{fingerprint}`",
            f"- method: {method.name} ({method.source}), rounding: {recipe.rounding}",
            "",
            "| Pack | Version | Weight | Density | Digest |",
            "|---|---|---|---|---|",
            rows,
            "",
            "The same packs, weights and method give the same weights up to rounding."
            if recipe.adapters
            else "The same packs, weights and method give the same bytes.",
            "",
        ]
    )


def _row(item: WeightedPack) -> str:
    pack = item.pack
    version = pack.manifest.version if isinstance(pack, Pack) else pack.version or "-"
    return f"| {pack.name} | {version} | {item.weight:g} | {item.density:g} | `{pack.digest}` |"


def _base_repository(base: LocatedBase, recipe: Recipe, fingerprint: str) -> tuple[str | None, str | None]:
    """Return repository and revision of the base: where it was fetched from, else as the packs say."""
    if base.repo:
        return base.repo, base.revision
    for pack in recipe.skill_packs[:1]:
        variant = pack.variant_for(fingerprint)
        return variant.base.repo, variant.base.revision
    return None, None  # what an adapter declares is not what was found
