"""The model card of a fused checkpoint: what it was made of, so that anyone can make it again."""

from __future__ import annotations

import json
import re

from skillhub.adapters import Adapter
from skillhub.bases import LocatedBase
from skillhub.compose.methods import METHODS
from skillhub.compose.recipes import Recipe, WeightedPack
from skillhub.compose.schedules import Schedule
from skillhub.compose.tunedcheckpoints import TunedCheckpoint
from skillhub.packs import Pack
from skillhub.redaction import printable

CARD_FILE = "README.md"


def model_card(base: LocatedBase, recipe: Recipe, fingerprint: str | None, *, dtype: str | None = None) -> str:
    """Return the card (Markdown with the Hub's metadata) of a checkpoint.

    Args:
        base: where the base was found; of a folder only its name is shown.
        recipe: what was composed.
        fingerprint: of the base, where it is known.
        dtype: tag of the dtype that the weights were written in, where that was asked for.
    """
    repository, revision = _base_repository(base, recipe, fingerprint)
    folder = (base.folder.parent if base.folder.is_file() else base.folder).resolve()
    name = repository or cell_text(folder.name) or "A base model"
    exactly = not recipe.adapters
    return "\n".join(
        [
            *_metadata(repository, recipe),
            f"# {name} with {', '.join(cell_text(str(item.pack.name)) for item in recipe.packs)}",
            "",
            f"A base model with {_kinds(recipe)} fused into its weights by "
            "[skillhub](https://pypi.org/project/skillhub-packs/).",
            "",
            f"- base: {name}{f' at {revision}' if revision else ''}"
            + (f", fingerprint `{fingerprint}`" if fingerprint else ""),
            *_settings(recipe, dtype),
            "",
            "| Source | Kind | Version | Weight | Density | Digest |",
            "|---|---|---|---|---|---|",
            *map(_row, recipe.packs),
            "",
            f"The same sources, weights and method give the same {'bytes' if exactly else 'weights up to rounding'}.",
            "",
        ]
    )


def _metadata(repository: str | None, recipe: Recipe) -> list[str]:
    """Return the front matter: every model of the Hub that the checkpoint was made of, the base first."""
    tuned = [one.located.repo for one in recipe.checkpoints if one.located.repo]
    bases = [repo for repo in dict.fromkeys([repository, *tuned]) if repo]
    lines = ["---", "library_name: transformers", "tags:", "- skillhub", "- merge"]
    if len(bases) == 1:
        lines.append(f"base_model: {json.dumps(bases[0])}")
    elif bases:
        lines += ["base_model:", *(f"- {json.dumps(repo)}" for repo in bases)]
    return [*lines, *(["base_model_relation: merge"] if bases else []), "---", ""]


def _kinds(recipe: Recipe) -> str:
    kinds = {
        "SkillPacks": recipe.skill_packs,
        "adapters": recipe.adapters,
        "fine-tuned checkpoints": recipe.checkpoints,
    }
    return " and ".join(kind for kind, found in kinds.items() if found)


def _settings(recipe: Recipe, dtype: str | None) -> list[str]:
    method = METHODS[recipe.method]
    options = ", ".join(f"{name} {value:g}" for name, value in recipe.options.items())
    return [
        f"- method: {method.name} ({method.source}), rounding: {recipe.rounding}",
        *([f"- options: {options}"] if options else []),
        *([f"- seed: {recipe.seed}"] if recipe.seed else []),
        *([f"- dtype: {dtype}"] if dtype else []),
    ]


def _row(item: WeightedPack) -> str:
    pack = item.pack
    kind = {Pack: "pack", Adapter: "adapter", TunedCheckpoint: "checkpoint"}[type(pack)]
    version = pack.manifest.version if isinstance(pack, Pack) else pack.version or "-"
    return f"| {cell_text(str(pack.name))} | {kind} | {version} | {_cell(item.weight)} | {_cell(item.density)} | `{pack.digest}` |"


def _cell(amount: float | Schedule) -> str:
    return cell_text(f"{amount:g}")


def cell_text(text: str) -> str:
    """Return a text as it can stand in a cell of a Markdown table without meaning anything there: folders may have any name."""
    return re.sub(r"([|<>`\\\[\]])", r"\\\1", printable(" ".join(text.split())))


def _base_repository(base: LocatedBase, recipe: Recipe, fingerprint: str | None) -> tuple[str | None, str | None]:
    """Return repository and revision of the base: where it was fetched from, else as the packs say."""
    if base.repo:
        return base.repo, base.revision
    for pack in recipe.skill_packs[:1] if fingerprint else []:
        variant = pack.variant_for(fingerprint or "")
        return variant.base.repo, variant.base.revision
    return None, None  # what an adapter declares is not what was found
